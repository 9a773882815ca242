"""What the API server said about one object: who it is, which version, and the bytes that may go on the bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from eventcore.errors import EventError
from eventcore.keys import ObjectKey
from eventcore.objects import PartialObject, decode_object
from eventcore.publishable import publishable, tombstone
from watchers.snapshot import Version

if TYPE_CHECKING:
    from watchers.kinds import KindRow


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One object as a list, a watch or a GET gave it. ``selected``: the row reads it (a GET knows no selectors)."""

    key: ObjectKey
    version: Version
    raw: bytes
    selected: bool = True

    def body(self) -> bytes:
        """Return the body on OBJECTS: of a deleted object its tombstone's."""
        return (tombstone if self.version.deleted else publishable)(self.key.kind, self.raw)


class UnreadableError(EventError):
    """An object that does not decode. ``key`` tells which one where at least its metadata does."""

    def __init__(self, message: str, key: ObjectKey | None, version: Version | None) -> None:
        super().__init__(message)
        self.key = key
        self.version = version


class _PositionMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Position(msgspec.Struct):
    metadata: _PositionMeta = msgspec.field(default_factory=_PositionMeta)


def read(row: KindRow, raw: bytes | msgspec.Raw, *, deleted: bool = False) -> Answer:
    """Decode one object of the row's kind, of a ``deleted`` one only the metadata.

    UnreadableError without a word of its content.
    """
    data = bytes(raw)
    try:
        meta = msgspec.json.decode(data, type=PartialObject).metadata
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableError(f"not a {row.kind}: {error}", None, None) from error
    if not deleted:
        try:
            decode_object(row.kind, data)
        except (EventError, UnicodeDecodeError) as error:
            version = Version(meta.uid, meta.resource_version)
            raise UnreadableError(str(error), row.key(meta), version) from error
    return Answer(
        key=row.key(meta),
        version=Version(meta.uid, meta.resource_version, deleted),
        raw=data,
        selected=row.selects(meta),
    )


def position(raw: bytes | msgspec.Raw) -> str:
    """Return metadata.resourceVersion of anything, a bookmark too; "" if there is none."""
    try:
        return msgspec.json.decode(raw, type=_Position).metadata.resource_version
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def last_words(key: ObjectKey, body: bytes) -> bytes:
    """Return a tombstone's body from the last body on the bus; from the key alone where that does not decode."""
    try:
        return tombstone(key.kind, body)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        metadata = {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
        return msgspec.json.encode({"metadata": metadata})
