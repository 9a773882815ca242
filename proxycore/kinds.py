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

    ``version`` is the one that is asked where a question names none; every served version is proxied.
    """

    setting: str
    group: str
    resource: str
    version: str = "v1"
    by_node: bool = False

    def path(self, version: str) -> str:
        """Return the path of the collection in a version."""
        prefix = f"/apis/{self.group}" if self.group else "/api"
        return f"{prefix}/{quote(version, safe='')}/{self.resource}"

    @property
    def verbs(self) -> frozenset[str]:
        """The verbs that the proxy decides about; any other is forwarded as the caller."""
        if self.setting == TENANT:
            return frozenset({"get", "list", "watch"})
        if self.by_node:
            return frozenset({"get", "list"})
        return frozenset({"get", "list", "watch", "update", "patch", "delete"})


TENANT: Final = "Tenant"
NODES: Final = "Nodes"
VOLUMES: Final = "PersistentVolumes"

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
_BY_RESOURCE: Final = {(kind.group, kind.resource): kind for kind in KINDS}


def kind_of(info: RequestInfo) -> ProxiedKind | None:
    """Return the row that a request is about, None for a subresource and for everything else."""
    if not info.is_resource or info.subresource or info.namespace or (info.prefix == "api") != (info.group == ""):
        return None
    return _BY_RESOURCE.get((info.group, info.resource))
