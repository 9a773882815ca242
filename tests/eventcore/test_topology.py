"""The topology is compared with the server and corrected, and a second look finds nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from nats.js.api import DiscardPolicy

from eventcore import topology
from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.events import AuditRecord
from eventcore.keys import LANES, WORKERS

if TYPE_CHECKING:
    from eventcore.settings import Settings
    from tests.conftest import MakeBus, MakeSettings


async def test_on_an_empty_server_everything_is_missing_and_looking_changes_nothing(settings: Settings) -> None:
    bus = await Bus.connect(settings, "test")
    first = await topology.apply(bus, settings, dry_run=True)
    second = await topology.apply(bus, settings, dry_run=True)
    await bus.close()

    assert first == second
    assert all(difference.field == "" for difference in first)
    assert {d.name for d in first if d.kind == "stream"} == {"OBJECTS", "WORK", "AUDIT", "DLQ", "KV_access"}
    assert len([d for d in first if d.kind == "consumer"]) == len(WORKERS) * LANES + 1


async def test_after_apply_nothing_differs(bus: Bus, settings: Settings) -> None:
    assert await topology.apply(bus, settings, dry_run=True) == []


async def test_a_changed_stream_and_a_changed_lane_are_named_and_corrected(bus: Bus, settings: Settings) -> None:
    # Given a stream and a durable that somebody set otherwise
    config = (await bus.js.stream_info("OBJECTS")).config
    config.max_msgs_per_subject = 3
    await bus.js.update_stream(config)
    lane = (await bus.js.consumer_info("WORK", "rbac-3")).config
    lane.ack_wait = 99.0
    await bus.js.add_consumer("WORK", lane)

    # When the topology is applied
    found = await topology.apply(bus, settings)

    # Then it says what differed, and it does no more
    assert [str(difference) for difference in found] == [
        "stream OBJECTS: max_msgs_per_subject is 3, should be 8",
        f"consumer rbac-3: ack_wait is 99.0, should be {settings.ack_wait}",
    ]
    assert await topology.apply(bus, settings, dry_run=True) == []


async def test_a_lane_holds_one_message_and_work_replaces_none(bus: Bus) -> None:
    # max_msgs_per_subject on WORK lets two workers run one key at once; more than one pending breaks the lane.
    assert ((await bus.js.stream_info("WORK")).config.max_msgs_per_subject or -1) < 0
    for worker in WORKERS:
        assert (await bus.js.consumer_info("WORK", f"{worker}-0")).config.max_ack_pending == 1


async def test_no_consumer_sees_a_resting_timer(bus: Bus) -> None:
    # A schedule inside a lane's filter would be delivered at once.
    for consumer in await bus.js.consumers_info("WORK"):
        assert not str(consumer.config.filter_subject).startswith("timer.")


@pytest.mark.parametrize("name", ["AUDIT", "DLQ"])
async def test_a_stream_of_before_gets_its_size(bus: Bus, settings: Settings, name: str) -> None:
    # Given a stream as it was made before it had a size
    await bus.js.delete_stream(name)
    (before,) = [one for one in topology.streams(settings) if one.name == name]
    before.max_bytes, before.discard = None, DiscardPolicy.NEW
    await bus.js.add_stream(before)
    for stream, consumer in topology.consumers(settings):
        if stream == name:
            await bus.js.add_consumer(stream, consumer)

    # When the topology is applied
    found = await topology.apply(bus, settings)

    # Then it has one, and its oldest messages go once it is full
    assert [difference.field for difference in found] == ["max_bytes", "discard"]
    config = (await bus.js.stream_info(name)).config
    size = {"AUDIT": settings.audit_max_bytes, "DLQ": settings.dlq_max_bytes}[name]
    assert (config.max_bytes, config.discard) == (size, DiscardPolicy.OLD)
    assert bool(config.deny_purge) == (name == "AUDIT")
    assert await topology.apply(bus, settings, dry_run=True) == []


async def test_a_full_audit_takes_records_and_gives_up_the_oldest(
    make_bus: MakeBus, make_settings: MakeSettings
) -> None:
    bus = await make_bus(settings=make_settings(audit_max_bytes=1024 * 1024))
    record = AuditRecord(time=now(), component="proxy", action="refused", outcome="refused", message="x" * 1000)

    for _ in range(20):
        await asyncio.gather(*(bus.audit(record) for _ in range(100)))

    state = await bus.stream_state("AUDIT")
    assert state.last_sequence == 2000
    assert 0 < state.messages < 1000
    assert 900_000 < state.size <= 1024 * 1024


async def test_audit_cannot_be_deleted_or_purged(bus: Bus) -> None:
    config = (await bus.js.stream_info("AUDIT")).config
    assert config.deny_delete
    assert config.deny_purge
