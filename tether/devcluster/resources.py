"""Which kinds the embedded API serves: the built-in rows, and those that CustomResourceDefinitions add and remove."""

from __future__ import annotations

from typing import Any

import msgspec

from tether.devcluster.contracts import Object, Resource

RBAC = "rbac.authorization.k8s.io"
AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
EXTENSIONS = "apiextensions.k8s.io"


def _row(group: str, plural: str, kind: str, *, short: str = "", sub: str = "status", **more: Any) -> Resource:
    more.setdefault("namespaced", True)
    return Resource(
        group=group,
        version=more.pop("version", "v1"),
        plural=plural,
        kind=kind,
        singular=kind.lower(),
        short_names=tuple(short.split()),
        subresources=tuple(sub.split()),
        categories=tuple(more.pop("categories", "").split()),
        **more,
    )


def _virtual(group: str, plural: str, kind: str, *, namespaced: bool = False) -> Resource:
    return _row(group, plural, kind, sub="", namespaced=namespaced, verbs=("create",))


BUILT_IN: tuple[Resource, ...] = (
    _row(
        "",
        "namespaces",
        "Namespace",
        short="ns",
        sub="status finalize",
        namespaced=False,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),  # one by one alone
    ),
    _row("", "serviceaccounts", "ServiceAccount", short="sa", sub="token"),
    _row("", "secrets", "Secret", sub=""),
    _row("", "configmaps", "ConfigMap", short="cm", sub=""),
    _row("", "events", "Event", short="ev", sub=""),
    _row("", "pods", "Pod", short="po", categories="all"),
    _row("", "services", "Service", short="svc", categories="all"),
    _row("", "endpoints", "Endpoints", short="ep", sub=""),
    _row("", "nodes", "Node", short="no", namespaced=False),
    _row("", "persistentvolumes", "PersistentVolume", short="pv", namespaced=False),
    _row("", "persistentvolumeclaims", "PersistentVolumeClaim", short="pvc"),
    _row("", "resourcequotas", "ResourceQuota", short="quota"),
    _row("", "limitranges", "LimitRange", short="limits", sub=""),
    _row("apps", "deployments", "Deployment", short="deploy", categories="all"),
    _row("apps", "replicasets", "ReplicaSet", short="rs", categories="all"),
    _row("apps", "statefulsets", "StatefulSet", short="sts", categories="all"),
    _row("apps", "daemonsets", "DaemonSet", short="ds", categories="all"),
    _row("batch", "jobs", "Job", categories="all"),
    _row("batch", "cronjobs", "CronJob", short="cj", categories="all"),
    _row(RBAC, "roles", "Role", sub=""),
    _row(RBAC, "rolebindings", "RoleBinding", sub=""),
    _row(RBAC, "clusterroles", "ClusterRole", sub="", namespaced=False),
    _row(RBAC, "clusterrolebindings", "ClusterRoleBinding", sub="", namespaced=False),
    _row(
        EXTENSIONS,
        "customresourcedefinitions",
        "CustomResourceDefinition",
        short="crd crds",
        categories="api-extensions",
        namespaced=False,
    ),
    _row("storage.k8s.io", "storageclasses", "StorageClass", short="sc", sub="", namespaced=False),
    _row("networking.k8s.io", "ingressclasses", "IngressClass", sub="", namespaced=False),
    _row("networking.k8s.io", "ingresses", "Ingress", short="ing"),
    _row("networking.k8s.io", "networkpolicies", "NetworkPolicy", short="netpol", sub=""),
    _row("policy", "poddisruptionbudgets", "PodDisruptionBudget", short="pdb"),
    _row("scheduling.k8s.io", "priorityclasses", "PriorityClass", short="pc", sub="", namespaced=False),
    _row("node.k8s.io", "runtimeclasses", "RuntimeClass", sub="", namespaced=False),
    _row("coordination.k8s.io", "leases", "Lease", sub=""),
    _virtual(AUTHENTICATION, "tokenreviews", "TokenReview"),
    _virtual(AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview"),
    _virtual(AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview"),
    _virtual(AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    _virtual(AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    _virtual(AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview", namespaced=True),
)

# The built-in kinds whose metadata.generation counts changes of the specification; of the others it is absent.
_WITH_GENERATION = frozenset({"apps", "batch", "networking.k8s.io", "policy", EXTENSIONS})

_BY_KEY = {(row.group, row.plural): row for row in BUILT_IN}

NAMESPACES = _BY_KEY["", "namespaces"]
SECRETS = _BY_KEY["", "secrets"]
CONFIG_MAPS = _BY_KEY["", "configmaps"]
SERVICE_ACCOUNTS = _BY_KEY["", "serviceaccounts"]
CRDS = _BY_KEY[EXTENSIONS, "customresourcedefinitions"]


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One served version of a kind; ``schema`` is the openAPIV3Schema of a custom one, {} of a built-in one."""

    resource: Resource
    schema: Object = {}
    custom: bool = False
    storage: bool = True  # objects are kept, and handed to controllers, in this version


class Kinds:
    """Every kind that is served now, by group and plural; the versions of a kind stand in order of preference."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], tuple[Served, ...]] = {
            (row.group, row.plural): (Served(resource=row),) for row in BUILT_IN
        }

    def serve(self, versions: tuple[Served, ...]) -> None:
        """Serve the versions of a custom kind, in place of those before."""
        first = versions[0].resource
        if not is_built_in(first):
            self._kinds[first.group, first.plural] = versions

    def withdraw(self, group: str, plural: str) -> None:
        """Serve a custom kind no longer."""
        if (group, plural) not in _BY_KEY:
            self._kinds.pop((group, plural), None)

    def find(self, group: str, version: str, plural: str) -> Served | None:
        """Return a kind in exactly this version, or None."""
        for served in self._kinds.get((group, plural), ()):
            if served.resource.version == version:
                return served
        return None

    def preferred(self, group: str, plural: str) -> Resource | None:
        """Return the version of a kind in which the store keeps it."""
        versions = self._kinds.get((group, plural), ())
        for served in versions:
            if served.storage:
                return served.resource
        return versions[0].resource if versions else None

    def stored(self) -> list[Resource]:
        """Return each kind once, as the store keeps it; reviews are not stored."""
        found = (self.preferred(*key) for key in self._kinds)
        return [resource for resource in found if resource is not None and "list" in resource.verbs]

    def all(self) -> list[Served]:
        """Return every served version of every kind."""
        return [served for versions in self._kinds.values() for served in versions]


def counts_generation(resource: Resource) -> bool:
    """Whether objects of this kind carry metadata.generation."""
    return not is_built_in(resource) or resource.group in _WITH_GENERATION


def is_built_in(resource: Resource) -> bool:
    """Whether the kind is Kubernetes' own and not made by a CustomResourceDefinition."""
    return (resource.group, resource.plural) in _BY_KEY
