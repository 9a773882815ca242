"""From answers of the API server to OBJECTS, so that the bus never goes back, whoever else publishes.

Every publish expects the sequence that this process knows as the subject's last (compare-and-set). When somebody else
was first, the last message is read and only what is newer is published; where versions do not tell, the API server is
asked *after* the last message was read, and its answer stands. So watchers need no election.

An object that the bus does not take holds up no other: where its name is too long for a subject nothing is published,
and where it does not decode or is too large, a mark that grants nothing goes in its place. Both are told.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import nats.errors

from eventcore.bus_limits import HEADER_ROOM
from eventcore.clock import now as time_now
from eventcore.errors import BusError, EventError, KubeError, NotFoundError, RefusedError, WrongSequenceError
from eventcore.events import AuditRecord, object_event
from eventcore.foreign import shown
from eventcore.keys import MAX_TOKEN, ObjectKey, encode
from eventcore.recording import Recorder
from eventcore.topology import OBJECTS
from eventcore.views import object_record
from watchers.answers import Answer, Said, UnreadableError, last_words, read
from watchers.backoff import Backoff
from watchers.inflight import InOrder
from watchers.snapshot import Verdict, Version, is_newer, is_newer_in_list, settle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from eventcore.bus import Bus, PubAck
    from eventcore.events import Outcome
    from eventcore.kube import KubeClient
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from watchers.kinds import KindRow
    from watchers.metrics import WatchMetrics

MAX_UNACKED: Final = 64
"""Publishes of a kind that may wait for the bus at once; the watch is not read any further meanwhile."""
_RETRY_BASE: Final = 0.1
_RETRY_CAP: Final = 5.0

BUS_TROUBLE: Final = (BusError, TimeoutError, OSError, nats.errors.Error)

T = TypeVar("T")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The last message of a subject, as far as this process knows."""

    sequence: int
    version: Version
    body: bytes
    withheld: str = ""


class Publisher:
    """Publishes the objects of one kind.

    Calls return once the work is in flight; it goes on through any outage of the bus or the API server, in order for
    each object. :meth:`flush` waits until all of it is acknowledged.
    """

    def __init__(
        self,
        row: KindRow,
        *,
        bus: Bus,
        reader: Reader[ObjectsView, ObjectRecord],
        client: KubeClient,
        settings: Settings,
        metrics: Metrics,
        counters: WatchMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._row = row
        self._bus = bus
        self._reader = reader
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._counters = counters
        self._log = log
        self._flights: InOrder[ObjectKey] = InOrder(MAX_UNACKED)
        # Our own publishes that the view has not applied yet; without them a second change would meet a conflict.
        self._acked: dict[ObjectKey, Known] = {}
        self._created = reader.created
        self._refused: dict[tuple[str, str], tuple[str, str]] = {}
        self._recorder = Recorder(bus)
        self._trouble = ""

    def known(self, key: ObjectKey) -> Known | None:
        """Return what the bus holds last of an object: from the view, or from a publish of our own after it."""
        if self._created != self._reader.created:
            # Another OBJECTS: what was acknowledged is not in it, and its sequences mean something else.
            self._acked.clear()
            self._created = self._reader.created
        acked = self._acked.get(key)
        record = self._reader.view.last(key)
        if record is None:
            return acked
        if acked is not None and acked.sequence > record.sequence:
            return acked
        self._acked.pop(key, None)
        return Known(
            sequence=record.sequence,
            version=Version(record.uid, record.resource_version, record.deleted),
            body=record.body,
            withheld=record.withheld,
        )

    async def offer(self, answer: Answer, *, listed: bool = False) -> None:
        """Publish what a watch or a list (``listed``) said, if it is newer than what the bus holds."""
        if not answer.key.fits:
            self._set_aside(answer)
            return
        newer = is_newer_in_list if listed else is_newer
        if self._verdict(answer, newer, self.known(answer.key)) is Verdict.DROP and not self._flights.busy(answer.key):
            return  # the common case: unchanged since the last list, or another watcher was faster
        await self._flights.add(answer.key, lambda: self._offer(answer, newer))

    async def bury(self, key: ObjectKey, sequence: int) -> None:
        """Publish the tombstone of an object that a complete list does not hold, if ``sequence`` is still its last."""
        await self._flights.add(key, lambda: self._bury(key, sequence))

    async def ask(self, key: ObjectKey) -> None:
        """Ask the API server for an object, and publish its answer, a tombstone if it is gone."""
        await self._flights.add(key, lambda: self._ask(key))

    def refuse(self, error: UnreadableError) -> None:
        """Report an object of which nothing tells which one it is; the bus keeps what it has of all."""
        self._tell(ObjectKey(self._row.kind, "", ""), None, "undecodable", str(error))

    def record(self, record: AuditRecord) -> None:
        """Append a record to AUDIT, without waiting for it."""
        self._recorder.add(record)

    def forget(self, listed: set[ObjectKey]) -> None:
        """Forget what was refused and is in no complete list any more."""
        there = {_ref(key) for key in listed}
        for ref in [ref for ref in self._refused if ref not in there]:
            self._restore(ref)

    async def flush(self) -> None:
        """Wait until everything that was offered so far is on the bus, or was found not to be news."""
        await self._flights.flush()
        applied = self._reader.view.sequence
        self._acked = {key: known for key, known in self._acked.items() if known.sequence > applied}

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 -- a limit on the whole, then it gives up
        """Finish what is in flight, at most for ``timeout`` seconds."""
        await self._recorder.close(min(1.0, timeout))
        if left := await self._flights.close(timeout):
            self._log.warning("publishes given up on stop, the next list makes up for them", objects=left)

    def _verdict(
        self, answer: Answer, newer: Callable[[Version, Version | None], Verdict], known: Known | None
    ) -> Verdict:
        if known is not None and known.withheld and answer.version == known.version:
            # Of this version there is a mark alone; it may be that the server takes more by now.
            return Verdict.DROP if answer.say(self._limit).withheld else Verdict.PUBLISH
        return newer(answer.version, known.version if known else None)

    async def _offer(self, answer: Answer, newer: Callable[[Version, Version | None], Verdict]) -> None:
        known = self.known(answer.key)
        while True:
            match self._verdict(answer, newer, known):
                case Verdict.DROP:
                    return
                case Verdict.ASK:
                    await self._ask(answer.key)
                    return
                case Verdict.PUBLISH:
                    if await self._say(answer, known):
                        return
                    known = await self._read_last(answer.key)

    async def _bury(self, key: ObjectKey, sequence: int) -> None:
        known = self.known(key)
        if known is None or known.sequence != sequence or not await self._store_tombstone(key, known):
            await self._ask(key)

    async def _ask(self, key: ObjectKey) -> None:
        while True:
            # In this order: the answer must be younger than what it is compared with.
            known = await self._read_last(key)
            try:
                answer = await self._get(key)
            except UnreadableError as error:
                self._tell(key, None, "undecodable", str(error))
                return
            verdict = settle(answer.version if answer else None, known.version if known else None)
            if answer is not None and known is not None and known.withheld and answer.version == known.version:
                verdict = Verdict.DROP if answer.say(self._limit).withheld else Verdict.PUBLISH
            if verdict is Verdict.DROP:
                return
            if answer is not None:
                stored = await self._say(answer, known)
            else:
                stored = known is None or await self._store_tombstone(key, known)
            if stored:
                return

    @property
    def _limit(self) -> int:
        return self._bus.max_payload - HEADER_ROOM

    async def _say(self, answer: Answer, known: Known | None) -> bool:
        """Publish an object, or the mark in its place, if ``known`` is still the last; False when it is not."""
        key, version = answer.key, answer.version
        said = answer.say(self._limit)
        try:
            stored = await self._store(key, version, said, known)
        except RefusedError as error:
            said = answer.mark("oversized", str(error))
            stored = await self._store(key, version, said, known)
        if stored and said.withheld:
            self._tell(key, version, said.withheld, said.problem)
        elif stored:
            self._restore(_ref(key))
        return stored

    async def _store_tombstone(self, key: ObjectKey, known: Known) -> bool:
        version = Version(known.version.uid, known.version.resource_version, deleted=True)
        stored = await self._store(key, version, Said(last_words(key, known.body, self._limit)), known)
        if stored:
            self._restore(_ref(key))
        return stored

    async def _store(self, key: ObjectKey, version: Version, said: Said, known: Known | None) -> bool:
        """Publish if ``known`` is still the last; False when it is not. RefusedError: NATS will never take it."""
        event = object_event(
            self._settings.cluster,
            key,
            uid=version.uid,
            resource_version=version.resource_version,
            deleted=version.deleted,
            withheld=said.withheld,
        )

        async def publish(msg_id: str) -> PubAck:
            with self._metrics.publish_seconds.labels(OBJECTS).time():
                return await self._bus.publish(
                    key.subject(),
                    said.body,
                    event,
                    msg_id=msg_id,
                    expect_last=known.sequence if known else 0,
                    rollup=version.deleted,
                    ttl=self._settings.tombstone_ttl if version.deleted else None,
                )

        try:
            ack = await self._patiently(lambda: publish(event.id))
            if ack.duplicate:
                # The server has swallowed it: this version was on the bus a short while ago, but it is not the last
                # now (the sequence was right). So the object went back to it, and it must be said again.
                ack = await self._patiently(lambda: publish(""))
        except WrongSequenceError:
            self._metrics.publish_conflicts.labels(OBJECTS).inc()
            return False
        self._metrics.publishes.labels(OBJECTS).inc()
        if version.deleted:
            self._metrics.tombstones.labels(self._row.kind).inc()
        self._acked[key] = Known(sequence=ack.sequence, version=version, body=said.body, withheld=said.withheld)
        self._log.debug("object published", key=event.subject, id=event.id, sequence=ack.sequence)
        return True

    async def _read_last(self, key: ObjectKey) -> Known | None:
        message = await self._patiently(lambda: self._bus.last(OBJECTS, key.subject()))
        if message is None:
            self._acked.pop(key, None)
            return None
        try:
            record = object_record(message)
        except EventError:
            # Not ours, or from another time: no version is older or newer than it, so the API server is asked.
            return Known(sequence=message.sequence, version=Version("", ""), body=message.data)
        version = Version(record.uid, record.resource_version, record.deleted)
        return Known(sequence=message.sequence, version=version, body=message.data, withheld=record.withheld)

    async def _get(self, key: ObjectKey) -> Answer | None:
        """Return the object as it is now; None when it is gone or not one of the row's."""

        async def get() -> bytes | None:
            try:
                return await self._client.get(self._row.object_path(key), accept=self._row.accept)
            except NotFoundError:
                return None

        raw = await self._patiently(get)
        answer = read(self._row, raw) if raw is not None else None
        return answer if answer is not None and answer.selected else None

    def _set_aside(self, answer: Answer) -> None:
        """Publish nothing of an object whose name no subject can hold: nothing is granted for it or to it."""
        if answer.version.deleted:
            self._restore(_ref(answer.key))
        else:
            problem = f"its name takes more than {MAX_TOKEN} bytes in a subject of NATS: nothing is granted for it"
            self._tell(answer.key, answer.version, "name", problem)

    def _tell(self, key: ObjectKey, version: Version | None, why: str, problem: str) -> None:
        """Name what the bus does not take: count it, and log and record it once until it is mended or gone."""
        self._counters.refused.labels(self._row.kind, why).inc()
        name = "/".join(shown(part) for part in (key.kind, key.namespace, key.name) if part)
        if not key.fits:
            name += f" [{encode(key.name)[2:10]}]"  # of several that begin alike, each by itself
        if self._refused.get(_ref(key)) == (why, name):
            return
        self._refused[_ref(key)] = (why, name)
        self._log.error("object cannot be published and grants nothing", key=name, why=why, error=problem)
        cause = f"{self._settings.cluster}:{version.uid}:{version.resource_version}" if version else ""
        self._record("refused", "failed", name, cause, f"{why}: {problem}")

    def _restore(self, ref: tuple[str, str]) -> None:
        """Tell that what was refused is mended or gone, if anything was."""
        if (told := self._refused.pop(ref, None)) is not None:
            self._record("restored", "done", told[1], "", "it is published again, or gone")

    def _record(self, action: str, outcome: Outcome, name: str, cause: str, message: str) -> None:
        self.record(
            AuditRecord(
                time=time_now(),
                component="watcher",
                action=action,
                outcome=outcome,
                object=name,
                cause=cause,
                message=message,
            )
        )

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works: an outage of the bus or the API server delays an object and never loses it."""
        backoff = Backoff(_RETRY_BASE, _RETRY_CAP)
        while True:
            try:
                result = await attempt()
            except (WrongSequenceError, RefusedError):
                raise
            except BUS_TROUBLE as error:
                self._metrics.publish_errors.labels(OBJECTS).inc()
                self._complain("bus does not take objects, trying again", str(error) or type(error).__name__)
                await asyncio.sleep(backoff.next())
            except KubeError as error:
                self._complain("API server does not tell about an object, trying again", str(error))
                await asyncio.sleep(backoff.next(error.retry_after or 0.0))
            else:
                self._trouble = ""
                return result

    def _complain(self, message: str, error: str) -> None:
        """Log a trouble once: in an outage everything in flight has the same one."""
        getattr(self._log, "debug" if self._trouble == message else "warning")(message, error=error)
        self._trouble = message


def _ref(key: ObjectKey) -> tuple[str, str]:
    """Return what tells an object of the kind from the others, in a few bytes however long its name is."""
    return key.namespace, encode(key.name)
