"""Work that runs side by side, in order for each key, bounded: who adds more than fits waits.

This is the back-pressure of a watcher: while the bus is slow or away, nothing more is read from the API server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from eventcore.waiting import end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable


K = TypeVar("K", bound="Hashable")


class InOrder(Generic[K]):
    """Runs at most ``limit`` works at once; two of the same key never, and in the order in which they were added."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._running: set[asyncio.Task[None]] = set()
        self._last: dict[K, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._running)

    def busy(self, key: K) -> bool:
        """Tell whether a work of this key is not done yet."""
        return key in self._last

    async def add(self, key: K, work: Callable[[], Awaitable[None]]) -> None:
        """Start a work, once there is room. Raises what an earlier work raised."""
        self._raise_failure()
        await self._free.acquire()
        task = asyncio.get_running_loop().create_task(self._run(self._last.get(key), work))
        self._running.add(task)
        self._last[key] = task
        task.add_done_callback(lambda done: self._done(key, done))

    async def flush(self) -> None:
        """Wait until all that was added before is done. Raises what a work raised."""
        if self._running:
            await asyncio.wait(set(self._running))
        self._raise_failure()

    async def close(self, timeout: float) -> int:  # noqa: ASYNC109 -- a limit on the whole, after which it cancels
        """Wait up to ``timeout`` seconds for what runs, cancel the rest and return how many that were."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)
        left = set(self._running)
        await end(*left)
        return len(left)

    async def _run(self, before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]) -> None:
        if before is not None:
            await asyncio.wait({before})
        await work()

    def _done(self, key: K, task: asyncio.Task[None]) -> None:
        self._free.release()
        self._running.discard(task)
        if self._last.get(key) is task:
            del self._last[key]
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
