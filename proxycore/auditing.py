"""Refusals and the proxy's own writes on the AUDIT stream: bounded, and never in a request's way.

The same refusal is said once a minute, unless every decision is to be recorded (``--audit-all``). What the proxy writes
for a tenant stands in the API server's audit under the proxy's name, so here stands whose request it was, each time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.errors import BusError
from eventcore.events import AuditRecord
from eventcore.logs import get

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.events import Outcome
    from proxycore.identities import Identity
    from proxycore.measures import Measures
    from proxycore.requestinfo import RequestInfo

log = get("proxy.auditing")

WAITING: Final = 1000
"""Records that may wait while NATS is away; more are dropped and counted."""
SAME_AGAIN: Final = 60.0
"""Seconds in which the same refusal is recorded once: a client that retries must not fill the stream."""
MAX_REMEMBERED: Final = 10_000
_REFUSED: Final = 400


class Auditor:
    """Takes records without waiting and publishes them in the background."""

    def __init__(self, bus: Bus, measures: Measures, *, everything: bool = False) -> None:
        self.everything = everything
        self._bus = bus
        self._queue: asyncio.Queue[AuditRecord] = asyncio.Queue(WAITING)
        self._said: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._dropped = measures.audit_dropped

    def refused(self, info: RequestInfo, identity: Identity | None, *, code: int, why: str) -> None:
        """Record that a request was refused. The query is left out: it may hold anything."""
        user = identity.user if identity is not None else ""
        key = (user, info.verb, info.path, code)
        at = time.monotonic()
        if self._said.get(key, 0.0) > at - SAME_AGAIN and not self.everything:
            return
        self._said[key] = at
        self._said.move_to_end(key)
        while len(self._said) > MAX_REMEMBERED:
            self._said.popitem(last=False)
        self._take(info, identity, "refused", "refused", f"{code} for", why)

    def decided(self, info: RequestInfo, identity: Identity, *, decision: str) -> None:
        """Record what was decided about a request; for ``everything`` alone. Its refusal is a record of its own."""
        self._take(info, identity, "decided", "done", f"{decision} for", "decided by the grants")

    def written(self, info: RequestInfo, identity: Identity, *, code: int) -> None:
        """Record a write that the proxy sent under its own account for somebody, and the API server's answer."""
        outcome: Outcome = "done" if code < _REFUSED else "failed"
        self._take(info, identity, "written", outcome, f"{code} to", "under the proxy's account, by proxySettings")

    def _take(
        self, info: RequestInfo, identity: Identity | None, action: str, outcome: Outcome, answer: str, why: str
    ) -> None:
        user = identity.user if identity is not None else ""
        account = identity.account if identity is not None else None
        record = AuditRecord(
            time=now(),
            component="proxy",
            action=action,
            outcome=outcome,
            account="/".join(account) if account else "",
            object=f"{info.resource}/{'' if info.is_namespaces else info.namespace}/{info.name}"
            if info.is_resource
            else "",
            cause="request",
            message=f"{answer} {user or 'nobody known'}: {info.method} {info.path}: {why}"[:1024],
        )
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self._dropped.inc()

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish records until told to stop; then what still waits, if NATS takes it at once."""
        stop = asyncio.ensure_future(stopping.wait())
        try:
            while not (stop.done() and self._queue.empty()):
                get_one = asyncio.ensure_future(self._queue.get())
                await asyncio.wait({get_one, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not get_one.done():
                    get_one.cancel()
                    continue
                try:
                    await self._bus.audit(get_one.result())
                except BusError as error:
                    self._dropped.inc()
                    log.warning("audit record could not be published", error=error)
                    if stop.done():
                        return
        finally:
            stop.cancel()
