"""What watchers and the router set aside, as the bus tells it: objects and names that grant nothing until mended."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import EventError, StreamMissingError
from eventcore.events import OBJECT_CHANGED, AuditRecord, Event, decode_body
from eventcore.keys import ObjectKey
from eventcore.topology import AUDIT, OBJECTS
from tether.status_read import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.bus import Bus, BusMessage

TOLD_FOR: Final = timedelta(hours=24)
"""How long a record of the router counts: it tells again twice a day of what it still sets aside."""
WHY: Final = {
    "oversized": "is larger than a message of NATS may be: make it smaller, or raise max_payload",
    "undecodable": "is not what its kind should be: correct it",
    "name": "has a name that is too long for NATS: delete it, or make it anew under a shorter one",
    "key": "names somebody by a name that is too long for NATS: shorten it there",
    "refused": "is refused by NATS: look at the limits of its streams",
}


class SetAside(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One thing that grants nothing. ``why`` is a key of WHY, ``since`` when it was told."""

    object: str
    why: str
    since: datetime

    @property
    def message(self) -> str:
        return WHY.get(self.why, f"cannot be published ({self.why})")


async def read_set_aside(bus: Bus, time: datetime) -> tuple[SetAside, ...]:
    """Read what is set aside now; a stream that is missing tells of nothing."""
    found: list[SetAside] = []
    with suppress(StreamMissingError):
        found += withheld([m async for m in read_all(bus, OBJECTS, "objects.>", last=True, headers_only=True)])
    messages: list[BusMessage] = []
    for subject in ("audit.watcher.*.*", "audit.router.*.refused"):
        with suppress(StreamMissingError):
            messages += [m async for m in read_all(bus, AUDIT, subject)]
    return tuple(sorted({*found, *told(messages, time)}))


def withheld(messages: Iterable[BusMessage]) -> list[SetAside]:
    """Return the objects in whose place a mark stands, from the headers of the last messages of OBJECTS."""
    found = []
    for message in messages:
        with suppress(EventError):
            key, event = ObjectKey.of_subject(message.subject), Event.of_headers(message.headers)
            if event.withheld and event.type == OBJECT_CHANGED:
                found.append(SetAside(object=str(key), why=event.withheld, since=event.time))
    return found


def told(messages: Iterable[BusMessage], time: datetime) -> list[SetAside]:
    """Return what records of AUDIT tell of that is not on OBJECTS: names that are too long, if not mended since."""
    found: dict[str, SetAside] = {}
    for message in messages:
        with suppress(EventError):
            record = decode_body(AuditRecord, message.data)
            why = record.message.partition(":")[0]
            if record.action == "restored":
                found.pop(record.object, None)
            elif record.action == "refused" and (why == "name" or record.component == "router"):
                found[record.object] = SetAside(object=record.object, why=why, since=message.time)
    return [one for one in found.values() if one.why == "name" or time - one.since < TOLD_FOR]
