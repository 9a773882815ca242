"""Streams and lane consumers as data, compared with the server and corrected.

A server keeps a stream as it was first made: declaring it again with other settings fails, and binding to a durable
ignores new ones. So the topology is compared field by field, and only what differs is created or updated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from eventcore.errors import BusError
from eventcore.grants import BUCKET
from eventcore.keys import LANES, WORKERS, lane_consumer, lane_filter

if TYPE_CHECKING:
    from nats.js.api import ConsumerInfo

    from eventcore.bus import Bus
    from eventcore.settings import Settings

OBJECTS: Final = "OBJECTS"
WORK: Final = "WORK"
AUDIT: Final = "AUDIT"
DLQ: Final = "DLQ"
ACCESS: Final = f"KV_{BUCKET}"

MOVER: Final = "mover"
"""The durable consumer of DLQ through which exhausted requests are moved there from WORK."""
ADVISORIES: Final = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{WORK}.*"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as the topology says."""

    kind: Literal["stream", "consumer"]
    name: str
    field: str  # "" when it is missing altogether
    have: str = ""
    want: str = ""

    def __str__(self) -> str:
        if not self.field:
            return f"{self.kind} {self.name} is missing"
        return f"{self.kind} {self.name}: {self.field} is {self.have}, should be {self.want}"


def streams(settings: Settings) -> list[StreamConfig]:
    """Return the streams. Their fields are those that are compared; what is None is left to the server."""
    common: dict[str, Any] = {
        "storage": StorageType.FILE,
        "duplicate_window": 120.0,
        "num_replicas": settings.stream_replicas,
    }
    return [
        # Rollup and TTL: a tombstone replaces the whole subject and then expires; with a TTL alone the version before
        # it would come back as the last.
        StreamConfig(
            name=OBJECTS,
            subjects=["objects.*.*.*", "marks.*"],
            max_msgs_per_subject=8,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            allow_direct=True,
            **common,
        ),
        # Never max_msgs_per_subject here: replacing an in-flight message lets two workers run one key at once.
        StreamConfig(
            name=WORK,
            subjects=["work.*.*.>", "timer.*.*.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            allow_msg_schedules=True,
            allow_rollup_hdrs=True,  # schedules need it
            allow_direct=True,
            **common,
        ),
        # Full, it gives up its oldest records: one that took no more would hold up every grant, as each is recorded.
        StreamConfig(
            name=AUDIT,
            subjects=["audit.*.*.*"],
            max_age=settings.audit_max_age,
            max_bytes=settings.audit_max_bytes,
            discard=DiscardPolicy.OLD,
            deny_delete=True,
            deny_purge=True,
            **common,
        ),
        # The same: one that took no more would leave every exhausted request in WORK.
        StreamConfig(
            name=DLQ,
            subjects=["dlq.>", ADVISORIES],
            max_age=settings.dlq_max_age,
            max_bytes=settings.dlq_max_bytes,
            discard=DiscardPolicy.OLD,
            **common,
        ),
        StreamConfig(
            name=ACCESS,
            subjects=[f"$KV.{BUCKET}.>"],
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            deny_delete=True,
            allow_rollup_hdrs=True,
            allow_direct=True,
            **common,
        ),
    ]


def consumers(settings: Settings) -> list[tuple[str, ConsumerConfig]]:
    """Return (stream, consumer): the lanes of WORK, one message in flight in each, and the mover of DLQ."""
    lanes = [
        ConsumerConfig(
            durable_name=lane_consumer(worker, lane),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            filter_subject=lane_filter(worker, lane),
            ack_wait=settings.ack_wait,
            max_deliver=settings.max_deliver,
            max_ack_pending=1,
            max_waiting=512,
        )
        for worker in WORKERS
        for lane in range(LANES)
    ]
    mover = ConsumerConfig(
        durable_name=MOVER,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        filter_subject=ADVISORIES,
        ack_wait=settings.ack_wait,
    )
    return [*((WORK, lane) for lane in lanes), (DLQ, mover)]


async def apply(bus: Bus, settings: Settings, *, dry_run: bool = False) -> list[Difference]:
    """Create and correct what differs; return the differences that were found. ``dry_run`` only looks.

    Raises BusError with the server's words where a difference cannot be corrected in place.
    """
    found: list[Difference] = []
    for stream in streams(settings):
        name = stream.name or ""
        try:
            have = (await bus.js.stream_info(name)).config
        except NotFoundError:
            found.append(Difference(kind="stream", name=name, field=""))
            if not dry_run:
                await _do(f"stream {name}", bus.js.add_stream(stream))
            continue
        differences = _compare("stream", name, have, stream)
        found += differences
        if differences and not dry_run:
            await _do(f"stream {name}", bus.js.update_stream(stream))
    present: dict[str, dict[str, ConsumerConfig]] = {}
    for stream_name, consumer in consumers(settings):
        name = consumer.durable_name or ""
        if stream_name not in present:
            present[stream_name] = {info.name: info.config for info in await consumers_of(bus, stream_name)}
        known = present[stream_name].get(name)
        differences = (
            [Difference(kind="consumer", name=name, field="")]
            if known is None
            else _compare("consumer", name, known, consumer)
        )
        found += differences
        if differences and not dry_run:
            await _do(f"consumer {name}", bus.js.add_consumer(stream_name, consumer))
    return found


async def consumers_of(bus: Bus, stream: str) -> list[ConsumerInfo]:
    """Return all consumers of a stream with their state; none when there is no stream."""
    found: list[ConsumerInfo] = []
    while True:
        try:
            page = await bus.js.consumers_info(stream, offset=len(found))
        except NotFoundError:
            return found
        found += page
        if not page:
            return found


def _compare(
    kind: Literal["stream", "consumer"],
    name: str,
    have: StreamConfig | ConsumerConfig,
    want: StreamConfig | ConsumerConfig,
) -> list[Difference]:
    def text(value: object) -> str:
        return str(getattr(value, "value", value))

    differences = []
    for field, wanted in vars(want).items():
        present = getattr(have, field, None)
        # The server says nothing of a field at its default.
        if wanted is None or text(wanted) == text(present) or (not wanted and not present):
            continue
        if isinstance(wanted, int | float) and wanted < 0 and (present is None or present < 0):
            continue
        differences.append(Difference(kind=kind, name=name, field=field, have=text(present), want=text(wanted)))
    return differences


async def _do(what: str, action: Any) -> None:
    try:
        await action
    except APIError as error:
        raise BusError(
            f"{what} cannot be brought to what the topology says: {error.description}; "
            "drain it, remove it by hand and apply again"
        ) from error
