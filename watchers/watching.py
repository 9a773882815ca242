"""One kind: list, compare with the view, publish the difference, watch, and again from the right place after a break.

* A list that failed, broke off or held an object without a readable name buries nothing.
* A pass that would bury too much (``mass_delete_share``, ``mass_delete_min``), and not of one tenant alone, buries
  nothing, says so, and makes no marks, so that views grow old instead of wrong. An operator who knows that the objects
  are really gone confirms by running one watcher with ``--mass-delete-share=1``; the others see its tombstones and go
  on.
* A watch that the API server ended in good order goes on from the last version. A broken one begins with a list, which
  costs little (only differences are published) and vouches for the kind at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from eventcore.clock import now as time_now
from eventcore.errors import (
    ForbiddenError,
    GoneError,
    KubeError,
    KubeUnreachableError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    WatchInactiveError,
)
from eventcore.events import AuditRecord
from eventcore.keys import ObjectKey
from eventcore.kube_watch import list_pages, watch
from eventcore.logs import get
from eventcore.objects import LABEL_TENANT
from eventcore.waiting import end
from watchers.answers import UnreadableError, position, read
from watchers.backoff import Backoff
from watchers.marks import Freshness, Marker
from watchers.publish import BUS_TROUBLE, Publisher
from watchers.snapshot import is_mass_delete, is_older, is_one_tenants, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from eventcore.bus import Bus
    from eventcore.kube import KubeClient
    from eventcore.kube_watch import WatchEvent
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from watchers.kinds import KindRow
    from watchers.metrics import WatchMetrics

RETRY_BASE: Final = 0.25
RETRY_CAP: Final = 15.0
"""Seconds; a new CRD, a returned API server or a granted right is noticed within it."""
BARRIER_TIMEOUT: Final = 5.0
CLOSE_TIMEOUT: Final = 10.0
HEALTHY_AFTER: Final = 1.0
"""Seconds that a watch without events must last to count as a success."""
CONFIRM: Final = "tether watch --mass-delete-share=1"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all kinds of one watcher share."""

    name: str
    bus: Bus
    reader: Reader[ObjectsView, ObjectRecord]
    client: KubeClient
    settings: Settings
    metrics: Metrics
    counters: WatchMetrics


class KindWatcher:
    """Follows one kind. ``on_listed`` is called when the first list is on the bus."""

    def __init__(self, row: KindRow, tools: Tools, *, on_listed: Callable[[], None] = lambda: None) -> None:
        self.row = row
        self._tools = tools
        self._settings = tools.settings
        self._reader = tools.reader
        self._on_listed = on_listed
        self._log = get("watchers").bind(kind=row.kind)
        self._publisher = Publisher(
            row,
            bus=tools.bus,
            reader=tools.reader,
            client=tools.client,
            settings=tools.settings,
            metrics=tools.metrics,
            counters=tools.counters,
            log=self._log,
        )
        self._freshness = Freshness(tools.settings.watch_inactivity)
        self._marker = Marker(
            row.kind,
            self._freshness,
            bus=tools.bus,
            settings=tools.settings,
            watcher=tools.name,
            vouch=self._vouch,
            log=self._log,
        )
        self._backoff = Backoff(RETRY_BASE, RETRY_CAP)
        self._position = ""
        self._created = ""
        self._stopped: dict[ObjectKey, int] = {}
        self._relist = asyncio.Event()
        self._trouble = ""

    def relist(self) -> None:
        """List again: OBJECTS has lost something of this kind."""
        self._relist.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the kind until told to stop, then finish what is in flight."""
        marking = asyncio.ensure_future(self._marker.run())
        try:
            while not stopping.is_set():
                if self._relist.is_set():
                    self._relist.clear()
                    self._position = ""
                pause = await self._interruptible(self._round(), stopping, marking)
                if pause:
                    await self._interruptible(asyncio.sleep(pause), stopping, marking)
        finally:
            self._freshness.broken()
            await end(marking)
            await self._publisher.close(CLOSE_TIMEOUT)

    async def _interruptible(
        self, work: Coroutine[Any, Any, T], stopping: asyncio.Event, marking: asyncio.Future[None]
    ) -> T | None:
        """Await a work, but not past a stop, a request to list again, or the end of the marker (an error)."""
        task = asyncio.ensure_future(work)
        waits = [asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(self._relist.wait())]
        everything: set[asyncio.Future[Any]] = {task, marking, *waits}
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            if marking.done():
                marking.result()
            return task.result() if task.done() else None
        finally:
            await end(task, *waits)

    async def _round(self) -> float:
        """List if need be, watch until the watch ends, and return the seconds to wait before the next round."""
        try:
            if not self._position or self._stopped:
                await self._list()
            began = time.monotonic()
            events = await self._watch()
        except (KubeError, *BUS_TROUBLE) as error:
            return self._again(error)
        lasted = time.monotonic() - began
        if lasted < HEALTHY_AFTER and not events:
            return self._again(EndedEarlyError("the API server ended the watch at once"))
        self._tools.metrics.watch_restarts.labels(self.row.kind, "ended").inc()
        self._healthy()
        return 0.0 if lasted >= HEALTHY_AFTER else self._backoff.next()

    async def _list(self) -> None:
        await self._publisher.flush()
        await self._reader.barrier(BARRIER_TIMEOUT)
        view, self._created = self._reader.view, self._reader.created
        before = {record.key: record.sequence for record in view.all(self.row.kind)}
        mark = view.mark(self.row.kind)
        listed: set[ObjectKey] = set()
        complete = True
        version = ""
        self._tools.metrics.relists.labels(self.row.kind).inc()
        pages = list_pages(
            self._tools.client,
            self.row.path(),
            params=self.row.params(),
            page_size=self._settings.list_page_size,
            accept=self.row.accept_list,
        )
        async with aclosing(pages):
            async for page in pages:
                version = page.resource_version
                for item in page.items:
                    try:
                        answer = read(self.row, item)
                    except UnreadableError as error:
                        self._publisher.refuse(error)
                        complete = False
                        continue
                    listed.add(answer.key)
                    await self._publisher.offer(answer, listed=True)
        if complete:
            self._publisher.forget(listed)
            await self._bury_missing(before, listed)
        else:
            self._log.error("list holds an object without a readable name, so nothing is taken for deleted")
        await self._publisher.flush()
        self._freshness.regressed = mark is not None and is_older(version, mark.resource_version)
        if self._freshness.regressed:
            self._log.warning("API server went back to an older resourceVersion, the view follows it", version=version)
        self._position = version
        self._freshness.seen(version, time.monotonic())
        self._marker.pulse()
        self._log.info("kind listed", objects=len(listed), version=version)
        self._on_listed()

    async def _bury_missing(self, before: dict[ObjectKey, int], listed: set[ObjectKey]) -> None:
        after = {record.key: record.sequence for record in self._reader.view.all(self.row.kind)}
        gone = missing(before, after, listed)
        share, minimum = self._settings.mass_delete_share, self._settings.mass_delete_min
        if is_mass_delete(len(gone.bury), len(after), share=share, minimum=minimum) and not is_one_tenants(
            map(self._tenant, gone.bury), map(self._tenant, after), share=share
        ):
            self._stop_burying({key: after[key] for key in gone.bury}, live=len(after))
        else:
            for key in gone.bury:
                await self._publisher.bury(key, after[key])
            self._go_on_burying()
        for key in gone.ask:
            await self._publisher.ask(key)

    def _tenant(self, key: ObjectKey) -> str:
        """Return the tenant that the label of an object's namespace names, or named last; "" for none."""
        name = key.name if key.kind == "Namespace" else key.namespace
        namespace = self._reader.view.last(ObjectKey("Namespace", "", name))
        return namespace.metadata.labels.get(LABEL_TENANT, "") if namespace is not None else ""

    def _stop_burying(self, gone: dict[ObjectKey, int], *, live: int) -> None:
        if gone.keys() != self._stopped.keys():
            message = (
                f"the API server lists {live - len(gone)} of {live} known objects of kind {self.row.kind}; "
                f"nothing is taken for deleted. If they are really gone, confirm with `{CONFIRM}`"
            )
            self._log.error("mass delete stopped, waiting for an operator", gone=len(gone), live=live, confirm=CONFIRM)
            record = AuditRecord(
                time=time_now(),
                component="watcher",
                action="mass-delete-stopped",
                outcome="refused",
                object=self.row.kind,
                cause="list",
                message=message,
            )
            self._publisher.record(record)
        self._stopped = gone
        self._tools.metrics.mass_deletes.labels(self.row.kind).set(1)

    def _go_on_burying(self) -> None:
        if self._stopped:
            self._log.info("mass delete is settled, marks go out again")
        self._stopped = {}
        self._tools.metrics.mass_deletes.labels(self.row.kind).set(0)

    async def _watch(self) -> int:
        """Take events until the API server ends the watch; return how many there were."""
        count = 0
        events = watch(
            self._tools.client,
            self.row.path(),
            resource_version=self._position,
            params=self.row.params(),
            timeout=self._settings.watch_timeout,
            inactivity=self._settings.watch_inactivity,
            accept=self.row.accept,
        )
        async with aclosing(events):
            async for event in events:
                await self._take(event)
                self._healthy()
                count += 1
        return count

    async def _take(self, event: WatchEvent) -> None:
        version = position(event.object)
        if event.type != "BOOKMARK":
            try:
                answer = read(self.row, event.object, deleted=event.type == "DELETED")
            except UnreadableError as error:
                self._publisher.refuse(error)
            else:
                await self._publisher.offer(answer)
        if not version:
            return
        # In this order: what is claimed has been offered, and a mark waits until all that was offered is on the bus.
        self._position = version
        self._freshness.seen(version, time.monotonic())
        if event.type == "BOOKMARK":
            self._marker.pulse()

    async def _vouch(self) -> str:
        """Wait for what was offered; return the creation time of the OBJECTS that holds all that was seen, or ""."""
        await self._publisher.flush()
        if self._reader.created != self._created:
            self.relist()
            return ""
        if self._stopped:
            view = self._reader.view
            last = (view.last(key) for key in self._stopped)
            if any(record is not None and self._stopped.get(record.key) == record.sequence for record in last):
                return ""
            self._go_on_burying()  # another watcher, started to confirm it, has buried them
        return self._created

    def _again(self, error: Exception) -> float:
        """Say what is wrong, once until it changes, and return the seconds until the next try."""
        trouble = _trouble(error)
        if trouble.relist:
            self._position = ""
        self._freshness.broken()
        self._tools.metrics.watch_restarts.labels(self.row.kind, trouble.why).inc()
        wait = self._backoff.next(getattr(error, "retry_after", None) or 0.0)
        bound = {"why": trouble.why, "error": str(error) or type(error).__name__, "wait": round(wait, 3)}
        if isinstance(error, ForbiddenError):
            where = f" in namespace {self.row.namespace}" if self.row.namespace else ""
            bound["grant"] = f"get, list and watch on {self.row.resource}{where}"
        getattr(self._log, "debug" if self._trouble == trouble.why else trouble.level)(trouble.message, **bound)
        self._trouble = trouble.why
        return wait

    def _healthy(self) -> None:
        self._backoff.reset()
        if self._trouble:
            self._log.info("kind is followed again")
            self._trouble = ""


class EndedEarlyError(KubeError):
    """A watch ended before it had begun."""


class _Trouble(msgspec.Struct, frozen=True):
    """What an error means to a watcher: its name in metrics, what is logged, and whether the place is lost."""

    why: str
    message: str
    relist: bool = True
    level: Literal["info", "warning", "error"] = "warning"


_TROUBLES: Final[tuple[tuple[tuple[type[Exception], ...], _Trouble], ...]] = (
    ((GoneError,), _Trouble("gone", "versions have expired, listing again", level="info")),
    ((NotFoundError,), _Trouble("missing", "kind is not served here, waiting for it", level="info")),
    (
        (ForbiddenError,),
        _Trouble("forbidden", "API server does not let this watcher read, grant it the right", level="error"),
    ),
    (
        (UnauthorizedError,),
        _Trouble("unauthorized", "API server does not accept this watcher's credentials, renew them", level="error"),
    ),
    ((TooManyRequestsError,), _Trouble("busy", "API server is busy, waiting as it asks", relist=False)),
    # After any other break, how much was missed only the next bookmark would tell, maybe a minute later, and a server
    # that was replaced may never send one. A list tells at once.
    (
        (KubeUnreachableError, WatchInactiveError),
        _Trouble("broken", "connection to the API server broke, listing again"),
    ),
    ((KubeError,), _Trouble("refused", "API server refused, listing again")),
    (BUS_TROUBLE, _Trouble("bus", "bus is not there, waiting for it before listing")),
)
"""First match wins: the special ones stand before those that they derive from."""


def _trouble(error: Exception) -> _Trouble:
    return next(trouble for types, trouble in _TROUBLES if isinstance(error, types))
