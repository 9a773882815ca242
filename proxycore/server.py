"""The proxy as a request sees it: identify, decide, then answer from memory or pass on.

The order is fixed: a request whose target, identity or impersonation is refused ends there, and no byte of it reaches
the API server. Everything that decides is pure and stands elsewhere; this module only does what was decided.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from eventcore.events import now
from eventcore.logs import get
from proxycore.headers import asked_identity, bearer_token, forwarded, impersonation, wants_upgrade
from proxycore.policy import Forward, ListMemory, ListUpstream, ReadOne, Refuse, WatchMemory, decide
from proxycore.relaying import answer_json, begin_stream, body_of, headers_of, relay
from proxycore.representations import item_of, negotiate, render_list
from proxycore.requestinfo import RequestInfo, parse
from proxycore.statuses import RefusedError, Status, bad_gateway, expired, unauthorized, unavailable
from proxycore.tunnel import SWITCHING, tunnel
from proxycore.watching import BOOKMARK_INTERVAL, NamespaceWatch, selected

if TYPE_CHECKING:
    import aiohttp

    from eventcore.metrics import Metrics
    from eventcore.views import AccessView, GrantRecord, Reader
    from proxycore.auditing import Auditor
    from proxycore.authentication import Authenticator, Caller
    from proxycore.feed import NamespaceFeed
    from proxycore.freshness import Freshener
    from proxycore.headers import Header
    from proxycore.identities import Identity
    from proxycore.impersonating import Acting, Impersonator
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
_VERBS = frozenset({"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"})
_REFUSALS = frozenset({401, 403})
_EXPECTED = "100-continue"
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
        self._freshener = freshener
        self._upstream = upstream
        self._auditor = auditor
        self._metrics = metrics
        self._stopping = stopping
        self._bookmark_interval = bookmark_interval

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every failure of the proxy's own becomes a Status."""
        if request.raw_path == PROBE:
            return web.Response(text="ok")
        run = _Run(self._metrics, request.method)
        try:
            with self._metrics.proxy_in_flight.track_inprogress():
                answer = await self._answer(request, run)
        except RefusedError as error:
            answer = await self._refuse(request, run, error.status)
        except (ConnectionError, asyncio.CancelledError):
            run.done("gone")
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not show its traceback to a client
            log.error("request failed", error=error, method=request.method, route=run.route)
            failed = Status(code=_FAILED, reason="InternalError", message="the proxy failed on this request")
            answer = await self._refuse(request, run, failed)
        run.done(str(answer.status))
        return answer

    async def _answer(self, request: web.BaseRequest, run: _Run) -> web.StreamResponse:
        info = run.info = parse(request.method, request.raw_path)
        headers = headers_of(request)
        if request.headers.get("Expect", _EXPECTED).lower() != _EXPECTED:
            raise RefusedError(Status(code=417, reason="BadRequest", message="only Expect: 100-continue is known"))
        token = bearer_token(headers)
        if not token:
            raise RefusedError(unauthorized())
        caller = await self._authenticator.identify(token)
        run.identity = caller.identity
        acting = await self._impersonator.resolve(caller.identity, asked_identity(headers))
        run.identity = acting.identity
        decision = decide(info, acting.identity, self._access.view, self._freshener.now())
        passed = forwarded(headers, request.remote or "")
        match decision:
            case Refuse(status):
                raise RefusedError(status)
            case Forward():
                run.route = "forward"
                return await self._forward(request, run, info, passed, acting, token)
            case ReadOne(name):
                run.route = "read"
                target = f"{NAMESPACES}/{quote(name, safe='')}" + (f"?{info.query}" if info.query else "")
                return await self._relay(request, run, await self._upstream.as_proxy("GET", target, passed))
            case ListUpstream() | ListMemory():
                return await self._list(request, run, acting.identity, decision, passed)
            case WatchMemory(query):
                run.route = "watch"
                return await self._watch(request, run, caller, acting.identity, WatchMemory(query))

    async def _forward(
        self,
        request: web.BaseRequest,
        run: _Run,
        info: RequestInfo,
        passed: list[Header],
        acting: Acting,
        token: str,
    ) -> web.StreamResponse:
        protocol = wants_upgrade(headers_of(request))
        if protocol:
            passed += [("Connection", "Upgrade"), ("Upgrade", protocol)]
        body = body_of(request) if request.can_read_body else None
        if body is not None and request.content_length is not None:
            passed.append(("Content-Length", str(request.content_length)))
        if acting.own:
            upstream = await self._upstream.as_caller(request.method, info.target, passed, token=token, body=body)
        else:
            passed += impersonation(acting.identity)
            upstream = await self._upstream.as_proxy(request.method, info.target, passed, body=body)
        if upstream.status == SWITCHING:
            run.route = "upgrade"
            run.began()
            return await tunnel(request, upstream)
        return await self._relay(request, run, upstream)

    async def _relay(self, request: web.BaseRequest, run: _Run, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        run.began()
        if upstream.status in _REFUSALS:
            self._auditor.refused(run.info, run.identity, code=upstream.status, why="refused by the API server")
        ends = run.info.verb == "watch" or run.info.subresource == "log"
        return await relay(request, upstream, self._stopping, ends_on_stop=ends)

    async def _list(
        self,
        request: web.BaseRequest,
        run: _Run,
        identity: Identity,
        decision: ListUpstream | ListMemory,
        passed: list[Header],
    ) -> web.StreamResponse:
        if isinstance(decision, ListMemory) and self._may_use_memory(request, identity):
            run.route = "memory"
            return await self._list_memory(request, run, decision)
        run.route = "list"
        names, query = decision.names, decision.query
        for _ in range(ATTEMPTS):
            narrowed = query.upstream(tuple(sorted(names)))
            if len(narrowed) > LONGEST_QUERY:
                run.route = "filter"
                return await self._list_filtered(request, run, identity, ListUpstream(names, query))
            upstream = await self._upstream.as_proxy("GET", f"{NAMESPACES}?{narrowed}", passed)
            # The answer's resourceVersion must not be newer than the grants that it was narrowed by: a watch goes on
            # from it.
            if (current := self._feed.names(identity)) == names:
                return await self._relay(request, run, upstream)
            upstream.release()
            names = current
        raise RefusedError(unavailable("your tenants' namespaces change faster than they can be listed; try again"))

    def _may_use_memory(self, request: web.BaseRequest, identity: Identity) -> bool:
        """Tell whether the version of memory is one that a watch may go on from, in a form that is rendered here."""
        try:
            negotiate(request.headers.get("Accept", ""), watch=False)
        except RefusedError:
            return False  # protobuf alone, for example: the API server renders it
        return self._feed.is_settled and self._feed.version() >= self._feed.oldest(identity)

    async def _list_memory(self, request: web.BaseRequest, run: _Run, decision: ListMemory) -> web.StreamResponse:
        query = decision.query
        form = negotiate(request.headers.get("Accept", ""), watch=False)
        records = [record for name in sorted(decision.names) if (record := self._feed.record(name)) is not None]
        items = [item for record in records if selected(item := item_of(record.body), query)]
        body = render_list(items, str(self._feed.version()), form, query.include_object, now())
        run.began()
        return await answer_json(request, _OK, body)

    async def _list_filtered(
        self, request: web.BaseRequest, run: _Run, identity: Identity, decision: ListUpstream
    ) -> web.StreamResponse:
        query = decision.query
        if query.continues:
            raise RefusedError(expired("of the continue token", self._feed.floor or 0))
        form = negotiate(request.headers.get("Accept", ""), watch=False)
        whole = msgspec.structs.replace(query, passed_on=())
        target = f"{NAMESPACES}?{whole.upstream(None)}"
        upstream = await self._upstream.as_proxy("GET", target, [("Accept", "application/json")])
        if upstream.status != _OK:
            return await self._relay(request, run, upstream)
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
        return await answer_json(request, _OK, body)

    async def _watch(
        self, request: web.BaseRequest, run: _Run, caller: Caller, identity: Identity, decision: WatchMemory
    ) -> web.StreamResponse:
        form = negotiate(request.headers.get("Accept", ""), watch=True)
        answer = await begin_stream(request)
        run.began()

        async def write(line: bytes) -> None:
            async with asyncio.timeout(WRITE_SECONDS):
                await answer.write(line)

        def good() -> bool:
            return self._freshener.now().fresh and not self._authenticator.is_revoked(caller)

        watch = NamespaceWatch(
            self._feed,
            identity,
            decision.query,
            form,
            write=write,
            good=good,
            bookmark_interval=self._bookmark_interval,
        )
        try:
            await watch.run(self._stopping)
        except TimeoutError:
            log.info("client of a watch is too slow")
            if request.transport is not None:
                request.transport.close()
            return answer
        await answer.write_eof()
        return answer

    async def _refuse(self, request: web.BaseRequest, run: _Run, status: Status) -> web.StreamResponse:
        if status.code in _REFUSALS:
            self._auditor.refused(run.info, run.identity, code=status.code, why=status.message)
        extra = []
        if status.retry_after:
            extra.append(("Retry-After", str(status.retry_after)))
        if status.code == 401:  # noqa: PLR2004 - HTTP's own number
            extra.append(("WWW-Authenticate", 'Bearer realm="kubernetes"'))
        return await answer_json(request, status.code, status.encode(), extra)


class _Run:
    """What is known of one request, for its metrics and its audit record."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self.info = RequestInfo(method=method, target="", path="", query="", verb="")
        self.identity: Identity | None = None
        self.route = "refused"
        self._metrics = metrics
        self._begun = time.monotonic()
        self._first_byte = False

    def began(self) -> None:
        """Note that the answer begins."""
        if not self._first_byte:
            self._first_byte = True
            self._metrics.proxy_seconds.labels(self.route).observe(time.monotonic() - self._begun)

    def done(self, code: str) -> None:
        """Count the request."""
        self.began()
        verb = self.info.verb if self.info.verb in _VERBS else "other"
        self._metrics.proxy_requests.labels(self.route, verb, code).inc()
