"""A reader follows a stream into a view: complete, then live, and read anew beside the old when anything is in doubt.

It stands on an ephemeral named pull consumer of its own, since kv.watch is deaf for many seconds after a restart of the
server. When the connection came back, the consumer vanished, subjects were removed, or the stream is another one, it
reads a new table and swaps, and listeners hear the difference.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from eventcore.clock import NATS, now
from eventcore.errors import BusError, StreamMissingError
from eventcore.logs import get
from eventcore.pulling import Pull, message_of, status_of
from eventcore.topology import ACCESS, OBJECTS
from eventcore.views import AccessView, Change, GrantRecord, ObjectRecord, ObjectsView, Record, Table
from eventcore.waiting import end, pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg

    from eventcore.bus import Bus, StreamState
    from eventcore.metrics import Metrics

log = get("views")

BATCH: Final = 512
BATCH_BYTES: Final = 24 * 1024 * 1024
"""Bytes that may be on their way at once: nats-server cuts off a connection for which 64 MiB wait."""
BYTES_IN_A_ROW: Final = 1024 * 1024
PULL_EXPIRES: Final = 10.0
HEARTBEAT: Final = 1.0
"""Seconds between idle heartbeats of a reader's pull; two missed ones mean that its consumer is gone."""
CHECK_INTERVAL: Final = 2.0
"""Seconds between looks at the stream's creation time, last sequence and number of subjects."""

R = TypeVar("R", bound=Record)
V = TypeVar("V", bound=Table[Any])


class _LostError(Exception):
    """The consumer is gone or the stream is another one: read anew."""


class Reader(Generic[V, R]):
    """Follows one stream into a view.

    Always go through :attr:`view`: a rebuild replaces it. :attr:`ready` is false until the first table is complete,
    and while a rebuild is under way. ``metrics`` takes the applied sequence and the ages.
    """

    def __init__(self, bus: Bus, stream: str, make: Callable[[], V], *, metrics: Metrics | None = None) -> None:
        self.bus = bus
        self.stream = stream
        self.view = make()
        self.ready = False
        self.created = ""
        self.rebuilds = 0
        self._make = make
        self._complete: Callable[[V], bool] = lambda _: True
        self._pull: Pull | None = None
        self._metrics = metrics
        self._listeners: list[Callable[[Change[R]], None]] = []
        self._applied = asyncio.Condition()
        self._state_read = 0.0
        self._anew = asyncio.Event()
        self._trouble = ""
        self._in_a_row = 0  # bytes that were read since others had a turn
        self._largest = 1  # bytes of a message, as far as is known
        self._loading = False

    @classmethod
    def objects(cls, bus: Bus, metrics: Metrics | None = None) -> Reader[ObjectsView, ObjectRecord]:
        """Return a reader of OBJECTS."""
        return Reader[ObjectsView, ObjectRecord](bus, OBJECTS, ObjectsView, metrics=metrics)

    @classmethod
    def access(
        cls, bus: Bus, metrics: Metrics | None = None, *, rules: bool = True, reflects: bool = True
    ) -> Reader[AccessView, GrantRecord]:
        """Return a reader of the bucket ``access``, with or without the rules of clusterResources and reflection."""
        make = partial(AccessView, rules=rules, reflects=reflects)
        return Reader[AccessView, GrantRecord](bus, ACCESS, make, metrics=metrics)

    def listen(self, callback: Callable[[Change[R]], None]) -> None:
        """Call back for every change, in order and before anybody is told that it was applied; it must not block."""
        self._listeners.append(callback)

    @property
    def missing(self) -> str:
        """Why it is not ready, for a person."""
        if self._trouble:
            return f"{self.stream} cannot be read: {self._trouble}"
        return f"{self.stream} is being read" if self.bus.connected else f"{self.stream} cannot be read, NATS is away"

    def take_when(self, complete: Callable[[V], bool]) -> None:
        """Take what another stream than the present one holds only once this is true of it; asked again and again.

        Until then the view before stands, and is not ready: a stream that was lost fills again message by message.
        """
        self._complete = complete

    def look_again(self) -> None:
        """Ask again whether what is read is complete: something else changed that it depends on."""
        if self._pull is not None:
            self._pull.wake()

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the stream until told to stop. Trouble with NATS is waited out."""
        self.bus.on_reconnect.append(self.rebuild)
        stop = asyncio.ensure_future(stopping.wait())
        seconds = 0.1
        try:
            while not stop.done():
                self._anew.clear()
                anew = asyncio.ensure_future(self._anew.wait())
                follow = asyncio.ensure_future(self._follow())
                try:
                    # What was asked over an old connection is never answered, so `anew` does not wait for it.
                    await asyncio.wait({follow, stop, anew}, return_when=asyncio.FIRST_COMPLETED)
                    if follow.done():
                        follow.result()
                    if anew.done():
                        log.info("view is read anew", stream=self.stream, why="connection or stream changed")
                        seconds = 0.1
                except _LostError as error:
                    log.info("view is read anew", stream=self.stream, why=str(error))
                    seconds = 0.1
                except (BusError, TimeoutError, OSError, nats.errors.Error) as error:
                    say = log.debug if self._trouble else log.warning  # once, until it is read again
                    self._trouble = str(error) or type(error).__name__
                    say("view cannot be read, tried again until it can", stream=self.stream, error=self._trouble)
                finally:
                    self.ready = False
                    await end(follow, anew)
                    if self._loading:
                        # Maybe it was cut off for what was on its way, so the next try is made for the largest.
                        self._largest = max(self._largest, self.bus.max_payload)
                await pause(stopping, seconds)
                seconds = min(2.0, seconds * 2)
        finally:
            stop.cancel()
            self.bus.on_reconnect.remove(self.rebuild)

    def rebuild(self) -> None:
        """Read the stream anew beside the present view, and swap."""
        self._anew.set()

    async def wait_for(self, sequence: int, timeout: float) -> None:  # noqa: ASYNC109 -- reads better at the call
        """Wait until the view is complete and holds this sequence; TimeoutError."""
        await self._until(lambda: self.view.sequence >= sequence, timeout)

    async def barrier(self, timeout: float) -> int:  # noqa: ASYNC109 -- the same
        """Wait until the view holds all that the stream holds now, and return that sequence; TimeoutError."""
        deadline = time.monotonic() + timeout
        state = await self.bus.stream_state(self.stream)
        if self.created and state.created != self.created:
            self.rebuild()

        def holds() -> bool:
            return self.created == state.created and self.view.sequence >= state.last_sequence

        await self._until(holds, max(0.0, deadline - time.monotonic()))
        return state.last_sequence

    async def _until(self, holds: Callable[[], bool], timeout: float) -> None:  # noqa: ASYNC109 -- the same
        if self.ready and holds():
            return
        async with asyncio.timeout(timeout), self._applied:
            await self._applied.wait_for(lambda: self.ready and holds())

    @property
    def behind(self) -> float:
        """Seconds since this reader last knew itself to be at the end of its stream; infinite before that."""
        return time.monotonic() - self._state_read if self.ready and self._state_read else float("inf")

    async def _follow(self) -> None:
        state = await self.bus.stream_state(self.stream)
        consumer = f"view-{secrets.token_hex(8)}"
        pending = await self._create(consumer)
        pull = self._pull = Pull(self.bus, self.stream, consumer)
        table = self._make()
        table.created = state.created
        self._loading = True
        try:
            await self._read(pull, table, state, whole=pending == 0)
        finally:
            await pull.close()
            with suppress(nats.errors.Error):
                # Nobody waits for the answer; without it the consumer ends by itself.
                await self.bus.nc.publish(f"$JS.API.CONSUMER.DELETE.{self.stream}.{consumer}")

    async def _create(self, consumer: str) -> int:
        """Make the consumer; return how many messages stand before it."""
        try:
            info = await self.bus.js.add_consumer(
                self.stream,
                ConsumerConfig(
                    name=consumer,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                    ack_policy=AckPolicy.NONE,
                    filter_subject=">",
                    inactive_threshold=30.0,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
        except APIError as error:
            raise StreamMissingError(f"stream {self.stream} cannot be read: {error.description}") from error
        return info.num_pending or 0

    async def _read(self, pull: Pull, table: V, start: StreamState, *, whole: bool) -> None:
        """Read for ever. ``whole``: the table holds already all that the stream held at the start."""
        wanted = 0
        largest = 1
        checked = time.monotonic()
        taken = False
        while True:
            if whole and not taken:
                # The stream's last message may have expired: then nothing of that sequence is ever delivered.
                table.sequence = max(table.sequence, start.last_sequence)
                if taken := start.created == self.created or self._complete(table):
                    await self._swap(table, start.created)
                    self._largest = largest
            if wanted <= 0:
                wanted = max(1, min(BATCH, BATCH_BYTES // self._largest))
                await pull.request(batch=wanted, expires=PULL_EXPIRES, heartbeat=HEARTBEAT)
            try:
                message = await pull.next(2 * HEARTBEAT + 0.5)
            except TimeoutError as error:
                raise _LostError("the consumer is silent") from error
            status = status_of(message) if message is not None else "100"
            if message is not None and status is None:
                wanted -= 1
                largest = max(largest, len(message.data))
                await self._take(message, table, live=taken)
            elif status == "408":
                wanted = 0
            elif status != "100":
                raise _LostError(f"the consumer answered {status}")
            whole = whole or table.sequence >= start.last_sequence or await self._at_end(message, pull)
            if time.monotonic() - checked >= CHECK_INTERVAL:
                checked = time.monotonic()
                await self._check(table, start.created)

    async def _take(self, message: Msg, table: V, *, live: bool) -> None:
        self._in_a_row += len(message.data)
        if self._in_a_row >= BYTES_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)  # what came already is read without waiting: the loop is to serve others too
        change = table.apply(message_of(message))
        if live:
            if change is not None:
                self._tell(change)
            if message.metadata.num_pending == 0:
                self._state_read = time.monotonic()
            await self._notify()

    async def _at_end(self, message: Msg | None, pull: Pull) -> bool:
        if message is not None and status_of(message) is None:
            return message.metadata.num_pending == 0
        return not (await self.bus.js.consumer_info(self.stream, pull.consumer)).num_pending

    async def _check(self, table: V, created: str) -> None:
        state = await self.bus.stream_state(self.stream)
        if state.created != created:
            raise _LostError("the stream was made anew")
        if state.last_sequence < table.sequence:
            raise _LostError("the stream went back")
        if state.last_sequence <= table.sequence:
            # A purge changes no sequence and tells nobody.
            if state.subjects < table.subjects(NATS.now()):
                raise _LostError("subjects were removed from the stream")
            self._state_read = time.monotonic()
        if self._metrics is not None:
            self._metrics.view_sequence.labels(self.stream).set(table.sequence)
            self._metrics.view_objects.labels(self.stream).set(len(table.records()))
            for kind, age in table.ages(now()).items():
                self._metrics.view_age.labels(kind).set(age)

    async def _swap(self, table: V, created: str) -> None:
        """Tell the difference between the old table and the new one, then take the new one."""
        old_records: dict[str, R] = self.view.records()
        new_records: dict[str, R] = table.records()
        other_stream = created != self.created
        changes: list[Change[R]] = []
        for subject, old in old_records.items():
            if subject not in new_records:
                changes.append(Change(old=old, new=None, sequence=table.sequence))
        for subject, new in new_records.items():
            before = old_records.get(subject)
            if before is None or other_stream or before.sequence != new.sequence:
                changes.append(Change(old=before, new=new, sequence=new.sequence))
        self.view = table
        if self.created:
            self.rebuilds += 1
            if self._metrics is not None:
                self._metrics.view_rebuilds.labels(self.stream).inc()
        self.created = created
        for change in sorted(changes, key=lambda change: change.sequence):
            self._tell(change)
        self.ready = True
        self._trouble = ""
        self._loading = False
        self._state_read = time.monotonic()
        await self._notify()

    def _tell(self, change: Change[R]) -> None:
        for listener in self._listeners:
            listener(change)

    async def _notify(self) -> None:
        async with self._applied:
            self._applied.notify_all()
