"""A client of a test that asks again and again beside what the test does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from eventcore.waiting import pause


@asynccontextmanager
async def repeating(step: Callable[[], Awaitable[None]], every: float) -> AsyncIterator[None]:
    """Run a step each so many seconds until the block ends.

    The last one is finished, never cancelled: asyncio leaves a socket open whose TLS handshake is cut off at its start.
    """
    stopping = asyncio.Event()

    async def repeat() -> None:
        while not stopping.is_set():
            await step()
            await pause(stopping, every)

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        stopping.set()
        await task
