"""How much waits in WORK, and for how long: what an autoscaler and an operator look at, for the whole fleet.

And how full AUDIT is: once it is, its oldest records go before their time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import nats.errors
import nats.js.errors

from eventcore.clock import NATS
from eventcore.errors import BusError
from eventcore.keys import WORKERS
from eventcore.logs import get
from eventcore.topology import AUDIT, WORK, consumers_of
from eventcore.waiting import pause

if TYPE_CHECKING:
    import asyncio

    from eventcore.bus import Bus
    from eventcore.metrics import Metrics

log = get("depth")

INTERVAL: Final = 10.0
"""Seconds between measurements; each is one request to NATS, and one more for each worker."""


async def measure(bus: Bus, metrics: Metrics, stopping: asyncio.Event, *, interval: float = INTERVAL) -> None:
    """Keep ``workqueue_depth`` and ``tether_work_oldest_seconds`` of each worker up to date until told to stop.

    Both count requests that wait or are in hand. ``tether_audit_bytes`` goes with them.
    """
    while not stopping.is_set():
        try:
            depth: Counter[str] = Counter()
            for info in await consumers_of(bus, WORK):
                depth[info.name.rpartition("-")[0]] += (info.num_pending or 0) + (info.num_ack_pending or 0)
            for worker in WORKERS:
                metrics.queue_depth.labels(worker).set(depth[worker])
                metrics.queue_oldest.labels(worker).set(await _oldest(bus, worker))
            metrics.audit_bytes.set((await bus.stream_state(AUDIT)).size)
        except (BusError, nats.errors.Error, TimeoutError, OSError) as error:
            log.debug("depth of WORK is not known", error=str(error) or type(error).__name__)
        await pause(stopping, interval)


async def _oldest(bus: Bus, worker: str) -> float:
    """Return the age in seconds of the first request of a worker that is still in WORK, 0 without one."""
    try:
        message = await bus.js.get_msg(WORK, seq=1, subject=f"work.{worker}.>", next=True)
    except nats.js.errors.NotFoundError:
        return 0.0
    return max(0.0, (NATS.now() - message.time).total_seconds()) if message.time else 0.0
