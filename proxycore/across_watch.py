"""A watch across namespaces: one watch upstream in each, as the caller, merged line by line.

Events of several watches have no common order, and a client goes on from the version of the last line that it read. So
where bookmarks are allowed, each burst of events goes out in one piece with a bookmark behind it, of the lowest version
that all namespaces have reached: where the stream breaks, an event may come twice but never not at all. Without
bookmarks a watch that the proxy ends before all are as far as its last event ends with 410.

A namespace that joins what the caller may watch is watched too, so its objects appear as ADDED. When one leaves, the
watch ends with 410 and the client lists again: only the client knows which objects it has to forget, and every client
of Kubernetes knows how.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.kube_watch import WatchEvent
from eventcore.numbers import version
from proxycore.across_streams import Streams
from proxycore.documents import META_VERSION, View
from proxycore.representations import INITIAL_EVENTS_END, negotiate, render_error
from proxycore.statuses import RefusedError, expired, forbidden, unavailable
from proxycore.watching import BOOKMARK_INTERVAL, LEAST_TIMEOUT, LOOK_INTERVAL, SETTLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxycore.across import Across, Crossing, Send
    from proxycore.across_streams import Stream
    from proxycore.feed import NamespaceFeed
    from proxycore.identities import Identity

SWEEP_SECONDS: Final = 60.0
"""Seconds after which rights are asked again though no change was heard: not only RBAC may decide about them."""
UNFOLLOWED_SECONDS: Final = 10.0
"""The same while nobody vouches for RBAC's objects."""
MOST_OPEN: Final = 16_384
"""Watches upstream of all clients of one process."""
SOON_SECONDS: Final = 1.0


class _EndedError(Exception):
    """The watch is over in good order."""


class _ToldError(Exception):
    """The API server has told the client why the watch ends."""


class AcrossWatch:
    """A watch for one identity: `open` it, then `run` it. ``good`` says, now and again, whether it may go on."""

    def __init__(
        self,
        crossing: Crossing,
        feed: NamespaceFeed,
        identity: Identity,
        decision: Across,
        accept: str,
        send: Send,
        *,
        write: Callable[[bytes], Awaitable[None]],
        good: Callable[[], bool],
    ) -> None:
        self._crossing = crossing
        self._feed = feed
        self._identity = identity
        self._decision = decision
        self._query = decision.query
        self._form = negotiate(accept, watch=True)
        self._write = write
        self._good = good
        self._subscription = feed.subscribe()
        self._changes = crossing.rights.subscribe()
        self._candidates = crossing.candidates(identity)
        self._pinned = 0 if self._query.initial_events else version(self._query.resource_version) or 0
        self._streams = Streams(
            decision, View(form=self._form, include=decision.query.include_object), accept, send, pinned=self._pinned
        )
        self._resume = self._pinned  # where the client would go on now
        self._owes_end = bool(self._query.initial_events)
        self._columns_told = False
        self._out: list[bytes] = []
        self._next_sweep = self._unfollowed_sweep = 0.0
        self._next_quiet = time.monotonic() + BOOKMARK_INTERVAL

    async def open(self) -> None:
        """Open a watch in each namespace before anything is answered; RefusedError."""
        try:
            allowed = await self._crossing.allowed(self._identity, self._decision)
            joined = await self._joined(allowed)
            self._plan_sweep()
            await self._open(allowed, joined)
        except BaseException:
            await self.close()
            raise

    async def run(self, stopping: asyncio.Event) -> None:
        """Send events until a watch upstream ends, a namespace leaves, the time is over, or the process stops."""
        stop: asyncio.Future[bool] = asyncio.ensure_future(stopping.wait())
        try:
            self._streams.start()
            self._mark()
            await self._flush()
            await self._follow(stop)
        except _EndedError:
            self._finish()
            await self._flush()
        except _ToldError:
            await self._flush()
        except RefusedError as error:
            self._out.append(render_error(error.status))
            await self._flush()
        finally:
            stop.cancel()
            await self.close()

    async def close(self) -> None:
        """End all watches upstream."""
        self._feed.unsubscribe(self._subscription)
        self._crossing.rights.unsubscribe(self._changes)
        count = len(self._streams.open)
        await self._streams.close()
        self._crossing.streams -= count

    # Which namespaces.

    async def _joined(self, allowed: list[str]) -> frozenset[str]:
        """Return the namespaces of which the client knows nothing yet; RefusedError 410 when it must list again."""
        if not self._pinned:
            return frozenset()
        if not await self._feed.settled(SETTLE_SECONDS):
            raise RefusedError(unavailable("the proxy cannot tell what changed since; try again"))
        told = self._crossing.told.get(self._identity, self._decision, str(self._pinned))
        if told is None:
            rights = self._crossing.rights.changed(self._candidates)
            oldest = max(self._feed.oldest(self._identity), rights)
            if self._pinned < oldest:
                raise RefusedError(expired(str(self._pinned), oldest))
            return frozenset()
        if gone := told - frozenset(allowed):
            await self._refuse_unwatchable(gone)
            raise RefusedError(expired(str(self._pinned), self._feed.version()))
        return frozenset(allowed) - told

    async def _refuse_unwatchable(self, gone: frozenset[str]) -> None:
        """Refuse what may be listed and not be watched: a 410 would make the client list for ever."""
        question = msgspec.structs.replace(self._decision.question, verb="list")
        listed = await self._crossing.rights.among(self._identity, question, gone & self._candidates)
        if listed:
            where = self._decision
            raise RefusedError(
                forbidden(self._identity.user, "watch", where.resource, group=where.group, namespace=min(listed))
            )

    async def _look(self) -> None:
        """Take namespaces in that joined; RefusedError 410 when one left, _EndedError when the caller may not go on."""
        self._subscription.take()
        changed, everywhere = self._changes.take()
        if not self._good():
            raise _EndedError
        before, self._candidates = self._candidates, self._crossing.candidates(self._identity)
        followed = self._crossing.rights.is_followed
        due = time.monotonic() >= (self._next_sweep if followed else self._unfollowed_sweep)
        if not (due or everywhere or before != self._candidates or changed & self._candidates):
            return
        self._plan_sweep()
        allowed = await self._crossing.allowed(self._identity, self._decision)
        if self._streams.open.keys() - set(allowed):
            raise RefusedError(expired("of a watch from before a change of your rights", self._feed.version()))
        joined = frozenset(allowed) - self._streams.open.keys()
        await self._open(sorted(joined), joined)
        self._streams.start()

    async def _open(self, names: list[str], joined: frozenset[str]) -> None:
        """Open a watch in each of these; where RBAC refuses after all, what was told before must not stand."""
        before = len(self._streams.open)
        if self._crossing.streams + len(names) > MOST_OPEN:
            raise RefusedError(unavailable("the proxy holds too many watches across namespaces; try again"))
        try:
            refused = await self._streams.ask(names, joined)
        finally:
            self._crossing.streams += len(self._streams.open) - before
        for name in refused:
            # RBAC has just changed, or its answer to us was older.
            self._crossing.rights.forget(self._identity, self._decision.question, name)
            self._plan_sweep(SOON_SECONDS)
        if self._pinned and frozenset(refused) - joined:
            raise RefusedError(expired(str(self._pinned), self._feed.version()))

    def _plan_sweep(self, seconds: float = 0.0) -> None:
        at = time.monotonic()
        self._next_sweep = at + (seconds or SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        self._unfollowed_sweep = min(self._next_sweep, at + UNFOLLOWED_SECONDS)

    # What the client is told.

    async def _follow(self, stop: asyncio.Future[bool]) -> None:
        ends = time.monotonic() + (self._query.timeout or LEAST_TIMEOUT * random.uniform(1, 2))  # noqa: S311 - jitter
        got: asyncio.Future[tuple[Stream, bytes]] = asyncio.ensure_future(self._streams.lines.get())
        waits = {"grants": self._subscription.awake, "rights": self._changes.awake}
        awake = {name: asyncio.ensure_future(event.wait()) for name, event in waits.items()}
        try:
            while True:
                waiting: set[asyncio.Future[Any]] = {got, stop, *awake.values()}
                await asyncio.wait(waiting, timeout=LOOK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                # Before any event: one may come from where the caller may not look any more.
                await self._look()
                awake |= {name: asyncio.ensure_future(waits[name].wait()) for name, one in awake.items() if one.done()}
                if got.done():
                    self._take(*got.result())
                    while not self._streams.lines.empty():
                        self._take(*self._streams.lines.get_nowait())
                    got = asyncio.ensure_future(self._streams.lines.get())
                self._mark()
                await self._flush()
                if stop.done() or (not self._streams.open and time.monotonic() >= ends):
                    raise _EndedError
        finally:
            got.cancel()
            for one in awake.values():
                one.cancel()

    async def _flush(self) -> None:
        """Send what there is in one piece, so that no event comes without the bookmark behind it."""
        out, self._out = self._out, []
        if out:
            await self._write(b"".join(out))

    def _take(self, stream: Stream, line: bytes) -> None:
        if not line:
            raise _EndedError
        try:
            event = _EVENTS.decode(line)
            meta = _METAS.decode(event.object).metadata
        except msgspec.DecodeError:
            raise RefusedError(expired("of a watch that broke", self._feed.version())) from None
        if event.type == "ERROR":
            self._out.append(line + b"\n")
            raise _ToldError
        at = version(meta.resource_version) or 0
        if event.type == "BOOKMARK":
            stream.reached = at
            stream.begun = stream.begun or INITIAL_EVENTS_END in (meta.annotations or {})
            return
        if stream.reached is not None:
            stream.reached = at
        self._resume = at or self._resume
        self._out.append(self._shown(event, line))

    def _shown(self, event: WatchEvent, line: bytes) -> bytes:
        """Return the event as it comes; of Tables the columns once, as in the watch of one namespace."""
        if self._form == "table":
            if self._columns_told:
                table = msgspec.json.decode(event.object, type=dict[str, msgspec.Raw])
                if "columnDefinitions" in table:
                    table["columnDefinitions"] = msgspec.Raw(b"null")
                    return msgspec.json.encode({"type": event.type, "object": table}) + b"\n"
            self._columns_told = True
        return line + b"\n"

    def _reached(self) -> int:
        """Return the version that all namespaces have reached, 0 while that is not known."""
        if not self._streams.open:
            return self._feed.version()
        return min(stream.reached or 0 for stream in self._streams.open.values())

    def _mark(self) -> None:
        """Add a bookmark where the client should go on from another version than the last line's, or heard nothing."""
        reached = self._reached()
        if not self._query.bookmarks or not reached:
            return
        says_nothing_new = reached == self._resume or not self._streams.open
        if says_nothing_new and not self._owes_end and time.monotonic() < self._next_quiet:
            return
        if self._owes_end and not all(stream.begun for stream in self._streams.open.values()):
            return
        self._out.append(self._bookmark(reached, initial_events_end=self._owes_end))
        self._owes_end = False
        self._resume = reached
        self._next_quiet = time.monotonic() + BOOKMARK_INTERVAL

    def _bookmark(self, version: int, *, initial_events_end: bool) -> bytes:
        meta: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if initial_events_end:
            meta["annotations"] = {INITIAL_EVENTS_END: "true"}
        form = self._form
        if form == "json":
            found: dict[str, Any] = {"kind": self._decision.kind, "apiVersion": self._decision.api_version}
        else:
            kind = "Table" if form == "table" else "PartialObjectMetadata"
            found = {"kind": kind, "apiVersion": META_VERSION}
            if form == "table":
                found |= {"columnDefinitions": None, "rows": []}
        return msgspec.json.encode({"type": "BOOKMARK", "object": found | {"metadata": meta}}) + b"\n"

    def _finish(self) -> None:
        """Leave no client with a version that not all namespaces have reached."""
        self._mark()
        if self._streams.open and self._resume > self._reached():
            self._out.append(render_error(expired(str(self._resume), self._reached())))


class _EventMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _EventObject(msgspec.Struct, frozen=True):
    metadata: _EventMeta = _EventMeta()


_EVENTS: Final = msgspec.json.Decoder(WatchEvent)
_METAS: Final = msgspec.json.Decoder(_EventObject)
