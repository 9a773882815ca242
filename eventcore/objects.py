"""The Kubernetes objects that Tether reads, as small typed Structs.

Unknown fields are ignored and missing ones have defaults, so every served version of Capsule decodes. Field names are
the API's (camelCase on the wire).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from eventcore.errors import EventError

LABEL_COMPONENT: Final = "capsule-tether.io/component"
"""On every object of ours: rbac, token, kubeconfig or ca. Watchers select by its existence."""
ANNOTATION_ACCOUNT: Final = "capsule-tether.io/account"
"""On every object of ours but copies of the CA: ``<namespace>/<name>`` of the account that it was made for."""
ANNOTATION_TENANT: Final = "capsule-tether.io/tenant"
ANNOTATION_ENABLED: Final = "capsule.addon.fluxcd/enabled"
ANNOTATION_GLOBAL: Final = "capsule.addon.fluxcd/kubeconfig-global"
ANNOTATION_PROXY_URL: Final = "capsule-tether.io/proxy-url"
"""On a Tenant or a ServiceAccount: the server in its kubeconfigs."""
ANNOTATION_NAMESPACES: Final = "capsule-tether.io/kubeconfig-namespaces"
"""On a ServiceAccount: a label selector; of its tenants' namespaces only those get its kubeconfig."""
ANNOTATION_CONFIGMAP: Final = "capsule-tether.io/kubeconfig-configmap"
"""On a ServiceAccount: ``beside`` or ``instead`` of the kubeconfig Secrets, a ConfigMap at home."""
ANNOTATION_CLUSTER_RESOURCES: Final = "capsule-tether.io/cluster-resources"
"""On a Tenant, ``true``: the ProxySettings in its namespaces may name objects by ``clusterResources``."""
ANNOTATION_PROXY_CA: Final = "capsule-tether.io/proxy-ca"
"""On a Namespace: ``secret`` or ``configmap``, a copy of the proxy's CA there."""
COMPONENT_CA: Final = "ca"
"""LABEL_COMPONENT of such a copy, which is the only object of ours that was made for no account."""
LABEL_TENANT: Final = "capsule.clastix.io/tenant"
CAPSULE_GROUP: Final = "capsule.clastix.io"
CA_MEMORY: Final = "tether-proxy-ca"
"""The Secret beside the proxy's CA that remembers which CAs kubeconfigs trust."""
OWN_PREFIX: Final = "capsule-tether.io/"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base: immutable, camelCase on the wire."""


class OwnerReference(Struct, frozen=True):
    """metadata.ownerReferences[]."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""


class Meta(Struct, frozen=True):
    """metadata, the parts that Tether reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    finalizers: list[str] = []


class PartialObject(Struct, frozen=True):
    """An object of which only the metadata is read: Secrets and RBAC objects."""

    metadata: Meta


class ServiceAccount(Struct, frozen=True):
    """v1 ServiceAccount."""

    metadata: Meta


class NamespaceStatus(Struct, frozen=True):
    """status of a Namespace."""

    phase: str = "Active"


class Namespace(Struct, frozen=True):
    """v1 Namespace."""

    metadata: Meta
    status: NamespaceStatus = NamespaceStatus()

    @property
    def terminating(self) -> bool:
        return self.metadata.deletion_timestamp is not None or self.status.phase == "Terminating"


class LabelSelectorRequirement(Struct, frozen=True):
    """matchExpressions[]."""

    key: str
    operator: str
    values: list[str] = []


class LabelSelector(Struct, frozen=True):
    """metav1.LabelSelector."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelSelectorRequirement] = []


class ProxyOperations(Struct, frozen=True):
    """proxySettings[] of an owner: what it may do with the objects of a kind that its tenant may use."""

    kind: str = ""  # Nodes, StorageClasses, ...
    operations: list[str] = []  # List, Update, Delete


class TenantSpecOwner(Struct, frozen=True):
    """Tenant spec.owners[] and, without proxySettings, status.owners[]."""

    kind: str = "User"
    name: str = ""
    cluster_roles: list[str] = []
    proxy_settings: list[ProxyOperations] | None = None


class Subject(Struct, frozen=True):
    """rbac.authorization.k8s.io Subject."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    api_group: str = ""


class RoleBinding(Struct, frozen=True):
    """rbac.authorization.k8s.io/v1 RoleBinding: whom it names. Of the role nothing is read."""

    metadata: Meta
    subjects: list[Subject] | None = None


class AdditionalRoleBinding(Struct, frozen=True):
    """Tenant spec.additionalRoleBindings[]."""

    cluster_role_name: str = ""
    subjects: list[Subject] = []


class TenantPermissions(Struct, frozen=True):
    """Tenant spec.permissions."""

    match_owners: list[LabelSelector] = []
    allow_owner_promotion: bool | None = None  # Capsule 0.13 and later; its default holds within permissions alone


class AllowedClasses(Struct, frozen=True):
    """Which classes a tenant may use: by name, by regular expression (RE2) or by label."""

    allowed: list[str] | None = None
    allowed_regex: str = ""
    default: str = ""
    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class ClassOptions(Struct, frozen=True):
    """Tenant spec.ingressOptions and spec.gatewayOptions."""

    allowed_classes: AllowedClasses | None = None


class TenantSpec(Struct, frozen=True):
    """Tenant spec, the parts that Tether reads."""

    owners: list[TenantSpecOwner] = []
    permissions: TenantPermissions = TenantPermissions()
    additional_role_bindings: list[AdditionalRoleBinding] = []
    cordoned: bool = False
    node_selector: dict[str, str] | None = None
    storage_classes: AllowedClasses | None = None
    priority_classes: AllowedClasses | None = None
    runtime_classes: AllowedClasses | None = None
    device_classes: AllowedClasses | None = None
    ingress_options: ClassOptions | None = None
    gateway_options: ClassOptions | None = None


class TenantStatus(Struct, frozen=True):
    """Tenant status. ``owners`` is None where this Capsule does not serve it."""

    state: str = ""
    observed_generation: int = 0
    owners: list[TenantSpecOwner] | None = None


class Tenant(Struct, frozen=True):
    """capsule.clastix.io/v1beta2 Tenant."""

    metadata: Meta
    spec: TenantSpec = TenantSpec()
    status: TenantStatus = TenantStatus()


class CapsuleUser(Struct, frozen=True):
    """Whom a CapsuleConfiguration or a GlobalProxySettings names."""

    kind: str = "Group"
    name: str = ""


class ClusterResource(Struct, frozen=True):
    """clusterResources[] of a ProxySetting or a GlobalProxySettings: objects of cluster-scoped kinds, by label.

    ``operations`` None or empty means both List and Get.
    """

    api_groups: list[str] = []
    resources: list[str] = []
    operations: list[str] | None = None
    selector: LabelSelector | None = None


class ProxySubject(Struct, frozen=True):
    """ProxySetting spec.subjects[]: who may see what of the tenant, as an owner may."""

    kind: str = ""  # User, Group or ServiceAccount
    name: str = ""
    proxy_settings: list[ProxyOperations] | None = None
    cluster_resources: list[ClusterResource] | None = None


class Condition(Struct, frozen=True):
    """status.conditions[]."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class ProxyStatus(Struct, frozen=True):
    """status of a ProxySetting and of a GlobalProxySettings."""

    observed_generation: int = 0
    conditions: list[Condition] = []


class ProxySettingSpec(Struct, frozen=True):
    """ProxySetting spec."""

    subjects: list[ProxySubject] = []


class ProxySetting(Struct, frozen=True):
    """capsule.clastix.io/v1beta1 ProxySetting: valid in a namespace of a tenant."""

    metadata: Meta
    spec: ProxySettingSpec = ProxySettingSpec()
    status: ProxyStatus = ProxyStatus()


class GlobalProxyRule(Struct, frozen=True):
    """GlobalProxySettings spec.rules[]: who may see which objects of cluster-scoped kinds."""

    subjects: list[CapsuleUser] = []
    cluster_resources: list[ClusterResource] | None = None


class GlobalProxySettingsSpec(Struct, frozen=True):
    """GlobalProxySettings spec."""

    rules: list[GlobalProxyRule] = []


class GlobalProxySettings(Struct, frozen=True):
    """capsule.clastix.io/v1beta1 GlobalProxySettings: written by an administrator alone."""

    metadata: Meta
    spec: GlobalProxySettingsSpec = GlobalProxySettingsSpec()
    status: ProxyStatus = ProxyStatus()


class TenantOwnerSpec(Struct, frozen=True):
    """TenantOwner spec."""

    kind: str = "User"
    name: str = ""
    cluster_roles: list[str] = []
    aggregate: bool = True


class TenantOwner(Struct, frozen=True):
    """capsule.clastix.io/v1beta2 TenantOwner (Capsule 0.12 and later)."""

    metadata: Meta
    spec: TenantOwnerSpec = TenantOwnerSpec()


class CapsuleConfigurationSpec(Struct, frozen=True):
    """CapsuleConfiguration spec: the users of Capsule in the fields of all supported versions."""

    user_groups: list[str] = []
    user_names: list[str] = []
    users: list[CapsuleUser] = []
    administrators: list[CapsuleUser] = []
    ignore_user_with_groups: list[str] = []
    allow_service_account_promotion: bool = False


class CapsuleConfigurationStatus(Struct, frozen=True):
    """CapsuleConfiguration status (0.13 and later): the effective users."""

    users: list[CapsuleUser] | None = None


class CapsuleConfiguration(Struct, frozen=True):
    """capsule.clastix.io/v1beta2 CapsuleConfiguration."""

    metadata: Meta
    spec: CapsuleConfigurationSpec = CapsuleConfigurationSpec()
    status: CapsuleConfigurationStatus = CapsuleConfigurationStatus()


KubeObject = (
    ServiceAccount
    | Namespace
    | Tenant
    | TenantOwner
    | CapsuleConfiguration
    | ProxySetting
    | GlobalProxySettings
    | RoleBinding
    | PartialObject
)

KINDS: Final[dict[str, type[KubeObject]]] = {
    "ServiceAccount": ServiceAccount,
    "Namespace": Namespace,
    "Tenant": Tenant,
    "TenantOwner": TenantOwner,
    "CapsuleConfiguration": CapsuleConfiguration,
    "ProxySetting": ProxySetting,
    "GlobalProxySettings": GlobalProxySettings,
    "Secret": PartialObject,
    "ConfigMap": PartialObject,
    "CASecret": PartialObject,
    "CAConfigMap": PartialObject,
    "RoleBinding": PartialObject,
    "ClusterRole": PartialObject,
    "ClusterRoleBinding": PartialObject,
    "AnyRoleBinding": RoleBinding,
    "AnyRole": PartialObject,
    "AnyClusterRole": PartialObject,
    "AnyClusterRoleBinding": PartialObject,
}
"""Kind on the bus to its type. ``Secret``, ``ConfigMap`` and the RBAC kinds are those with LABEL_COMPONENT, metadata
only; ``CASecret`` or ``CAConfigMap`` is the one object that holds the proxy's CA, a kind of its own so that its list
never buries the others. So are the RBAC objects of everybody, ``Any...``, which tell when a right has changed."""

RBAC_KINDS: Final = ("AnyRoleBinding", "AnyRole", "AnyClusterRole", "AnyClusterRoleBinding")

_DECODERS: Final = {kind: msgspec.json.Decoder(type_) for kind, type_ in KINDS.items()}


def decode_object(kind: str, body: bytes | msgspec.Raw) -> KubeObject:
    """Decode the JSON of an object of a known kind; EventError without a word of its content."""
    try:
        return _DECODERS[kind].decode(body)
    except KeyError as error:
        raise EventError(f"{kind!r} is not a kind that Tether reads") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(f"not a {kind}: {error}") from error
