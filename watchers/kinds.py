"""What is watched: one row of data for each kind, so that a new kind is a row and not code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.keys import ObjectKey
from eventcore.kube import JSON, METADATA, METADATA_LIST, api_path
from eventcore.kube_paths import object_path
from eventcore.objects import CAPSULE_GROUP, LABEL_COMPONENT, Meta

if TYPE_CHECKING:
    from eventcore.settings import Settings

_RBAC_GROUP: Final = "rbac.authorization.k8s.io"


class KindRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind: where the API server has it, which of its objects are read, and how much of each.

    ``kind`` is the kind on the bus, a key of ``eventcore.objects.KINDS``. With ``name`` only the object of that name in
    ``namespace`` is read, with ``label`` only the objects that carry that label. A row with ``metadata_only`` asks the
    API server for PartialObjectMetadata, so the rest never leaves it. An ``optional`` kind comes with a
    CustomResourceDefinition that may not be there.
    """

    kind: str
    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    label: str = ""
    metadata_only: bool = False
    optional: bool = False

    @property
    def resource(self) -> str:
        """The resource as a person names it in a ClusterRole: ``tenants.capsule.clastix.io``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def accept(self) -> str:
        """The Accept header of a GET and a watch."""
        return METADATA if self.metadata_only else JSON

    @property
    def accept_list(self) -> str:
        """The Accept header of a list."""
        return METADATA_LIST if self.metadata_only else JSON

    def path(self) -> str:
        """Return the path of the collection that is listed and watched."""
        return api_path(self.group, self.version, self.plural, namespace=self.namespace)

    def object_path(self, target: ObjectKey) -> str:
        """Return the path of one object of this kind."""
        return object_path(self.group, self.version, self.plural, target.name, namespace=target.namespace)

    def params(self) -> dict[str, str]:
        """Return the selectors of a list and a watch."""
        params: dict[str, str] = {}
        if self.name:
            params["fieldSelector"] = f"metadata.name={self.name}"
        if self.label:
            params["labelSelector"] = self.label
        return params

    def selects(self, meta: Meta) -> bool:
        """Tell whether an object of this kind is one that this row reads; a GET knows no selectors."""
        return (
            (not self.namespace or meta.namespace == self.namespace)
            and (not self.name or meta.name == self.name)
            and (not self.label or self.label in meta.labels)
        )

    def key(self, meta: Meta) -> ObjectKey:
        """Return the key on the bus of an object of this kind."""
        return ObjectKey(self.kind, meta.namespace, meta.name)


def rows(settings: Settings) -> tuple[KindRow, ...]:
    """Return every kind that a watcher follows under these settings."""
    return (
        KindRow(kind="Namespace", group="", version="v1", plural="namespaces"),
        KindRow(kind="ServiceAccount", group="", version="v1", plural="serviceaccounts"),
        _capsule("Tenant", "tenants"),
        _capsule("TenantOwner", "tenantowners"),
        _capsule("CapsuleConfiguration", "capsuleconfigurations"),
        _capsule("ProxySetting", "proxysettings", version="v1beta1"),
        _capsule("GlobalProxySettings", "globalproxysettings", version="v1beta1"),
        _ours("Secret", "", "secrets"),
        _ours("RoleBinding", _RBAC_GROUP, "rolebindings"),
        _ours("ClusterRole", _RBAC_GROUP, "clusterroles"),
        _ours("ClusterRoleBinding", _RBAC_GROUP, "clusterrolebindings"),
        _authority(settings),
        *([_ours("ConfigMap", "", "configmaps")] if settings.kubeconfig_configmaps else []),
        *_rights(settings),
    )


def _rights(settings: Settings) -> list[KindRow]:
    """The RBAC objects of everybody, where their changes decide: whom RoleBindings name, and when rights changed."""
    found: list[KindRow] = []
    if settings.enable_reflector or settings.proxy_all_namespaced:
        found.append(KindRow(kind="AnyRoleBinding", group=_RBAC_GROUP, version="v1", plural="rolebindings"))
    if settings.proxy_all_namespaced:
        plurals = {"AnyRole": "roles", "AnyClusterRole": "clusterroles", "AnyClusterRoleBinding": "clusterrolebindings"}
        found += [
            KindRow(kind=kind, group=_RBAC_GROUP, version="v1", plural=plural, metadata_only=True)
            for kind, plural in plurals.items()
        ]
    return found


def _capsule(kind: str, plural: str, *, version: str = "v1beta2") -> KindRow:
    return KindRow(kind=kind, group=CAPSULE_GROUP, version=version, plural=plural, optional=True)


def _authority(settings: Settings) -> KindRow:
    """The one object that holds the proxy's CA."""
    kind, name = settings.ca_source()
    return KindRow(
        kind=f"CA{kind}",
        group="",
        version="v1",
        plural=f"{kind.lower()}s",
        namespace=settings.proxy_ca_namespace,
        name=name,
        metadata_only=True,
    )


def _ours(kind: str, group: str, plural: str) -> KindRow:
    return KindRow(kind=kind, group=group, version="v1", plural=plural, label=LABEL_COMPONENT, metadata_only=True)
