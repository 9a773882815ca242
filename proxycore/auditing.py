"""Refusals and the proxy's own writes on the AUDIT stream: bounded, and never in a request's way.

Who is nobody leaves one record a minute for all, with a number and no path: a flood of requests without a credential
must not fill the stream. A caller has so many records of refusals a minute, the same refusal once, and all callers
together so many bytes; what is beyond is a record with a number. All accounts of a namespace are one caller here: who
may make one may make any number. What the proxy writes for a tenant stands in the API server's audit under the proxy's
name, so here stands whose request it was, each time: such a record has a place before the write is sent, and is kept
until NATS took it. With ``--audit-all`` every decision about a known caller is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.errors import BusError
from eventcore.events import AuditRecord, encode_body
from eventcore.logs import get
from eventcore.waiting import pause
from proxycore.acting import ANONYMOUS_USER
from proxycore.peers import network_of
from proxycore.statuses import RefusedError, unavailable
from proxycore.turns import share_of
from proxycore.write_places import WritePlaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.bus import Bus
    from eventcore.events import Outcome
    from proxycore.identities import Identity
    from proxycore.measures import Measures
    from proxycore.requestinfo import RequestInfo
    from proxycore.write_places import Place

    _Waiting = tuple[Place | None, AuditRecord]

log = get("proxy.auditing")

WAITING: Final = 1000
"""Records of refusals and decisions that may wait while NATS is away; more are dropped and counted."""
SAME_AGAIN: Final = 60.0
"""Seconds in which the same refusal is recorded once, and what was only counted is summed up."""
OF_ONE_CALLER: Final = 20
"""Records of refusals of one caller in this time."""
OF_ALL_AT_ONCE: Final = 1024 * 1024
"""Bytes of records of refusals of all callers, as AUDIT keeps them, that may come at once."""
OF_ALL_A_MINUTE: Final = 16 * 1024
"""The same in the long run: AUDIT at its default size holds three weeks of it from two processes."""
AROUND: Final = 512
"""Bytes that AUDIT keeps around a record: subject, headers, and what the server adds."""
MAX_CALLERS: Final = 10_000
MAX_COUNTED: Final = 1000
TOGETHER: Final = 32
"""Records that are published at a time."""
AGAIN_SECONDS: Final = 1.0
TICK_SECONDS: Final = 1.0
LONGEST_MESSAGE: Final = 1024
LONGEST_NAME: Final = 512
_REFUSED: Final = 400


class _Caller:
    """The refusals of one share since a time: which were recorded, and how many more there were."""

    __slots__ = ("account", "more", "said", "since")

    def __init__(self, since: float, account: str) -> None:
        self.since = since
        self.account = account
        self.said: set[int] = set()
        self.more = 0


class _Counted:
    """Refusals that have no record of their own, since they were last told of, and of whom there were how many."""

    def __init__(self, text: str) -> None:
        self.told = float("-inf")
        self.count = 0
        self._text = text
        self._whose: Counter[str] = Counter()

    def add(self, who: str, count: int = 1) -> None:
        self.count += count
        if who in self._whose or len(self._whose) < MAX_COUNTED:
            self._whose[who] += count

    def take(self, at: float) -> str:
        """Return what is to be told, and begin anew."""
        (most, times), *_ = self._whose.most_common(1)
        many = f"{len(self._whose)}{' or more' if len(self._whose) == MAX_COUNTED else ''}"
        text = self._text.format(count=self.count, many=many, times=times, most=most[:LONGEST_NAME])
        self.told, self.count = at, 0
        self._whose.clear()
        return text


class _Room:
    """Bytes that may be written: OF_ALL_AT_ONCE, and OF_ALL_A_MINUTE more with time."""

    def __init__(self, at: float) -> None:
        self._left = float(OF_ALL_AT_ONCE)
        self._at = at

    def has_some(self, at: float) -> bool:
        self._left = min(self._left + (at - self._at) * OF_ALL_A_MINUTE / 60, OF_ALL_AT_ONCE)
        self._at = at
        return self._left > 0

    def take(self, record: AuditRecord) -> None:
        self._left -= len(encode_body(record)) + AROUND


class Auditor:
    """Takes records without waiting and publishes them in the background."""

    def __init__(
        self,
        bus: Bus,
        measures: Measures,
        *,
        everything: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.everything = everything
        self._clock = clock
        self._bus = bus
        self._waiting: deque[_Waiting] = deque()
        self._writes: deque[_Waiting] = deque()
        self._places = WritePlaces()  # of writes that are on their way, and of records of writes not published
        self._awake = asyncio.Event()
        self._callers: OrderedDict[str, _Caller] = OrderedDict()  # of each share, by the time since when
        self._room = _Room(clock())
        self._nobody = _Counted("requests of nobody known: {count}, addresses: {many}, from {most} alone: {times}")
        self._beyond = _Counted(
            "requests beyond what is recorded of all: {count}, of {many} callers, {times} of them of {most}"
        )
        self._dropped = measures.audit_dropped
        self._summed = measures.audit_summed

    def refused(self, info: RequestInfo, identity: Identity | None, *, code: int, why: str, peer: str) -> None:
        """Record that a request was refused. The query is left out: it may hold anything."""
        at = self._clock()
        if identity is None or identity.user == ANONYMOUS_USER:
            self._nobody.add(network_of(peer))
            self._summed.inc()
            self._tell(self._nobody, at)
            return
        if self.everything:
            self._take(_record(info, identity, "refused", "refused", f"{code} for", why))
            return
        share = share_of(identity.user)
        caller = self._callers.get(share)
        if caller is None or caller.since <= at - SAME_AGAIN:
            self._sum_up(share, at)
            caller = self._callers[share] = _Caller(at, _account(identity) if share == identity.user else "")
            while len(self._callers) > MAX_CALLERS:
                self._sum_up(next(iter(self._callers)), at)
        said = hash((identity.user, info.verb, info.path, code))
        if said in caller.said:
            return
        if len(caller.said) >= OF_ONE_CALLER:
            caller.more += 1
            self._summed.inc()
        elif self._take_of_all(_record(info, identity, "refused", "refused", f"{code} for", why), at):
            caller.said.add(said)
        else:
            self._beyond.add(share)
            self._summed.inc()
            self._tell(self._beyond, at)

    def decided(self, info: RequestInfo, identity: Identity, *, decision: str) -> None:
        """Record what was decided about a request; for ``everything`` alone. Its refusal is a record of its own."""
        self._take(_record(info, identity, "decided", "done", f"{decision} for", "decided by the grants"))

    def expect_write(self, identity: Identity, *, whole: bool) -> Place:
        """Hold a place for the record of a write, before that is sent; ``whole``: its body has come.

        RefusedError 429 or 503 when it could not be recorded. Call `written` in any case afterwards.
        """
        if not self._bus.connected:
            raise RefusedError(
                unavailable(
                    "writes under the proxy's account are recorded, and NATS takes no record now; try again",
                    retry_after=5,
                )
            )
        return self._places.take(share_of(identity.user), whole=whole)

    def written(self, place: Place, info: RequestInfo, identity: Identity, *, code: int) -> None:
        """Record a write that the proxy sent under its own account for somebody, and the answer's code, 0 for none."""
        self._places.answered(place)
        outcome: Outcome = "done" if 0 < code < _REFUSED else "failed"
        answer = f"{code or 'no answer'} to"
        record = _record(info, identity, "written", outcome, answer, "under the proxy's account, by proxySettings")
        self._writes.append((place, record))
        self._awake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish records until told to stop; then what still waits, if NATS takes it at once."""
        stop = asyncio.ensure_future(stopping.wait())
        stop.add_done_callback(lambda _: self._awake.set())
        try:
            while True:
                self._tick(self._clock())
                if self._writes or self._waiting:
                    whole = await self._publish_some()
                    if not whole and stopping.is_set():
                        return
                    if not whole:
                        await pause(stopping, AGAIN_SECONDS)
                    continue
                if stopping.is_set():
                    return
                self._awake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), TICK_SECONDS)
        finally:
            stop.cancel()
            for _, record in self._writes:  # the log is the last place that is left for it
                log.error("audit record of a write could not be published", record=record.message)

    async def _publish_some(self) -> bool:
        """Publish what waits, writes first; False when NATS did not take all of it."""
        are_writes = bool(self._writes)
        queue = self._writes if are_writes else self._waiting
        batch = [queue[number] for number in range(min(len(queue), TOGETHER))]
        results = await asyncio.gather(*(self._bus.audit(record) for _, record in batch), return_exceptions=True)
        for _ in batch:
            queue.popleft()
        failed: list[_Waiting] = []
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, BusError):
                log.warning("audit record could not be published", error=result)
                failed.append(waiting)
            elif isinstance(result, BaseException):
                raise result
            elif waiting[0] is not None:
                self._places.give_back(waiting[0])
        if are_writes:
            self._writes.extendleft(reversed(failed))
        else:
            self._dropped.inc(len(failed))
        return not failed

    def _tick(self, at: float) -> None:
        """Sum up what was only counted, where its time is over."""
        while self._callers:
            share, caller = next(iter(self._callers.items()))
            if caller.since > at - SAME_AGAIN:
                break
            self._sum_up(share, at)
        self._tell(self._nobody, at)
        self._tell(self._beyond, at)

    def _tell(self, counted: _Counted, at: float) -> None:
        if counted.count and counted.told <= at - SAME_AGAIN:
            self._take(_summary(counted.take(at)))

    def _sum_up(self, share: str, at: float) -> None:
        """Forget a caller's refusals; what was not recorded one by one is one record."""
        caller = self._callers.pop(share, None)
        if caller is None or not caller.more:
            return
        text = f"further requests of {share}: {caller.more}, beyond the {OF_ONE_CALLER} that are recorded in a minute"
        if not self._take_of_all(_summary(text, caller.account), at):
            self._beyond.add(share, caller.more)

    def _take_of_all(self, record: AuditRecord, at: float) -> bool:
        """Take a record of a refusal, if there is room for one in what all callers have together."""
        if not self._room.has_some(at):
            return False
        self._room.take(record)
        self._take(record)
        return True

    def _take(self, record: AuditRecord) -> None:
        if len(self._waiting) >= WAITING:
            self._dropped.inc()
            return
        self._waiting.append((None, record))
        self._awake.set()


def _account(identity: Identity) -> str:
    return "/".join(identity.account)[:LONGEST_NAME] if identity.account is not None else ""


def _record(info: RequestInfo, identity: Identity, action: str, outcome: Outcome, answer: str, why: str) -> AuditRecord:
    target = f"{info.resource}/{'' if info.is_namespaces else info.namespace}/{info.name}" if info.is_resource else ""
    return AuditRecord(
        time=now(),
        component="proxy",
        action=action,
        outcome=outcome,
        account=_account(identity),
        object=target[:LONGEST_NAME],
        cause="request",
        message=f"{answer} {identity.user[:LONGEST_NAME]}: {info.method} {info.path}: {why}"[:LONGEST_MESSAGE],
    )


def _summary(text: str, account: str = "") -> AuditRecord:
    return AuditRecord(
        time=now(),
        component="proxy",
        action="refused",
        outcome="refused",
        account=account,
        cause="request",
        message=f"refused {text}"[:LONGEST_MESSAGE],
    )
