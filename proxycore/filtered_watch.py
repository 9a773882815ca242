"""One watch of a cluster-scoped kind: the API server's events, judged one by one, while the scope stays the same.

An object that joins the scope appears as ADDED, one that leaves it as DELETED with nothing but its name. When the
grants change what the caller may see, the watch ends with 410, so that the client lists again under the new ones.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.errors import KubeError
from eventcore.kube_watch import LineSplitter, WatchEvent
from eventcore.logs import get
from eventcore.numbers import version
from proxycore.documents import META_VERSION, row_objects, shown, version_of
from proxycore.filtered import status_of, view_of
from proxycore.representations import render_error
from proxycore.rules import scope_of
from proxycore.statuses import RefusedError, expired, unavailable
from proxycore.watching import LOOK_INTERVAL, SETTLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

    from proxycore.documents import View
    from proxycore.feed import NamespaceFeed, Subscription
    from proxycore.filtered import FilteredKinds
    from proxycore.identities import Identity
    from proxycore.policy import Filtered
    from proxycore.rules import Seen

log = get("proxy.filtered_watch")

_EVENTS: Final = msgspec.json.Decoder(WatchEvent)
_EXISTS: Final = frozenset({"ADDED", "MODIFIED"})


class FilteredWatch:
    """A watch for one identity. ``good`` says, now and again, whether it may go on."""

    def __init__(
        self,
        kinds: FilteredKinds,
        feed: NamespaceFeed,
        identity: Identity,
        decision: Filtered,
        accept: str,
        *,
        write: Callable[[bytes], Awaitable[None]],
        good: Callable[[], bool],
    ) -> None:
        self._kinds = kinds
        self._feed = feed
        self._identity = identity
        self._decision = decision
        self._view: View = view_of(decision, accept)
        self._write = write
        self._good = good
        self._known: set[str] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Send events until the API server ends the watch, the scope changes, or the process stops."""
        subscription = self._feed.subscribe()  # before anything is read, so that no change of the grants is missed
        stop: asyncio.Future[bool] = asyncio.ensure_future(stopping.wait())
        try:
            await self._begin()
            async with self._kinds.stream(self._decision, self._view) as content:
                await self._follow(content, subscription, stop)
        except RefusedError as error:
            await self._write(render_error(error.status))
        except KubeError as error:
            await self._write(render_error(status_of(error)))
        finally:
            stop.cancel()
            self._feed.unsubscribe(subscription)

    async def _begin(self) -> None:
        """Learn what the client knows already; RefusedError when it must list again."""
        query = self._decision.query
        if query.resource_version in {"", "0"}:
            return
        if not await self._feed.settled(SETTLE_SECONDS):
            raise RefusedError(unavailable("the proxy cannot tell what changed since; try again"))
        oldest = self._feed.oldest(self._identity)
        if (version(query.resource_version) or 0) < oldest:
            raise RefusedError(expired(query.resource_version, oldest))
        if not self._decision.scope.by_name_alone and not query.initial_events:
            self._known = set(await self._kinds.known(self._decision))

    async def _follow(
        self, content: aiohttp.StreamReader, subscription: Subscription, stop: asyncio.Future[bool]
    ) -> None:
        splitter = LineSplitter()
        read: asyncio.Future[bytes] = asyncio.ensure_future(content.readany())
        awake: asyncio.Future[bool] = asyncio.ensure_future(subscription.awake.wait())
        checked = time.monotonic()
        try:
            while not stop.done():
                waiting: set[asyncio.Future[Any]] = {read, awake, stop}
                await asyncio.wait(waiting, timeout=LOOK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                looks = awake.done() or time.monotonic() - checked >= LOOK_INTERVAL
                if awake.done():
                    subscription.take()
                    awake = asyncio.ensure_future(subscription.awake.wait())
                if looks:
                    checked = time.monotonic()
                    if not self._good():
                        return
                    self._check_scope()
                if read.done():
                    if not (chunk := read.result()):
                        return
                    for line in splitter.feed(chunk):
                        await self._take(line)
                    read = asyncio.ensure_future(content.readany())
        finally:
            read.cancel()
            awake.cancel()

    def _check_scope(self) -> None:
        now = scope_of(self._identity, self._feed.grants, self._decision.kind, "list")
        if now != self._decision.scope:
            raise RefusedError(expired("of a watch from before a change of your rights", self._feed.version()))

    async def _take(self, line: bytes) -> None:
        self._check_scope()  # an event may come before the look at the change that forbids it
        try:
            event = _EVENTS.decode(line)
            if event.type in {"ERROR", "BOOKMARK"}:
                # Neither holds an object: a Status, or a version.
                await self._write(line + b"\n")
                return
            for seen in row_objects(event.object, self._view.form)[:1]:
                await self._tell(event, seen)
        except msgspec.DecodeError as error:
            log.warning("an event of the API server cannot be read", error=error)
            raise RefusedError(expired("of a watch that broke", self._feed.version())) from None

    async def _tell(self, event: WatchEvent, seen: Seen) -> None:
        """Send the event as it looks from inside the scope."""
        allowed = self._decision.scope.allows(seen)
        if self._decision.scope.by_name_alone:
            if allowed:
                await self._send(event.type, shown(event.object, self._view))
            return
        known = seen.name in self._known
        if event.type in _EXISTS and allowed:
            self._known.add(seen.name)
            await self._send("MODIFIED" if known else "ADDED", shown(event.object, self._view))
        elif known:
            self._known.discard(seen.name)
            await self._send("DELETED", shown(event.object, self._view) if allowed else self._gone(event, seen))

    def _gone(self, event: WatchEvent, seen: Seen) -> msgspec.Raw:
        """Return what tells that an object left: its name and version. What it is now is not the caller's."""
        meta = {"name": seen.name, "resourceVersion": version_of(event.object)}
        found: dict[str, Any] = msgspec.json.decode(event.object)
        if self._view.form == "table":
            row = found["rows"][0]
            meta["resourceVersion"] = version_of(msgspec.json.encode(row["object"]))
            partial = {"kind": "PartialObjectMetadata", "apiVersion": META_VERSION, "metadata": meta}
            kept = {"cells": [seen.name, *("" for _ in row["cells"][1:])]}
            row = kept if self._view.include == "None" else kept | {"object": partial}
            return msgspec.Raw(msgspec.json.encode(found | {"rows": [row]}))
        kind, version = found.get("kind", ""), found.get("apiVersion", "")
        if self._view.form == "metadata":
            kind, version = "PartialObjectMetadata", META_VERSION
        return msgspec.Raw(msgspec.json.encode({"kind": kind, "apiVersion": version, "metadata": meta}))

    async def _send(self, type_: str, body: msgspec.Raw) -> None:
        await self._write(msgspec.json.encode({"type": type_, "object": body}) + b"\n")
