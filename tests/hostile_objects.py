"""Objects of every watched kind as somebody hostile would write them: names, labels, annotations, references, sizes.

A strategy of hypothesis for each kind on the bus. What it makes is what kube-apiserver takes from somebody who may
write the kind: names of Namespaces, ServiceAccounts, Secrets and custom resources are ordinary ones, names of RBAC
objects, values of annotations, subjects, owners and references are whatever fits into a request.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from eventcore.objects import (
    ANNOTATION_ACCOUNT,
    ANNOTATION_CLUSTER_RESOURCES,
    ANNOTATION_CONFIGMAP,
    ANNOTATION_ENABLED,
    ANNOTATION_GLOBAL,
    ANNOTATION_NAMESPACES,
    ANNOTATION_PROXY_CA,
    ANNOTATION_PROXY_URL,
    ANNOTATION_TENANT,
    CAPSULE_GROUP,
    KINDS,
    LABEL_COMPONENT,
    LABEL_TENANT,
)

Object = dict[str, Any]

RBAC: Final = "rbac.authorization.k8s.io"
API_VERSIONS: Final = {
    "Namespace": "v1",
    "ServiceAccount": "v1",
    "Secret": "v1",
    "ConfigMap": "v1",
    "CASecret": "v1",
    "CAConfigMap": "v1",
    "Tenant": f"{CAPSULE_GROUP}/v1beta2",
    "TenantOwner": f"{CAPSULE_GROUP}/v1beta2",
    "CapsuleConfiguration": f"{CAPSULE_GROUP}/v1beta2",
    "ProxySetting": f"{CAPSULE_GROUP}/v1beta1",
    "GlobalProxySettings": f"{CAPSULE_GROUP}/v1beta1",
}
CLUSTER_SCOPED: Final = frozenset(
    {"Namespace", "Tenant", "TenantOwner", "CapsuleConfiguration", "GlobalProxySettings", "ClusterRole"}
    | {"ClusterRoleBinding", "AnyClusterRole", "AnyClusterRoleBinding"}
)
LARGE: Final = 200_000
"""Bytes of the largest text; Kubernetes takes 256 KiB of annotations and 1.5 MiB in all."""

_texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "",
            " ",
            ".",
            "..",
            "/",
            "x/",
            "/x",
            "x/y/z",
            "*",
            ">",
            "objects.>",
            "_",
            "=",
            "==",
            "=41",
            "a\r\nNats-Rollup: all",
            "\x1b[2J\x1b]0;owned\x07",
            "\x00",
            "system:masters",
            "system:serviceaccount:oil-system:gitops-reconciler",
            "system:serviceaccounts",
            "oil-system/gitops-reconciler",
            "${jndi:ldap://x}",
            "a in (" + ",  " * 30 + "!",
            "9" * 5000,
            "-1",
            "1e309",
            "\u202etxt",
            "\N{SNOWMAN}" * 300,
        ]
    ),
    st.builds(
        lambda text, times: text * times, st.text(min_size=1, max_size=6), st.sampled_from([64, 300, 2100, 6000])
    ),
    st.just("x" * LARGE),
)
_ordinary = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
_path_segments = _texts.map(lambda text: text.replace("/", ":").replace("%", "+")).filter(
    lambda t: t not in {"", ".", ".."}
)
_ANNOTATIONS: Final = (
    *(ANNOTATION_ACCOUNT, ANNOTATION_CLUSTER_RESOURCES, ANNOTATION_CONFIGMAP, ANNOTATION_ENABLED, ANNOTATION_GLOBAL),
    *(ANNOTATION_NAMESPACES, ANNOTATION_PROXY_CA, ANNOTATION_PROXY_URL, ANNOTATION_TENANT),
    *("capsule-tether.io/generation", "capsule-tether.io/digest", "capsule-tether.io/account-uid"),
    *("capsule-tether.io/rotate-at", "capsule-tether.io/user-0123456789abcdef", "unknown.example.com/note"),
)
_annotations = st.dictionaries(st.sampled_from(_ANNOTATIONS), _texts, max_size=6)
_labels = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [LABEL_COMPONENT, LABEL_TENANT, "owner.projectcapsule.dev/promote", "projectcapsule.dev/tenant"]
        ),
        _ordinary,
    ),
    st.one_of(_ordinary, st.sampled_from(["", "token", "rbac", "kubeconfig", "ca", "true", "oil"])),
    max_size=5,
)
_references = st.lists(
    st.fixed_dictionaries(
        {
            "apiVersion": st.sampled_from([f"{CAPSULE_GROUP}/v1beta2", "v1", "x/y/z"]),
            "kind": st.sampled_from(["Tenant", "ServiceAccount", "Secret"]),
            "name": st.one_of(_ordinary, _texts.filter(bool)),
            "uid": st.one_of(_ordinary, _texts.filter(bool)),
        }
    ),
    max_size=3,
)
_subjects = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["User", "Group", "ServiceAccount"]), "name": _texts},
        optional={"namespace": _texts, "apiGroup": st.just(RBAC)},
    ),
    max_size=4,
)
_selectors = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(_ordinary, _texts, max_size=2),
        "matchExpressions": st.lists(
            st.fixed_dictionaries(
                {"key": _texts, "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt"])},
                optional={"values": st.lists(_texts, max_size=3)},
            ),
            max_size=2,
        ),
    },
)
_resources = st.lists(
    st.fixed_dictionaries(
        {"apiGroups": st.lists(_texts, max_size=2), "resources": st.lists(_texts, max_size=2)},
        optional={"operations": st.lists(_texts, max_size=2), "selector": _selectors},
    ),
    max_size=2,
)
_operations = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.one_of(st.sampled_from(["Nodes", "StorageClasses"]), _texts),
            "operations": st.lists(st.sampled_from(["List", "Update", "Delete", "*"]), max_size=3),
        }
    ),
    max_size=2,
)
_owners = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["User", "Group", "ServiceAccount"]), "name": _texts},
        optional={"clusterRoles": st.lists(_texts, max_size=2), "proxySettings": _operations},
    ),
    max_size=4,
)
_users = st.lists(
    st.fixed_dictionaries({"kind": st.sampled_from(["User", "Group", "ServiceAccount"]), "name": _texts}), max_size=3
)
_FIELDS: Final[dict[str, st.SearchStrategy[Object]]] = {
    "Tenant": st.fixed_dictionaries(
        {
            "spec": st.fixed_dictionaries(
                {"owners": _owners},
                optional={
                    "nodeSelector": st.dictionaries(_ordinary, _texts, max_size=2),
                    "storageClasses": st.fixed_dictionaries(
                        {"allowedRegex": _texts, "allowed": st.lists(_texts, max_size=3)}
                    ),
                    "permissions": st.fixed_dictionaries({"matchOwners": st.lists(_selectors, max_size=2)}),
                    "additionalRoleBindings": st.lists(
                        st.fixed_dictionaries({"clusterRoleName": _texts, "subjects": _subjects}), max_size=2
                    ),
                },
            )
        },
        optional={
            "status": st.fixed_dictionaries(
                {"namespaces": st.lists(_ordinary, max_size=5), "state": st.sampled_from(["Active", "Cordoned"])},
                optional={"owners": _owners, "observedGeneration": st.integers(0, 2**31)},
            )
        },
    ),
    "TenantOwner": st.fixed_dictionaries(
        {"spec": st.fixed_dictionaries({"kind": st.sampled_from(["User", "Group", "ServiceAccount"]), "name": _texts})}
    ),
    "CapsuleConfiguration": st.fixed_dictionaries(
        {
            "spec": st.fixed_dictionaries(
                {"userGroups": st.lists(_texts, max_size=3)},
                optional={"userNames": st.lists(_texts, max_size=3), "users": _users, "administrators": _users},
            )
        }
    ),
    "ProxySetting": st.fixed_dictionaries(
        {
            "spec": st.fixed_dictionaries(
                {
                    "subjects": st.lists(
                        st.fixed_dictionaries(
                            {"kind": st.sampled_from(["User", "Group", "ServiceAccount"]), "name": _texts},
                            optional={"proxySettings": _operations, "clusterResources": _resources},
                        ),
                        max_size=3,
                    )
                }
            )
        }
    ),
    "GlobalProxySettings": st.fixed_dictionaries(
        {
            "spec": st.fixed_dictionaries(
                {
                    "rules": st.lists(
                        st.fixed_dictionaries({"subjects": _users, "clusterResources": _resources}), max_size=2
                    )
                }
            )
        }
    ),
}
_ROLE_REF: Final = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}


def hostile_object(kind: str) -> st.SearchStrategy[Object]:
    """Return a strategy for objects of a kind on the bus, a key of ``eventcore.objects.KINDS``, as JSON values.

    Without ``uid`` and ``resourceVersion``, which the API server gives. Of the kinds that are read only with our label,
    all carry it.
    """
    if kind not in KINDS:
        raise KeyError(kind)
    is_rbac = "Role" in kind
    names = st.one_of(_ordinary, _path_segments) if is_rbac else _ordinary
    ours = kind in {"Secret", "ConfigMap", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    components = st.sampled_from(["token", "rbac", "kubeconfig", "ca", "", "other"])
    base: dict[str, st.SearchStrategy[Any]] = {"labels": _labels, "annotations": _annotations}
    if kind not in CLUSTER_SCOPED:
        base["namespace"] = _ordinary
    metadata = st.fixed_dictionaries({"name": names, **base}, optional={"ownerReferences": _references})
    if ours:
        metadata = st.builds(
            lambda meta, component: meta | {"labels": meta["labels"] | {LABEL_COMPONENT: component}},
            metadata,
            components,
        )
    plain = kind.removeprefix("Any").removeprefix("CA")
    fields = _FIELDS.get(kind, st.just({}))
    if plain.endswith("Binding"):
        fields = st.builds(lambda subjects: {"roleRef": _ROLE_REF, "subjects": subjects}, _subjects)
    elif is_rbac:
        fields = st.just({"rules": []})
    head = {"apiVersion": API_VERSIONS.get(kind, f"{RBAC}/v1"), "kind": plain}
    return st.builds(lambda meta, rest: head | {"metadata": meta} | rest, metadata, fields)
