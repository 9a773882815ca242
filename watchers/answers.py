"""What the API server said about one object: who it is, which version, and the bytes that may go on the bus.

An object that cannot go there, for it does not decode or is too large, is not left as it was, since it may have been
changed to take something away: in its place goes a mark that it is there, which grants nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import EventError
from eventcore.keys import ObjectKey
from eventcore.objects import Meta, PartialObject, decode_object
from eventcore.publishable import publishable, tombstone, withheld
from watchers.snapshot import Version

if TYPE_CHECKING:
    from watchers.kinds import KindRow


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Said(msgspec.Struct, frozen=True):
    """What goes on the bus for an answer. ``withheld``: why it is the mark alone, "" if it is not."""

    body: bytes
    withheld: str = ""
    problem: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One object as a list, a watch or a GET gave it. ``selected``: the row reads it (a GET knows no selectors).

    ``problem``: why it does not decode.
    """

    key: ObjectKey
    version: Version
    raw: bytes
    selected: bool = True
    problem: str = ""

    def say(self, limit: int) -> Said:
        """Return what to publish in at most ``limit`` bytes: of a deleted object its tombstone."""
        if self.version.deleted:
            return Said(last_words(self.key, self.raw, limit))
        if self.problem:
            return self.mark("undecodable", self.problem)
        try:
            body = publishable(self.key.kind, self.raw)
        except (*_UNREADABLE, AttributeError, TypeError) as error:
            return self.mark("undecodable", f"not a {self.key.kind}: {error}")
        if len(body) > limit:
            return self.mark("oversized", f"{len(body)} bytes are over what the NATS server takes, {limit}")
        return Said(body)

    def mark(self, why: str, problem: str) -> Said:
        """Return the mark that the object is there, of which nothing else is told."""
        key, version = self.key, self.version
        body = withheld(key.kind, key.name, key.namespace, version.uid, version.resource_version)
        return Said(body, why, problem)


class UnreadableError(EventError):
    """An object of which not even the name can be read."""


class _Names(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Named(msgspec.Struct):
    metadata: _Names


class _PositionMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Position(msgspec.Struct):
    metadata: _PositionMeta = msgspec.field(default_factory=_PositionMeta)


def read(row: KindRow, raw: bytes | msgspec.Raw, *, deleted: bool = False) -> Answer:
    """Decode one object of the row's kind, of a ``deleted`` one only the metadata.

    One that does not decode is an answer with a ``problem``, without a word of its content. UnreadableError where
    nothing tells which object it is.
    """
    data = bytes(raw)
    problem = ""
    try:
        meta = msgspec.json.decode(data, type=PartialObject).metadata
        if not deleted:
            decode_object(row.kind, data)
    except (*_UNREADABLE, EventError) as error:
        problem = f"not a {row.kind}: {error}"
        try:
            names = msgspec.json.decode(data, type=_Named).metadata
        except _UNREADABLE:
            raise UnreadableError(problem) from error
        meta = Meta(name=names.name, namespace=names.namespace, uid=names.uid, resource_version=names.resource_version)
    return Answer(
        key=row.key(meta),
        version=Version(meta.uid, meta.resource_version, deleted),
        raw=data,
        selected=bool(problem) or row.selects(meta),
        problem="" if deleted else problem,
    )


def position(raw: bytes | msgspec.Raw) -> str:
    """Return metadata.resourceVersion of anything, a bookmark too; "" if there is none."""
    try:
        return msgspec.json.decode(raw, type=_Position).metadata.resource_version
    except _UNREADABLE:
        return ""


def last_words(key: ObjectKey, body: bytes, limit: int) -> bytes:
    """Return a tombstone's body from the last body; from the key alone where that does not decode or is too large."""
    with suppress(*_UNREADABLE, AttributeError, TypeError):
        words = tombstone(key.kind, body)
        if len(words) <= limit:
            return words
    metadata = {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
    return msgspec.json.encode({"metadata": metadata})
