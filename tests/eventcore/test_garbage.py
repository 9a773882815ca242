"""What is no message of ours, in WORK and among the advisories, is set aside; lanes and mover go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore import dead_letters, topology
from eventcore.consumer import Done, Result, Run, Worker
from eventcore.events import WorkRequest
from eventcore.keys import key, lane_consumer
from eventcore.reading import Reader

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.metrics import Metrics
    from eventcore.settings import Settings

Background = Callable[[Awaitable[object]], None]
ACCOUNT = key("oil-system", "gitops-reconciler")
ADVISORY = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{topology.WORK}.{lane_consumer('rbac', ACCOUNT.lane())}"


async def empty(bus: Bus, stream: str, consumer: str) -> None:
    """Wait until a consumer has nothing pending and nothing in flight."""
    async with asyncio.timeout(30):
        while True:
            info = await bus.js.consumer_info(stream, consumer)
            if not info.num_pending and not info.num_ack_pending:
                return
            await asyncio.sleep(0.02)


async def test_garbage_among_the_advisories_does_not_end_the_mover(
    bus: Bus, metrics: Metrics, stopping: asyncio.Event
) -> None:
    # given garbage before a real advisory
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    advisory = {"stream": topology.WORK, "consumer": "rbac-0", "stream_seq": 1, "deliveries": 5}
    numbers: list[object] = [-1, 0, 2**63, 2**80, "1", None]
    for data in (
        *(b"", b"null", b"{}", b"\xff", b"[" * 100_000, b"9" * 5000),
        *(
            msgspec.json.encode(advisory | {"stream_seq": one}) if one != 2**80 else b'{"stream_seq":1%s}' % (b"0" * 30)
            for one in numbers
        ),
        msgspec.json.encode(advisory | {"stream_seq": 999}),
        msgspec.json.encode(advisory),
    ):
        await bus.publish(ADVISORY, data)

    # when a mover runs
    moving = asyncio.ensure_future(dead_letters.move(bus, metrics, stopping))
    await empty(bus, topology.DLQ, topology.MOVER)

    # then what is real is moved, and the mover still runs
    assert (await bus.stream_state(topology.WORK)).messages == 0
    assert await bus.last(topology.DLQ, "dlq.rbac.oil-system=2Fgitops-reconciler") is not None
    assert not moving.done()
    stopping.set()
    await asyncio.wait_for(moving, 20)


async def test_a_mover_without_its_consumer_waits_and_does_not_spin(
    bus: Bus, metrics: Metrics, stopping: asyncio.Event, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given the consumer was removed
    await bus.js.delete_consumer(topology.DLQ, topology.MOVER)
    pauses: list[float] = []
    twice = asyncio.Event()

    async def pause(_: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 1:
            twice.set()
        await asyncio.sleep(0.05)

    monkeypatch.setattr(dead_letters, "pause", pause)
    moving = asyncio.ensure_future(dead_letters.move(bus, metrics, stopping))
    await asyncio.wait_for(twice.wait(), 20)

    # when it is made again, and something is to be moved
    await topology.apply(bus, settings)
    await bus.publish(ADVISORY, b"nonsense")
    await empty(bus, topology.DLQ, topology.MOVER)
    assert not moving.done()
    stopping.set()
    await asyncio.wait_for(moving, 20)


async def test_garbage_in_a_lane_is_buried_and_the_lane_goes_on(
    bus: Bus, settings: Settings, metrics: Metrics, stopping: asyncio.Event, background: Background
) -> None:
    # given a lane full of what nobody can read, and one request
    lane = ACCOUNT.lane()
    for tail, data in (
        ("=zz", b"{}"),
        ("a.==", b"{}"),
        ("a.b", b"\xff"),
        ("a.b", b"null"),
        ("a.b", b"[" * 100_000),
        ("a.b", b"x" * 500_000),
        ("a" * 2500, b"x"),
        ("=", b'{"reason":"unheard"}'),
    ):
        await bus.publish(f"work.rbac.{lane}.{tail}", data, headers={"a": "b" * 50_000})
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    ran = asyncio.Event()

    async def reconcile(run: Run) -> Result:
        assert run.key == ACCOUNT
        ran.set()
        return Done()

    # when a worker runs
    reader = Reader.objects(bus)
    background(reader.run(stopping))
    background(Worker(bus, reader, "rbac", reconcile, settings, metrics).run(stopping))

    # then the request is worked, and each of the others is a dead letter
    await asyncio.wait_for(ran.wait(), 30)
    await empty(bus, topology.WORK, lane_consumer("rbac", lane))
    assert (await bus.stream_state(topology.DLQ)).messages == 8
    assert bus.connected
