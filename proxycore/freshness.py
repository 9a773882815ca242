"""How old what the proxy knows may be: the age of its grants and of its Namespaces."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxycore.policy import Freshness

if TYPE_CHECKING:
    from eventcore.health import Readiness
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView

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
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self._objects = objects
        self._access = access
        self._limit = limit
        self._metrics = metrics
        self._readiness = readiness
        self._kinds = kinds
        self._complete = {"objects": float("-inf"), "access": float("-inf")}
        self._recent = Freshness(ready=False)
        self._recent_until = float("-inf")
        readiness.expect("grants", "namespaces")

    def now(self) -> Freshness:
        """Return how current memory is at this moment."""
        self._look()
        at = time.monotonic()
        loaded = all(when != float("-inf") for when in self._complete.values())
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
        """Keep looking until told to stop, and report to the readiness of the process."""
        while not stopping.is_set():
            found = self.now()
            old = f"{found.age:.0f} s old" if found.age != float("inf") else "no watcher has vouched for it"
            self._readiness.set("grants", ok=self._access.ready, why="the grants are not complete")
            self._readiness.set("namespaces", ok=found.fresh, why=old if found.ready else "not complete")
            for kind in self._kinds:
                self._metrics.view_age.labels(kind).set(self._objects.view.age(kind))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), INTERVAL)

    def _look(self) -> None:
        at = time.monotonic()
        for name, reader in (("objects", self._objects), ("access", self._access)):
            if reader.ready:
                self._complete[name] = max(self._complete[name], at - reader.behind)
