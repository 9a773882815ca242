"""Capsule's kinds as CustomResourceDefinitions, with the fields of a Tenant, the defaults and the columns.

What a field holds that nothing here reads is taken as it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object

GROUP = "capsule.clastix.io"
OWNER_KINDS = ["User", "Group", "ServiceAccount"]
DEFAULT_OWNER_ROLES = ["admin", "capsule-namespace-deleter"]
PROVISIONER, DELETER = "capsule-namespace-provisioner", "capsule-namespace-deleter"

_FREE: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_STRING: Object = {"type": "string"}
_STRINGS: Object = {"type": "array", "items": _STRING}
_SUBJECT_KIND: Object = {"type": "string", "enum": OWNER_KINDS}
_OBJECTS: Object = {"type": "array", "items": _FREE}
_READY = ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status')
_STATUS = ("Status", "string", '.status.conditions[?(@.type=="Ready")].message')
_AGE = ("Age", "date", ".metadata.creationTimestamp")


def _object(properties: Object, *, required: tuple[str, ...] = ()) -> Object:
    return _FREE | {"properties": properties} | ({"required": list(required)} if required else {})


def _closed(properties: Object, *, required: tuple[str, ...] = ()) -> Object:
    """Return an object without other fields: what is misspelled is told, not taken."""
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _boolean(*, default: bool) -> Object:
    return {"type": "boolean", "default": default}


def _definition(
    kind: str,
    plural: str,
    spec: Object,
    *,
    columns: tuple[tuple[str, str, str], ...],
    status: Object = _FREE,
    short: str = "",
    version: str = "v1beta2",
    scope: str = "Cluster",
) -> Object:
    names: dict[str, Any] = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    if short:
        names["shortNames"] = [short]
    schema = {
        "type": "object",
        "properties": {"apiVersion": _STRING, "kind": _STRING, "metadata": {"type": "object"}, "spec": spec}
        | {"status": status},
    }
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path} for name, type_, path in (*columns, _AGE)
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": scope, "versions": [served]},
    }


_OWNER_ROLES = _STRINGS | {"default": DEFAULT_OWNER_ROLES}

_MARKS: Object = {"labels": _FREE, "annotations": _FREE}
_UNREAD = (
    "containerRegistries",
    "deviceClasses",
    "gatewayOptions",
    "ingressOptions",
    "limitRanges",
    "networkPolicies",
    "nodeSelector",
    "podOptions",
    "priorityClasses",
    "resourceQuotas",
    "runtimeClasses",
    "serviceOptions",
    "storageClasses",
)

_TENANT_SPEC = _closed(
    {
        "owners": {
            "type": "array",
            "items": _closed(
                {"kind": _SUBJECT_KIND, "name": _STRING, "clusterRoles": _OWNER_ROLES, "proxySettings": _OBJECTS}
                | _MARKS,
                required=("kind", "name"),
            ),
        },
        "additionalRoleBindings": {
            "type": "array",
            "items": _closed(
                {"clusterRoleName": _STRING, "subjects": _OBJECTS} | _MARKS,
                required=("clusterRoleName", "subjects"),
            ),
        },
        "permissions": _closed(
            {"allowOwnerPromotion": _boolean(default=True), "matchOwners": _OBJECTS},
        ),
        "namespaceOptions": _object({"quota": {"type": "integer", "minimum": 1}}),
        "cordoned": _boolean(default=False),
        "preventDeletion": _boolean(default=False),
        "forceTenantPrefix": {"type": "boolean"},
        "imagePullPolicies": _STRINGS,
        "rules": _OBJECTS,
        "data": {"x-kubernetes-preserve-unknown-fields": True},
        **dict.fromkeys(_UNREAD, _FREE),
    },
)
_TENANT_STATUS = _object(
    {
        "state": {"type": "string", "enum": ["Active", "Cordoned", "Terminating"], "default": "Active"},
        "size": {"type": "integer"},
        "namespaces": _STRINGS,
        "spaces": _OBJECTS,
        "owners": _OBJECTS,
        "conditions": _OBJECTS,
    },
    required=("size", "state"),
)
_SUBJECTS: Object = {
    "type": "array",
    "items": _object({"kind": _SUBJECT_KIND, "name": _STRING}, required=("kind", "name")),
}
_CONFIGURATION_SPEC = _object(
    {
        "userGroups": _STRINGS,
        "userNames": _STRINGS,
        "ignoreUserWithGroups": _STRINGS,
        "users": _SUBJECTS,
        "administrators": _SUBJECTS,
        "allowServiceAccountPromotion": _boolean(default=False),
        "forceTenantPrefix": _boolean(default=False),
        "protectedNamespaceRegex": _STRING,
        "enableTLSReconciler": _boolean(default=False),
        "rbac": _object(
            {
                "administrationClusterRoles": _STRINGS | {"default": [DELETER]},
                "promotionClusterRoles": _STRINGS | {"default": [PROVISIONER, DELETER]},
                "deleter": _STRING | {"default": DELETER},
                "provisioner": _STRING | {"default": PROVISIONER},
            },
        )
        | {"default": {}},
    },
)
_OWNER_SPEC = _object(
    {
        "kind": _SUBJECT_KIND,
        "name": _STRING,
        "clusterRoles": _OWNER_ROLES,
        "aggregate": _boolean(default=True),
    },
    required=("kind", "name"),
)
_CLUSTER_RESOURCES: Object = {
    "type": "array",
    "items": _object(
        {"apiGroups": _STRINGS, "resources": _STRINGS, "operations": _STRINGS, "selector": _FREE},
        required=("apiGroups", "resources", "selector"),
    ),
}
_PROXY_SUBJECT: Object = {"kind": _SUBJECT_KIND, "name": _STRING}

CAPSULE_CRDS: list[Object] = [
    _definition(
        "Tenant",
        "tenants",
        _TENANT_SPEC,
        status=_TENANT_STATUS,
        short="tnt",
        columns=(
            ("State", "string", '.status.conditions[?(@.type=="Cordoned")].reason'),
            ("Namespace quota", "integer", ".spec.namespaceOptions.quota"),
            ("Namespace count", "integer", ".status.size"),
            ("Node selector", "string", ".spec.nodeSelector"),
            _READY,
            _STATUS,
        ),
    ),
    _definition(
        "CapsuleConfiguration",
        "capsuleconfigurations",
        _CONFIGURATION_SPEC,
        columns=(_READY, _STATUS),
    ),
    _definition("TenantOwner", "tenantowners", _OWNER_SPEC, short="to", columns=(_READY,)),
    _definition(
        "ProxySetting",
        "proxysettings",
        _object(
            {
                "subjects": {
                    "type": "array",
                    "items": _object(
                        _PROXY_SUBJECT | {"clusterResources": _CLUSTER_RESOURCES, "proxySettings": _OBJECTS},
                        required=("kind", "name"),
                    ),
                },
            },
            required=("subjects",),
        ),
        version="v1beta1",
        scope="Namespaced",
        columns=(_READY,),
    ),
    _definition(
        "GlobalProxySettings",
        "globalproxysettings",
        _object(
            {
                "rules": {
                    "type": "array",
                    "items": _object(
                        {
                            "subjects": _SUBJECTS,
                            "clusterResources": _CLUSTER_RESOURCES,
                        },
                        required=("subjects",),
                    ),
                },
            },
            required=("rules",),
        ),
        version="v1beta1",
        columns=(_READY,),
    ),
]
"""All of Capsule's definitions that are served; create them before the first Tenant."""
