"""Watches: the changes of one kind as a client with these selectors sees them, with bookmarks, from any version."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tether.devcluster import errors
from tether.devcluster.contracts import ApiError, Change, Object, Resource
from tether.devcluster.objects import namespace_of
from tether.devcluster.reads import matcher_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tether.devcluster.requests import ListOptions
    from tether.devcluster.selectors import Matcher
    from tether.devcluster.store import Store, Subscription

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_DEFAULT_TIMEOUT = 1800  # seconds; kube-apiserver ends a watch after 30 to 60 minutes

Event = tuple[str, Object]
"""ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, and the object."""


class Watch:
    """One watch; ``batches`` yields what happened, some events at a time. Selectors are checked on construction.

    It ends after ``timeoutSeconds``, after an ERROR event, or when the store ends it. ``bookmark_every`` is seconds.
    """

    def __init__(
        self, store: Store, resource: Resource, namespace: str, options: ListOptions, bookmark_every: float
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._options = options
        self._every = bookmark_every
        self._selected = matcher_of(resource, options)
        self._next_bookmark = 0.0

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """Yield events in order; never an empty batch."""
        options = self._options
        since = int(options.resource_version or 0)
        fresh = since == 0 if options.initial_events is None else options.initial_events
        if fresh and since > self._store.version:
            error = errors.too_new(since, self._store.version)
            yield [("ERROR", error.status())]
            return
        try:
            start = self._store.version if fresh or since == 0 else since
            subscription = self._store.watch(self._resource, start)
        except ApiError as error:
            yield [("ERROR", error.status())]
            return
        self._next_bookmark = asyncio.get_running_loop().time() + self._every
        try:
            first = self._initial(fresh=fresh)
            if first:
                yield first
            async with asyncio.timeout(options.timeout if options.timeout is not None else _DEFAULT_TIMEOUT):
                while await self._wait(subscription):
                    changes = [change for change in subscription.pending() if change.resource_version > since]
                    events = [event for change in changes for event in self._seen(change)]
                    if self._bookmark_is_due():
                        events.append(self._bookmark(self._store.version))
                    if events:
                        yield events
        except TimeoutError:
            return
        finally:
            subscription.close()

    async def _wait(self, subscription: Subscription) -> bool:
        """Wait for a change or for the next bookmark; False at the end of the store."""
        if not self._options.bookmarks:
            return await subscription.wait()
        try:
            left = self._next_bookmark - asyncio.get_running_loop().time()
            return await asyncio.wait_for(subscription.wait(), max(left, 0))
        except TimeoutError:
            return True

    def _bookmark_is_due(self) -> bool:
        time = asyncio.get_running_loop().time()
        if not self._options.bookmarks or time < self._next_bookmark:
            return False
        self._next_bookmark = time + self._every
        return True

    def _initial(self, *, fresh: bool) -> list[Event]:
        if not fresh:
            return []
        items = self._store.list(self._resource, self._namespace)
        events: list[Event] = [("ADDED", obj) for obj in items if self._matches(obj)]
        if self._options.initial_events:
            kind, bookmark = self._bookmark(self._store.version)
            bookmark["metadata"]["annotations"] = {INITIAL_EVENTS_END: "true"}
            events.append((kind, bookmark))
        return events

    def _bookmark(self, version: int) -> Event:
        meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
        return "BOOKMARK", {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": meta}

    def _matches(self, obj: Object) -> bool:
        return self._selected is None or self._selected(obj)

    def _seen(self, change: Change) -> list[Event]:
        if self._namespace and namespace_of(change.obj) != self._namespace:
            return []
        return seen(change, self._selected)


def seen(change: Change, selected: Matcher | None) -> list[Event]:
    """Return a change as a watcher with this selector sees it: entering is ADDED, leaving is DELETED. Pure."""
    if selected is None:
        return [(change.type, change.obj)]
    was = change.old is not None and selected(change.old)
    if change.type == "DELETED":
        return [("DELETED", change.obj)] if was else []
    now = selected(change.obj)
    if now:
        return [("MODIFIED" if was else "ADDED", change.obj)]
    if was and change.old is not None:
        meta = change.old["metadata"] | {"resourceVersion": str(change.resource_version)}
        return [("DELETED", change.old | {"metadata": meta})]
    return []
