"""Watches: from memory where memory can tell, else the API server's own, judged event by event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.across import Across
from proxycore.filtered_watch import FilteredWatch
from proxycore.policy import Filtered, WatchMemory
from proxycore.relaying import begin_stream
from proxycore.representations import negotiate, render_error
from proxycore.shared_watch import SharedWatch, fields_of
from proxycore.statuses import Status
from proxycore.watching import NamespaceWatch

if TYPE_CHECKING:
    from proxycore.accounting import Asked
    from proxycore.across_route import AcrossNamespaces
    from proxycore.across_watch import AcrossWatch
    from proxycore.authentication import Authenticator
    from proxycore.feed import NamespaceFeed
    from proxycore.filtered import FilteredKinds
    from proxycore.freshness import Freshener

log = get("proxy.watches")

WRITE_SECONDS: Final = 30.0
"""A client of a watch that takes nothing for so long is disconnected."""
SLOW: Final = Status(code=410, reason="Expired", message="the client reads more slowly than events come; list again")
"""How a watch ends whose client takes nothing: behind what is sent already, which is bounded."""


class Watches:
    """Answers watches. ``stopping`` ends them all."""

    def __init__(
        self,
        feed: NamespaceFeed,
        kinds: FilteredKinds,
        across: AcrossNamespaces,
        freshener: Freshener,
        authenticator: Authenticator,
        stopping: asyncio.Event,
        *,
        bookmark_interval: float,
    ) -> None:
        self._feed = feed
        self._kinds = kinds
        self._across = across
        self._freshener = freshener
        self._authenticator = authenticator
        self._stopping = stopping
        self._bookmark_interval = bookmark_interval

    async def answer(self, asked: Asked, decision: WatchMemory | Filtered | Across) -> None:
        """Send events until the watch is over; RefusedError before the first."""
        request, identity, accept = asked.request, asked.acting.identity, asked.meaning.accept

        async def write(line: bytes) -> None:
            request.write(line)
            if not request.takes_more:
                async with asyncio.timeout(WRITE_SECONDS):
                    await request.drain()

        def good() -> bool:
            return self._freshener.recent().fresh and not self._authenticator.is_revoked(asked.caller)

        watch: NamespaceWatch | SharedWatch | FilteredWatch | AcrossWatch
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
            fields = fields_of(decision.query)
            held = await self._kinds.held(decision, negotiate(accept, watch=True))
            if fields is not None and held is not None:
                kind, shape = held
                watch = SharedWatch(
                    kind,
                    self._feed,
                    identity,
                    decision,
                    shape,
                    fields,
                    past=lambda: self._kinds.past(decision, kind),
                    write=write,
                    good=good,
                    bookmark_interval=self._bookmark_interval,
                )
            else:
                watch = FilteredWatch(self._kinds, self._feed, identity, decision, accept, write=write, good=good)
        begin_stream(request)
        asked.run.began()
        try:
            source = "memory" if isinstance(watch, NamespaceWatch | SharedWatch) else "filtered"
            with asked.run.watching(source):
                await watch.run(self._stopping)
        except TimeoutError:
            log.info("client of a watch is too slow")
            request.write(render_error(SLOW))
        request.finish()
