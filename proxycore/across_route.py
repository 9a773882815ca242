"""Requests across namespaces, from the decision to the answer: what the server needs of it in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxycore.across import crosses
from proxycore.across_list import AcrossList, Room
from proxycore.across_watch import AcrossWatch
from proxycore.replying import reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxycore.accounting import Asked
    from proxycore.across import Across, Crossing
    from proxycore.feed import NamespaceFeed
    from proxycore.freshness import Freshener
    from proxycore.passing import Passing


class AcrossNamespaces:
    """Answers them. Without ``crossing`` the feature is off, and there are none."""

    def __init__(self, crossing: Crossing | None, feed: NamespaceFeed, passing: Passing, freshener: Freshener) -> None:
        self._crossing = crossing
        self._feed = feed
        self._passing = passing
        self._freshener = freshener
        self._room = Room()

    def may_concern(self, asked: Asked) -> bool:
        """Tell whether `decide` has to be asked at all."""
        return self._crossing is not None and not asked.passes and crosses(asked.info)

    async def decide(self, asked: Asked) -> Across | None:
        """Return what a request that would be forwarded asks for across namespaces, None if it is not such a one."""
        if self._crossing is None or asked.passes:
            return None
        return await self._crossing.decide(asked.info, asked.acting.identity, self._freshener.recent())

    async def list(self, asked: Asked, decision: Across) -> None:
        """Answer a list; RefusedError."""
        request, send = asked.request, self._passing.reader(asked)
        accept, identity = request.value("accept"), asked.acting.identity
        listing = AcrossList(self._on, identity, decision, accept, send, self._room)
        body = await listing.body(self._feed.version())
        asked.run.began()
        await reply(request, body)

    async def watch(
        self,
        asked: Asked,
        decision: Across,
        *,
        write: Callable[[bytes], Awaitable[None]],
        good: Callable[[], bool],
    ) -> AcrossWatch:
        """Return an open watch, to be run; RefusedError."""
        accept, identity = asked.request.value("accept"), asked.acting.identity
        send = self._passing.reader(asked)
        watch = AcrossWatch(self._on, self._feed, identity, decision, accept, send, write=write, good=good)
        await watch.open()
        return watch

    @property
    def _on(self) -> Crossing:
        if self._crossing is None:
            raise RuntimeError("lists across namespaces are off")
        return self._crossing
