"""Wakes watches a few at a time, so that a request never waits for a thousand of them.

All that is woken in one turn of the event loop runs in the next one, before anything else is read from a socket.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

AT_ONCE: Final = 16
"""Watches that run in one turn: together they take about a millisecond."""


class Waking:
    """Sets events in the order in which they were given, each once however often it was given meanwhile."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Event, None] = {}

    def wake(self, events: Iterable[asyncio.Event]) -> None:
        """Set these, the first of them now."""
        begun = bool(self._waiting)
        self._waiting.update(dict.fromkeys(events))
        if not begun:
            self._some()

    def _some(self) -> None:
        for event in list(islice(self._waiting, AT_ONCE)):
            del self._waiting[event]
            event.set()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._some)


async def awoken(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, or for so long, and clear it."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
