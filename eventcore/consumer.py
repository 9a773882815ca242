"""The consumer loop: sixteen lanes of a worker, one key at a time in each, for the whole fleet.

A lane is exclusion with a time limit, not a lock. Whoever holds a message may work until its lease ends, and the lease
is counted from when the pull was sent, never from when the message was read: a process that was paused knows, when it
wakes, that its time is up. After that it neither writes nor acknowledges. A confirmed ``in_progress`` extends it.

A request is a hint. Before it is worked on, the view holds all that OBJECTS holds at that moment, so a later holder
never sees less than an earlier one. A request whose cause the last successful reconcile of its key has already seen is
acknowledged without work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from structlog.typing import FilteringBoundLogger

from eventcore.clock import now
from eventcore.errors import BusError, EventError, KubeError, LeaseLostError, RefusedError
from eventcore.events import DeadLetter, WorkRequest, decode_body
from eventcore.keys import LANES, Key, WorkerName, lane_consumer, parse_work_subject
from eventcore.logs import get
from eventcore.pulling import Pull, message_of, no_answer, status_of
from eventcore.topology import WORK
from eventcore.waiting import end, later, pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg

    from eventcore.bus import Bus
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView

log = get("consumer")

REMEMBERED_KEYS: Final = 100_000
"""Keys whose last success is remembered for coalescing; a forgotten key only costs a reconcile."""
UNEXPECTED_ATTEMPTS: Final = 10
"""Tries of a request whose reconcile raised what nobody expected, before it becomes a dead letter."""
MARGIN: Final = 0.1
"""Share of ``ack_wait`` by which a lease ends before the server's."""


class Done(msgspec.Struct, frozen=True):
    """The key is as it should be."""


class Again(msgspec.Struct, frozen=True):
    """As it should be, and to be looked at again at a time."""

    at: datetime


class Retry(msgspec.Struct, frozen=True):
    """Not yet: try again in ``after`` seconds, or by exponential back-off of ``at_most`` so many."""

    reason: str
    after: float | None = None
    at_most: float | None = None


class Terminal(msgspec.Struct, frozen=True):
    """Trying again cannot help: into the DLQ with the reason."""

    reason: str


Result = Done | Again | Retry | Terminal


class Lease:
    """How long the holder of a message may act. Seconds on the monotonic clock."""

    def __init__(self, sent: float, ack_wait: float) -> None:
        self._ack_wait = ack_wait
        self.ends = 0.0
        self.extend(sent)

    def extend(self, sent: float) -> None:
        """The server has confirmed a sign of life that was sent then."""
        self.ends = max(self.ends, sent + self._ack_wait * (1 - MARGIN))

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def check(self) -> None:
        """Raise LeaseLostError when the time is up: another worker may hold the key now."""
        if self.left <= 0:
            raise LeaseLostError("the time for this request is up; another worker may have it")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One reconcile: the key, why, and until when it may write."""

    worker: WorkerName
    key: Key
    request: WorkRequest
    lease: Lease
    view_sequence: int
    log: FilteringBoundLogger

    @property
    def cause(self) -> str:
        """Return what led to it, for audit records: the event's ce-id, or timer, retry, sweep, replay."""
        return self.request.cause_id or self.request.reason

    def check(self) -> None:
        """Call before every write; raises LeaseLostError."""
        self.lease.check()


Reconcile = Callable[[Run], Awaitable[Result]]


class Worker:
    """All lanes of one worker in this process."""

    def __init__(
        self,
        bus: Bus,
        reader: Reader[ObjectsView, ObjectRecord],
        name: WorkerName,
        reconcile: Reconcile,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.bus = bus
        self.reader = reader
        self.name = name
        self.reconcile = reconcile
        self.settings = settings
        self.metrics = metrics
        self._seen: OrderedDict[Key, tuple[str, int]] = OrderedDict()
        self._waits = False  # for the bus, which was said

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until told to stop; then finish what is in hand and give back what is not."""
        async with asyncio.TaskGroup() as group:
            for lane in range(LANES):
                group.create_task(self._lane(lane, stopping))

    async def _lane(self, lane: int, stopping: asyncio.Event) -> None:
        pull = Pull(self.bus, WORK, lane_consumer(self.name, lane))
        seconds = 0.1
        try:
            with pull.waking(stopping):
                while not stopping.is_set():
                    try:
                        message = await self._fetch(pull)
                        seconds, self._waits = 0.1, False
                        if message is not None:
                            await self._handle(message, Lease(pull.sent, self.settings.ack_wait), stopping)
                    except (BusError, nats.errors.Error, TimeoutError, OSError) as error:
                        why = str(error) or type(error).__name__
                        # Said by the first lane, once until one is served again: in an outage all wait for the same.
                        say = log.debug if self._waits else log.warning
                        say("lane waits for the bus", worker=self.name, lane=lane, error=why)
                        self._waits = True
                        await pull.close_and_give_back()
                        await pause(stopping, seconds)
                        seconds = min(2.0, seconds * 2)
        finally:
            await pull.close_and_give_back()

    async def _fetch(self, pull: Pull) -> Msg | None:
        """Return the next message of the lane, or None when the pull ended without one."""
        await pull.request(batch=1, expires=self.settings.pull_expiry)
        try:
            message = await pull.next(self.settings.pull_expiry + 1.0)
        except TimeoutError:
            message = None
        if message is None:
            # No answer, a reconnect or the end: whatever the old pull may still bring must not be taken for a new one.
            await pull.close_and_give_back()
            return None
        match status_of(message):
            case None:
                return message
            case "404" | "408":
                return None
            case status:
                raise BusError(no_answer(status, message))

    async def _handle(self, message: Msg, lease: Lease, stopping: asyncio.Event) -> None:
        bound = log.bind(worker=self.name)
        if message.metadata.num_delivered and message.metadata.num_delivered > 1:
            self.metrics.redeliveries.labels(self.name).inc()
        try:
            _, lane, key = parse_work_subject(message.subject)
            request = decode_body(WorkRequest, message.data)
        except EventError as error:
            bound.error("request cannot be read", subject=message.subject, error=str(error))
            await self._bury(message, message.subject, str(error), lease)
            return
        bound = bound.bind(lane=lane, key=str(key), reason=request.reason)
        if self._already_seen(key, request):
            self.metrics.coalesced.labels(self.name).inc()
            await self._ack(message, lease)
            return
        try:
            async with self._heartbeat(message, lease):
                result = await self._reconcile(key, request, lease, bound, stopping)
            if result is None:
                await message.nak()
                return
            await self._conclude(message, key, request, result, lease, bound)
        except LeaseLostError as error:
            self.metrics.overruns.labels(self.name).inc()
            bound.warning("request given up", error=str(error))

    def _already_seen(self, key: Key, request: WorkRequest) -> bool:
        if not request.cause:
            return False
        created, sequence = self._seen.get(key, ("", 0))
        return created == request.stream and request.cause <= sequence

    async def _reconcile(
        self, key: Key, request: WorkRequest, lease: Lease, bound: FilteringBoundLogger, stopping: asyncio.Event
    ) -> Result | None:
        """Run the reconciler on a view that is up to date; None when stopping came first."""
        while True:
            lease.check()
            try:
                sequence = await self.reader.barrier(min(2.0, max(0.1, lease.left)))
                created = self.reader.created
                break
            except (TimeoutError, BusError, nats.errors.Error) as error:
                if stopping.is_set():
                    return None
                bound.debug("waiting for the view", error=str(error) or type(error).__name__)
                await pause(stopping, 0.1)
        run = Run(worker=self.name, key=key, request=request, lease=lease, view_sequence=sequence, log=bound)
        started = time.monotonic()
        with self.metrics.active_workers.labels(self.name).track_inprogress():
            result = await self._guarded(run)
        self.metrics.reconcile_seconds.labels(self.name).observe(time.monotonic() - started)
        if isinstance(result, Done | Again) and created == self.reader.created:
            self._seen[key] = (created, sequence)
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED_KEYS:
                self._seen.popitem(last=False)
        return result

    async def _guarded(self, run: Run) -> Result:
        try:
            async with asyncio.timeout(self.settings.reconcile_timeout):
                return await self.reconcile(run)
        except LeaseLostError:
            raise
        except TimeoutError:
            self.metrics.overruns.labels(self.name).inc()
            return Retry(f"took longer than {self.settings.reconcile_timeout:g} s")
        except (EventError, RefusedError) as error:
            return Terminal(str(error))
        except (KubeError, BusError, nats.errors.Error, OSError) as error:
            return Retry(str(error) or type(error).__name__, after=getattr(error, "retry_after", None))
        except Exception as error:  # noqa: BLE001 -- one key's bug stops no other key
            run.log.error("reconcile raised an unexpected error", error=error)
            reason = f"{type(error).__name__}: {error}"
            return Terminal(reason) if run.request.attempt + 1 >= UNEXPECTED_ATTEMPTS else Retry(reason)

    async def _conclude(
        self, message: Msg, key: Key, request: WorkRequest, result: Result, lease: Lease, bound: FilteringBoundLogger
    ) -> None:
        """Publish what follows, then acknowledge."""
        lease.check()
        outcome = "success"
        match result:
            case Again(at=at):
                outcome = "requeue_after"
                await self.bus.schedule(self.name, key, at, WorkRequest(reason="timer", since=at))
            case Retry(reason=reason, after=after, at_most=at_most):
                outcome = "error"
                limit = min(self.settings.retry_max, at_most or self.settings.retry_max)
                wait = backoff(request.attempt, self.settings.retry_base, limit, after)
                bound.info("reconcile is tried again", why=reason, attempt=request.attempt + 1, seconds=round(wait, 1))
                await self._later(key, wait, again(request))
                self.metrics.queue_retries.labels(self.name).inc()
                self.metrics.reconcile_errors.labels(self.name).inc()
            case Terminal(reason=reason):
                outcome = "terminal"
                bound.error("request cannot be handled", why=reason)
                self.metrics.reconcile_errors.labels(self.name).inc()
                await self._bury(message, str(key), reason, lease)
            case Done():
                pass
        self.metrics.reconciles.labels(self.name, outcome).inc()
        if not isinstance(result, Terminal):
            await self._ack(message, lease)

    async def _later(self, key: Key, seconds: float, request: WorkRequest) -> None:
        await self.bus.schedule(self.name, key, later(seconds), request)

    async def _bury(self, message: Msg, key: str, reason: str, lease: Lease) -> None:
        lease.check()
        await self.bus.dead_letter(dead_letter(message, self.name, key, reason))
        self.metrics.dead_letters.labels(self.name).inc()
        await self._ack(message, lease)

    async def _ack(self, message: Msg, lease: Lease) -> None:
        lease.check()
        try:
            await message.ack_sync(timeout=max(0.5, min(5.0, lease.left)))
        except TimeoutError:
            # It comes again and is reconciled again, which changes nothing.
            log.warning("acknowledgement was not confirmed", worker=self.name, subject=message.subject)

    @asynccontextmanager
    async def _heartbeat(self, message: Msg, lease: Lease) -> AsyncIterator[None]:
        """Keep the lease alive while the block runs."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(self.settings.ack_wait / 3)
                sent = time.monotonic()
                if lease.left <= 0:
                    return
                with suppress(TimeoutError, nats.errors.Error):
                    await self.bus.nc.request(message.reply, b"+WPI", timeout=self.settings.ack_wait / 4)
                    if lease.left > 0:
                        lease.extend(sent)

        task = asyncio.ensure_future(beat())
        try:
            yield
        finally:
            await end(task)


def again(request: WorkRequest) -> WorkRequest:
    """Return the request of the next try. What led to the first one stays known, for the audit."""
    first = request.cause_id or ("" if request.reason == "retry" else request.reason)
    return WorkRequest(reason="retry", attempt=request.attempt + 1, cause_id=first, since=request.since)


def backoff(attempt: int, base: float, limit: float, after: float | None = None) -> float:
    """Return the seconds until the next try: exponential with jitter, never before the server's Retry-After."""
    wait = min(limit, base * 2.0 ** min(attempt, 30)) * random.uniform(0.8, 1.2)  # noqa: S311 -- jitter
    return max(wait, after) if after is not None else wait


def dead_letter(message: Msg, worker: str, key: str, reason: str) -> DeadLetter:
    """Return the dead letter of a message of WORK."""
    original = message_of(message)
    return DeadLetter(
        time=now(),
        worker=worker,
        key=key,
        reason=reason,
        subject=original.subject,
        headers=original.headers,
        data=original.data,
        deliveries=message.metadata.num_delivered or 1,
        sequence=original.sequence,
    )


async def run_worker(
    bus: Bus,
    reader: Reader[ObjectsView, ObjectRecord],
    worker: WorkerName,
    reconcile: Reconcile,
    settings: Settings,
    metrics: Metrics,
    stopping: asyncio.Event,
) -> None:
    """Run all lanes of a worker in this process until told to stop."""
    await Worker(bus, reader, worker, reconcile, settings, metrics).run(stopping)
