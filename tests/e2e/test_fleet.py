"""Scale-out: worker processes, one of them paused beyond ack_wait; still one holder a key, and never a way back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore.events import WorkRequest, object_event
from eventcore.grants import BUCKET
from eventcore.keys import ObjectKey, key

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from eventcore.bus import Bus
    from eventcore.settings import Settings

SCRIPT = Path(__file__).with_name("fleet_worker.py")
KEYS = [f"k{n}" for n in range(8)]
VERSIONS = 400
ACK_WAIT = "2s"


class Held(msgspec.Struct):
    """A line of a worker's log, see fleet_worker.py."""

    pid: int
    key: str
    start: float
    end: float
    lease: float


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(ack_wait=ACK_WAIT, pull_expiry="300ms", reconcile_timeout="1500ms")


@pytest.fixture
async def fleet(bus: Bus, settings: Settings, tmp_path: Path) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Three worker processes on one server."""
    environment = {
        **os.environ,
        "TETHER_NATS_URL": settings.nats_url,
        "TETHER_ACK_WAIT": ACK_WAIT,
        "TETHER_PULL_EXPIRY": "300ms",
        "TETHER_RECONCILE_TIMEOUT": "1500ms",
        "TETHER_LOG_LEVEL": "error",
    }
    started = [
        await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), str(tmp_path / f"{n}.log"), env=environment)
        for n in range(3)
    ]
    yield started
    for process in started:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
    for process in started:
        await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def bus(make_bus: Callable[..., Awaitable[Bus]], settings: Settings) -> Bus:
    return await make_bus(settings=settings)


async def publish(bus: Bus, stream: str, name: str, version: int) -> None:
    target = ObjectKey("Namespace", "", name)
    body = msgspec.json.encode({"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}})
    event = object_event("test", target, uid=name, resource_version=str(version))
    stored = await bus.publish(target.subject(), body, event)
    request = WorkRequest(reason="event", cause=stored.sequence, stream=stream, cause_id=event.id)
    await bus.work("rbac", key(name), request, msg_id=f"{stored.sequence}:{name}")


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_no_key_has_two_live_holders_and_no_state_goes_back(
    bus: Bus, fleet: list[asyncio.subprocess.Process], tmp_path: Path
) -> None:
    # Given three worker processes, and somebody who writes down every value in the order of its writing
    written: dict[str, list[int]] = defaultdict(list)
    complete = asyncio.Event()
    version = last = 0

    async def note(message: Msg) -> None:
        name = message.subject.removeprefix(f"$KV.{BUCKET}.")
        written[name].append(int(message.data))
        if last and all(values and values[-1] == last for values in (written[k] for k in KEYS)):
            complete.set()

    await bus.nc.subscribe(f"$KV.{BUCKET}.>", cb=note)
    logs = [tmp_path / f"{n}.log" for n in range(3)]

    stream = (await bus.stream_state("OBJECTS")).created

    # When thousands of events come for few keys, and in their midst one process stands still for longer than ack_wait
    async def burst(first: int, end: int) -> None:
        for number in range(first, end + 1):
            await asyncio.gather(*(publish(bus, stream, name, number) for name in KEYS))

    async with asyncio.timeout(60):
        while version < VERSIONS // 4 or not all(log.exists() for log in logs):  # until all three take part
            version += 1
            await burst(version, version)
    paused = fleet[0]
    paused.send_signal(signal.SIGSTOP)
    before = asyncio.get_running_loop().time()
    last = version + VERSIONS
    await burst(version + 1, last)
    await asyncio.sleep(
        max(0.0, before + 4.0 - asyncio.get_running_loop().time())
    )  # beyond ack_wait, whatever the speed
    paused.send_signal(signal.SIGCONT)

    # Then each key ends at its last version
    await asyncio.wait_for(complete.wait(), 60)
    async with asyncio.timeout(30):
        while (await bus.stream_state("WORK")).messages:
            await asyncio.sleep(0.05)

    # And no older state ever overwrote a newer one
    for name in KEYS:
        assert written[name] == sorted(written[name]), name

    # And no two live holders had a key at once: a holder is live until it ends or its lease does
    spans: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for log in logs:
        for line in log.read_bytes().splitlines():
            held = msgspec.json.decode(line, type=Held)
            spans[held.key].append((held.start, min(held.end, held.lease), held.pid))
    assert len({pid for lived in spans.values() for _, _, pid in lived}) == 3
    for name, lived in spans.items():
        for (_, end, one), (start, _, other) in pairwise(sorted(lived)):
            assert end <= start, f"{name} was held by {one} until {end} and by {other} from {start}"
