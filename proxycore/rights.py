"""What RBAC lets somebody do in a namespace: asked of the API server, remembered until a right changes.

Watchers publish that a RoleBinding, Role, ClusterRole or ClusterRoleBinding changed; the first two make what is
remembered of their namespace void, the others all of it. Nothing is believed longer than ten seconds, and nothing at
all while nobody vouches for those kinds.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import KubeError
from eventcore.logs import get
from eventcore.objects import RBAC_KINDS
from proxycore.statuses import RefusedError, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from eventcore.reading import Reader
    from eventcore.views import Change, ObjectRecord, ObjectsView
    from proxycore.authentication import Poster
    from proxycore.identities import Identity

log = get("proxy.rights")

PATH: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
BELIEVED_SECONDS: Final = 10.0
REFUSED_SECONDS: Final = 2.0
"""Seconds that a refusal is believed: the API server hears of a right a moment after it was written, as we do."""
MOST_REMEMBERED: Final = 100_000
AT_ONCE: Final = 16
"""Reviews in flight at once, of all requests."""
_NAMESPACED: Final = frozenset({"AnyRoleBinding", "AnyRole"})


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A verb on all objects of a resource, in whichever namespace."""

    verb: str
    group: str
    version: str
    resource: str


@dataclass(slots=True, eq=False)
class Changes:
    """What one watch has to ask again. ``everywhere``: a right changed that may count in any namespace."""

    namespaces: set[str] = field(default_factory=set)
    everywhere: bool = False
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> tuple[set[str], bool]:
        """Return (namespaces, everywhere) since the last time."""
        found = self.namespaces, self.everywhere
        self.namespaces, self.everywhere = set(), False
        self.awake.clear()
        return found


class _Answer(msgspec.Struct, frozen=True):
    """``epochs``: how often rights had changed, in the namespace and everywhere, before it was asked."""

    allowed: bool
    until: float
    epochs: tuple[int, int]


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


_Key = tuple[bytes, Question, str]


class Rights:
    """Asks, with the proxy's right to create SubjectAccessReviews. ``limit``: the age of a view that is believed."""

    def __init__(
        self,
        reviews: Poster,
        objects: Reader[ObjectsView, ObjectRecord],
        *,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviews = reviews
        self._objects = objects
        self.limit = limit
        self._clock = clock
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._asking: dict[tuple[_Key, tuple[int, int]], asyncio.Task[bool]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._epochs: dict[str, int] = {}  # "" for what counts everywhere
        self._changed: dict[str, int] = {}
        self._followers: set[Changes] = set()
        objects.listen(self._object_changed)

    async def allowed(self, identity: Identity, question: Question, namespace: str = "") -> bool:
        """Tell whether RBAC allows it in a namespace, "" for all of them at once; RefusedError 503."""
        return await self._allowed(digest(identity), identity, question, namespace, followed=self.is_followed)

    async def among(self, identity: Identity, question: Question, namespaces: Iterable[str]) -> frozenset[str]:
        """Return those of the namespaces where RBAC allows it; RefusedError 503."""
        wanted, who, followed = list(namespaces), digest(identity), self.is_followed
        found = await asyncio.gather(
            *(self._allowed(who, identity, question, one, followed=followed) for one in wanted)
        )
        return frozenset(name for name, allowed in zip(wanted, found, strict=True) if allowed)

    def forget(self, identity: Identity, question: Question, namespace: str) -> None:
        """Believe an answer no more: the API server has just decided otherwise."""
        self._answers.pop((digest(identity), question, namespace), None)

    @property
    def is_followed(self) -> bool:
        """Whether somebody vouches that every change of a right is known."""
        return self._objects.ready and all(self._objects.view.age(kind) <= self.limit for kind in RBAC_KINDS)

    def changed(self, namespaces: Iterable[str]) -> int:
        """Return the resourceVersion of the last change of a right that may count in one of the namespaces."""
        return max((self._changed.get(name, 0) for name in ("", *namespaces)), default=0)

    def subscribe(self) -> Changes:
        """Return what gathers changes from now on; give it back with `unsubscribe`."""
        changes = Changes()
        self._followers.add(changes)
        return changes

    def unsubscribe(self, changes: Changes) -> None:
        self._followers.discard(changes)

    async def _allowed(
        self, who: bytes, identity: Identity, question: Question, namespace: str, *, followed: bool
    ) -> bool:
        key, epochs = (who, question, namespace), self._epochs_of(namespace)
        found = self._answers.get(key)
        if found is not None and found.epochs == epochs and found.until > self._clock() and followed:
            return found.allowed
        if (asking := self._asking.get((key, epochs))) is None:
            asking = asyncio.ensure_future(self._ask(key, epochs, identity))
            self._asking[key, epochs] = asking
            asking.add_done_callback(lambda task: self._asked((key, epochs), task))
        return await asyncio.shield(asking)

    def _asked(self, flight: tuple[_Key, tuple[int, int]], task: asyncio.Task[bool]) -> None:
        del self._asking[flight]
        if not task.cancelled():
            task.exception()  # everybody who waited may have gone

    async def _ask(self, key: _Key, epochs: tuple[int, int], identity: Identity) -> bool:
        _, question, namespace = key
        try:
            async with self._room:
                answer = await self._reviews.create(PATH, _review(identity, question, namespace))
            allowed = msgspec.json.decode(answer, type=_Review).status.allowed
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("access review failed", error=error)
            raise RefusedError(
                unavailable("the proxy cannot ask the API server what you may list; try again")
            ) from None
        until = self._clock() + (BELIEVED_SECONDS if allowed else REFUSED_SECONDS)
        self._answers[key] = _Answer(allowed, until, epochs)
        self._answers.move_to_end(key)
        while len(self._answers) > MOST_REMEMBERED:
            self._answers.popitem(last=False)
        return allowed

    def _epochs_of(self, namespace: str) -> tuple[int, int]:
        return self._epochs.get(namespace, 0) if namespace else 0, self._epochs.get("", 0)

    def _object_changed(self, change: Change[ObjectRecord]) -> None:
        record = change.new or change.old
        if record is None or record.key.kind not in RBAC_KINDS:
            return
        place = record.key.namespace if record.key.kind in _NAMESPACED else ""
        self._epochs[place] = self._epochs.get(place, 0) + 1
        self._changed[place] = max(self._changed.get(place, 0), self._version(change))
        for changes in self._followers:
            changes.everywhere |= not place
            if place:
                changes.namespaces.add(place)
            changes.awake.set()

    def _version(self, change: Change[ObjectRecord]) -> int:
        new, old = _number(change.new), _number(change.old)
        if new > old:
            return new
        # Buried after a list: nobody knows when it went, but no later than the watchers had seen.
        record = change.new or change.old
        mark = self._objects.view.mark(record.key.kind) if record is not None else None
        return max(old, int(mark.resource_version) if mark is not None and mark.resource_version.isdecimal() else 0)


def _number(record: ObjectRecord | None) -> int:
    return int(record.resource_version) if record is not None and record.resource_version.isdecimal() else 0


def digest(identity: Identity) -> bytes:
    """Return what stands for an identity as a key; with hundreds of groups the whole would be long."""
    return hashlib.blake2b(msgspec.msgpack.encode(identity), digest_size=16).digest()


def _review(identity: Identity, question: Question, namespace: str) -> dict[str, object]:
    attributes = {**msgspec.structs.asdict(question), "namespace": namespace}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": identity.user,
            "groups": list(identity.groups),
            "uid": identity.uid,
            "extra": {key: list(values) for key, values in identity.extra.items()},
            "resourceAttributes": {name: value for name, value in attributes.items() if value},
        },
    }
