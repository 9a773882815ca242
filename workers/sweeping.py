"""The sweep: every key has its turn once in each interval, whatever events were or were not told.

A turn is a fixed point of the interval, spread by a hash: so the sweep is a trickle and not a flood, and the same in
every replica of the router. Times are Unix seconds.
"""

from __future__ import annotations

import zlib
from time import time
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.keys import Key, WorkerName
from eventcore.waiting import pause

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterable

    from workers.routing import Route

TICKS: Final = 60
"""Parts that an interval is cut into: how often it is looked whose turn it is."""


class Turn(msgspec.Struct, frozen=True, order=True):
    """A key whose turn it is. ``number`` counts the turns of the key, the same in every replica."""

    worker: WorkerName
    key: Key
    number: int

    @property
    def msg_id(self) -> str:
        """The Msg-Id under which the replicas ask for this turn once between them."""
        return f"sweep:{self.number}:{self.worker}:{self.key.token()}"


async def turns(
    routes: Callable[[], Iterable[Route]],
    interval: float,
    stopping: asyncio.Event,
    clock: Callable[[], float] = time,
) -> AsyncIterator[list[Turn]]:
    """Yield whose turn it is, again and again until told to stop. ``routes`` returns every key that there is then.

    A turn that came while nobody looked is taken at the next look, several of one key as one.
    """
    last = clock()
    while not stopping.is_set():
        await pause(stopping, interval / TICKS)
        moment = clock()
        yield due_between(routes(), last, moment, interval)
        last = moment


def due_between(routes: Iterable[Route], last: float, moment: float, interval: float) -> list[Turn]:
    """Return the keys whose turn lies after ``last`` and not after ``moment``, sorted."""
    found: list[Turn] = []
    for worker, key in routes:
        offset = zlib.crc32(f"{worker}:{key.token()}".encode()) / 2**32 * interval
        number = int((moment - offset) // interval)
        if number > (last - offset) // interval:
            found.append(Turn(worker, key, number))
    return sorted(found)
