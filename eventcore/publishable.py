"""What of an object goes on the bus: the fields that somebody reads, and never a Secret's content.

Watchers publish nothing else of it, so what is not copied here does not enter NATS. The fields are those of the Structs
in `eventcore.objects`; a field that is added there is published from then on. A Namespace alone goes whole, but for
managedFields and last-applied-configuration, since the proxy answers with it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import inspect

from eventcore.objects import KINDS, LAST_APPLIED, OWN_PREFIX, Meta

Shape = dict[str, "Shape | None"]
"""Field on the wire to the fields of what is in it, or of its items; None: all of it."""

ADDON_PREFIX: Final = "capsule.addon.fluxcd/"
_LONG_AGO: Final = "1970-01-01T00:00:00Z"
_WHOLE: Final = frozenset({"Namespace"})
_HEAD: Final[Shape] = {"apiVersion": None, "kind": None, "type": None}
_METADATA: Final[Shape] = {
    "name": None,
    "namespace": None,
    "uid": None,
    "resourceVersion": None,
    "generation": None,
    "creationTimestamp": None,
    "deletionTimestamp": None,
    "labels": None,
    "annotations": None,
}
_ALL_LABELS: Final = frozenset({"TenantOwner"})
"""Kinds that are chosen by labels of anybody's making."""
_PREFIXES: Final = (OWN_PREFIX, ADDON_PREFIX)
_LABEL_PREFIXES: Final = (
    OWN_PREFIX,
    "owner.projectcapsule.dev/",
    "projectcapsule.dev/",
    "reflection.proxy.projectcapsule.dev/",
    "reconcile.fluxcd.io/",
)


def _shape(type_: inspect.Type) -> Shape | None:
    """Return the fields of a Struct, or of the one that a list or an option of it holds; None for anything else."""
    match type_:
        case inspect.StructType(cls=cls) if cls is Meta:
            return _METADATA
        case inspect.StructType(fields=fields):
            return {field.encode_name: _shape(field.type) for field in fields}
        case inspect.ListType(item_type=item):
            return _shape(item)
        case inspect.UnionType(types=types):
            return next((shape for one in types if (shape := _shape(one)) is not None), None)
        case _:
            return None


_SHAPES: Final[dict[str, Shape]] = {
    kind: _HEAD | (_shape(inspect.type_info(type_)) or {}) for kind, type_ in KINDS.items() if kind not in _WHOLE
}


def publishable(kind: str, body: bytes | msgspec.Raw) -> bytes:
    """Return the JSON that goes to OBJECTS for an object as the API server gave it.

    Of the metadata that is name, namespace, uid, resourceVersion, generation, timestamps, the labels that are read and
    our own annotations; of a kind read as metadata only, nothing else. Whatever else the input holds, a Secret's data
    among it, is not copied.
    """
    value: dict[str, Any] = msgspec.json.decode(body)
    if kind not in _WHOLE:
        value = _of(value, _SHAPES[kind])
    metadata: dict[str, Any] = value.get("metadata") or {}
    metadata.pop("managedFields", None)
    annotations: dict[str, str] = metadata.pop("annotations", None) or {}
    annotations.pop(LAST_APPLIED, None)
    if kind not in _WHOLE:
        annotations = {name: text for name, text in annotations.items() if name.startswith(_PREFIXES)}
        labels = metadata.pop("labels", None) or {}
        if kind not in _ALL_LABELS:
            labels = {name: text for name, text in labels.items() if name.startswith(_LABEL_PREFIXES)}
        if labels:
            metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    value["metadata"] = metadata
    return msgspec.json.encode(value)


def tombstone(kind: str, body: bytes) -> bytes:
    """Return the body of a tombstone: the last metadata, nothing else of the object."""
    value: dict[str, Any] = msgspec.json.decode(publishable(kind, body))
    return msgspec.json.encode({name: value[name] for name in ("apiVersion", "kind", "metadata") if name in value})


def withheld(kind: str, name: str, namespace: str, uid: str, resource_version: str) -> bytes:
    """Return the body that stands for an object of which nothing can be told: being deleted, it grants nothing.

    Every reader, of whatever release, takes away what the object gave before: an object that is being deleted owns
    nothing, names nobody, and is nobody's.
    """
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": resource_version}
    metadata = {field: text for field, text in metadata.items() if text}
    return msgspec.json.encode({"kind": kind, "metadata": metadata | {"deletionTimestamp": _LONG_AGO}})


def _of(value: Any, shape: Shape | None) -> Any:
    """Return of a JSON value what its shape names."""
    if shape is None:
        return value
    if isinstance(value, list):
        return [_of(item, shape) for item in value]
    if isinstance(value, dict):
        return {name: _of(value[name], inner) for name, inner in shape.items() if name in value}
    return value
