"""Replay: ask for every key of the view again, at the pace at which the workers work them off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.errors import StreamMissingError
from eventcore.events import WorkRequest
from eventcore.keys import LANES, WORKERS, lane_consumer
from eventcore.reading import Reader
from eventcore.topology import WORK
from workers.relations import Relations
from workers.routing import Route, all_routes, grant_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from eventcore.bus import Bus
    from eventcore.keys import WorkerName

PENDING: Final = 4
"""Requests that may wait in a lane: what happens meanwhile must not stand behind the whole replay."""
LOOK_AGAIN: Final = 0.1
LOAD_TIMEOUT: Final = 30.0
"""Seconds for reading OBJECTS and the grants."""


async def replay(
    bus: Bus,
    *,
    workers: Collection[WorkerName] = WORKERS,
    configuration: str = "default",
    flux_account: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Ask for every key of these workers once more; return how many that were.

    ``configuration`` names the CapsuleConfiguration in use, ``flux_account`` Flux's default account, if it is bound.
    ``progress`` is called with the requests made so far and all of them. Waits as long as nobody works; BusError when
    NATS is away.
    """
    relations = Relations(configuration, flux_account)
    objects, access = Reader.objects(bus), Reader.access(bus)
    objects.listen(relations.apply)
    stopping = asyncio.Event()
    reading = [asyncio.ensure_future(reader.run(stopping)) for reader in (objects, access)]
    try:
        await bus.stream_state(WORK)  # says what is missing, before anything is waited for
        await objects.wait_for(0, LOAD_TIMEOUT)
        await access.wait_for(0, LOAD_TIMEOUT)
        routes = all_routes(relations) | grant_routes([*access.view.all()], relations)
        # Nothing is granted for a key that does not fit; the router names each.
        wanted = sorted(one for one in routes if one[0] in workers and one[1].fits)
        await _request(bus, wanted, progress)
        return len(wanted)
    finally:
        stopping.set()
        await asyncio.gather(*reading, return_exceptions=True)


async def _request(bus: Bus, wanted: list[Route], progress: Callable[[int, int], None] | None) -> None:
    lanes: dict[tuple[WorkerName, int], list[Route]] = {}
    for one in reversed(wanted):
        lanes.setdefault((one[0], one[1].lane()), []).append(one)
    done = 0
    while lanes:
        room = False
        for (worker, lane), routes in list(lanes.items()):
            for _ in range(min(len(routes), PENDING - await _pending(bus, worker, lane))):
                name, key = routes.pop()
                await bus.work(name, key, WorkRequest(reason="replay"))
                done += 1
                room = True
            if not routes:
                del lanes[worker, lane]
        if progress is not None:
            progress(done, len(wanted))
        if not room:
            await asyncio.sleep(LOOK_AGAIN)


async def _pending(bus: Bus, worker: WorkerName, lane: int) -> int:
    if lane >= LANES:
        raise StreamMissingError(f"lane {lane} does not exist")
    return (await bus.js.consumer_info(WORK, lane_consumer(worker, lane))).num_pending or 0
