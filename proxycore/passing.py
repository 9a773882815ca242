"""What the API server answers: sent on as the caller or under the proxy's account, and the answer sent back."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from proxycore.acting import naming
from proxycore.headers import impersonation
from proxycore.narrowing import narrow_access, narrow_rules, stay_inside
from proxycore.passage import AgainError, Passage
from proxycore.policy import is_missing
from proxycore.relaying import SWITCHING, begin, relay, tunnel
from proxycore.representations import accepts_json
from proxycore.reviews import add_access, add_rules
from proxycore.statuses import RefusedError, bad_gateway, bad_request, not_found

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord
    from proxycore.access_reviews import Attributes
    from proxycore.accounting import Asked, Run
    from proxycore.across import Crossing, Send
    from proxycore.auditing import Auditor
    from proxycore.feed import NamespaceFeed
    from proxycore.filtered import FilteredKinds
    from proxycore.freshness import Freshener
    from proxycore.headers import Header
    from proxycore.passage import Ends
    from proxycore.plane.answers import Answered, Taker
    from proxycore.plane.exchange import Request
    from proxycore.plane.upstream_connection import UpstreamConnection
    from proxycore.requestinfo import RequestInfo
    from proxycore.upstream import Upstream

NAMESPACES: Final = "/api/v1/namespaces"
LONGEST_WATCH: Final = 7200.0
"""Seconds of a forwarded watch that asks for no time of its own."""
WATCH_MARGIN: Final = 30.0
WRITE_BODY_SECONDS: Final = 30.0
"""Seconds for the whole body of a write under the proxy's account: it must not outlast what was decided about it."""
_TIMEOUT: Final = re.compile(r"(?:^|&)timeoutSeconds=0*([0-9]{1,9})(?:&|$)")
REFUSALS: Final = frozenset({401, 403})
"""The codes that are written to the audit topic."""
_ACCEPTS = frozenset({"accept", "accept-encoding"})
_REVIEWED = frozenset({200, 201})
_FORBIDDEN: Final = 403
_UNAUTHORIZED: Final = 401


class Passing:
    """Sends requests on and answers back. ``stopping`` ends watches."""

    def __init__(
        self,
        *,
        access: Reader[AccessView, GrantRecord],
        feed: NamespaceFeed,
        kinds: FilteredKinds,
        freshener: Freshener,
        upstream: Upstream,
        auditor: Auditor,
        stopping: asyncio.Event,
        crossing: Crossing | None,
    ) -> None:
        self._access = access
        self._feed = feed
        self._kinds = kinds
        self._freshener = freshener
        self._upstream = upstream
        self._auditor = auditor
        self._stopping = stopping
        self._crossing = crossing

    async def forward(self, asked: Asked) -> None:
        """Send the request on as the caller, and its answer back; an upgrade becomes a tunnel."""
        request, run = asked.request, asked.run
        stay_inside(asked.info, asked.acting.identity, self._access.view)
        protocol = asked.meaning.upgrade
        passed = asked.passed
        if protocol:
            if request.has_body:
                raise RefusedError(bad_request("an upgrade must not have a body"))
            passed += [("Connection", "Upgrade"), ("Upgrade", protocol)]
        upstream = await run.upstream(self.send(asked, passed))
        if protocol and upstream.code == SWITCHING:
            run.route = "upgrade"
            run.began()
            with run.tunnelling():
                await tunnel(request, upstream)
            return
        self._mask(asked, upstream)
        await self.relay(request, run, upstream)

    def forward_at_once(self, asked: Asked, ends: Ends) -> bool:
        """Do the same without a task, from one callback to the next, if nothing has to be awaited; tell whether."""
        request, info, meaning = asked.request, asked.info, asked.meaning
        if request.has_body or not asked.acting.own or not asked.token or meaning.upgrade or _is_stream(info):
            return False
        stay_inside(info, asked.acting.identity, self._access.view)
        return Passage(self, asked, ends).ask()

    def ask(self, asked: Asked, taker: Taker) -> UpstreamConnection | None:
        """Send a request without a body as the caller, on an open connection; None when none is free."""
        meaning = asked.meaning
        if not meaning.sent_as_caller:
            meaning.sent_as_caller = self._upstream.caller_fields(meaning.passed, token=asked.token)
        return self._upstream.ask_as_caller(asked.request.method, asked.info.target, meaning.sent_as_caller, taker)

    def begin(self, asked: Asked, upstream: Answered) -> None:
        """Begin the client's answer; RefusedError when it gets another one."""
        self._mask(asked, upstream)
        self.begin_as_it_is(asked, upstream)

    def begin_as_it_is(self, asked: Asked, upstream: Answered) -> None:
        """Begin the client's answer with the API server's, whatever that is."""
        self._note(asked.run, upstream)
        begin(asked.request, upstream)

    def read_at_once(self, asked: Asked, target: str, ends: Ends, still: Callable[[], bool]) -> bool:
        """Read this under the proxy's account without a task, if nothing has to be awaited; tell whether.

        ``still`` is asked when the answer comes: whether it may be given. If not, the request is decided anew.
        """
        return not asked.request.has_body and Passage(_Own(self, target, still), asked, ends).ask()

    def ask_as_proxy(self, asked: Asked, target: str, taker: Taker) -> UpstreamConnection | None:
        """Send a GET under the proxy's account, on an open connection; None when that cannot be done at once."""
        meaning = asked.meaning
        if not meaning.sent_as_proxy:
            meaning.sent_as_proxy = self._upstream.proxy_fields(meaning.passed)
        return self._upstream.ask_as_proxy("GET", target, meaning.sent_as_proxy, taker)

    def _mask(self, asked: Asked, upstream: Answered) -> None:
        if upstream.code == _FORBIDDEN and asked.acting.proven and self.masks(asked):
            info = asked.info
            upstream.release()
            raise RefusedError(not_found(info.resource, info.name, group=info.group))

    def masks(self, asked: Asked) -> bool:
        """Tell whether a 403 of the API server would become a 404."""
        info = asked.info
        exists = self._feed.record(info.namespace) is not None
        return not asked.passes and is_missing(
            info, asked.acting.identity, self._access.view, self._freshener.recent(), exists=exists
        )

    def reader(self, asked: Asked) -> Send:
        """Return what sends a GET of another target as the caller, for an answer that is read here."""
        readable = [header for header in asked.passed if header[0].lower() not in _ACCEPTS]

        async def send(target: str, accept: str) -> Answered:
            return await self.send(asked, [*readable, ("Accept", accept)], target)

        return send

    async def send(self, asked: Asked, headers: list[Header], target: str = "") -> Answered:
        """Send the request as the caller: with its own token, or under the proxy's account with its identity.

        Who acts as somebody else by a right that the API server knows asks for that itself, with its own token.

        ``target``: another one than the caller's, without a body.
        """
        request = asked.request
        body = request if request.has_body and not target else None
        target = target or asked.info.target
        acting = asked.acting
        if acting.asked is not None:
            headers = [*headers, *impersonation(acting.asked)]
        if acting.asked is not None or (acting.own and not asked.caller.by_certificate):
            return await self._upstream.as_caller(request.method, target, headers, token=asked.token, body=body)
        headers = [*headers, *impersonation(naming(acting.identity))]
        return await self._upstream.as_proxy(request.method, target, headers, body=body)

    async def read_one(self, asked: Asked, name: str) -> None:
        """Read a Namespace of the caller's under the proxy's account."""
        upstream = await asked.run.upstream(self._upstream.as_proxy("GET", _one(asked, name), asked.passed))
        await self.relay(asked.request, asked.run, upstream)

    def read_one_at_once(self, asked: Asked, name: str, ends: Ends) -> bool:
        """Do the same without a task, as `read_at_once`."""
        asked.run.route = "read"
        return self.read_at_once(asked, _one(asked, name), ends, lambda: True)

    async def write(self, asked: Asked) -> None:
        """Send a write to an object that the grants give the caller under the proxy's account, and record it.

        RefusedError 429 or 503, and nothing is sent, where it could not be recorded; 408 when its body takes too long.
        """
        request, identity = asked.request, asked.acting.identity
        body = request if request.has_body else None
        late = asyncio.get_running_loop().call_later(WRITE_BODY_SECONDS, request.body_late)
        try:
            await request.body_ahead()
            place = self._auditor.expect_write(identity, whole=request.body_over)
            code = 0
            try:
                sent = self._upstream.as_proxy(request.method, asked.info.target, asked.passed, body=body)
                upstream = await asked.run.upstream(sent)
                code = upstream.code
            finally:
                self._auditor.written(place, asked.info, identity, code=code)
        finally:
            late.cancel()
        await self.relay(asked.request, asked.run, upstream)

    async def review(self, asked: Asked, *, rules: bool) -> None:
        """Let the API server answer what the caller may do, and add what the proxy grants."""
        request, identity = asked.request, asked.acting.identity
        if not accepts_json(asked.meaning.accept):
            await self.forward(asked)
            return
        readable = [header for header in asked.passed if header[0].lower() not in _ACCEPTS]
        upstream = await asked.run.upstream(self.send(asked, [*readable, ("Accept", "application/json")]))
        if upstream.code not in _REVIEWED:
            await self.relay(request, asked.run, upstream)
            return
        body = await upstream.read()
        grants, crossing = self._access.view, self._crossing

        async def across(question: Attributes) -> bool:
            return crossing is not None and await crossing.grants(question, identity, self._freshener.recent())

        try:
            if asked.info.tenant:
                body = narrow_rules(body) if rules else narrow_access(body, identity, grants)
            if rules:
                body = await add_rules(body, identity, grants, self._kinds)
            else:
                body = await add_access(body, identity, grants, self._kinds, across)
        except msgspec.DecodeError:
            raise RefusedError(bad_gateway("the API server's review cannot be read")) from None
        asked.run.began()
        request.reply(upstream.code, body)

    async def relay(self, request: Request, run: Run, upstream: Answered) -> None:
        """Send the API server's answer to the client."""
        self._note(run, upstream)
        if run.info.verb == "watch":
            with run.watching("forwarded"):
                seconds = watch_seconds(run.info.query)
                await relay(request, upstream, self._stopping, ends_on_stop=True, seconds=seconds)
        else:
            await relay(request, upstream, self._stopping, ends_on_stop=_is_stream(run.info))

    def _note(self, run: Run, upstream: Answered) -> None:
        run.began()
        if upstream.code in REFUSALS:
            asked_for = "" if run.proven or run.identity is None else run.identity.user
            who = run.caller if asked_for else run.identity
            why = "refused by the API server" + (f", asked to act as {asked_for}" if asked_for else "")
            self._auditor.refused(run.info, who, code=upstream.code, why=why, peer=run.request.peer)
        run.answer = upstream


class _Own:
    """The way of a read under the proxy's account, see `Passing.read_at_once`."""

    def __init__(self, passing: Passing, target: str, still: Callable[[], bool]) -> None:
        self._passing = passing
        self._target = target
        self._still = still

    def ask(self, asked: Asked, taker: Taker) -> UpstreamConnection | None:
        return self._passing.ask_as_proxy(asked, self._target, taker)

    def begin(self, asked: Asked, upstream: Answered) -> None:
        if upstream.code == _UNAUTHORIZED or not self._still():
            raise AgainError
        self._passing.begin_as_it_is(asked, upstream)


def _one(asked: Asked, name: str) -> str:
    return f"{NAMESPACES}/{quote(name, safe='')}" + (f"?{asked.info.query}" if asked.info.query else "")


def watch_seconds(query: str) -> float:
    """Return after how many seconds a watch is ended that the API server should have ended itself.

    Its own ``timeoutSeconds`` and a margin; without one an API server chooses, an hour at most unless it is told
    otherwise. What is no number is for the API server to refuse.
    """
    given = _TIMEOUT.search(query)
    return (int(given[1]) if given and int(given[1]) else LONGEST_WATCH) + WATCH_MARGIN


def _is_stream(info: RequestInfo) -> bool:
    """Tell whether an answer has no end of its own, so that a stopping process ends it."""
    return info.verb == "watch" or info.subresource == "log"
