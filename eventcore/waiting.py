"""How to wait, and how to stop waiting: for a time or a stop, and for tasks that were cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eventcore.clock import now

if TYPE_CHECKING:
    from datetime import datetime


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait so many seconds, or until ``stopping`` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they are done; their results and errors are not looked at.

    Cancelled once is not enough: ``asyncio.wait_for`` of Python 3.11, which nats-py uses, drops a cancellation that
    meets its result.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=1.0)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it


def later(seconds: float) -> datetime:
    """Return the time in so many seconds."""
    return now() + timedelta(seconds=seconds)
