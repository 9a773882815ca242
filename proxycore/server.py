"""The proxy as a request sees it: identify, decide, then answer from memory or pass on.

The order is fixed: a request whose target, identity or impersonation is refused ends there, and no byte of it reaches
the API server. Everything that decides is pure and stands elsewhere; this module only does what was decided.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from eventcore.events import now
from eventcore.logs import get
from proxycore.accounting import Counts, Run
from proxycore.filtered_watch import FilteredWatch
from proxycore.headers import asked_identity, bearer_token, forwarded, impersonation, wants_upgrade
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
    is_missing,
)
from proxycore.relaying import SWITCHING, begin_stream, relay, tunnel
from proxycore.rendered import RenderedLists
from proxycore.representations import accepts_json, item_of, negotiate, render_list
from proxycore.requestinfo import parse
from proxycore.reviews import add_access, add_rules
from proxycore.rules import OPERATION_OF
from proxycore.statuses import (
    RefusedError,
    Status,
    bad_gateway,
    bad_request,
    expired,
    not_found,
    unauthorized,
    unavailable,
)
from proxycore.watching import BOOKMARK_INTERVAL, NamespaceWatch, selected

if TYPE_CHECKING:
    from eventcore.metrics import Metrics
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord
    from proxycore.auditing import Auditor
    from proxycore.authentication import Authenticator, Caller
    from proxycore.feed import NamespaceFeed
    from proxycore.filtered import FilteredKinds
    from proxycore.freshness import Freshener
    from proxycore.headers import Header
    from proxycore.identities import Identity
    from proxycore.impersonating import Acting, Impersonator
    from proxycore.plane.answers import Answered
    from proxycore.plane.exchange import Request
    from proxycore.policy import Decision, Freshness
    from proxycore.requestinfo import RequestInfo
    from proxycore.upstream import Upstream

log = get("proxy")

PROBE: Final = "/_healthz"
"""The one path that answers without a token, as the existing proxy has it."""
NAMESPACES: Final = "/api/v1/namespaces"
LONGEST_QUERY: Final = 6000
"""Characters of an upstream query; a longer selector would break on servers between, so the list is filtered here."""
WRITE_SECONDS: Final = 30.0
"""A client of a watch that takes nothing for so long is disconnected."""
ATTEMPTS: Final = 3
FRESH_SECONDS: Final = 0.02
LONGEST_KEPT: Final = 512
"""Characters of a target whose reading is remembered: clients ask for the same few again and again."""
_REFUSALS = frozenset({401, 403})
_EXPECTED = "100-continue"
_ACCEPTS = frozenset({"accept", "accept-encoding"})
_REVIEWED = frozenset({200, 201})
_FORBIDDEN: Final = 403
_FAILED: Final = 500
_OK: Final = 200


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[msgspec.Raw]


class Proxy:
    """Answers requests. ``stopping`` ends watches."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        impersonator: Impersonator,
        access: Reader[AccessView, GrantRecord],
        feed: NamespaceFeed,
        kinds: FilteredKinds,
        freshener: Freshener,
        upstream: Upstream,
        auditor: Auditor,
        metrics: Metrics,
        stopping: asyncio.Event,
        bookmark_interval: float = BOOKMARK_INTERVAL,
    ) -> None:
        self._authenticator = authenticator
        self._impersonator = impersonator
        self._access = access
        self._feed = feed
        self._kinds = kinds
        self._freshener = freshener
        self._upstream = upstream
        self._auditor = auditor
        self._counts = Counts(metrics)
        self._stopping = stopping
        self._freshness = freshener.now()
        self._fresh_until = 0.0
        self._rendered = RenderedLists()
        self._bookmark_interval = bookmark_interval

    async def handle(self, request: Request) -> None:
        """Answer one request; every failure of the proxy's own becomes a Status."""
        if request.target == PROBE:
            request.reply(_OK, b"ok", [("Content-Type", "text/plain")])
            return
        run = Run(self._counts, request.method)
        try:
            with self._counts.running.track_inprogress():
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

    def _fresh(self) -> Freshness:
        """Return how current memory is, or was some hundredths of a second ago: the limit is seconds."""
        at = time.monotonic()
        if at > self._fresh_until:
            self._fresh_until = at + FRESH_SECONDS
            self._freshness = self._freshener.now()
        return self._freshness

    def count_refused(self, code: int) -> None:
        """Count what was refused before it could be read as a request."""
        self._counts.answered("refused", "other", str(code))

    async def _answer(self, request: Request, run: Run) -> None:
        info = run.info = _read(request.method, request.target)
        headers = request.headers
        if (request.value("expect") or _EXPECTED).lower() != _EXPECTED:
            raise RefusedError(Status(code=417, reason="BadRequest", message="only Expect: 100-continue is known"))
        token = bearer_token(headers)
        if not token:
            raise RefusedError(unauthorized())
        caller = await self._authenticator.identify(token)
        run.identity = caller.identity
        acting = await self._impersonator.resolve(caller.identity, asked_identity(headers))
        run.identity = acting.identity
        decision = decide(info, acting.identity, self._access.view, self._fresh())
        await self._serve(_Asked(request, run, info, forwarded(headers, request.peer), caller, acting, token), decision)

    async def _serve(self, asked: _Asked, decision: Decision) -> None:
        run, info = asked.run, asked.info
        match decision:
            case Refuse(status):
                raise RefusedError(status)
            case Forward():
                run.route = "forward"
                await self._forward(asked)
            case ReadOne(name):
                run.route = "read"
                target = f"{NAMESPACES}/{quote(name, safe='')}" + (f"?{info.query}" if info.query else "")
                await self._relay(asked.request, run, await self._upstream.as_proxy("GET", target, asked.passed))
            case ListUpstream() | ListMemory():
                await self._list(asked.request, run, asked.acting.identity, decision, asked.passed)
            case WatchMemory() | Filtered(verb="watch"):
                run.route = "watch"
                await self._watch(asked, decision)
            case Filtered():
                await self._other_kind(asked, decision)
            case Review(rules):
                run.route = "review"
                await self._review(asked, rules=rules)

    async def _forward(self, asked: _Asked) -> None:
        request, run, info = asked.request, asked.run, asked.info
        protocol = wants_upgrade(request.headers)
        if protocol:
            if request.has_body:
                raise RefusedError(bad_request("an upgrade must not have a body"))
            asked.passed.extend([("Connection", "Upgrade"), ("Upgrade", protocol)])
        upstream = await self._send(asked, asked.passed)
        if protocol and upstream.code == SWITCHING:
            run.route = "upgrade"
            run.began()
            await tunnel(request, upstream)
            return
        if upstream.code == _FORBIDDEN:
            exists = self._feed.record(info.namespace) is not None
            if is_missing(info, asked.acting.identity, self._access.view, self._fresh(), exists=exists):
                upstream.release()
                raise RefusedError(not_found(info.resource, info.name, group=info.group))
        await self._relay(request, run, upstream)

    async def _send(self, asked: _Asked, headers: list[Header]) -> Answered:
        """Send the request as the caller: with its own token, or under the proxy's account with its identity."""
        request, target = asked.request, asked.info.target
        body = request if request.has_body else None
        if asked.acting.own:
            return await self._upstream.as_caller(request.method, target, headers, token=asked.token, body=body)
        headers = [*headers, *impersonation(asked.acting.identity)]
        return await self._upstream.as_proxy(request.method, target, headers, body=body)

    async def _review(self, asked: _Asked, *, rules: bool) -> None:
        """Let the API server answer what the caller may do, and add what the proxy grants."""
        request, identity = asked.request, asked.acting.identity
        if not accepts_json(request.value("accept")):
            await self._forward(asked)
            return
        readable = [header for header in asked.passed if header[0].lower() not in _ACCEPTS]
        upstream = await self._send(asked, [*readable, ("Accept", "application/json")])
        if upstream.code not in _REVIEWED:
            await self._relay(request, asked.run, upstream)
            return
        body = await upstream.read()
        grants = self._access.view
        try:
            if rules:
                body = add_rules(body, identity, grants)
            else:
                body = await add_access(body, identity, grants, self._kinds.permits)
        except msgspec.DecodeError:
            raise RefusedError(bad_gateway("the API server's review cannot be read")) from None
        asked.run.began()
        request.reply(upstream.code, body)

    async def _relay(self, request: Request, run: Run, upstream: Answered) -> None:
        run.began()
        if upstream.code in _REFUSALS:
            self._auditor.refused(run.info, run.identity, code=upstream.code, why="refused by the API server")
        ends = run.info.verb == "watch" or run.info.subresource == "log"
        await relay(request, upstream, self._stopping, ends_on_stop=ends)

    async def _list(
        self,
        request: Request,
        run: Run,
        identity: Identity,
        decision: ListUpstream | ListMemory,
        passed: list[Header],
    ) -> None:
        if isinstance(decision, ListMemory) and self._may_use_memory(request, identity):
            run.route = "memory"
            self._list_memory(request, run, decision)
            return
        run.route = "list"
        names, query = decision.names, decision.query
        for _ in range(ATTEMPTS):
            narrowed = query.upstream(tuple(sorted(names)))
            if len(narrowed) > LONGEST_QUERY:
                run.route = "filter"
                await self._list_filtered(request, run, identity, ListUpstream(names, query))
                return
            upstream = await self._upstream.as_proxy("GET", f"{NAMESPACES}?{narrowed}", passed)
            # The answer's resourceVersion must not be newer than the grants that it was narrowed by: a watch goes on
            # from it.
            if (current := self._feed.names(identity)) == names:
                await self._relay(request, run, upstream)
                return
            upstream.release()
            names = current
        raise RefusedError(unavailable("your tenants' namespaces change faster than they can be listed; try again"))

    def _may_use_memory(self, request: Request, identity: Identity) -> bool:
        """Tell whether the version of memory is one that a watch may go on from, in a form that is rendered here."""
        try:
            negotiate(request.value("accept"), watch=False)
        except RefusedError:
            return False  # protobuf alone, for example: the API server renders it
        return self._feed.is_settled and self._feed.version() >= self._feed.oldest(identity)

    def _list_memory(self, request: Request, run: Run, decision: ListMemory) -> None:
        query = decision.query
        form = negotiate(request.value("accept"), watch=False)
        records = [record for name in sorted(decision.names) if (record := self._feed.record(name)) is not None]
        version, at = str(self._feed.version()), now()

        def render() -> bytes:
            items = [item for record in records if selected(item := item_of(record.body), query)]
            return render_list(items, version, form, query.include_object, at)

        # A Table tells ages, in seconds.
        second = int(at.timestamp()) if form == "table" else 0
        body = self._rendered.body((decision.names, query, form, version, second), records, render)
        run.began()
        request.reply(_OK, body)

    async def _list_filtered(self, request: Request, run: Run, identity: Identity, decision: ListUpstream) -> None:
        query = decision.query
        if query.continues:
            raise RefusedError(expired("of the continue token", self._feed.floor or 0))
        form = negotiate(request.value("accept"), watch=False)
        whole = msgspec.structs.replace(query, passed_on=())
        target = f"{NAMESPACES}?{whole.upstream(None)}"
        upstream = await self._upstream.as_proxy("GET", target, [("Accept", "application/json")])
        if upstream.code != _OK:
            await self._relay(request, run, upstream)
            return
        try:
            found = msgspec.json.decode(await upstream.read(), type=_List)
            items = [item_of(raw) for raw in found.items]
        except msgspec.DecodeError:
            raise RefusedError(bad_gateway("the API server's list cannot be read")) from None
        # By the grants of now: the list was asked for without names, so nothing is lost by a change meanwhile.
        names = self._feed.names(identity)
        mine = [item for item in items if item.namespace.metadata.name in names]
        body = render_list(mine, found.metadata.resource_version, form, query.include_object, now())
        run.began()
        request.reply(_OK, body)

    async def _other_kind(self, asked: _Asked, decision: Filtered) -> None:
        """Answer for a kind of which tenants see their own; what is not the caller's goes on as the caller."""
        request, run = asked.request, asked.run
        if decision.verb in OPERATION_OF:
            if not await self._kinds.permits(decision):
                run.route = "forward"
                await self._forward(asked)
                return
            run.route = "granted"
            body = request if request.has_body else None
            upstream = await self._upstream.as_proxy(request.method, asked.info.target, asked.passed, body=body)
            self._auditor.written(asked.info, asked.acting.identity, code=upstream.code)
            await self._relay(request, run, upstream)
            return
        answer = await self._kinds.answer(decision, request.value("accept"))
        if answer is None:
            run.route = "forward"
            await self._forward(asked)
            return
        run.route = "filter"
        run.began()
        request.reply(_OK, answer)

    async def _watch(self, asked: _Asked, decision: WatchMemory | Filtered) -> None:
        request, identity, accept = asked.request, asked.acting.identity, asked.request.value("accept")

        async def write(line: bytes) -> None:
            request.write(line)
            async with asyncio.timeout(WRITE_SECONDS):
                await request.drain()

        def good() -> bool:
            return self._freshener.now().fresh and not self._authenticator.is_revoked(asked.caller)

        watch: NamespaceWatch | FilteredWatch
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
        else:
            watch = FilteredWatch(self._kinds, self._feed, identity, decision, accept, write=write, good=good)
        begin_stream(request)
        asked.run.began()
        try:
            await watch.run(self._stopping)
        except TimeoutError:
            log.info("client of a watch is too slow")
            request.break_off()
            return
        request.finish()

    def _refuse(self, request: Request, run: Run, status: Status) -> None:
        if status.code in _REFUSALS:
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request with all that is known of it when it is decided. ``passed``: its headers that go upstream."""

    request: Request
    run: Run
    info: RequestInfo
    passed: list[Header]
    caller: Caller
    acting: Acting
    token: str


@functools.lru_cache(4096)
def _read_again(method: str, target: str) -> RequestInfo:
    return parse(method, target)


def _read(method: str, target: str) -> RequestInfo:
    return (_read_again if len(target) <= LONGEST_KEPT else parse)(method, target)
