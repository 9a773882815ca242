"""The JSON types that the kinds of this API must have before any rule looks at them; what does not fit is a 400. Pure.

Only what rules, RBAC and controllers read is typed; everything else of a built-in kind is taken as it comes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec

from tether.devcluster.errors import bad_request
from tether.devcluster.resources import CRDS, RBAC

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object, Resource

Strings = list[str] | None
StringMap = dict[str, str] | None
Text = str | None
Flag = bool | None


class _Shape(msgspec.Struct, rename="camel"):
    """Fields that are absent or null are None; unknown ones are passed over."""


class _Owner(_Shape):
    api_version: Text = None
    kind: Text = None
    name: Text = None
    uid: Text = None
    controller: Flag = None
    block_owner_deletion: Flag = None


class _ManagedFields(_Shape):
    manager: Text = None
    operation: Text = None
    subresource: Text = None
    api_version: Text = None
    time: Text = None
    fields_type: Text = None
    fields_v1: dict[str, Any] | None = msgspec.field(name="fieldsV1", default=None)


class _Metadata(_Shape):
    name: Text = None
    namespace: Text = None
    generate_name: Text = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    generation: Any = None
    self_link: Any = None
    uid: Text = None
    resource_version: Text = None
    labels: StringMap = None
    annotations: StringMap = None
    finalizers: Strings = None
    owner_references: list[_Owner] | None = None
    managed_fields: list[_ManagedFields] | None = None


class _Any(_Shape):
    api_version: Text = None
    kind: Text = None
    metadata: _Metadata | None = None


class _NamespaceSpec(_Shape):
    finalizers: Strings = None


class _Namespace(_Any):
    spec: _NamespaceSpec | None = None
    status: dict[str, Any] | None = None


class _Secret(_Any):
    data: dict[str, bytes | None] | None = None
    string_data: StringMap = None
    type: Text = None
    immutable: Flag = None


class _ConfigMap(_Any):
    data: StringMap = None
    binary_data: dict[str, bytes | None] | None = None
    immutable: Flag = None


class _Reference(_Shape):
    name: Text = None


class _ServiceAccount(_Any):
    secrets: list[_Reference] | None = None
    image_pull_secrets: list[_Reference] | None = None
    automount_service_account_token: Flag = None


class _Rule(_Shape):
    verbs: Strings = None
    api_groups: Strings = None
    resources: Strings = None
    resource_names: Strings = None
    non_resource_urls: Strings = msgspec.field(name="nonResourceURLs", default=None)


class _Expression(_Shape):
    key: str
    operator: str
    values: Strings = None


class _LabelSelector(_Shape):
    match_labels: StringMap = None
    match_expressions: list[_Expression] | None = None


class _Aggregation(_Shape):
    cluster_role_selectors: list[_LabelSelector] | None = None


class _Role(_Any):
    rules: list[_Rule] | None = None
    aggregation_rule: _Aggregation | None = None


class _Subject(_Shape):
    kind: Text = None
    api_group: Text = None
    name: Text = None
    namespace: Text = None


class _RoleRef(_Shape):
    kind: Text = None
    api_group: Text = None
    name: Text = None


class _Binding(_Any):
    subjects: list[_Subject] | None = None
    role_ref: _RoleRef | None = None


class _Names(_Shape):
    plural: Text = None
    kind: Text = None
    singular: Text = None
    list_kind: Text = None
    short_names: Strings = None
    categories: Strings = None


class _PrinterColumn(_Shape):
    name: str
    type: str
    json_path: str
    priority: int | None = None


class _Schema(_Shape):
    open_apiv3_schema: dict[str, Any] | None = msgspec.field(name="openAPIV3Schema", default=None)


class _CrdVersion(_Shape):
    name: str
    served: Flag = None
    storage: Flag = None
    schema: _Schema | None = None
    subresources: dict[str, Any] | None = None
    additional_printer_columns: list[_PrinterColumn] | None = None


class _CrdSpec(_Shape):
    group: Text = None
    scope: Text = None
    names: _Names | None = None
    versions: list[_CrdVersion] | None = None


class _Condition(_Shape):
    type: Text = None


class _CrdStatus(_Shape):
    conditions: list[_Condition] | None = None
    stored_versions: Strings = None


class _Crd(_Any):
    spec: _CrdSpec | None = None
    status: _CrdStatus | None = None


_SHAPES: dict[tuple[str, str], type[_Any]] = {
    ("", "namespaces"): _Namespace,
    ("", "secrets"): _Secret,
    ("", "configmaps"): _ConfigMap,
    ("", "serviceaccounts"): _ServiceAccount,
    (RBAC, "roles"): _Role,
    (RBAC, "clusterroles"): _Role,
    (RBAC, "rolebindings"): _Binding,
    (RBAC, "clusterrolebindings"): _Binding,
    (CRDS.group, CRDS.plural): _Crd,
}


def check(resource: Resource, obj: Object) -> None:
    """Refuse (400) an object whose fields have the wrong JSON types, as a decoder of typed kinds does.

    The ``data`` of a Secret must be base64.
    """
    try:
        msgspec.convert(obj, type=_SHAPES.get((resource.group, resource.plural), _Any))
    except (msgspec.ValidationError, RecursionError) as error:
        kind = resource.kind
        message = f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {error}'
        raise bad_request(message) from error


def prune(resource: Resource, obj: Object) -> list[str]:
    """Take fields that the kind does not have out of an object that fits, and return their paths.

    What stands inside of fields that are read nowhere here is taken as it comes.
    """
    shape = _SHAPES.get((resource.group, resource.plural))
    return [] if shape is None or shape is _Crd else _pruned(shape, obj, "")


def _pruned(shape: Any, value: Any, path: str) -> list[str]:
    if isinstance(value, list):
        return [found for at, item in enumerate(value) for found in _pruned(shape, item, f"{path}[{at}]")]
    if not isinstance(value, dict):
        return []
    known = _fields(shape)
    found = []
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if key not in known:
            del value[key]
            found.append(where)
        elif known[key] is not None:
            found += _pruned(known[key], value[key], where)
    return found


@cache
def _fields(shape: type[_Shape]) -> dict[str, type[_Shape] | None]:
    """Return the fields of a shape by their JSON names, each with the shape of its value or items, None if untyped."""
    hints = get_type_hints(shape)
    return {field.encode_name: _inner(hints[field.name]) for field in msgspec.structs.fields(shape)}


def _inner(hint: Any) -> type[_Shape] | None:
    if isinstance(hint, type) and issubclass(hint, _Shape):
        return None if hint is _Reference else hint
    found = (_inner(argument) for argument in get_args(hint))
    return next((shape for shape in found if shape is not None), None)


def drop_nulls(value: Any) -> Any:
    """Return JSON data without fields that are null: in a typed kind, null and absent are the same."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value
