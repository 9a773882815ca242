"""How old what the proxy knows may be: the age of its grants and of its Namespaces.

Age is a matter of each request, never of readiness: an outage of NATS that took every proxy out of its Service would
take what needs no grants with it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.policy import Freshness

if TYPE_CHECKING:
    from eventcore.health import Readiness
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.completeness import Completeness

log = get("proxy.freshness")

KINDS: Final = ("Namespace", "Tenant")
"""The kinds whose watchers must be alive for grants to be true."""
REFLECTED: Final = ("AnyRoleBinding",)
"""Those beside them where RoleBindings count among the grants."""
INTERVAL: Final = 0.5
RECENT_SECONDS: Final = 0.02
"""For how long one look serves all requests: the limit is seconds."""


class Freshener:
    """Knows when each view was last complete. A short outage of NATS leaves them usable until they are too old."""

    def __init__(
        self,
        objects: Reader[ObjectsView, ObjectRecord],
        access: Reader[AccessView, GrantRecord],
        *,
        limit: float,
        metrics: Metrics,
        readiness: Readiness,
        completeness: Completeness,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self._objects = objects
        self._access = access
        self._limit = limit
        self._metrics = metrics
        self._readiness = readiness
        self._completeness = completeness
        self._kinds = kinds
        self._complete = {"objects": float("-inf"), "access": float("-inf")}
        self._recent = Freshness(ready=False)
        self._recent_until = float("-inf")
        readiness.expect("grants", "namespaces")

    def now(self) -> Freshness:
        """Return how current memory is at this moment."""
        self._look()
        at = time.monotonic()
        loaded = bool(self._objects.created and self._access.created)
        ages = [at - when for when in self._complete.values()]
        ages += [self._objects.view.age(kind) for kind in self._kinds]
        return Freshness(ready=loaded, age=max(ages), limit=self._limit)

    def recent(self) -> Freshness:
        """Return how current memory is, or was some hundredths of a second ago."""
        at = time.monotonic()
        if at > self._recent_until:
            self._recent_until = at + RECENT_SECONDS
            self._recent = self.now()
        return self._recent

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep looking until told to stop: tell readiness when all is loaded, and the log when it is too old."""
        was_fresh = True
        while not stopping.is_set():
            found = self.now()
            self._report()
            if found.ready and found.fresh != was_fresh:
                was_fresh = found.fresh
                self._say(found)
            for kind in self._kinds:
                self._metrics.view_age.labels(kind).set(self._objects.view.age(kind))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), INTERVAL)

    def _report(self) -> None:
        """Set the checks; what was loaded once stays so."""
        why = f"the grants are not complete: {self._completeness.lacking}"
        self._readiness.set("grants", ok=bool(self._access.created), why=why)
        unlisted = self._completeness.unlisted()
        why = f"no watcher has vouched for it: {unlisted}" if unlisted else "not complete"
        self._readiness.set("namespaces", ok=bool(self._objects.created), why=why)

    def _say(self, found: Freshness) -> None:
        if found.fresh:
            log.info("memory is current again, filtered answers are given")
            return
        old = {kind: _whole(self._objects.view.age(kind)) for kind in self._kinds}
        views = {name: _whole(time.monotonic() - when) for name, when in self._complete.items()}
        log.warning("memory is too old, filtered answers are refused", limit=self._limit, marks=old, views=views)

    def _look(self) -> None:
        at = time.monotonic()
        for name, reader in (("objects", self._objects), ("access", self._access)):
            if reader.ready:
                self._complete[name] = max(self._complete[name], at - reader.behind)


def _whole(seconds: float) -> float | str:
    return round(seconds) if seconds != float("inf") else "never"
