"""What of an object goes on the bus: never managedFields, never a Secret's content.

Watchers publish nothing else of it, so what is not copied here does not enter NATS.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from eventcore.objects import KINDS, LAST_APPLIED, OWN_PREFIX, PartialObject

_OF_PARTIAL: Final = ("apiVersion", "kind", "type")
_SLIM: Final = {kind: _OF_PARTIAL for kind, type_ in KINDS.items() if type_ is PartialObject} | {
    "AnyRoleBinding": ("apiVersion", "kind", "subjects", "roleRef")
}
"""Kinds of which no more than the metadata and these fields go on the bus."""


_LONG_AGO: Final = "1970-01-01T00:00:00Z"


def publishable(kind: str, body: bytes | msgspec.Raw) -> bytes:
    """Return the JSON that goes to OBJECTS for an object as the API server gave it.

    Without managedFields and last-applied-configuration. Of a kind read as metadata only, nothing but name, namespace,
    uid, resourceVersion, timestamps, owner references, labels and our own annotations, and of a RoleBinding whom it
    names: whatever else the input holds, a Secret's data among it, is not copied.
    """
    value: dict[str, Any] = msgspec.json.decode(body)
    metadata: dict[str, Any] = value.get("metadata") or {}
    metadata.pop("managedFields", None)
    annotations: dict[str, str] = metadata.get("annotations") or {}
    annotations.pop(LAST_APPLIED, None)
    if kind in _SLIM:
        annotations = {name: text for name, text in annotations.items() if name.startswith(OWN_PREFIX)}
        kept = (
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "ownerReferences",
            "labels",
        )
        metadata = {name: metadata[name] for name in kept if name in metadata}
        value = {name: value[name] for name in _SLIM[kind] if name in value}
    metadata.pop("annotations", None)
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
