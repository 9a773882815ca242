"""The proxy as a request sees it: identify, decide, then answer from memory or pass on.

The order is fixed: a request whose target, identity or impersonation is refused ends there, and no byte of it reaches
the API server. Everything that decides is pure and stands elsewhere; this module only does what was decided.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.logs import get
from proxycore.accounting import Asked, Counts, Meaning, Run
from proxycore.across_route import AcrossNamespaces
from proxycore.acting import Acting
from proxycore.decisions import Decisions
from proxycore.namespace_lists import NamespaceLists
from proxycore.narrowing import narrowed
from proxycore.passing import REFUSALS, Passing
from proxycore.patterns import OTHER, pattern
from proxycore.plane.heads import LONGEST_KEPT
from proxycore.policy import (
    Filtered,
    Forward,
    ListMemory,
    ListUpstream,
    ReadMemory,
    ReadOne,
    Refuse,
    Review,
    WatchMemory,
    decide,
)
from proxycore.replying import reply
from proxycore.requestinfo import parse
from proxycore.rules import OPERATION_OF
from proxycore.statuses import RefusedError, Status
from proxycore.watches import Watches
from proxycore.watching import BOOKMARK_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.access_log import AccessLog
    from proxycore.across import Crossing
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
        objects: Reader[ObjectsView, ObjectRecord],
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
        self._decisions = Decisions(access, objects, freshener)
        self._kinds = kinds
        self._freshener = freshener
        self._auditor = auditor
        self._counts = Counts(measures, access_log)
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
        self._lists = NamespaceLists(feed, upstream, self._passing, self._decisions)
        measures.watch_size("lists", lambda: self._lists.kept)
        self._watches = Watches(
            feed, kinds, self._across, freshener, authenticator, stopping, bookmark_interval=bookmark_interval
        )

    def handle(self, request: Request) -> Coroutine[None, None, None] | None:
        """Answer one request at once, or return what has to be awaited for that.

        Every failure of the proxy's own becomes a Status.
        """
        if request.target == PROBE:
            request.reply(_OK, b"ok", [("Content-Type", "text/plain")])
            return None
        run = Run(self._counts, request)
        try:
            waits = self._answer(request, run)
        except Exception as error:  # noqa: BLE001 - as in `_finish`
            self._fail(request, run, error)
            return None
        return None if waits is None else self._finish(request, run, waits)

    async def _finish(self, request: Request, run: Run, waits: Coroutine[None, None, None]) -> None:
        """Await the rest of a request."""
        try:
            await waits
        except ConnectionError:
            run.done("gone")
        except asyncio.CancelledError:
            run.done("gone")
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not show its traceback to a client
            self._fail(request, run, error)
        else:
            run.done(str(request.answer_code))

    def _fail(self, request: Request, run: Run, error: Exception) -> None:
        if isinstance(error, RefusedError):
            status = error.status
        else:
            log.error("request failed", error=error, method=request.method, route=run.route)
            status = Status(code=_FAILED, reason="InternalError", message="the proxy failed on this request")
        self._refuse(request, run, status)
        run.done(str(request.answer_code))

    # How a request without a task ends, see `Ends`.

    def passed(self, asked: Asked) -> None:
        """Count it."""
        asked.run.done(str(asked.request.answer_code))

    def failed(self, asked: Asked, error: Exception) -> None:
        """Answer with a Status."""
        self._fail(asked.request, asked.run, error)

    def gone(self, asked: Asked) -> None:
        """Count it."""
        asked.run.done("gone")

    def again(self, asked: Asked) -> None:
        """Decide and send it once more."""
        asked.request.go_on_in_task(self._finish(asked.request, asked.run, self._serve_again(asked)))

    async def _serve_again(self, asked: Asked) -> None:
        await self._serve(asked, self._decision(asked))

    def count_refused(self, code: int) -> None:
        """Count what was refused before it could be read as a request."""
        self._counts.answered("refused", "other", str(code), OTHER, 0.0)

    # From the request to the decision.

    def _answer(self, request: Request, run: Run) -> Coroutine[None, None, None] | None:
        """Answer if nothing has to be awaited, else return what has."""
        info = run.info = _read(request.method, request.target)
        meaning = self._meaning(request)
        caller = self._callers.known(request, meaning)
        if caller is None or meaning.asked is not None:
            return self._identify(request, run, info, meaning)
        run.caller = caller.identity
        acting = Acting(identity=caller.identity, own=True)
        asked = Asked(request, run, info, meaning, caller, acting, meaning.token)
        decision = self._decide(asked)
        return None if self._serve_at_once(asked, decision) else self._serve(asked, decision)

    async def _identify(self, request: Request, run: Run, info: RequestInfo, meaning: Meaning) -> None:
        caller, token = await self._callers.identify(request, info)
        run.caller = run.identity = caller.identity
        acting = self._impersonator.wanted(caller.identity, meaning.asked)
        asked = Asked(request, run, info, meaning, caller, acting, token)
        if not acting.proven and not await self._leaves(asked):
            asked.acting = await self._impersonator.resolve(caller.identity, acting, token=bool(token))
        # Not at once: the task that runs this ends with it, and a request whose answer has not come yet would end too.
        await self._serve(asked, self._decide(asked))

    async def _leaves(self, asked: Asked) -> bool:
        """Tell whether it is left to the API server as whom the request acts: its answer passes as it is.

        Whatever else is said of somebody says something of their grants, so that is for those who may act as them.
        """
        if (
            not asked.token
            or asked.info.tenant
            or not await self._impersonator.leaves(asked.caller.identity, asked.acting)
        ):
            return False
        asked.passes = self._callers.passes(asked.info, asked.acting.identity)
        try:
            forwarded = isinstance(self._decision(asked), Forward)
        except RefusedError:
            return False
        return forwarded and not self._across.may_concern(asked) and not self._passing.masks(asked)

    def _meaning(self, request: Request) -> Meaning:
        """Return what the headers say; RefusedError. What was read for the same headers before is not read again."""
        found = request.remembered.meaning
        if isinstance(found, Meaning):
            return found
        if (request.value("expect") or _EXPECTED).lower() != _EXPECTED:
            raise RefusedError(Status(code=417, reason="BadRequest", message="only Expect: 100-continue is known"))
        made = request.remembered.meaning = Meaning(request.headers, request.peer, self._callers.own_headers)
        return made

    def _decide(self, asked: Asked) -> Decision:
        run, info = asked.run, asked.info
        run.identity, run.proven = asked.acting.identity, asked.acting.proven
        if info.tenant:
            asked.acting = narrowed(asked.acting, info.tenant, self._access.view, self._freshener.recent())
        asked.passes = self._callers.passes(info, asked.acting.identity)
        run.identified()
        decision = self._decision(asked)
        if not isinstance(decision, Filtered):
            self._note(asked, decision)
        return decision

    def _decision(self, asked: Asked) -> Decision:
        if asked.passes:
            return Forward()
        return self._decisions.decide(asked.info, asked.acting.identity, remember=asked.lasts)

    def _serve_at_once(self, asked: Asked, decision: Decision) -> bool:
        """Do what was decided if nothing of it has to be awaited here; tell whether."""
        if isinstance(decision, Forward) and not self._across.may_concern(asked):
            asked.run.route = "forward"
            return self._passing.forward_at_once(asked, self)
        if isinstance(decision, ListUpstream):
            return self._lists.ask_at_once(asked, decision, self)
        if isinstance(decision, ReadOne):
            return self._passing.read_one_at_once(asked, decision.name, self)
        if isinstance(decision, ListMemory | ReadMemory) and self._lists.answer_at_once(asked, decision):
            asked.run.done(str(asked.request.answer_code))
            return True
        return False

    def _note(self, asked: Asked, decision: Decision) -> None:
        asked.run.decided()
        if self._auditor.everything:
            self._auditor.decided(asked.info, asked.acting.identity, decision=type(decision).__name__)

    async def _serve(self, asked: Asked, decision: Decision) -> None:
        run = asked.run
        if isinstance(decision, Filtered):
            if not await self._kinds.is_served(decision):
                grants, freshness = self._access.view, self._freshener.recent()
                decision = decide(asked.info, asked.acting.identity, grants, freshness, discovered=False)
            self._note(asked, decision)
        match decision:
            case Refuse(status):
                raise RefusedError(status)
            case Forward():
                await self._forward(asked)
            case ReadOne() | ReadMemory():
                await self._read_one(asked, decision)
            case ListUpstream() | ListMemory():
                await self._lists.answer(asked, decision)
            case WatchMemory() | Filtered(verb="watch"):
                run.route = "watch"
                await self._watches.answer(asked, decision)
            case Filtered():
                await self._other_kind(asked, decision)
            case Review(rules):
                run.route = "review"
                await self._passing.review(asked, rules=rules)

    async def _read_one(self, asked: Asked, decision: ReadOne | ReadMemory) -> None:
        if isinstance(decision, ReadMemory) and self._lists.answer_at_once(asked, decision):
            return
        asked.run.route = "read"
        await self._passing.read_one(asked, decision.name)

    async def _forward(self, asked: Asked) -> None:
        """Send the request on as the caller, unless it is about all namespaces and the caller is a tenant."""
        if (across := await self._across.decide(asked)) is None:
            asked.run.route = "forward"
            await self._passing.forward(asked)
            return
        asked.run.route = "across"
        await (self._watches.answer(asked, across) if across.verb == "watch" else self._across.list(asked, across))

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
        await reply(request, answer)

    def _refuse(self, request: Request, run: Run, status: Status) -> None:
        if status.code in REFUSALS:
            self._auditor.refused(run.info, run.identity, code=status.code, why=status.message, peer=request.peer)
        extra = []
        if status.retry_after:
            extra.append(("Retry-After", str(status.retry_after)))
        if status.code == 401:  # noqa: PLR2004 - HTTP's own number
            extra.append(("WWW-Authenticate", 'Bearer realm="kubernetes"'))
        if request.answer_begun:
            request.break_off()
            return
        request.reply(status.code, status.encode(), extra)


def _read(method: str, target: str) -> RequestInfo:
    return (_read_again if len(target) <= LONGEST_KEPT else _read_once)(method, target)


def _read_once(method: str, target: str) -> RequestInfo:
    info = parse(method, target)
    return msgspec.structs.replace(info, pattern=pattern(info))


_read_again = functools.lru_cache(4096)(_read_once)
