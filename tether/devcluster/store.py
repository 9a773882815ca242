"""The versioned object store: Kubernetes' rules of writing, one global resourceVersion, and a window of changes."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from bisect import bisect_right, insort
from collections import deque
from typing import TYPE_CHECKING, Literal, Self

from tether.devcluster import crds, errors, strategy
from tether.devcluster.contracts import ApiError, Change, Object, Resource
from tether.devcluster.disk import Disk
from tether.devcluster.objects import clone, metadata, name_of, namespace_of, now
from tether.devcluster.resources import CRDS, NAMESPACES, Kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEFAULT_HISTORY = 10_000
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # of generateName: no vowels, so no words
_GENERATE_ATTEMPTS = 8

Objects = list[Object]  # the class below has a method named list
Changes = list[Change]

Key = tuple[str, str]
"""Namespace ("" for cluster-scoped) and name."""


class Subscription:
    """The changes of the store, or of one kind, in order; an async iterator that ends when the store closes."""

    def __init__(self, drop: Callable[[Subscription], None], backlog: list[Change]) -> None:
        self._drop = drop
        self._queue = deque(backlog)
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, change: Change) -> None:
        """Append a change; the store calls this."""
        self._queue.append(change)
        self._wake.set()

    def pending(self) -> list[Change]:
        """Take all that waits, without waiting."""
        taken = list(self._queue)
        self._queue.clear()
        return taken

    async def wait(self) -> bool:
        """Wait until something is pending; False when there never will be."""
        while not self._queue and not self._closed:
            self._wake.clear()
            await self._wake.wait()
        return bool(self._queue)

    def close(self) -> None:
        """End the subscription: what is queued can still be taken."""
        self._closed = True
        self._drop(self)
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if not await self.wait():
            raise StopAsyncIteration
        return self._queue.popleft()


class _Shelf:
    """The objects of one kind, with their keys in order."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.keys: list[Key] = []

    def put(self, key: Key, obj: Object) -> None:
        if key not in self.objects:
            insort(self.keys, key)
        self.objects[key] = obj

    def remove(self, key: Key) -> None:
        del self.objects[key]
        self.keys.remove(key)


class Store:
    """Implements ``contracts.StoreApi``; every method but ``changes`` is one atomic step.

    With a ``path`` all objects and the counter live in that sqlite file as well; without one, in memory alone.
    ``history`` is how many changes back a watch or the next page of a list may start.
    """

    def __init__(self, path: Path | None = None, *, history: int = DEFAULT_HISTORY) -> None:
        self.kinds = Kinds()
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        self._history: deque[Change] = deque()
        self._window = history
        self._subscribers: dict[tuple[str, str] | None, list[Subscription]] = {}
        self._disk = Disk(path) if path else None
        self._version = 0
        if self._disk:
            self._version, rows = self._disk.load()
            for (group, plural, namespace, name), obj in rows:
                self._shelf_of(group, plural).put((namespace, name), obj)
            for crd in self.list(CRDS):
                self.kinds.serve(crds.served(crd))
        self._version = self._version or 1
        self._oldest = self._version

    @property
    def version(self) -> int:
        """The resourceVersion of the last change."""
        return self._version

    def resource(self, group: str, plural: str) -> Resource | None:
        return self.kinds.preferred(group, plural)

    def resources(self) -> list[Resource]:
        return self.kinds.stored()

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._shelf(resource).objects.get((namespace, name))

    def list(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        shelf = self._shelf(resource)
        if not namespace:
            return [shelf.objects[key] for key in shelf.keys]
        start = bisect_right(shelf.keys, (namespace, ""))
        end = bisect_right(shelf.keys, (namespace + "\0", ""))
        return [shelf.objects[key] for key in shelf.keys[start:end]]

    def list_at(self, resource: Resource, namespace: str, version: int) -> Objects:
        """Return a list as it was at a resourceVersion; 410 when that is before the window, 504 when to come."""
        if version > self._version:
            raise errors.too_new(version, self._version)
        if version < self._oldest:
            raise errors.expired(version, self._oldest)
        items = {(namespace_of(obj), name_of(obj)): obj for obj in self.list(resource, namespace)}
        for change in self._since(version, newest_first=True):
            if _group_key(change.resource) != _group_key(resource):
                continue
            key = (namespace_of(change.obj), name_of(change.obj))
            if namespace and key[0] != namespace:
                continue
            if change.old is None:
                items.pop(key, None)
            else:
                items[key] = change.old
        return [items[key] for key in sorted(items)]

    def create(self, resource: Resource, obj: Object, *, dry_run: bool = False) -> Object:
        resource = self._kept(resource)
        new = strategy.for_create(resource, obj, uid=str(uuid.uuid4()), time=now())
        meta = metadata(new)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = self._generated_name(resource, namespace_of(new), str(meta["generateName"]))
        key = (namespace_of(new), name_of(new))
        if resource.namespaced:
            self.require_namespace(resource, new)
        if key in self._shelf(resource).objects:
            raise errors.already_exists(resource, key[1])
        return new if dry_run else self._commit("ADDED", resource, new, None)

    def update(self, resource: Resource, obj: Object, *, subresource: str = "", dry_run: bool = False) -> Object:
        resource = self._kept(resource)
        given = metadata(obj)
        key = (namespace_of(obj) if resource.namespaced else "", name_of(obj))
        old = self._existing(resource, key)
        uid, version = str(given.get("uid") or ""), str(given.get("resourceVersion") or "")
        if uid and uid != metadata(old)["uid"]:
            raise errors.precondition(resource, key[1], "UID", uid, metadata(old)["uid"])
        if version and version != metadata(old)["resourceVersion"]:
            raise errors.conflict(resource, key[1])
        new = strategy.for_update(resource, old, obj, subresource, now())
        if new == old or dry_run:
            return old if new == old else new
        if metadata(new).get("deletionTimestamp") and not strategy.finalizers(resource, new):
            return self._commit("DELETED", resource, new, old)
        return self._commit("MODIFIED", resource, new, old)

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        hold: str = "",
        dry_run: bool = False,
    ) -> Object:
        """As the protocol says; ``hold`` is a finalizer to add, so that its controller acts before the object goes."""
        resource = self._kept(resource)
        old = self._existing(resource, (namespace, name))
        meta = metadata(old)
        if uid and uid != meta["uid"]:
            raise errors.precondition(resource, name, "UID", uid, meta["uid"])
        if resource_version and resource_version != meta["resourceVersion"]:
            raise errors.precondition(resource, name, "ResourceVersion", resource_version, meta["resourceVersion"])
        if dry_run:
            return old
        if resource == CRDS:
            return self._delete_definition(old)
        if not hold and not strategy.finalizers(resource, old):
            return self._commit("DELETED", resource, clone(old), old)
        if meta.get("deletionTimestamp"):
            return old
        return self._commit("MODIFIED", resource, strategy.for_deletion(resource, old, now(), hold=hold), old)

    def changes(self) -> Subscription:
        """Follow every change from this call on; ends when the store closes."""
        return self._subscribe(None, [])

    def watch(self, resource: Resource, since: int) -> Subscription:
        """Follow the changes of one kind after resourceVersion ``since``; 410 when that is before the window."""
        if since < self._oldest:
            raise errors.expired(since, self._oldest)
        group_key = _group_key(resource)
        backlog = [change for change in self._since(since) if _group_key(change.resource) == group_key]
        return self._subscribe(group_key, backlog)

    def expire_history(self) -> None:
        """Forget all changes up to now: a watch from before, and the next page of an open list, get 410."""
        self._history.clear()
        self._oldest = self._version

    def close_watches(self) -> None:
        """End every open watch of a kind, as an API server that goes away does."""
        for subscription in [one for key, group in self._subscribers.items() if key for one in group]:
            subscription.close()

    def close(self) -> None:
        """End every subscription and close the file."""
        for subscription in [one for group in self._subscribers.values() for one in group]:
            subscription.close()
        if self._disk:
            self._disk.close()

    def _shelf_of(self, group: str, plural: str) -> _Shelf:
        return self._shelves.setdefault((group, plural), _Shelf())

    def _shelf(self, resource: Resource) -> _Shelf:
        return self._shelf_of(resource.group, resource.plural)

    def _kept(self, resource: Resource) -> Resource:
        return self.kinds.preferred(resource.group, resource.plural) or resource

    def _existing(self, resource: Resource, key: Key) -> Object:
        obj = self._shelf(resource).objects.get(key)
        if obj is None:
            raise errors.not_found(resource, key[1])
        return obj

    def require_namespace(self, resource: Resource, new: Object) -> None:
        """Refuse a new object of a namespace that is missing (404) or going away (403)."""
        namespace = self.get(NAMESPACES, "", namespace_of(new))
        if namespace is None:
            raise errors.not_found(NAMESPACES, namespace_of(new))
        if metadata(namespace).get("deletionTimestamp"):
            raise errors.terminating(resource, name_of(new), namespace_of(new))

    def _generated_name(self, resource: Resource, namespace: str, prefix: str) -> str:
        for _ in range(_GENERATE_ATTEMPTS):
            name = prefix[:58] + "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))
            if (namespace, name) not in self._shelf(resource).objects:
                return name
        raise errors.already_exists(resource, prefix)

    def _commit(
        self, type_: Literal["ADDED", "MODIFIED", "DELETED"], resource: Resource, new: Object, old: Object | None
    ) -> Object:
        self._version += 1
        metadata(new)["resourceVersion"] = str(self._version)
        key = (namespace_of(new), name_of(new))
        gone = type_ == "DELETED"
        if gone:
            self._shelf(resource).remove(key)
        else:
            self._shelf(resource).put(key, new)
        if self._disk:
            self._disk.write((resource.group, resource.plural, *key), None if gone else new, self._version)
        change = Change(type=type_, resource=resource, obj=new, old=old, resource_version=self._version)
        if resource == CRDS:
            self._serve(new, gone=gone)
        self._publish(change)
        if gone and resource != CRDS:
            self._finish_definition(resource)
        return new

    def _publish(self, change: Change) -> None:
        self._history.append(change)
        if len(self._history) > self._window:
            self._oldest = self._history.popleft().resource_version
        for group_key in (None, _group_key(change.resource)):
            for subscription in self._subscribers.get(group_key, ()):
                subscription.offer(change)

    def _since(self, version: int, *, newest_first: bool = False) -> Iterator[Change]:
        # Versions in the window are consecutive, so where to begin is arithmetic.
        skip = max(0, version - self._history[0].resource_version + 1) if self._history else 0
        order = range(len(self._history) - 1, skip - 1, -1) if newest_first else range(skip, len(self._history))
        history = tuple(self._history)  # a deque is slow to index
        return (history[at] for at in order)

    def _subscribe(self, group_key: tuple[str, str] | None, backlog: Changes) -> Subscription:
        def drop(gone: Subscription) -> None:
            if gone in self._subscribers[group_key]:
                self._subscribers[group_key].remove(gone)

        subscription = Subscription(drop, backlog)
        self._subscribers.setdefault(group_key, []).append(subscription)
        return subscription

    def _serve(self, crd: Object, *, gone: bool) -> None:
        versions = crds.served(crd)
        if gone or not versions:
            self.kinds.withdraw(crd["spec"]["group"], crd["spec"]["names"]["plural"])
        else:
            self.kinds.serve(versions)

    def _delete_definition(self, old: Object) -> Object:
        """Delete a definition: its objects first; it waits for those that have finalizers."""
        resource = self.kinds.preferred(old["spec"]["group"], old["spec"]["names"]["plural"])
        if not metadata(old).get("deletionTimestamp"):
            marked = strategy.for_deletion(CRDS, old, now())
            held = metadata(marked).setdefault("finalizers", [])
            if crds.CLEANUP not in held:
                held.append(crds.CLEANUP)
            old = self._commit("MODIFIED", CRDS, marked, old)
        if resource is None:
            return self._release_definition(old)
        for obj in self.list(resource):
            try:
                self.delete(resource, namespace_of(obj), name_of(obj))
            except ApiError as error:
                if error.code != 404:  # noqa: PLR2004 -- an owner's end may have taken it already
                    raise
        self._finish_definition(resource)
        return self.get(CRDS, "", name_of(old)) or old

    def _finish_definition(self, resource: Resource) -> None:
        """Let a definition go that only waited for the last of its objects."""
        crd = self.get(CRDS, "", f"{resource.plural}.{resource.group}")
        if crd and metadata(crd).get("deletionTimestamp") and not self._shelf(resource).objects:
            self._release_definition(crd)

    def _release_definition(self, crd: Object) -> Object:
        released = clone(crd)
        meta = metadata(released)
        meta["finalizers"] = [held for held in meta.get("finalizers") or [] if held != crds.CLEANUP]
        if meta["finalizers"]:
            return self._commit("MODIFIED", CRDS, released, crd)
        return self._commit("DELETED", CRDS, released, crd)


def _group_key(resource: Resource) -> tuple[str, str]:
    return (resource.group, resource.plural)
