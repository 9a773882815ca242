"""One client's watch of a cluster-scoped kind from memory, while its scope stays the same.

What the client has is compared with what is. An object that joins the scope, or the client's own selector, appears as
ADDED; one that leaves the scope as DELETED with nothing but its name. When the grants change what the caller may see,
the watch ends with 410, so that the client lists again under the new ones.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from eventcore.numbers import version
from proxycore.representations import render_error
from proxycore.rules import scope_of
from proxycore.selectors import matches, parse_fields
from proxycore.statuses import RefusedError, expired
from proxycore.waking import awoken
from proxycore.watching import BOOKMARK_INTERVAL, LEAST_TIMEOUT, LOOK_INTERVAL, SETTLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from eventcore.selectors import Requirement
    from proxycore.feed import NamespaceFeed
    from proxycore.identities import Grants, Identity
    from proxycore.kind_memory import Record, Subscription
    from proxycore.listquery import ListQuery
    from proxycore.policy import Filtered
    from proxycore.rules import Seen
    from proxycore.shapes import Shape
    from proxycore.shared import SharedKind

FIELDS: Final = ("metadata.name",)
"""The field that is known here; a selector on any other is the API server's."""
_PASSED: Final = frozenset({"fieldSelector", "includeObject", "pretty", "limit"})


def fields_of(query: ListQuery) -> tuple[Requirement, ...] | None:
    """Return the requirements of the field selector, None when memory cannot tell what the query asks for."""
    passed = dict(query.passed_on)
    if not passed.keys() <= _PASSED:
        return None
    try:
        return parse_fields(passed.get("fieldSelector", ""), FIELDS)
    except RefusedError:
        return None


def selects(seen: Seen, decision: Filtered, fields: tuple[Requirement, ...]) -> bool:
    """Tell whether an object is in the scope and chosen by the client's own selectors."""
    return (
        decision.scope.allows(seen)
        and matches(decision.query.labels, seen.labels)
        and matches(fields, {"metadata.name": seen.name})
    )


class SharedWatch:
    """A watch for one identity.

    ``past`` reads what the client knows if it goes on from before memory began; RefusedError. ``good`` says, now and
    again, whether the watch may go on.
    """

    def __init__(
        self,
        kind: SharedKind,
        feed: NamespaceFeed,
        identity: Identity,
        decision: Filtered,
        shape: Shape,
        fields: tuple[Requirement, ...],
        *,
        past: Callable[[], Awaitable[dict[str, Record]]],
        write: Callable[[bytes], Awaitable[None]],
        good: Callable[[], bool],
        bookmark_interval: float = BOOKMARK_INTERVAL,
    ) -> None:
        self._kind = kind
        self._feed = feed
        self._identity = identity
        self._decision = decision
        self._shape = shape
        self._fields = fields
        self._past = past
        self._write = write
        self._good = good
        self._bookmark_interval = bookmark_interval
        self._sent: dict[str, Record] = {}
        self._begun = False
        self._from = 0  # the version that the client has from a list, while memory is not there yet
        self._told = 0
        self._judged_by: tuple[Grants, int] | None = None  # the grants by which the scope was the same last time

    async def run(self, stopping: asyncio.Event) -> None:
        """Send events until the time is over, the scope changes, memory is lost, or the process stops."""
        awake = asyncio.Event()
        grants = self._feed.subscribe(awake)  # before anything is read, so that no change of the grants is missed
        subscription = self._kind.subscribe(awake, self._concerns)
        stop = asyncio.ensure_future(stopping.wait())
        stop.add_done_callback(lambda _: awake.set())
        begun = time.monotonic()
        limit = self._decision.query.timeout or LEAST_TIMEOUT * random.uniform(1, 2)  # noqa: S311 - spreads clients
        next_bookmark = begun + self._bookmark_interval
        try:
            await self._begin(subscription)
            self._begun = True
            while (left := begun + limit - time.monotonic()) > 0 and not stopping.is_set():
                if not self._kind.fresh or not self._good():
                    return
                self._check_scope()
                # Before the names are taken: what comes between is looked at again.
                caught_up = self._kind.version >= self._from
                for name in sorted(subscription.take()):
                    await self._look(name)
                if caught_up:
                    self._from = 0
                if time.monotonic() >= next_bookmark:
                    next_bookmark = time.monotonic() + self._bookmark_interval
                    await self._bookmark()
                await awoken(awake, min(left, LOOK_INTERVAL, max(0.0, next_bookmark - time.monotonic())))
                grants.take()
            await self._bookmark()
        except RefusedError as error:
            await self._write(render_error(error.status))
        finally:
            stop.cancel()
            self._kind.unsubscribe(subscription)
            self._feed.unsubscribe(grants)

    def _concerns(self, name: str) -> bool:
        if not self._begun or self._from or name in self._sent:
            return True
        record = self._kind.records.get(name)
        return record is not None and self._selects(record.seen)

    async def _begin(self, subscription: Subscription) -> None:
        """Send what is there, or learn what the client knows already; RefusedError when it must list again."""
        query = self._decision.query
        if not query.from_the_beginning:
            await self._resume(version(query.resource_version) or 0)
            return
        names: Iterable[str] = self._kind.records
        while names:  # also what changed while they were written, so that the bookmark is true
            for name in sorted(names):
                await self._look(name)
            names = subscription.take()
        if query.initial_events and query.bookmarks:
            await self._mark(initial_events_end=True)

    async def _resume(self, version: int) -> None:
        if not await self._feed.settled(SETTLE_SECONDS):
            raise RefusedError(expired(str(version), self._feed.version()))
        oldest = self._feed.oldest(self._identity)
        if version < oldest:
            raise RefusedError(expired(str(version), oldest))
        kind = self._kind
        if version < kind.floor:
            past = await self._past()
            changed = kind.records.keys() | past.keys()
            for name in changed:
                self._assume(name, past.get(name))
        else:
            changed = kind.changed_since(version)
            for name in kind.records.keys() | changed:
                self._assume(name, kind.at(name, version) if name in changed else kind.records.get(name))
        self._told = version
        self._from = version if version > kind.version else 0
        for name in sorted(changed):
            await self._look(name)

    def _assume(self, name: str, record: Record | None) -> None:
        """Note what the client has of a name without being told here."""
        if record is not None and self._selects(record.seen):
            self._sent[name] = record
        else:
            self._sent.pop(name, None)

    async def _look(self, name: str) -> None:
        """Compare what the client has of a name with what is, and send the difference."""
        self._check_scope()  # a change may come while another name is written
        kind = self._kind
        if self._from:
            # The client's list is newer than memory was: it has what the name was then, whatever memory held before.
            before = kind.at(name, self._from)
            if (sent := self._sent.get(name)) is None or sent.version <= self._from:
                self._assume(name, before)
        record = kind.records.get(name)
        if record is not None and not self._selects(record.seen):
            left: Record | None = record
            record = None
        else:
            left = None
        sent = self._sent.get(name)
        if sent is not None and (record is None or record.uid != sent.uid):
            del self._sent[name]
            await self._delete(sent, left)
            sent = None
        if record is None or (sent is not None and sent.version == record.version):
            return
        self._sent[name] = record
        await self._send("ADDED" if sent is None else "MODIFIED", self._shape.body(record), record.version)

    async def _delete(self, sent: Record, left: Record | None) -> None:
        """Tell that an object is gone, or not the caller's any more. What it is by then may not be the caller's."""
        last = left if left is not None and left.uid == sent.uid else self._kind.grave(sent.seen.name, sent.uid)
        version = last.version if last is not None else self._kind.version
        if last is not None and self._decision.scope.allows(last.seen):
            body = self._shape.body(last)
        else:
            body = self._shape.name(sent, version)
        await self._send("DELETED", body, version)

    async def _bookmark(self) -> None:
        if self._decision.query.bookmarks and self._kind.version > self._told and not self._from:
            await self._mark()

    async def _mark(self, *, initial_events_end: bool = False) -> None:
        version = self._kind.version
        await self._send("BOOKMARK", self._shape.mark(version, initial_events_end=initial_events_end), version)

    async def _send(self, type_: str, body: bytes, version: int) -> None:
        self._told = max(self._told, version)
        await self._write(b'{"type":"%b","object":%b}\n' % (type_.encode(), body))

    def _selects(self, seen: Seen) -> bool:
        return selects(seen, self._decision, self._fields)

    def _check_scope(self) -> None:
        state = self._feed.grants_state
        if state == self._judged_by:
            return
        now = scope_of(self._identity, self._feed.grants, self._decision.kind, "list")
        if now != self._decision.scope:
            raise RefusedError(expired("of a watch from before a change of your rights", self._feed.version()))
        self._judged_by = state
