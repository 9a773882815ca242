"""How long the event loop of a process was held: a heartbeat tells by how much it came late.

While one callback runs, nobody else is answered: neither a probe, nor a tenant, nor a revocation. The suite allows no
callback more than 50 ms of CPU; here it shows for a process that runs, other processes on its node included.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get

if TYPE_CHECKING:
    from eventcore.metrics import Metrics

log = get("eventcore.heartbeat")

INTERVAL: Final = 0.1
TOLD: Final = 1.0
"""Seconds from which a line in the log says so."""


async def beat(metrics: Metrics, *, interval: float = INTERVAL) -> None:
    """Beat until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        late = max(0.0, loop.time() - due)
        metrics.loop_held.observe(late)
        if late >= TOLD:
            log.warning("the event loop was held, or the process got no CPU", seconds=round(late, 3))
