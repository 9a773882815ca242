"""What changed among Namespaces and grants, kept long enough that a watch can go on from where it was.

A watch is level-triggered: the feed tells it which names to look at again, and it compares what it last sent with what
is now. So a slow client costs a set of names, never a growing buffer. A watch that comes back with a resourceVersion
needs the past: for each change the feed keeps what was before.

Grants have no resourceVersion. For each change of a grant the feed asks the API server for the present one, so a
version from before it can be told from one after it. The same number at the start is the floor: nothing is known of
what was before.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from eventcore.errors import KubeError
from eventcore.grants import SubjectGrant, TenantGrant
from eventcore.logs import get
from eventcore.numbers import version
from proxycore.identities import Overlay, grant_keys, namespaces_of
from proxycore.rendered import RenderedEvents
from proxycore.waking import Waking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from eventcore.grants import Grant
    from eventcore.keys import Key
    from eventcore.reading import Reader
    from eventcore.views import AccessView, Change, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.identities import Grants, Identity

log = get("proxy.feed")

KIND: Final = "Namespace"
CAPACITY: Final = 10_000
"""Changes that are kept, of Namespaces and of grants each; a watch from before the oldest gets 410."""
MAX_PAUSE: Final = 5.0
PACE: Final = 0.01
"""Seconds in which changes of grants are gathered, so that a storm of them costs the API server 100 small reads a
second and not thousands."""


@dataclass(slots=True)
class _Past:
    """One change of a Namespace. ``version`` None: not known yet. ``late``: it came after a higher version."""

    name: str
    old: ObjectRecord | None
    version: int | None
    late: bool = False

    def is_after(self, version: int) -> bool:
        return self.version is None or self.version > version or (self.late and self.version == version)


@dataclass(slots=True)
class _GrantPast:
    """One change of a grant. ``version``: the API server's when it was seen, None until that is known."""

    key: Key
    old: Grant | None
    version: int | None = None


@dataclass(slots=True, eq=False)
class Subscription:
    """What one watch has to look at again. ``awake`` is set by whatever it waits for.

    ``concerns`` tells of which Namespaces it wants to hear; None: of grants alone.
    """

    concerns: Callable[[str], bool] | None = None
    names: set[str] = field(default_factory=set)
    grants: bool = False
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> tuple[set[str], bool]:
        """Return (names, whether grants changed) since the last time."""
        names, grants = self.names, self.grants
        self.names, self.grants = set(), False
        self.awake.clear()
        return names, grants


class NamespaceFeed:
    """Follows the two views. ``measure`` asks the API server for its present resourceVersion of Namespaces."""

    def __init__(
        self,
        objects: Reader[ObjectsView, ObjectRecord],
        access: Reader[AccessView, GrantRecord],
        measure: Callable[[], Awaitable[int]],
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self._objects = objects
        self._access = access
        self._measure = measure
        self._capacity = capacity
        self._past: deque[_Past] = deque()
        self._grant_past: deque[_GrantPast] = deque()
        self._highest = 0
        self._subscribers: set[Subscription] = set()
        self._waking = Waking()
        self._recording = False
        self._wanted = asyncio.Event()
        self._settled = asyncio.Condition()
        self.floor: int | None = None
        self.events = RenderedEvents()
        objects.listen(self._object_changed)
        access.listen(self._grant_changed)

    # What is.

    def record(self, name: str) -> ObjectRecord | None:
        """Return a live Namespace. One that was withheld from the bus is as one that is not there: it is nobody's."""
        return _there(self._objects.view.get(KIND, "", name))

    def records(self) -> Iterator[ObjectRecord]:
        """Yield the live Namespaces."""
        return (record for record in self._objects.view.all(KIND) if not record.withheld)

    def names(self, identity: Identity) -> frozenset[str]:
        """Return the namespaces that the grants give the identity now."""
        return namespaces_of(identity, self._access.view)

    @property
    def grants(self) -> Grants:
        """The grants of now."""
        return self._access.view

    @property
    def grants_state(self) -> tuple[Grants, int]:
        """Something that is another one whenever the grants may be."""
        return self._access.view, self._access.view.sequence

    def version(self) -> int:
        """Return the resourceVersion up to which memory is complete."""
        mark = self._objects.view.mark(KIND)
        return (version(mark.resource_version) or 0) if mark is not None else 0

    @property
    def highest(self) -> int:
        """The highest resourceVersion of any change that was seen."""
        return self._highest

    @property
    def followers(self) -> int:
        """How many watches follow."""
        return len(self._subscribers)

    # What was.

    async def settled(self, seconds: float) -> bool:
        """Wait until the version of every change is known; False when it is not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._settled:
                await self._settled.wait_for(lambda: self.is_settled)
                return True
        return False

    @property
    def is_settled(self) -> bool:
        """Whether the version of every change is known."""
        return self.floor is not None and not self._wanted.is_set()

    def oldest(self, identity: Identity) -> int:
        """Return the oldest resourceVersion from which a watch of this identity can go on; call it when settled."""
        oldest = self.floor or 0
        relevant = grant_keys(identity, self._access.view)
        for past in reversed(self._grant_past):
            if past.key in relevant:
                return max(oldest, past.version or 0)
        return oldest

    def before(self, version: int) -> dict[str, ObjectRecord | None]:
        """Return, for each name that changed after a version, what it was at that version."""
        found: dict[str, ObjectRecord | None] = {}
        for past in reversed(self._past):
            if past.is_after(version):
                found[past.name] = past.old
        return found

    def sets_at(self, identity: Identity, version: int) -> list[frozenset[str]]:
        """Return every set of namespaces that the identity may have seen at exactly this version, the present first.

        In a quiet cluster a grant changes and the resourceVersion does not, so one version can mean several sets.
        """
        overlay = Overlay(self._access.view)
        found = [namespaces_of(identity, overlay)]
        relevant = grant_keys(identity, overlay)
        for past in reversed(self._grant_past):
            if past.version is not None and past.version < version:
                break
            overlay.past[past.key] = past.old
            if past.key in relevant:
                relevant = grant_keys(identity, overlay)
                found.append(namespaces_of(identity, overlay))
        return list(dict.fromkeys(found))

    # Who follows.

    def subscribe(
        self, awake: asyncio.Event | None = None, *, concerns: Callable[[str], bool] | None = None
    ) -> Subscription:
        """Return a subscription to changes of grants and of these Namespaces; give it back with `unsubscribe`."""
        subscription = Subscription(concerns, awake=awake or asyncio.Event())
        self._subscribers.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscribers.discard(subscription)

    async def run(self, stopping: asyncio.Event) -> None:
        """Learn the versions of changes until told to stop."""
        pause = 0.1
        await self._loaded(stopping)
        self._recording = True  # before the floor is measured, so that nothing falls between the two
        self._wanted.set()
        stop = asyncio.ensure_future(stopping.wait())
        try:
            while not stopping.is_set():
                wait = asyncio.ensure_future(self._wanted.wait())
                await asyncio.wait({wait, stop}, return_when=asyncio.FIRST_COMPLETED)
                wait.cancel()
                if stopping.is_set():
                    return
                try:
                    await self._learn()
                    pause = 0.1
                except KubeError as error:
                    log.warning("the API server's version cannot be read", error=error)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                    pause = min(MAX_PAUSE, pause * 2)
        finally:
            stop.cancel()

    async def _loaded(self, stopping: asyncio.Event) -> None:
        for reader in (self._objects, self._access):
            while not stopping.is_set():
                with suppress(TimeoutError):
                    await reader.wait_for(0, 1.0)
                    break

    async def _learn(self) -> None:
        await asyncio.sleep(PACE)  # changes of grants are gathered, see PACE
        unknown = [past for past in self._past if past.version is None]
        unknown_grants = [past for past in self._grant_past if past.version is None]
        version = await self._measure()
        for past in unknown:
            past.version = version
        for grant in unknown_grants:
            grant.version = version
        if self.floor is None:
            self.floor = version
        waits = any(past.version is None for past in self._past)
        waits = waits or any(past.version is None for past in self._grant_past)
        if not waits:
            self._wanted.clear()
        async with self._settled:
            self._settled.notify_all()

    def _object_changed(self, change: Change[ObjectRecord]) -> None:
        record = change.new or change.old
        if record is None or record.key.kind != KIND:
            return
        old, new = _there(change.old), _there(change.new)
        if (old.uid, old.resource_version) == (new.uid, new.resource_version) if old and new else old is new:
            return
        version = _version(change.new)
        if version is not None and old is not None and version <= (_version(old) or 0):
            version = None  # buried after a list: nobody knows when it went
        if self._recording:
            late = version is not None and version < self._highest
            self._past.append(_Past(record.key.name, old, max(version, self._highest) if version else None, late))
            self._trim()
            if version is None:
                self._wanted.set()
        self._highest = max(self._highest, version or 0)
        name = record.key.name
        concerned = [one for one in self._subscribers if one.concerns is not None and one.concerns(name)]
        for subscription in concerned:
            subscription.names.add(name)
        self._waking.wake(one.awake for one in concerned)

    def _grant_changed(self, change: Change[GrantRecord]) -> None:
        old = change.old.grant if change.old else None
        new = change.new.grant if change.new else None
        grant = old or new
        if old == new or grant is None:
            return
        decides = isinstance(grant, TenantGrant | SubjectGrant)
        if decides and self._recording:
            self._grant_past.append(_GrantPast(grant.key(), old))
            self._trim()
            self._wanted.set()
        for subscription in self._subscribers:
            subscription.grants |= decides
        self._waking.wake(one.awake for one in self._subscribers)  # also for an account: its token may be good no more

    def _trim(self) -> None:
        while len(self._past) > self._capacity:
            self._raise_floor(self._past.popleft().version)
        while len(self._grant_past) > self._capacity:
            self._raise_floor(self._grant_past.popleft().version)

    def _raise_floor(self, version: int | None) -> None:
        self.floor = max(self.floor or 0, self._highest + 1 if version is None else version)


def _there(record: ObjectRecord | None) -> ObjectRecord | None:
    """Return a record whose body is the object, None for a tombstone and where the object was withheld."""
    return None if record is None or record.deleted or record.withheld else record


def _version(record: ObjectRecord | None) -> int | None:
    return version(record.resource_version) if record is not None else None
