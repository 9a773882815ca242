"""One worker process of the fleet test: reconciles keys by writing the version it sees, and notes when it held them.

Run as ``python fleet_worker.py LOG``; settings come from TETHER_* as for any role.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from eventcore import logs
from eventcore.bus import Bus
from eventcore.consumer import Done, Result, Retry, Run, run_worker
from eventcore.errors import WrongSequenceError
from eventcore.metrics import Metrics
from eventcore.reading import Reader
from eventcore.settings_reading import load


class Held(msgspec.Struct):
    """A line of the log: who held which key, and until when it counted as the holder (monotonic seconds)."""

    pid: int
    key: str
    start: float
    end: float
    lease: float


async def work(log: Path) -> None:
    settings = load(os.environ, {})
    logs.configure(settings.log_level, settings.log_format, "fleet")
    bus = await Bus.connect(settings, "fleet")
    reader = Reader.objects(bus)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def reconcile(run: Run) -> Result:
        start = time.monotonic()
        try:
            # As the access worker does: the revision first, then the state, then the write on that revision.
            entry = await bus.kv_get(run.key)
            await reader.barrier(5)
            (name,) = run.key.parts
            record = reader.view.get("Namespace", "", name)
            run.check()
            if record is not None:
                await bus.kv_put(run.key, record.resource_version.encode(), revision=entry.revision if entry else 0)
        except WrongSequenceError:
            return Retry("somebody else wrote", after=0.0)
        finally:
            held = Held(pid=os.getpid(), key=str(run.key), start=start, end=time.monotonic(), lease=run.lease.ends)
            with log.open("ab") as file:
                file.write(msgspec.json.encode(held) + b"\n")
        return Done()

    async with asyncio.TaskGroup() as group:
        group.create_task(reader.run(stopping))
        group.create_task(run_worker(bus, reader, "rbac", reconcile, settings, Metrics(), stopping))
    await bus.close()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
