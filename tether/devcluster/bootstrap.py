"""What a fresh cluster holds before anybody used it: the first namespaces, and Kubernetes' own roles and bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tether.devcluster.objects import clone, labels_of, metadata, name_of
from tether.devcluster.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, aggregated_rules
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES, RBAC

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object, Resource
    from tether.devcluster.store import Store

FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease", "capsule-system")

_AGGREGATE = f"{RBAC}/aggregate-to-"
_DEFAULTS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_READ = "get list watch"
_WRITE = "create delete deletecollection patch update"

# Rows of (API groups, resources, verbs), words apart by spaces; "core" is the group without a name.
_Rows = tuple[tuple[str, str, str], ...]

_WORKLOADS = "deployments deployments/scale daemonsets replicasets replicasets/scale statefulsets statefulsets/scale"
_VIEW: _Rows = (
    (
        "core",
        (
            "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers "
            "replicationcontrollers/scale serviceaccounts services services/status"
        ),
        _READ,
    ),
    (
        "core",
        (
            "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status "
            "resourcequotas resourcequotas/status"
        ),
        _READ,
    ),
    ("core", "namespaces", _READ),
    ("discovery.k8s.io", "endpointslices", _READ),
    ("apps", f"controllerrevisions {_WORKLOADS}", _READ),
    ("apps", "daemonsets/status deployments/status replicasets/status statefulsets/status", _READ),
    ("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", _READ),
    ("batch", "cronjobs cronjobs/status jobs jobs/status", _READ),
    ("policy", "poddisruptionbudgets poddisruptionbudgets/status", _READ),
    ("networking.k8s.io", "ingresses ingresses/status networkpolicies", _READ),
)
_EDIT: _Rows = (
    ("core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", _READ),
    ("core", "serviceaccounts", "impersonate"),
    ("core", "pods pods/attach pods/exec pods/portforward pods/proxy", _WRITE),
    ("core", "pods/eviction", "create"),
    (
        "core",
        (
            "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets "
            "serviceaccounts services services/proxy"
        ),
        _WRITE,
    ),
    ("core", "serviceaccounts/token", "create"),
    ("apps", _WORKLOADS, _WRITE),
    ("autoscaling", "horizontalpodautoscalers", _WRITE),
    ("batch", "cronjobs jobs", _WRITE),
    ("policy", "poddisruptionbudgets", _WRITE),
    ("networking.k8s.io", "ingresses networkpolicies", _WRITE),
    ("coordination.k8s.io", "leases", f"{_WRITE} {_READ}"),
)
_ADMIN: _Rows = (
    ("authorization.k8s.io", "localsubjectaccessreviews", "create"),
    (RBAC, "rolebindings roles", f"{_WRITE} {_READ}"),
)
_BASIC_USER: _Rows = (
    ("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
)
_DELEGATOR: _Rows = (
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
)
_PUBLIC_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_DISCOVERY_PATHS = (
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    *_PUBLIC_PATHS[:3],
    "/openapi",
    "/openapi/*",
    *_PUBLIC_PATHS[3:],
)
_ISSUER_PATHS = ("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks")


def apply(store: Store) -> None:
    """Bring the store to this state: make what is missing, set Kubernetes' own roles to their rules. Repeatable."""
    for name in FIRST_NAMESPACES:
        if store.get(NAMESPACES, "", name) is None:
            store.create(NAMESPACES, {"metadata": {"name": name}})
    for role in cluster_roles():
        _set(store, CLUSTER_ROLES, role)
    for binding in cluster_role_bindings():
        _set(store, CLUSTER_ROLE_BINDINGS, binding)


def publish_client_ca(store: Store, bundle: str) -> None:
    """Say by which authorities clients are judged, where kube-apiserver says it."""
    name = "extension-apiserver-authentication"
    found = store.get(CONFIG_MAPS, "kube-system", name)
    data = {"client-ca-file": bundle}
    if found is None:
        store.create(CONFIG_MAPS, {"metadata": {"name": name, "namespace": "kube-system"}, "data": data})
    elif found.get("data") != data:
        store.update(CONFIG_MAPS, clone(found) | {"data": data})


def cluster_roles() -> list[Object]:
    """Return Kubernetes' own ClusterRoles; admin, edit and view are filled from the roles that they gather."""
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]
    roles = [
        _role("cluster-admin", everything),
        _role("system:aggregate-to-admin", _rules(_ADMIN), to="admin"),
        _role("system:aggregate-to-edit", _rules(_EDIT), to="edit"),
        _role("system:aggregate-to-view", _rules(_VIEW), to="view"),
        _role("system:basic-user", _rules(_BASIC_USER)),
        _role("system:auth-delegator", _rules(_DELEGATOR)),
        _role("system:discovery", [_paths(_DISCOVERY_PATHS)]),
        _role("system:public-info-viewer", [_paths(_PUBLIC_PATHS)]),
        _role("system:service-account-issuer-discovery", [_paths(_ISSUER_PATHS)]),
        _gathering("view", into="edit"),
        _gathering("edit", into="admin"),
        _gathering("admin"),
    ]
    for role in roles:
        rules = aggregated_rules(role, roles)
        if rules is not None:
            role["rules"] = rules
    return roles


def cluster_role_bindings() -> list[Object]:
    """Return the bindings of Kubernetes' own ClusterRoles."""
    return [
        _binding("cluster-admin", "system:masters"),
        _binding("system:basic-user", "system:authenticated"),
        _binding("system:discovery", "system:authenticated"),
        _binding("system:public-info-viewer", "system:authenticated", "system:unauthenticated"),
        _binding("system:service-account-issuer-discovery", "system:serviceaccounts"),
    ]


def _set(store: Store, resource: Resource, wanted: Object) -> None:
    found = store.get(resource, "", name_of(wanted))
    if found is None:
        store.create(resource, wanted)
        return
    new: Object = clone(found)
    metadata(new)["labels"] = labels_of(found) | labels_of(wanted)
    for field in ("rules", "aggregationRule", "subjects"):
        # What an administrator added through aggregation is gathered again by the controller.
        if field in wanted and not (field == "rules" and "aggregationRule" in wanted):
            new[field] = wanted[field]
    store.update(resource, new)


def _role(name: str, rules: list[Object], *, to: str = "") -> Object:
    labels = _DEFAULTS | ({f"{_AGGREGATE}{to}": "true"} if to else {})
    return {"metadata": {"name": name, "labels": labels}, "rules": rules}


def _gathering(name: str, *, into: str = "") -> Object:
    role = _role(name, [], to=into)
    role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {f"{_AGGREGATE}{name}": "true"}}]}
    return role


def _rules(rows: _Rows) -> list[Object]:
    return [
        {
            "apiGroups": ["" if group == "core" else group for group in groups.split()],
            "resources": resources.split(),
            "verbs": verbs.split(),
        }
        for groups, resources, verbs in rows
    ]


def _paths(paths: tuple[str, ...]) -> Object:
    return {"nonResourceURLs": list(paths), "verbs": ["get"]}


def _binding(role: str, *groups: str) -> Object:
    return {
        "metadata": {"name": role, "labels": dict(_DEFAULTS)},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group} for group in groups],
    }
