"""Records for AUDIT that nothing waits for: of what was set aside or taken back, while the rest goes on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import nats.errors

from eventcore.errors import BusError, EventError, RefusedError
from eventcore.logs import get
from eventcore.waiting import end

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.events import AuditRecord

log = get("recording")

WAITING: Final = 1024
"""Records that wait for the bus; beyond them the oldest are left out, and the log has to do."""
RETRY_PAUSE: Final = 1.0


class Recorder:
    """Appends records to AUDIT in order, one at a time, through any outage, while the process runs."""

    def __init__(self, bus: Bus, most: int = WAITING) -> None:
        self._bus = bus
        self._waiting: deque[AuditRecord] = deque(maxlen=most)
        self._task: asyncio.Task[None] | None = None

    def add(self, record: AuditRecord) -> None:
        """Take a record; it is written as soon as the bus takes it."""
        if len(self._waiting) == self._waiting.maxlen:
            log.warning("record left out, the bus does not take them", object=self._waiting[0].object)
        self._waiting.append(record)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def close(self, seconds: float) -> None:
        """Write what waits, for at most so many seconds."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
            await end(self._task)

    async def _write(self) -> None:
        while self._waiting:
            record = self._waiting[0]
            try:
                await self._bus.audit(record)
            except (RefusedError, EventError) as error:
                log.warning("record left out, the bus refuses it", object=record.object, error=str(error))
            except (BusError, nats.errors.Error, TimeoutError, OSError) as error:
                log.debug("records wait for the bus", waiting=len(self._waiting), error=str(error))
                await asyncio.sleep(RETRY_PAUSE)
                continue
            if self._waiting and self._waiting[0] is record:
                self._waiting.popleft()
