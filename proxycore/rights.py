"""What RBAC lets somebody do in a namespace: asked of the API server, and believed until a right changes.

Watchers publish that a RoleBinding, Role, ClusterRole or ClusterRoleBinding changed; the first two make what is
remembered of their namespace void, the others all of it. Nothing is believed longer than ten seconds, and nothing at
all while nobody vouches for those kinds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.numbers import version
from eventcore.objects import RBAC_KINDS
from proxycore.access_reviews import Asker, Attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.reading import Reader
    from eventcore.views import Change, ObjectRecord, ObjectsView
    from proxycore.access_reviews import AccessReviews
    from proxycore.identities import Identity

BELIEVED_SECONDS: Final = 10.0
REFUSED_SECONDS: Final = 2.0
"""Seconds that a refusal is believed: the API server hears of a right a moment after it was written, as we do."""
TOGETHER: Final = 32
"""Questions of one request that wait for their turns at a time."""
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


class Rights:
    """Asks, with the proxy's right to create SubjectAccessReviews. ``limit``: the age of a view that is believed."""

    def __init__(
        self,
        reviews: AccessReviews,
        objects: Reader[ObjectsView, ObjectRecord],
        *,
        limit: float,
    ) -> None:
        self._reviews = reviews
        self._objects = objects
        self.limit = limit
        self._epochs: dict[str, int] = {}  # "" for what counts everywhere
        self._changed: dict[str, int] = {}
        self._followers: set[Changes] = set()
        objects.listen(self._object_changed)

    async def allowed(self, identity: Identity, question: Question, namespace: str = "") -> bool:
        """Tell whether RBAC allows it in a namespace, "" for all of them at once; RefusedError 429, 503."""
        return await self._allowed(Asker.of(identity), question, namespace, followed=self.is_followed)

    async def among(self, identity: Identity, question: Question, namespaces: Iterable[str]) -> frozenset[str]:
        """Return those of the namespaces where RBAC allows it; RefusedError 429, 503."""
        asker, followed = Asker.of(identity), self.is_followed
        answers = {
            one: self._reviews.known(asker, _attributes(question, one), self._epochs_of(one)) if followed else None
            for one in namespaces
        }
        unknown = [one for one, answer in answers.items() if answer is None]
        for at in range(0, len(unknown), TOGETHER):
            some = unknown[at : at + TOGETHER]
            found = await asyncio.gather(*(self._allowed(asker, question, one, followed=followed) for one in some))
            answers.update(zip(some, found, strict=True))
        return frozenset(one for one, answer in answers.items() if answer)

    def forget(self, identity: Identity, question: Question, namespace: str) -> None:
        """Believe an answer no more: the API server has just decided otherwise."""
        self._reviews.forget(Asker.of(identity), _attributes(question, namespace))

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

    async def _allowed(self, asker: Asker, question: Question, namespace: str, *, followed: bool) -> bool:
        return await self._reviews.allowed(
            asker,
            _attributes(question, namespace),
            believed=(BELIEVED_SECONDS, REFUSED_SECONDS),
            epochs=self._epochs_of(namespace),
            recall=followed,
        )

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
        return max(old, (version(mark.resource_version) or 0) if mark is not None else 0)


def _number(record: ObjectRecord | None) -> int:
    return (version(record.resource_version) or 0) if record is not None else 0


def _attributes(question: Question, namespace: str) -> Attributes:
    return Attributes(**msgspec.structs.asdict(question), namespace=namespace)
