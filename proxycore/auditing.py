"""Refusals and the proxy's own writes on the AUDIT stream: bounded, and never in a request's way.

Who is nobody leaves one record a minute for all, with a number and no path: a flood of requests without a credential
must not fill the stream. A caller has so many records of refusals a minute, the same refusal once; what is beyond is
one record with a number. What the proxy writes for a tenant stands in the API server's audit under the proxy's name,
so here stands whose request it was, each time: such a record has a place before the write is sent, and is kept until
NATS took it. With ``--audit-all`` every decision about a known caller is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.errors import BusError
from eventcore.events import AuditRecord
from eventcore.logs import get
from eventcore.waiting import pause
from proxycore.acting import ANONYMOUS_USER
from proxycore.peers import network_of
from proxycore.statuses import RefusedError, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.bus import Bus
    from eventcore.events import Outcome
    from proxycore.identities import Identity
    from proxycore.measures import Measures
    from proxycore.requestinfo import RequestInfo

log = get("proxy.auditing")

WAITING: Final = 1000
"""Records of refusals and decisions that may wait while NATS is away; more are dropped and counted."""
WRITES: Final = 256
"""Records of writes that may wait or be expected; where there is no place, nothing is written."""
SAME_AGAIN: Final = 60.0
"""Seconds in which the same refusal is recorded once, and what was only counted is summed up."""
OF_ONE_CALLER: Final = 20
"""Records of refusals of one caller in this time."""
MAX_CALLERS: Final = 10_000
MAX_NETWORKS: Final = 1000
TOGETHER: Final = 32
"""Records that are published at a time."""
AGAIN_SECONDS: Final = 1.0
TICK_SECONDS: Final = 1.0
LONGEST_MESSAGE: Final = 1024
LONGEST_NAME: Final = 512
_REFUSED: Final = 400


class _Caller:
    """The refusals of one caller since a time: which were recorded, and how many more there were."""

    __slots__ = ("account", "more", "said", "since")

    def __init__(self, since: float, account: str) -> None:
        self.since = since
        self.account = account
        self.said: set[int] = set()
        self.more = 0


class _Nobody:
    """The refusals of those whom nobody knows, since they were last told of."""

    def __init__(self) -> None:
        self.told = float("-inf")
        self.count = 0
        self.networks: Counter[str] = Counter()

    def add(self, peer: str) -> None:
        self.count += 1
        network = network_of(peer)
        if network in self.networks or len(self.networks) < MAX_NETWORKS:
            self.networks[network] += 1

    def take(self, at: float) -> str:
        """Return what is to be told, and begin anew."""
        (most, times), *_ = self.networks.most_common(1)
        many = f"{len(self.networks)}{' or more' if len(self.networks) == MAX_NETWORKS else ''}"
        text = f"requests of nobody known: {self.count}, addresses: {many}, from {most} alone: {times}"
        self.told, self.count = at, 0
        self.networks.clear()
        return text


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
        self._waiting: deque[AuditRecord] = deque()
        self._writes: deque[AuditRecord] = deque()
        self._expected = 0  # writes that are on their way, and records of writes that are not published
        self._awake = asyncio.Event()
        self._callers: OrderedDict[str, _Caller] = OrderedDict()  # by the time since when
        self._nobody = _Nobody()
        self._dropped = measures.audit_dropped
        self._summed = measures.audit_summed

    def refused(self, info: RequestInfo, identity: Identity | None, *, code: int, why: str, peer: str) -> None:
        """Record that a request was refused. The query is left out: it may hold anything."""
        at = self._clock()
        if identity is None or identity.user == ANONYMOUS_USER:
            self._nobody.add(peer)
            self._summed.inc()
            self._tell_of_nobody(at)
            return
        caller = self._callers.get(identity.user)
        if caller is None or caller.since <= at - SAME_AGAIN:
            self._sum_up(identity.user)
            caller = self._callers[identity.user] = _Caller(at, _account(identity))
            while len(self._callers) > MAX_CALLERS:
                self._sum_up(next(iter(self._callers)))
        said = hash((info.verb, info.path, code))
        if not self.everything and said in caller.said:
            return
        if not self.everything and len(caller.said) >= OF_ONE_CALLER:
            caller.more += 1
            self._summed.inc()
            return
        if len(caller.said) < OF_ONE_CALLER:
            caller.said.add(said)
        self._take(_record(info, identity, "refused", "refused", f"{code} for", why))

    def decided(self, info: RequestInfo, identity: Identity, *, decision: str) -> None:
        """Record what was decided about a request; for ``everything`` alone. Its refusal is a record of its own."""
        self._take(_record(info, identity, "decided", "done", f"{decision} for", "decided by the grants"))

    def expect_write(self) -> None:
        """Hold a place for the record of a write, before that is sent; RefusedError 503 when it could not be recorded.

        Call `written` in any case afterwards.
        """
        if self._expected >= WRITES or not self._bus.connected:
            raise RefusedError(
                unavailable(
                    "writes under the proxy's account are recorded, and NATS takes no record now; try again",
                    retry_after=5,
                )
            )
        self._expected += 1

    def written(self, info: RequestInfo, identity: Identity, *, code: int) -> None:
        """Record a write that the proxy sent under its own account for somebody, and the answer's code, 0 for none."""
        outcome: Outcome = "done" if 0 < code < _REFUSED else "failed"
        answer = f"{code or 'no answer'} to"
        self._writes.append(
            _record(info, identity, "written", outcome, answer, "under the proxy's account, by proxySettings")
        )
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
            for record in self._writes:  # the log is the last place that is left for it
                log.error("audit record of a write could not be published", record=record.message)

    async def _publish_some(self) -> bool:
        """Publish what waits, writes first; False when NATS did not take all of it."""
        are_writes = bool(self._writes)
        queue = self._writes if are_writes else self._waiting
        batch = [queue[number] for number in range(min(len(queue), TOGETHER))]
        results = await asyncio.gather(*(self._bus.audit(record) for record in batch), return_exceptions=True)
        for _ in batch:
            queue.popleft()
        failed: list[AuditRecord] = []
        for record, result in zip(batch, results, strict=True):
            if isinstance(result, BusError):
                log.warning("audit record could not be published", error=result)
                failed.append(record)
            elif isinstance(result, BaseException):
                raise result
        if are_writes:
            self._writes.extendleft(reversed(failed))
            self._expected -= len(batch) - len(failed)
        else:
            self._dropped.inc(len(failed))
        return not failed

    def _tick(self, at: float) -> None:
        """Sum up what was only counted, where its time is over."""
        self._tell_of_nobody(at)
        while self._callers:
            user, caller = next(iter(self._callers.items()))
            if caller.since > at - SAME_AGAIN:
                return
            self._sum_up(user)

    def _tell_of_nobody(self, at: float) -> None:
        if self._nobody.count and self._nobody.told <= at - SAME_AGAIN:
            self._take(_summary(self._nobody.take(at)))

    def _sum_up(self, user: str) -> None:
        """Forget a caller's refusals; what was not recorded one by one is one record."""
        caller = self._callers.pop(user, None)
        if caller is not None and caller.more:
            text = (
                f"further requests of {user}: {caller.more}, beyond the {OF_ONE_CALLER} that are recorded in a minute"
            )
            self._take(_summary(text, caller.account))

    def _take(self, record: AuditRecord) -> None:
        if len(self._waiting) >= WAITING:
            self._dropped.inc()
            return
        self._waiting.append(record)
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
