"""The proxy as a request sees it: identify, decide, then answer from memory or pass on.

The order is fixed: a request whose target, identity or impersonation is refused ends there, and no byte of it reaches
the API server. Everything that decides is pure and stands elsewhere; this module only does what was decided.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.accounting import Asked, Counts, Run
from proxycore.across import Across
from proxycore.across_route import AcrossNamespaces
from proxycore.filtered_watch import FilteredWatch
from proxycore.headers import asked_identity, forwarded
from proxycore.namespace_lists import NamespaceLists
from proxycore.narrowing import narrowed
from proxycore.passing import REFUSALS, Passing
from proxycore.patterns import OTHER
from proxycore.policy import (
    Filtered,
    Forward,
    ListMemory,
    ListUpstream,
    ReadOne,
    Refuse,
    Review,
    WatchMemory,
    decide,
)
from proxycore.relaying import begin_stream
from proxycore.representations import negotiate
from proxycore.requestinfo import parse
from proxycore.rules import OPERATION_OF
from proxycore.statuses import RefusedError, Status
from proxycore.watching import BOOKMARK_INTERVAL, NamespaceWatch

if TYPE_CHECKING:
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord
    from proxycore.access_log import AccessLog
    from proxycore.across import Crossing
    from proxycore.across_watch import AcrossWatch
    from proxycore.auditing import Auditor
    from proxycore.authentication import Authenticator
    from proxycore.callers import Callers
    from proxycore.feed import NamespaceFeed
    from proxycore.filtered import FilteredKinds
    from proxycore.freshness import Freshener
    from proxycore.impersonating import Impersonator
    from proxycore.measures import Measures
    from proxycore.plane.exchange import Request
    from proxycore.policy import Decision
    from proxycore.requestinfo import RequestInfo
    from proxycore.upstream import Upstream

log = get("proxy")

PROBE: Final = "/_healthz"
"""The one path that answers without a token, as the existing proxy has it."""
WRITE_SECONDS: Final = 30.0
"""A client of a watch that takes nothing for so long is disconnected."""
LONGEST_KEPT: Final = 512
"""Characters of a target whose reading is remembered: clients ask for the same few again and again."""
_EXPECTED = "100-continue"
_FAILED: Final = 500
_OK: Final = 200


class Proxy:
    """Answers requests. ``stopping`` ends watches."""

    def __init__(
        self,
        *,
        callers: Callers,
        authenticator: Authenticator,
        impersonator: Impersonator,
        access: Reader[AccessView, GrantRecord],
        feed: NamespaceFeed,
        kinds: FilteredKinds,
        freshener: Freshener,
        upstream: Upstream,
        auditor: Auditor,
        measures: Measures,
        access_log: AccessLog | None,
        stopping: asyncio.Event,
        crossing: Crossing | None = None,
        bookmark_interval: float = BOOKMARK_INTERVAL,
    ) -> None:
        self._callers = callers
        self._authenticator = authenticator
        self._impersonator = impersonator
        self._access = access
        self._feed = feed
        self._kinds = kinds
        self._freshener = freshener
        self._auditor = auditor
        self._counts = Counts(measures, access_log)
        self._stopping = stopping
        self._passing = Passing(
            access=access,
            feed=feed,
            kinds=kinds,
            freshener=freshener,
            upstream=upstream,
            auditor=auditor,
            stopping=stopping,
            crossing=crossing,
        )
        self._across = AcrossNamespaces(crossing, feed, self._passing, freshener)
        self._lists = NamespaceLists(feed, upstream, self._passing)
        measures.watch_size("lists", lambda: self._lists.kept)
        self._bookmark_interval = bookmark_interval

    async def handle(self, request: Request) -> None:
        """Answer one request; every failure of the proxy's own becomes a Status."""
        if request.target == PROBE:
            request.reply(_OK, b"ok", [("Content-Type", "text/plain")])
            return
        run = Run(self._counts, request)
        try:
            await self._answer(request, run)
        except RefusedError as error:
            self._refuse(request, run, error.status)
        except ConnectionError:
            run.done("gone")
            return
        except asyncio.CancelledError:
            run.done("gone")
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not show its traceback to a client
            log.error("request failed", error=error, method=request.method, route=run.route)
            failed = Status(code=_FAILED, reason="InternalError", message="the proxy failed on this request")
            self._refuse(request, run, failed)
        run.done(str(request.answer_code))

    def count_refused(self, code: int) -> None:
        """Count what was refused before it could be read as a request."""
        self._counts.answered("refused", "other", str(code), OTHER, 0.0)

    async def _answer(self, request: Request, run: Run) -> None:
        info = run.info = _read(request.method, request.target)
        headers = request.headers
        if (request.value("expect") or _EXPECTED).lower() != _EXPECTED:
            raise RefusedError(Status(code=417, reason="BadRequest", message="only Expect: 100-continue is known"))
        caller, token = await self._callers.identify(request, info)
        run.caller = run.identity = caller.identity
        acting = await self._impersonator.resolve(caller.identity, asked_identity(headers))
        run.identity = acting.identity
        grants, freshness = self._access.view, self._freshener.recent()
        if info.tenant:
            acting = narrowed(acting, info.tenant, grants, freshness)
        passes = self._callers.passes(info, acting.identity)
        run.identified()
        decision = Forward() if passes else decide(info, acting.identity, grants, freshness)
        if isinstance(decision, Filtered) and not await self._kinds.is_served(decision):
            decision = decide(info, acting.identity, grants, self._freshener.recent(), discovered=False)
        run.decided()
        if self._auditor.everything:
            self._auditor.decided(info, acting.identity, decision=type(decision).__name__)
        passed = forwarded(headers, request.peer, self._callers.own_headers)
        await self._serve(Asked(request, run, info, passed, caller, acting, token, passes=passes), decision)

    async def _serve(self, asked: Asked, decision: Decision) -> None:
        run = asked.run
        match decision:
            case Refuse(status):
                raise RefusedError(status)
            case Forward():
                await self._forward(asked)
            case ReadOne(name):
                run.route = "read"
                await self._passing.read_one(asked, name)
            case ListUpstream() | ListMemory():
                await self._lists.answer(asked.request, run, asked.acting.identity, decision, asked.passed)
            case WatchMemory() | Filtered(verb="watch"):
                run.route = "watch"
                await self._watch(asked, decision)
            case Filtered():
                await self._other_kind(asked, decision)
            case Review(rules):
                run.route = "review"
                await self._passing.review(asked, rules=rules)

    async def _forward(self, asked: Asked) -> None:
        """Send the request on as the caller, unless it is about all namespaces and the caller is a tenant."""
        if (across := await self._across.decide(asked)) is None:
            asked.run.route = "forward"
            await self._passing.forward(asked)
            return
        asked.run.route = "across"
        await (self._watch(asked, across) if across.verb == "watch" else self._across.list(asked, across))

    async def _other_kind(self, asked: Asked, decision: Filtered) -> None:
        """Answer for a kind of which tenants see their own; what is not the caller's goes on as the caller."""
        request, run = asked.request, asked.run
        if decision.verb in OPERATION_OF:
            if not await self._kinds.permits(decision):
                run.route = "forward"
                await self._passing.forward(asked)
                return
            run.route = "granted"
            await self._passing.write(asked)
            return
        answer = await run.upstream(self._kinds.answer(decision, request.value("accept")))
        if answer is None:
            run.route = "forward"
            await self._passing.forward(asked)
            return
        run.route = "filter"
        run.began()
        request.reply(_OK, answer)

    async def _watch(self, asked: Asked, decision: WatchMemory | Filtered | Across) -> None:
        request, identity, accept = asked.request, asked.acting.identity, asked.request.value("accept")

        async def write(line: bytes) -> None:
            request.write(line)
            async with asyncio.timeout(WRITE_SECONDS):
                await request.drain()

        def good() -> bool:
            return self._freshener.now().fresh and not self._authenticator.is_revoked(asked.caller)

        watch: NamespaceWatch | FilteredWatch | AcrossWatch
        if isinstance(decision, WatchMemory):
            watch = NamespaceWatch(
                self._feed,
                identity,
                decision.query,
                negotiate(accept, watch=True),
                write=write,
                good=good,
                bookmark_interval=self._bookmark_interval,
            )
        elif isinstance(decision, Across):
            watch = await self._across.watch(asked, decision, write=write, good=good)
        else:
            watch = FilteredWatch(self._kinds, self._feed, identity, decision, accept, write=write, good=good)
        begin_stream(request)
        asked.run.began()
        try:
            with asked.run.watching("memory" if isinstance(decision, WatchMemory) else "filtered"):
                await watch.run(self._stopping)
        except TimeoutError:
            log.info("client of a watch is too slow")
            request.break_off()
            return
        request.finish()

    def _refuse(self, request: Request, run: Run, status: Status) -> None:
        if status.code in REFUSALS:
            self._auditor.refused(run.info, run.identity, code=status.code, why=status.message)
        extra = []
        if status.retry_after:
            extra.append(("Retry-After", str(status.retry_after)))
        if status.code == 401:  # noqa: PLR2004 - HTTP's own number
            extra.append(("WWW-Authenticate", 'Bearer realm="kubernetes"'))
        if request.answer_begun:
            request.break_off()
            return
        request.reply(status.code, status.encode(), extra)


@functools.lru_cache(4096)
def _read_again(method: str, target: str) -> RequestInfo:
    return parse(method, target)


def _read(method: str, target: str) -> RequestInfo:
    return (_read_again if len(target) <= LONGEST_KEPT else parse)(method, target)
