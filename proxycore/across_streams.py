"""The watches upstream behind one watch across namespaces: opened as the caller, read side by side into one queue."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from eventcore.kube_watch import LineSplitter
from eventcore.logs import get
from proxycore.merging import refusal_of, upstream_accept
from proxycore.statuses import RefusedError, unavailable

if TYPE_CHECKING:
    from proxycore.across import Across, Send
    from proxycore.documents import View
    from proxycore.plane.answers import Answered

log = get("proxy.across_streams")

MOST_NAMESPACES: Final = 512
"""Namespaces of one watch: each holds a connection to the API server."""
AT_ONCE: Final = 16
"""Watches that are opened at once."""
MOST_LINES: Final = 64
"""Lines that wait for a slow client; then the API server waits."""
_OK: Final = 200
_FORBIDDEN: Final = 403


@dataclass(slots=True, eq=False)
class Stream:
    """The watch of one namespace. ``reached``: the version up to which all of it came, None while that is not known.

    ``begun``: what there was at its beginning has come, if the client asked to be told.
    """

    namespace: str
    answer: Answered
    reached: int | None
    begun: bool
    task: asyncio.Task[None] | None = None


class Streams:
    """All of one client. ``lines`` holds what came, an empty line where a stream has ended.

    ``pinned``: the version from which the client goes on, 0 when it begins with what there is.
    """

    def __init__(self, decision: Across, view: View, accept: str, send: Send, *, pinned: int) -> None:
        self.open: dict[str, Stream] = {}
        self.lines: asyncio.Queue[tuple[Stream, bytes]] = asyncio.Queue(MOST_LINES)
        self._decision = decision
        self._table = view.form == "table"
        self._accept = upstream_accept(view.accept("one"), accept)
        self._send = send
        self._pinned = pinned

    async def ask(self, names: list[str], joined: frozenset[str]) -> list[str]:
        """Open a watch in each namespace; return where RBAC refused it. RefusedError for any other failure.

        In those that ``joined``, from what there is.
        """
        total = len(self.open) + len(names)
        if total > MOST_NAMESPACES:
            raise RefusedError(
                unavailable(
                    f"{total} namespaces are too many for one watch, at most {MOST_NAMESPACES}: watch them one by one",
                    retry_after=60,
                )
            )
        refused: list[str] = []
        for at in range(0, len(names), AT_ONCE):
            some = names[at : at + AT_ONCE]
            asking = [asyncio.ensure_future(self._ask(name, joined=name in joined)) for name in some]
            try:
                await asyncio.wait(asking)
            except asyncio.CancelledError:
                for one in asking:
                    one.add_done_callback(_leave)
                    one.cancel()
                raise
            refused += self._keep(some, asking, joined)
        return refused

    def start(self) -> None:
        """Read from what was opened."""
        for stream in self.open.values():
            if stream.task is None:
                stream.task = asyncio.ensure_future(self._pump(stream))

    async def close(self) -> None:
        """End all watches."""
        tasks = [stream.task for stream in self.open.values() if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in self.open.values():
            stream.answer.release()
        self.open.clear()

    def _keep(self, names: list[str], asking: list[asyncio.Task[Answered]], joined: frozenset[str]) -> list[str]:
        """Keep the watches that were granted, also when another one failed, so that all are ended together."""
        refused: list[str] = []
        failures: list[BaseException] = []
        for name, one in zip(names, asking, strict=True):
            if (failure := one.exception()) is None:
                reached = self._pinned if self._pinned and name not in joined else None
                begun = name in joined or not self._decision.query.initial_events
                self.open[name] = Stream(name, one.result(), reached, begun)
            elif isinstance(failure, RefusedError) and failure.status.code == _FORBIDDEN:
                refused.append(name)
            else:
                failures.append(failure)
        if failures:
            raise failures[0]
        return refused

    async def _ask(self, namespace: str, *, joined: bool) -> Answered:
        query = self._decision.query
        pairs = [("watch", "true"), ("allowWatchBookmarks", "true")]
        if not joined:
            if query.initial_events is not None:
                pairs.append(("sendInitialEvents", "true" if query.initial_events else "false"))
            version = ("resourceVersion", query.resource_version)
            match = ("resourceVersionMatch", query.resource_version_match)
            pairs += [pair for pair in (version, match) if pair[1]]
        if query.timeout is not None:
            pairs.append(("timeoutSeconds", str(query.timeout)))
        answer = await self._send(self._decision.target(namespace, pairs, table=self._table), self._accept)
        if answer.code != _OK:
            raise RefusedError(refusal_of(answer.code, await answer.read()))
        return answer

    async def _pump(self, stream: Stream) -> None:
        splitter = LineSplitter()
        try:
            async with aclosing(stream.answer.pieces()) as pieces:
                async for piece in pieces:
                    for line in splitter.feed(piece):
                        await self.lines.put((stream, line))
        except RefusedError as error:
            log.info("a watch of the API server broke off", error=error)
        await self.lines.put((stream, b""))


def _leave(asking: asyncio.Task[Answered]) -> None:
    """Want no more of an answer that came for nobody."""
    if not asking.cancelled() and asking.exception() is None:
        asking.result().release()
