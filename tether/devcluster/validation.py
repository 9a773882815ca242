"""What an object must be before it is stored: names, metadata, the rules of some kinds. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tether.devcluster import crds, errors
from tether.devcluster.errors import Cause, bad_value, forbidden_field, required, unsupported
from tether.devcluster.objects import dig, metadata, name_of
from tether.devcluster.resources import CONFIG_MAPS, CRDS, RBAC, SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.devcluster.contracts import Object, Resource

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_MAX, _SUBDOMAIN_MAX = 63, 253
_LABEL_DETAIL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    f"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_DETAIL = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_QUALIFIED_DETAIL = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    f"character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_LABEL_VALUE_DETAIL = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'({_QUALIFIED})?')"
)
_ANNOTATIONS_MAX = 256 * 1024
_SECRET_MAX = 1024 * 1024
_DNS_LABEL_KINDS = frozenset({("", "namespaces"), ("", "services")})
_TOKEN_TYPE = "kubernetes.io/service-account-token"  # noqa: S105 -- a type, not a token
_ACCOUNT_NAME = "kubernetes.io/service-account.name"


def check_new(resource: Resource, obj: Object, schema: Object) -> None:
    """Refuse (422) an object that may not be created."""
    _raise(resource, obj, [*_metadata_problems(resource, obj), *_problems(resource, obj, schema)])


def check_change(resource: Resource, old: Object, obj: Object, schema: Object) -> None:
    """Refuse (422) an update: the object breaks a rule, or changes what may not change."""
    found = [*_metadata_problems(resource, obj), *_problems(resource, obj, schema), *_immutable(resource, old, obj)]
    if metadata(old).get("deletionTimestamp"):
        added = sorted(set(metadata(obj).get("finalizers") or []) - set(metadata(old).get("finalizers") or []))
        if added:
            detail = f"no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            found.append(forbidden_field("metadata.finalizers", detail))
    _raise(resource, obj, found)


def _raise(resource: Resource, obj: Object, found: list[Cause]) -> None:
    if found:
        raise errors.invalid(resource, name_of(obj) or str(metadata(obj).get("generateName") or ""), found)


def _metadata_problems(resource: Resource, obj: Object) -> list[Cause]:
    meta = metadata(obj)
    found = _name_problems(resource, meta)
    for key, value in (meta.get("labels") or {}).items():
        found += _qualified("metadata.labels", key)
        if len(value) > _LABEL_MAX:
            found.append(bad_value("metadata.labels", value, "must be no more than 63 bytes"))
        elif value and not re.fullmatch(_QUALIFIED, value):
            found.append(bad_value("metadata.labels", value, _LABEL_VALUE_DETAIL))
    annotations = meta.get("annotations") or {}
    for key in annotations:
        found += _qualified("metadata.annotations", key.lower())
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATIONS_MAX:
        found.append(_too_long("metadata.annotations", _ANNOTATIONS_MAX))
    for finalizer in meta.get("finalizers") or []:
        found += _qualified("metadata.finalizers", finalizer)
    return found + _owner_problems(meta.get("ownerReferences") or [])


def _owner_problems(owners: list[Object]) -> list[Cause]:
    found = [
        bad_value(f"metadata.ownerReferences[{at}].{field}", "", f"{field} must not be empty")
        for at, owner in enumerate(owners)
        for field in ("apiVersion", "kind", "name", "uid")
        if not owner.get(field)
    ]
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        detail = "Only one reference can have Controller set to true"
        found.append(bad_value("metadata.ownerReferences", len(owners), detail))
    return found


def _too_long(field: str, most: int) -> Cause:
    return Cause(field, f"Too long: may not be more than {most} bytes", "FieldValueTooLong")


def _name_problems(resource: Resource, meta: Object) -> list[Cause]:
    name, field = meta.get("name") or "", "metadata.name"
    if not name:
        if not meta.get("generateName"):
            return [required(field, "name or generateName is required")]
        name, field = f"{meta['generateName']}x", "metadata.generateName"
    if resource.group == RBAC:
        wrong = name in {".", ".."} or "/" in name or "%" in name
        return [bad_value(field, name, "may not be '.' or '..', and may not contain '/' or '%'")] if wrong else []
    short = (resource.group, resource.plural) in _DNS_LABEL_KINDS
    pattern, detail, longest = (
        (_LABEL, _LABEL_DETAIL, _LABEL_MAX) if short else (_SUBDOMAIN, _SUBDOMAIN_DETAIL, _SUBDOMAIN_MAX)
    )
    found = []
    if len(name) > longest:
        found.append(bad_value(field, name, f"must be no more than {longest} bytes"))
    if not re.fullmatch(pattern, name):
        found.append(bad_value(field, name, detail))
    return found


def _qualified(field: str, key: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    if slash and not re.fullmatch(_SUBDOMAIN, prefix):
        return [bad_value(field, key, f"prefix part {_SUBDOMAIN_DETAIL}")]
    if len(name) > _LABEL_MAX:
        return [bad_value(field, key, "name part must be no more than 63 bytes")]
    return [] if re.fullmatch(_QUALIFIED, name) else [bad_value(field, key, _QUALIFIED_DETAIL)]


def _problems(resource: Resource, obj: Object, schema: Object) -> list[Cause]:
    if resource == CRDS:
        return crds.problems(obj)
    if schema:
        return crds.violations(schema, obj)
    if resource == SECRETS:
        return _secret_problems(obj)
    if resource == CONFIG_MAPS:
        return [*_key_problems("data", obj), *_key_problems("binaryData", obj)]
    check = _RBAC_CHECKS.get(resource.plural) if resource.group == RBAC else None
    return check(obj) if check else []


def _key_problems(field: str, obj: Object) -> list[Cause]:
    detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
    keys = [key for key in obj.get(field) or {} if not re.fullmatch(r"[-._a-zA-Z0-9]+", key)]
    return [bad_value(f"{field}[{key}]", key, detail) for key in keys]


def _secret_problems(obj: Object) -> list[Cause]:
    found = _key_problems("data", obj)
    if sum(len(value or "") * 3 // 4 for value in (obj.get("data") or {}).values()) > _SECRET_MAX:
        found.append(_too_long("data", _SECRET_MAX))
    if obj.get("type") == _TOKEN_TYPE and not (metadata(obj).get("annotations") or {}).get(_ACCOUNT_NAME):
        found.append(required(f"metadata.annotations[{_ACCOUNT_NAME}]"))
    return found


def _role_problems(obj: Object) -> list[Cause]:
    found = []
    for at, rule in enumerate(obj.get("rules") or []):
        if not isinstance(rule, dict) or not rule.get("verbs"):
            found.append(required(f"rules[{at}].verbs", "verbs must contain at least one value"))
            continue
        if rule.get("nonResourceURLs"):
            if obj.get("kind") == "Role":
                detail = "namespaced rules cannot apply to non-resource URLs"
                found.append(bad_value(f"rules[{at}].nonResourceURLs", rule["nonResourceURLs"], detail))
            continue
        if not rule.get("apiGroups"):
            detail = "resource rules must supply at least one api group"
            found.append(required(f"rules[{at}].apiGroups", detail))
        if not rule.get("resources"):
            found.append(required(f"rules[{at}].resources", "resource rules must supply at least one resource"))
    return found


def _binding_problems(obj: Object) -> list[Cause]:
    role = obj.get("roleRef") or {}
    kinds = ["ClusterRole", "Role"] if obj.get("kind") == "RoleBinding" else ["ClusterRole"]
    found = []
    if role.get("apiGroup") != RBAC:
        found.append(unsupported("roleRef.apiGroup", role.get("apiGroup") or "", [RBAC]))
    if role.get("kind") not in kinds:
        found.append(unsupported("roleRef.kind", role.get("kind") or "", kinds))
    if not role.get("name"):
        found.append(required("roleRef.name"))
    for at, subject in enumerate(obj.get("subjects") or []):
        if not isinstance(subject, dict) or not subject.get("name"):
            found.append(required(f"subjects[{at}].name"))
            continue
        kind = subject.get("kind")
        if kind not in {"User", "Group", "ServiceAccount"}:
            found.append(unsupported(f"subjects[{at}].kind", kind or "", ["ServiceAccount", "User", "Group"]))
        elif kind == "ServiceAccount" and not subject.get("namespace"):
            found.append(required(f"subjects[{at}].namespace"))
    return found


_RBAC_CHECKS: dict[str, Callable[[Object], list[Cause]]] = {
    "roles": _role_problems,
    "clusterroles": _role_problems,
    "rolebindings": _binding_problems,
    "clusterrolebindings": _binding_problems,
}


def fill_defaults(resource: Resource, obj: Object) -> None:
    """Fill what Kubernetes fills before admission in the kinds whose equality matters: bindings, in place."""
    if resource.group != RBAC or resource.plural not in {"rolebindings", "clusterrolebindings"}:
        return
    role = obj.get("roleRef")
    if isinstance(role, dict) and not role.get("apiGroup"):
        role["apiGroup"] = RBAC
    for subject in obj.get("subjects") or []:
        if isinstance(subject, dict) and subject.get("kind") in {"User", "Group"} and not subject.get("apiGroup"):
            subject["apiGroup"] = RBAC


def _immutable(resource: Resource, old: Object, obj: Object) -> list[Cause]:
    found: list[Cause] = []
    if resource.group == RBAC and "roleRef" in old and obj.get("roleRef") != old["roleRef"]:
        found.append(bad_value("roleRef", obj.get("roleRef"), "cannot change roleRef"))
    if resource == SECRETS and obj.get("type") != old.get("type"):
        found.append(bad_value("type", obj.get("type"), "field is immutable"))
    if old.get("immutable") is True and (resource == SECRETS or resource.plural == "configmaps"):
        fields: tuple[str, ...] = ("data", "binaryData", "immutable")
        found += [
            forbidden_field(field, "field is immutable when `immutable` is set")
            for field in fields
            if _set(obj.get(field)) != _set(old.get(field))
        ]
    if resource == CRDS:
        for path in (("spec", "group"), ("spec", "scope"), ("spec", "names", "plural"), ("spec", "names", "kind")):
            if dig(obj, *path) != dig(old, *path):
                found.append(bad_value(".".join(path), dig(obj, *path), "field is immutable"))
    return found


def _set(value: Any) -> Any:
    return value or None
