"""Who owns which field: fieldsV1 sets, and how lists and maps of each kind are merged by server-side apply. Pure.

A path is a tuple of fieldsV1 elements: ``f:name`` (a field), ``k:{...}`` (a list item by its keys), ``v:...`` (a list
item by its value). A set of paths holds leaves, and the items of lists that are maps or sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tether.devcluster.objects import clone

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object, Resource

Path = tuple[str, ...]
ITEM = object()
"""The value that ``flatten`` gives a list item which is itself an object: being there is all there is to own."""

_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "secrets": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "hostAliases": ("ip",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
}
_ATOMIC_MAPS = frozenset({"roleRef", "selector", "labelSelector"})


class ListRule(msgspec.Struct, frozen=True):
    """How a list merges: with ``keys`` it is a map, ``unique`` it is a set of values, else it is one value."""

    keys: tuple[str, ...] = ()
    unique: bool = False


class Shape(Protocol):
    """What is known of the value at one place of an object."""

    def child(self, key: str) -> Shape: ...

    def item(self) -> Shape: ...

    def rule(self, items: list[Any]) -> ListRule: ...

    @property
    def atomic(self) -> bool: ...


class BuiltInShape:
    """The shape of a built-in kind: by the name of the field."""

    def __init__(self, field: str = "", parent: str = "") -> None:
        self._field = field
        self._parent = parent

    @property
    def atomic(self) -> bool:
        return self._field in _ATOMIC_MAPS

    def child(self, key: str) -> Shape:
        return BuiltInShape(key, self._field)

    def item(self) -> Shape:
        return BuiltInShape("", self._field)

    def rule(self, items: list[Any]) -> ListRule:
        if self._field == "finalizers":
            # metadata's is a set; a Namespace's own, in its spec, is one value
            return ListRule(unique=self._parent == "metadata")
        if self._field == "ports":
            key = "containerPort" if any(isinstance(one, dict) and "containerPort" in one for one in items) else "port"
            return ListRule(keys=(key, "protocol"))
        return ListRule(keys=_LIST_KEYS.get(self._field, ()))


class SchemaShape:
    """The shape of a custom kind: what its structural schema says; lists are one value unless it says otherwise."""

    def __init__(self, schema: Object) -> None:
        self._schema = schema

    @property
    def atomic(self) -> bool:
        return self._schema.get("x-kubernetes-map-type") == "atomic"

    def child(self, key: str) -> Shape:
        found = (self._schema.get("properties") or {}).get(key)
        if found is None:
            found = self._schema.get("additionalProperties")
        return SchemaShape(found if isinstance(found, dict) else {})

    def item(self) -> Shape:
        items = self._schema.get("items")
        return SchemaShape(items if isinstance(items, dict) else {})

    def rule(self, items: list[Any]) -> ListRule:
        del items  # the schema says it all
        kind = self._schema.get("x-kubernetes-list-type")
        if kind == "map":
            return ListRule(keys=tuple(self._schema.get("x-kubernetes-list-map-keys") or ()))
        return ListRule(unique=kind == "set")


class _CustomRoot(SchemaShape):
    def child(self, key: str) -> Shape:
        return BuiltInShape("metadata") if key == "metadata" else super().child(key)


def shape_of(schema: Object, resource: Resource) -> Shape:
    """Return the shape of a kind; ``schema`` is {} for a built-in one."""
    custom = bool(schema) or "." in resource.group.removesuffix(".k8s.io")
    return _CustomRoot(schema) if custom else BuiltInShape()


def elements(shape: Shape, items: list[Any]) -> dict[str, Any] | None:
    """Return the items of a list by path element, in order; None for a list that is one value.

    A list whose items lack their keys, or repeat them, is one value too.
    """
    rule = shape.rule(items)
    if not rule.keys and not rule.unique:
        return None
    found: dict[str, Any] = {}
    for item in items:
        element = _element(rule, item)
        if element is None or element in found:
            return None
        found[element] = item
    return found


def _element(rule: ListRule, item: Any) -> str | None:
    if rule.unique:
        return None if isinstance(item, dict | list) else f"v:{_json(item)}"
    if not isinstance(item, dict):
        return None
    keys = {key: item.get(key, "TCP" if key == "protocol" else None) for key in rule.keys}
    return None if None in keys.values() else f"k:{_json(dict(sorted(keys.items())))}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def flatten(shape: Shape, value: Any, path: Path = ()) -> dict[Path, Any]:
    """Return every owned path of an object with its value."""
    if isinstance(value, dict) and value and not shape.atomic:
        found: dict[Path, Any] = {}
        for key, child in value.items():
            found |= flatten(shape.child(key), child, (*path, f"f:{key}"))
        return found
    if isinstance(value, list):
        items = elements(shape, value)
        if items:
            found = {}
            for element, item in items.items():
                at = (*path, element)
                found[at] = ITEM
                if isinstance(item, dict):
                    found |= flatten(shape.item(), item, at)
            return found
    return {path: value}


def merge(shape: Shape, live: Any, applied: Any) -> Any:
    """Return the live value with an applied configuration laid over it."""
    if isinstance(live, dict) and isinstance(applied, dict) and not shape.atomic:
        merged = dict(live)
        for key, value in applied.items():
            merged[key] = merge(shape.child(key), live[key], value) if key in live else clone(value)
        return merged
    if isinstance(live, list) and isinstance(applied, list):
        ours, theirs = elements(shape, applied), elements(shape, live)
        if ours is not None and theirs is not None:
            both = dict(theirs)
            for element, item in ours.items():
                both[element] = merge(shape.item(), theirs[element], item) if element in theirs else clone(item)
            return list(both.values())
    return clone(applied)


def remove(shape: Shape, value: Any, path: Path) -> Any:
    """Return the value without what stands at a path; an object or list that this empties goes too (None)."""
    head, rest = path[0], path[1:]
    if head.startswith("f:"):
        key = head[2:]
        if not isinstance(value, dict) or key not in value:
            return value
        left = remove(shape.child(key), value[key], rest) if rest else None
        others = {name: item for name, item in value.items() if name != key}
        return (others or None) if left is None else value | {key: left}
    items = elements(shape, value) if isinstance(value, list) else None
    if items is None or head not in items:
        return value
    left = remove(shape.item(), items[head], rest) if rest else None
    kept = {name: (left if name == head else item) for name, item in items.items() if name != head or left is not None}
    return list(kept.values()) or None


def names_item(path: Path) -> bool:
    """Whether the path is one of the keys by which a list knows its item."""
    if len(path) < 2 or not path[-2].startswith("k:"):  # noqa: PLR2004 -- an item and its field
        return False
    return path[-1].removeprefix("f:") in msgspec.json.decode(path[-2][2:])


def to_fields(paths: set[Path]) -> Object:
    """Write a set of paths as fieldsV1."""
    root: Object = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _without_leaf_dots(root)


def _without_leaf_dots(node: Object) -> Object:
    if set(node) == {"."}:
        return {}
    return {key: ({} if key == "." else _without_leaf_dots(child)) for key, child in node.items()}


def from_fields(fields: Any, path: Path = ()) -> set[Path]:
    """Read fieldsV1 as a set of paths; what is malformed in it owns nothing."""
    if not isinstance(fields, dict):
        return set()
    if not fields:
        return {path} if path else set()
    found: set[Path] = set()
    for key, child in fields.items():
        found |= {path} if key == "." else from_fields(child, (*path, key))
    return found


def written(path: Path) -> str:
    """Return a path as conflicts name it: ``.spec.containers[name="a"].image``."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "v":
            text += f"[={rest}]"
        else:
            keys = msgspec.json.decode(rest)
            text += "[" + ",".join(f"{key}={_json(value)}" for key, value in keys.items()) + "]"
    return text
