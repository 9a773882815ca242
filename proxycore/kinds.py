"""The cluster-scoped kinds of which tenants see their own objects, one row of data each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from eventcore.objects import CAPSULE_GROUP

if TYPE_CHECKING:
    from proxycore.requestinfo import RequestInfo


class ProxiedKind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind. ``setting`` is its name in proxySettings; ``by_node``: judged by the Node of the same name.

    ``version`` is that of the request, and in `KINDS` the one that is asked where a question names none; every served
    version is proxied. ``namespace``: where its objects are, if they are in one. ``optional``: the proxy's account may
    lack the right to read it, and then RBAC answers the caller.
    """

    setting: str
    group: str
    resource: str
    version: str = "v1"
    by_node: bool = False
    namespace: str = ""
    optional: bool = False

    @property
    def path(self) -> str:
        """The path of the collection."""
        prefix = f"/apis/{quote(self.group, safe='')}" if self.group else "/api"
        inside = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{prefix}/{quote(self.version, safe='')}{inside}/{quote(self.resource, safe='')}"

    @property
    def verbs(self) -> frozenset[str]:
        """The verbs that the proxy decides about; any other is forwarded as the caller."""
        if self.namespace:
            return frozenset({"get"})
        if self.setting in _READ_ONLY:
            return frozenset({"get", "list", "watch"})
        if self.by_node:
            return frozenset({"get", "list"})
        return frozenset({"get", "list", "watch", "update", "patch", "delete"})

    @property
    def discovered(self) -> bool:
        """Whether nobody knows that the kind is cluster-scoped until the API server says so."""
        return self.setting == BY_RULE


TENANT: Final = "Tenant"
NODES: Final = "Nodes"
VOLUMES: Final = "PersistentVolumes"
NAMESPACES: Final = "Namespaces"
"""No name in proxySettings: they come with the tenants, and here they are only for who has a rule about them too."""
BY_RULE: Final = ""
"""Of every kind that clusterResources alone speak of."""
_READ_ONLY: Final = frozenset({TENANT, NAMESPACES, BY_RULE})

KINDS: Final = (
    ProxiedKind(setting=TENANT, group=CAPSULE_GROUP, version="v1beta2", resource="tenants"),
    ProxiedKind(setting=NODES, group="", resource="nodes"),
    ProxiedKind(setting=NODES, group="metrics.k8s.io", version="v1beta1", resource="nodes", by_node=True),
    ProxiedKind(setting=VOLUMES, group="", resource="persistentvolumes"),
    ProxiedKind(setting="StorageClasses", group="storage.k8s.io", resource="storageclasses"),
    ProxiedKind(setting="IngressClasses", group="networking.k8s.io", resource="ingressclasses"),
    ProxiedKind(setting="PriorityClasses", group="scheduling.k8s.io", resource="priorityclasses"),
    ProxiedKind(setting="RuntimeClasses", group="node.k8s.io", resource="runtimeclasses"),
    ProxiedKind(setting="GatewayClasses", group="gateway.networking.k8s.io", resource="gatewayclasses"),
    ProxiedKind(setting="DeviceClasses", group="resource.k8s.io", resource="deviceclasses"),
)
NAMESPACE_KIND: Final = ProxiedKind(setting=NAMESPACES, group="", resource="namespaces")
NODE_LEASE: Final = ProxiedKind(
    setting=NODES,
    group="coordination.k8s.io",
    resource="leases",
    namespace="kube-node-lease",
    by_node=True,
    optional=True,
)
"""``kubectl describe node`` reads the node's own lease."""
_BY_RESOURCE: Final = {(kind.group, kind.resource): kind for kind in KINDS}


def kind_of(info: RequestInfo) -> ProxiedKind | None:
    """Return the kind of the table that a request is about, in the version that it asks for.

    None for a subresource and for everything else; Namespaces have a way of their own.
    """
    if not _is_of_a_kind(info):
        return None
    if info.namespace:
        lease = NODE_LEASE
        is_lease = (info.group, info.resource, info.namespace) == (lease.group, lease.resource, lease.namespace)
        return msgspec.structs.replace(lease, version=info.version) if is_lease else None
    known = _BY_RESOURCE.get((info.group, info.resource))
    return known and msgspec.structs.replace(known, version=info.version)


def ruled_kind_of(info: RequestInfo) -> ProxiedKind | None:
    """Return the kind that a request may be about if rules speak of it: any other one outside of namespaces."""
    if not _is_of_a_kind(info) or info.namespace or (info.group, info.resource) == ("", "namespaces"):
        return None
    return kind_named(info.group, info.resource, info.version)


def kind_named(group: str, resource: str, version: str) -> ProxiedKind:
    """Return the kind of a group and a resource."""
    if (known := _BY_RESOURCE.get((group, resource))) is not None:
        return msgspec.structs.replace(known, version=version)
    return ProxiedKind(setting=BY_RULE, group=group, resource=resource, version=version)


def _is_of_a_kind(info: RequestInfo) -> bool:
    return info.is_resource and not info.subresource and (info.prefix == "api") == (info.group == "")
