"""The messages on the bus: CloudEvents 1.0 in NATS binary mode, ``ce-*`` headers and the body as it is.

Every body that is ours is a msgspec Struct that only ever grows fields with defaults; the bytes of each released
version stay in ``tests/eventcore/golden``. The body of an object event is the Kubernetes object itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar
from urllib.parse import quote, unquote

import msgspec

from eventcore.clock import now
from eventcore.errors import EventError

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey

TYPE_PREFIX = "io.capsule-tether."
OBJECT_CHANGED = TYPE_PREFIX + "object.changed.v1"
OBJECT_DELETED = TYPE_PREFIX + "object.deleted.v1"
MARK = TYPE_PREFIX + "mark.v1"
WORK = TYPE_PREFIX + "work.v1"
AUDIT = TYPE_PREFIX + "audit.v1"
DEAD_LETTER = TYPE_PREFIX + "deadletter.v1"

_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
"""What stands for itself in a header; the rest is percent-encoded, as CloudEvents wants it."""

T = TypeVar("T")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The context attributes of a CloudEvent; ``id`` is also the ``Nats-Msg-Id`` where one is wanted.

    ``uid`` and ``resource_version`` are extension attributes of object events (``ce-uid``, ``ce-resourceversion``);
    so is ``withheld``, why the body says nothing of the object but that it is there (``ce-withheld``).
    """

    id: str
    source: str
    type: str
    subject: str = ""
    time: datetime
    uid: str = ""
    resource_version: str = ""
    withheld: str = ""

    def headers(self) -> dict[str, str]:
        """Return the NATS headers of this event."""
        headers = {
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": self.source,
            "ce-type": self.type,
            "ce-time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "ce-datacontenttype": "application/json",
        }
        if self.subject:
            headers["ce-subject"] = quote(self.subject, safe=_PRINTABLE)
        if self.uid:
            headers["ce-uid"] = self.uid
        if self.resource_version:
            headers["ce-resourceversion"] = self.resource_version
        if self.withheld:
            headers["ce-withheld"] = self.withheld
        return headers

    @classmethod
    def of_headers(cls, headers: dict[str, str] | None) -> Event:
        """Parse NATS headers; EventError if they hold no CloudEvent."""
        found = headers or {}
        try:
            time = datetime.fromisoformat(found["ce-time"])
            if time.tzinfo is None:
                raise ValueError("ce-time has no time zone")  # noqa: TRY301 -- one error for whatever is wrong with it
            return cls(
                id=found["ce-id"],
                source=found["ce-source"],
                type=found["ce-type"],
                subject=unquote(found.get("ce-subject", "")),
                time=time,
                uid=found.get("ce-uid", ""),
                resource_version=found.get("ce-resourceversion", ""),
                withheld=found.get("ce-withheld", ""),
            )
        except (KeyError, ValueError) as error:
            raise EventError(f"not a CloudEvent: header {error}") from error


def object_event(
    cluster: str,
    target: ObjectKey,
    *,
    uid: str,
    resource_version: str,
    deleted: bool = False,
    withheld: str = "",
    time: datetime | None = None,
) -> Event:
    """Return the event of one version of an object, or of its tombstone, or of a mark that it is there."""
    return Event(
        # A tombstone found by comparing a list with the view has no version of its own: every watcher must agree.
        id=f"{cluster}:{uid}:gone" if deleted else f"{cluster}:{uid}:{resource_version}",
        source=f"/clusters/{cluster}",
        type=OBJECT_DELETED if deleted else OBJECT_CHANGED,
        subject=str(target),
        time=time or now(),
        uid=uid,
        resource_version=resource_version,
        withheld=withheld,
    )


class Mark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How fresh OBJECTS is for one kind: at ``time`` the watcher had everything up to ``resource_version``.

    ``stream`` is the creation time of the OBJECTS that it speaks of: one that was made anew has yet to be filled.
    """

    kind: str
    resource_version: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    watcher: str = ""
    stream: str = ""


Reason = Literal["event", "start", "timer", "retry", "sweep", "replay"]


class WorkRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a WORK message. The subject carries worker and key.

    ``cause`` is the OBJECTS sequence that led to it, 0 for timers, retries, sweeps and replays, which always run;
    ``stream`` is that OBJECTS' creation time, since sequences begin anew with a new stream.
    ``cause_id`` is the ce-id of that event, for the audit record; a retry keeps it, or has the reason of the first try.
    ``attempt`` counts retries since the last success. ``since``: when the change that led to it happened, also through
    retries; of a timer, when it was due. A request without a cause of its own (start, sweep, replay) has none.
    """

    reason: Reason
    cause: int = 0
    stream: str = ""
    cause_id: str = ""
    attempt: int = 0
    since: datetime | None = None


Outcome = Literal["done", "refused", "failed"]


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did what, to which object, for which tenant and account, because of which event, with which outcome."""

    time: datetime
    component: str  # rbac, token, kubeconfig, access, watcher, proxy
    action: str  # granted, revoked, minted, rotated, distributed, removed, refused, written, ...
    outcome: Outcome
    tenant: str = ""
    account: str = ""  # namespace/name
    object: str = ""  # Kind/namespace/name
    cause: str = ""  # ce-id of the event, or timer, sweep, replay
    message: str = ""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What could not be handled, with the reason and the original; the original is then gone from WORK."""

    time: datetime
    worker: str
    key: str
    reason: str
    subject: str
    headers: dict[str, str] = {}
    data: bytes = b""
    deliveries: int = 1
    sequence: int = 0


_ENCODER = msgspec.json.Encoder()


def encode_body(body: Mark | WorkRequest | AuditRecord | DeadLetter) -> bytes:
    """Return the JSON bytes of one of our bodies."""
    return _ENCODER.encode(body)


def decode_body(type_: type[T], data: bytes) -> T:
    """Decode one of our bodies; EventError tells what is wrong without quoting it."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(f"not a {type_.__name__}: {error}") from error
