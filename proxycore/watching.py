"""One watch of Namespaces from memory: it follows the Namespaces and the caller's grants.

A namespace that joins the caller's set appears as ADDED, one that leaves as DELETED, then a bookmark if the client
allows them. What the client knows is compared with what is, so a slow client is sent the latest state of each
namespace and never an old one after a new one.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.numbers import version
from proxycore.representations import Item, item_of, render_bookmark, render_error, render_event
from proxycore.selectors import matches
from proxycore.statuses import expired, unavailable
from proxycore.waking import awoken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.views import ObjectRecord
    from proxycore.feed import NamespaceFeed, Subscription
    from proxycore.identities import Identity
    from proxycore.listquery import ListQuery
    from proxycore.representations import EventType, Form

BOOKMARK_INTERVAL: Final = 30.0
LOOK_INTERVAL: Final = 2.0
"""Seconds between looks at whether the views are still fresh and the caller's token still good."""
MARK_INTERVAL: Final = 0.25
"""The same while a bookmark waits for the next mark of the watchers."""
LEAST_TIMEOUT: Final = 1800
"""Seconds that a watch lasts at least when the client sets no limit, as at an API server; up to twice that."""
SETTLE_SECONDS: Final = 5.0


class NamespaceWatch:
    """A watch for one identity. ``good`` says, now and again, whether it may go on."""

    def __init__(
        self,
        feed: NamespaceFeed,
        identity: Identity,
        query: ListQuery,
        form: Form,
        *,
        write: Callable[[bytes], Awaitable[None]],
        good: Callable[[], bool],
        bookmark_interval: float = BOOKMARK_INTERVAL,
    ) -> None:
        self._feed = feed
        self._identity = identity
        self._query = query
        self._form = form
        self._write = write
        self._good = good
        self._bookmark_interval = bookmark_interval
        self._names: frozenset[str] = frozenset()
        self._sent: dict[str, ObjectRecord] = {}
        self._known_to = 0  # the client knows all up to this version from a list that was newer than our memory
        self._told = 0  # the highest version in an event

    async def run(self, stopping: asyncio.Event) -> None:
        """Send events until the time is over, the caller may no longer see them, or the process stops."""
        subscription = self._feed.subscribe(concerns=self._concerns)
        stop = asyncio.ensure_future(stopping.wait())
        stop.add_done_callback(lambda _: subscription.awake.set())
        try:
            if await self._begin():
                await self._follow(subscription, stopping)
        finally:
            stop.cancel()
            self._feed.unsubscribe(subscription)

    def _concerns(self, name: str) -> bool:
        return name in self._names or name in self._sent

    async def _begin(self) -> bool:
        """Send what stands at the start; False when the watch ends with it."""
        query = self._query
        if query.from_the_beginning:
            self._names = self._feed.names(self._identity)
            for name in sorted(self._names):
                await self._look(name, joined=True)
            if query.initial_events and query.bookmarks:
                await self._write(render_bookmark(str(self._version()), self._form, initial_events_end=True))
            return True
        return await self._resume(_number(query.resource_version))

    async def _resume(self, version: int) -> bool:
        if not await self._feed.settled(SETTLE_SECONDS):
            await self._write(render_error(unavailable("the proxy cannot tell what changed since; try again")))
            return False
        oldest = self._feed.oldest(self._identity)
        if version < oldest:
            await self._write(render_error(expired(str(version), oldest)))
            return False
        sets = self._feed.sets_at(self._identity, version) if version == oldest else []
        self._names = self._feed.names(self._identity)
        sure = self._names.intersection(*sets)
        maybe = self._names.union(*sets)
        before = self._feed.before(version)
        for name in maybe:
            record = before[name] if name in before else self._feed.record(name)
            # What the client may have and should not is told as deleted; what it may lack is told as added.
            if record is not None and self._selects(record) and (name in sure or name not in self._names):
                self._sent[name] = record
        self._told = version
        self._known_to = version if version > self._feed.highest else 0
        for name in sorted(maybe):
            await self._look(name, joined=name not in sure)
        return True

    async def _follow(self, subscription: Subscription, stopping: asyncio.Event) -> None:
        begun = time.monotonic()
        limit = self._query.timeout or LEAST_TIMEOUT * random.uniform(1, 2)  # noqa: S311 - spreads clients, no secret
        next_bookmark = begun + self._bookmark_interval
        owed = False
        while (left := begun + limit - time.monotonic()) > 0 and not stopping.is_set():
            if not self._good():
                return
            wait = min(left, MARK_INTERVAL if owed else LOOK_INTERVAL, max(0.0, next_bookmark - time.monotonic()))
            await awoken(subscription.awake, wait)
            names, grants = subscription.take()
            owed |= await self._regroup() if grants else False
            for name in sorted(names & (self._names | self._sent.keys())):
                await self._look(name)
            if owed or time.monotonic() >= next_bookmark:
                next_bookmark = time.monotonic() + self._bookmark_interval
                owed = not await self._bookmark()
        if not stopping.is_set():
            await self._bookmark()

    async def _regroup(self) -> bool:
        """Take the set of namespaces anew; tell of what joined and left, and whether anything did."""
        before, self._names = self._names, self._feed.names(self._identity)
        for name in sorted(before ^ self._names):
            await self._look(name, joined=True)
        return before != self._names

    async def _look(self, name: str, *, joined: bool = False) -> None:
        """Compare what the client has of a name with what is, and send the difference."""
        record = self._feed.record(name) if name in self._names else None
        if record is not None and not self._selects(record):
            record = None
        sent = self._sent.get(name)
        if sent is not None and (record is None or record.uid != sent.uid):
            del self._sent[name]
            await self._send("DELETED", sent, fresh=True)
            sent = None
        if record is None:
            return
        self._sent[name] = record
        if sent is not None and sent.resource_version == record.resource_version:
            return
        if not joined and _number(record.resource_version) <= self._known_to:
            return
        await self._send("ADDED" if sent is None else "MODIFIED", record)

    async def _send(self, type_: EventType, record: ObjectRecord, *, fresh: bool = False) -> None:
        own = _number(record.resource_version)
        version = max(own, self._version()) if fresh else own
        self._told = max(self._told, version)
        at, include = now(), self._query.include_object
        told = str(version) if fresh else ""
        # A Table tells ages, in seconds.
        second = int(at.timestamp()) if self._form == "table" else 0
        line = self._feed.events.line(
            (type_, record.key.name, self._form, include, told, second),
            record,
            lambda: render_event(type_, item_of(record.body), self._form, include, at, resource_version=told),
        )
        await self._write(line)

    async def _bookmark(self) -> bool:
        """Send a bookmark; False while it would lead the client back behind an event, so it is due later."""
        version = self._version()
        if not self._query.bookmarks:
            return True
        if not version or version < self._told:
            return False
        self._told = version
        await self._write(render_bookmark(str(version), self._form))
        return True

    def _version(self) -> int:
        return self._feed.version()

    def _selects(self, record: ObjectRecord) -> bool:
        query = self._query
        return not (query.labels or query.fields) or selected(item_of(record.body), query)


def selected(item: Item, query: ListQuery) -> bool:
    """Tell whether the client's own selectors choose a Namespace."""
    return matches(query.labels, item.namespace.metadata.labels) and matches(query.fields, item.fields())


def _number(text: str) -> int:
    return version(text) or 0
