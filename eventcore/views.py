"""State in memory: what a stream last said of each subject, and how old it is. Pure; readers fill it.

:class:`ObjectsView` holds what OBJECTS says of the cluster, :class:`AccessView` the compiled grants.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast

import msgspec

from eventcore.bus import KV_PREFIX, BusMessage
from eventcore.clock import now
from eventcore.errors import EventError
from eventcore.events import OBJECT_CHANGED, OBJECT_DELETED, Event, Mark, decode_body
from eventcore.foreign import shown
from eventcore.grants import Grant, SubjectGrant, decode_grant
from eventcore.keys import Key, ObjectKey, mark_subject
from eventcore.logs import get
from eventcore.numbers import INT32, whole
from eventcore.objects import KubeObject, Meta, PartialObject, decode_object

if TYPE_CHECKING:
    from collections.abc import Iterator


log = get("views")

EXPIRY_MARGIN: Final = timedelta(minutes=1)
"""A tombstone this close to its end may be gone already, by the server's clock."""


class ObjectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The last that OBJECTS says of an object. Of a tombstone, ``body`` and ``obj`` hold the last metadata only.

    ``withheld`` tells why the object itself is not there: ``body`` and ``obj`` are then those of one of its name that
    is being deleted, and grant nothing.
    """

    key: ObjectKey
    sequence: int
    id: str
    uid: str
    resource_version: str
    deleted: bool
    expires: datetime | None = None  # of a tombstone
    withheld: str = ""
    time: datetime
    body: bytes
    obj: KubeObject

    @property
    def metadata(self) -> Meta:
        return self.obj.metadata


class GrantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The last that the bucket says of a key. ``grant`` is None for a deleted or unusable value: no grant."""

    key: str
    sequence: int
    grant: Grant | None


class Record(Protocol):
    """What stands behind one subject."""

    @property
    def sequence(self) -> int:
        """Return the sequence of the message that it was read from."""


R = TypeVar("R", bound=Record)
O = TypeVar("O", bound=KubeObject)  # noqa: E741 -- the object's type


class Change(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """What became of one subject. ``old`` None: it was not there. ``new`` None: it is not there any more."""

    old: R | None
    new: R | None
    sequence: int


class Table(Protocol[R]):
    """What a reader fills: pure, one message after the other."""

    sequence: int
    created: str

    def apply(self, message: BusMessage, /) -> Change[R] | None:
        """Take a message; return what it changed."""

    def records(self) -> dict[str, R]:
        """Return the records by subject."""

    def subjects(self, at: datetime) -> int:
        """Return how many subjects the stream must hold at least, if nobody removed any by hand."""

    def ages(self, at: datetime) -> dict[str, float]:
        """Return the seconds since somebody vouched for each kind."""


class ObjectsView:
    """The objects of the cluster as OBJECTS has them, tombstones among them, and the marks.

    A mark that speaks of another OBJECTS than ``created`` says nothing about this one.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.created = ""
        self._records: dict[str, ObjectRecord] = {}
        self._kinds: dict[str, dict[tuple[str, str], ObjectRecord]] = {}
        self._marks: dict[str, Mark] = {}

    def apply(self, message: BusMessage) -> Change[ObjectRecord] | None:
        """Take a message of OBJECTS. One that cannot be understood is logged and changes nothing."""
        self.sequence = max(self.sequence, message.sequence)
        try:
            if message.subject.startswith("marks."):
                mark = decode_body(Mark, message.data)
                self._marks[message.subject] = mark
                return None
            record = object_record(message)
        except EventError as error:
            log.error("message on OBJECTS cannot be read", subject=message.subject, error=str(error))
            return None
        old = self._records.get(message.subject)
        self._records[message.subject] = record
        self._kinds.setdefault(record.key.kind, {})[record.key.namespace, record.key.name] = record
        return Change(old=old, new=record, sequence=message.sequence)

    def records(self) -> dict[str, ObjectRecord]:
        return self._records

    def subjects(self, at: datetime) -> int:
        soon = at + EXPIRY_MARGIN
        expired = sum(1 for record in self._records.values() if record.expires is not None and record.expires < soon)
        return len(self._records) - expired + len(self._marks)

    def get(self, kind: str, namespace: str, name: str) -> ObjectRecord | None:
        """Return a live object, or None."""
        record = self._kinds.get(kind, {}).get((namespace, name))
        return None if record is None or record.deleted else record

    def last(self, key: ObjectKey) -> ObjectRecord | None:
        """Return what OBJECTS last said, a tombstone too."""
        return self._kinds.get(key.kind, {}).get((key.namespace, key.name))

    def all(self, kind: str) -> Iterator[ObjectRecord]:
        """Yield the live objects of a kind."""
        return (record for record in self._kinds.get(kind, {}).values() if not record.deleted)

    def typed(self, kind: str, type_: type[O]) -> Iterator[O]:
        """Yield the live objects of a kind as their Struct."""
        return (cast("O", record.obj) for record in self.all(kind) if isinstance(record.obj, type_))

    def mark(self, kind: str) -> Mark | None:
        mark = self._marks.get(mark_subject(kind))
        return mark if mark is not None and mark.stream in {"", self.created} else None

    def marks(self) -> dict[str, Mark]:
        """Return the marks by kind."""
        return {mark.kind: mark for mark in self._marks.values() if mark.stream in {"", self.created}}

    def ages(self, at: datetime) -> dict[str, float]:
        return {kind: self.age(kind, at) for kind in self.marks()}

    def age(self, kind: str, at: datetime | None = None) -> float:
        """Return the seconds since a watcher vouched for the kind, infinite if none did."""
        mark = self.mark(kind)
        return float("inf") if mark is None else max(0.0, ((at or now()) - mark.time).total_seconds())


class AccessView:
    """The compiled grants.

    Without ``rules`` those of clusterResources are left out as they come in; without ``reflects``, what RoleBindings
    show.
    """

    def __init__(self, *, rules: bool = True, reflects: bool = True) -> None:
        self._rules = rules
        self._reflects = reflects
        self.sequence = 0
        self.created = ""
        self._records: dict[str, GrantRecord] = {}

    def apply(self, message: BusMessage) -> Change[GrantRecord] | None:
        """Take a message of the bucket."""
        self.sequence = max(self.sequence, message.sequence)
        key = message.subject.removeprefix(KV_PREFIX)
        gone = "KV-Operation" in message.headers
        grant = None if gone else decode_grant(key, message.data)
        if isinstance(grant, SubjectGrant) and grant.rules and not self._rules:
            grant = msgspec.structs.replace(grant, rules=())
        if isinstance(grant, SubjectGrant) and not self._reflects:
            grant = msgspec.structs.replace(grant, reflected=(), shared=())
        record = GrantRecord(key=key, sequence=message.sequence, grant=grant)
        if record.grant is None and not gone:
            log.error("grant cannot be used, so it grants nothing", key=key)
        old = self._records.get(message.subject)
        self._records[message.subject] = record
        return Change(old=old, new=record, sequence=message.sequence)

    def records(self) -> dict[str, GrantRecord]:
        return self._records

    def subjects(self, at: datetime) -> int:  # noqa: ARG002 -- nothing of the bucket expires
        return len(self._records)

    def ages(self, at: datetime) -> dict[str, float]:  # noqa: ARG002 -- grants have no marks
        return {}

    def get(self, target: Key) -> Grant | None:
        """Return the grant of a key, or None."""
        record = self._records.get(KV_PREFIX + target.token())
        return record.grant if record else None

    def all(self) -> Iterator[Grant]:
        """Yield every grant."""
        return (record.grant for record in self._records.values() if record.grant is not None)


def object_record(message: BusMessage) -> ObjectRecord:
    """Decode a message of OBJECTS; EventError."""
    key = ObjectKey.of_subject(message.subject)
    event = Event.of_headers(message.headers)
    if event.type not in {OBJECT_CHANGED, OBJECT_DELETED}:
        raise EventError(f"{shown(event.type)!r} is not a type of event that this release knows")
    deleted = event.type == OBJECT_DELETED
    obj: KubeObject
    if deleted:
        try:
            obj = msgspec.json.decode(message.data, type=PartialObject)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EventError(f"not a tombstone: {error}") from error
    else:
        obj = decode_object(key.kind, message.data)
    return ObjectRecord(
        key=key,
        sequence=message.sequence,
        id=event.id,
        uid=event.uid,
        resource_version=event.resource_version,
        deleted=deleted,
        expires=_expiry(message) if deleted else None,
        withheld=event.withheld,
        time=event.time,
        body=message.data,
        obj=obj,
    )


def _expiry(message: BusMessage) -> datetime | None:
    ttl = whole(message.headers.get("Nats-TTL", ""), INT32)
    return None if ttl is None else message.time + timedelta(seconds=ttl)
