"""The router: from every change on OBJECTS to requests on WORK, in order, none lost.

It keeps no place of its own in the stream: at start, everything that is found is asked for once, and from then on each
change as it comes. Replicas run side by side and publish under the same Msg-Ids. A slow sweep asks for every key again.

What NATS will never take, a key that is too long or a message that it refuses, is set aside and said once: nothing is
granted for it, and nothing waits for it. Only what an outage stopped goes back to the head of its queue.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.errors import BusError, KeyTooLongError, RefusedError
from eventcore.events import AuditRecord, WorkRequest
from eventcore.foreign import shown
from eventcore.keys import WorkerName, work_subject
from eventcore.logs import get
from eventcore.recording import Recorder
from eventcore.waiting import pause
from workers.outbox import BULK, URGENT, URGENT_KINDS, USUAL, Outbox, Outgoing
from workers.reflection import MOST_SUBJECTS
from workers.relations import Relations
from workers.routing import Route, all_routes, grant_routes, route
from workers.sweeping import turns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.bus import Bus
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import AccessView, Change, GrantRecord, ObjectRecord, ObjectsView

log = get("workers.router")

BATCH: Final = 64
"""Requests in flight at once."""
RETRY_PAUSE: Final = 0.5
RECORDS_TIMEOUT: Final = 1.0
"""Seconds that a stop waits for records."""
REMEMBERED: Final = 1024
"""Keys that were set aside and are not named again, until so many others were."""
TOLD_FOR: Final = 12 * 3600.0
"""Seconds after which a key is named again that is still set aside."""


class Router:
    """Routes what a reader of OBJECTS tells. Make it before the readers run."""

    def __init__(
        self,
        bus: Bus,
        objects: Reader[ObjectsView, ObjectRecord],
        access: Reader[AccessView, GrantRecord],
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.relations = Relations(
            settings.capsule_configuration_name,
            settings.flux_service_account,
            settings.kubeconfig_namespace_selector,
        )
        self.started = asyncio.Event()
        self._bus = bus
        self._objects = objects
        self._access = access
        self._settings = settings
        self._metrics = metrics
        self._outbox = Outbox()
        self._filled = asyncio.Event()
        self._set_aside: OrderedDict[tuple[WorkerName, str], float] = OrderedDict()
        self._recorder = Recorder(bus)
        objects.listen(self._on_change)

    async def run(self, stopping: asyncio.Event) -> None:
        """Route until told to stop; then publish what is queued, unless NATS is away."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish(stopping))
                group.create_task(self._begin_and_sweep(stopping))
        finally:
            await self._recorder.close(RECORDS_TIMEOUT)

    @property
    def waiting(self) -> int:
        """Requests that are not published yet."""
        return len(self._outbox)

    def routes(self) -> set[Route]:
        """Return every key that there is: of objects, and of grants that may have lost theirs."""
        return all_routes(self.relations) | grant_routes([*self._access.view.all()], self.relations)

    def _on_change(self, change: Change[ObjectRecord]) -> None:
        if not self.started.is_set():
            self.relations.apply(change)
            return
        record = change.new or change.old
        created = self._objects.created
        cause_id = record.id if record else ""
        since = record.time if record else None
        request = WorkRequest(reason="event", cause=change.sequence, stream=created, cause_id=cause_id, since=since)
        # Sequences begin anew with a new stream, so its creation time is part of the id.
        prefix = f"{created}:{change.sequence}"
        urgency, source = self._class_of(change)
        self._put(
            Outgoing(worker, key, request, f"{prefix}:{worker}:{key.token()}", urgency, source)
            for worker, key in sorted(route(change, self.relations))
        )
        if record is not None and record.key.kind == "AnyRoleBinding":
            self._tell_if_cut(record.key.namespace, cause_id)

    def _tell_if_cut(self, namespace: str, cause: str) -> None:
        """Name a namespace whose RoleBindings name more than count; a ProxySetting says so in its status."""
        if self._settings.enable_reflector and self.relations.bindings.subjects.is_cut(namespace):
            message = (
                f"the RoleBindings of namespace {namespace} show it to {MOST_SUBJECTS} subjects at most, in the order "
                "of their names, and name more: remove some"
            )
            self._tell("access", f"RoleBindings of {namespace}", cause, "subjects", message)

    def _class_of(self, change: Change[ObjectRecord]) -> tuple[int, str]:
        """Return how urgent a change is, and whose it is: a tenant's, or a namespace's that is no tenant's."""
        record = change.new or change.old
        if record is None:
            return BULK, ""
        key = record.key
        namespace = key.name if key.kind == "Namespace" else key.namespace
        source = key.name if key.kind == "Tenant" else self.relations.tenant_of(namespace) or namespace
        return (URGENT if key.kind in URGENT_KINDS else USUAL), source

    def _put(self, requests: Iterable[Outgoing]) -> None:
        for one in requests:
            if one.key.fits:
                self._outbox.put(one)
                continue
            try:
                work_subject(one.worker, one.key)
            except KeyTooLongError as error:
                self._put_aside(one, "key", error)
        self._filled.set()

    def _put_aside(self, one: Outgoing, why: str, error: Exception) -> None:
        self._tell(one.worker, str(one.key), one.request.cause_id or one.request.reason, why, str(error))

    def _tell(self, worker: WorkerName, name: str, cause: str, why: str, message: str) -> None:
        """Count what nothing is granted for, and name it in the log and the audit, once."""
        self._metrics.set_aside.labels(worker, why).inc()
        mark = worker, name
        if monotonic() - self._set_aside.get(mark, float("-inf")) < TOLD_FOR:
            self._set_aside.move_to_end(mark)
            return
        self._set_aside[mark] = monotonic()
        self._set_aside.move_to_end(mark)
        if len(self._set_aside) > REMEMBERED:
            self._set_aside.popitem(last=False)
        name = shown(name)
        log.error("request set aside, nothing is granted for it", worker=worker, key=name, why=why, error=message)
        self._recorder.add(
            AuditRecord(
                time=now(),
                component="router",
                action="refused",
                outcome="failed",
                object=f"{worker}/{name}",
                cause=cause,
                message=f"{why}: {message}",
            )
        )

    async def _begin_and_sweep(self, stopping: asyncio.Event) -> None:
        while not (self._objects.ready and self._access.ready):
            if stopping.is_set():
                return
            with suppress(TimeoutError):
                await self._objects.wait_for(0, 1.0)
                await self._access.wait_for(0, 1.0)
        # No await in between: a change is either in the relations now, or routed by itself.
        self._put(Outgoing(worker, key, WorkRequest(reason="start")) for worker, key in sorted(self.routes()))
        self.started.set()
        for namespace in self.relations.bindings.subjects.cut():
            self._tell_if_cut(namespace, "start")
        log.info("everything found is asked for", requests=self.waiting)
        async for due in turns(self.routes, self._settings.sweep_interval, stopping):
            self._put(Outgoing(turn.worker, turn.key, WorkRequest(reason="sweep"), turn.msg_id) for turn in due)

    async def _publish(self, stopping: asyncio.Event) -> None:
        while self._outbox or not stopping.is_set():
            if not self._outbox:
                self._filled.clear()
                await _either(self._filled, stopping)
                continue
            batch = self._outbox.take(BATCH)
            results = await asyncio.gather(*(self._send(one) for one in batch), return_exceptions=True)
            failed: list[Outgoing] = []
            error = ""
            for one, result in zip(batch, results, strict=True):
                if isinstance(result, RefusedError):
                    self._put_aside(one, "refused", result)
                elif isinstance(result, BusError):
                    failed.append(one)
                    error = str(result)
                elif isinstance(result, BaseException):
                    raise result
            if failed:
                self._outbox.put_back(reversed(failed))
                log.warning("requests wait for the bus", waiting=self.waiting, error=error)
                if stopping.is_set():
                    return  # the next start asks for everything
                await pause(stopping, RETRY_PAUSE)

    async def _send(self, one: Outgoing) -> None:
        await self._bus.work(one.worker, one.key, one.request, msg_id=one.msg_id)
        self._metrics.routed.labels(one.worker).inc()


async def _either(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
