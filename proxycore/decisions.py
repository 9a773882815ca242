"""Decisions that are taken again and again: remembered until anything that decides has changed.

A decision depends on the request, the identity, and the two views. Whatever a view applies moves its sequence on, so
what was decided before is forgotten with it. How fresh the views are is asked for each request: nothing remembered is
used, and nothing is remembered, once they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxycore.policy import Filtered, ListMemory, ListUpstream, WatchMemory, decide
from proxycore.remembering import Memory, size_of

if TYPE_CHECKING:
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.freshness import Freshener
    from proxycore.identities import Identity
    from proxycore.policy import Decision
    from proxycore.requestinfo import RequestInfo

MOST: Final = 32 * 2**20
SHARE: Final = 4 * 2**20
"""Bytes of decisions that are kept, and of those of one caller."""
_INFO: Final = 1024


class Decisions:
    """Decides. ``epoch`` is another one after every change of the views, and never one that was before."""

    def __init__(
        self,
        access: Reader[AccessView, GrantRecord],
        objects: Reader[ObjectsView, ObjectRecord],
        freshener: Freshener,
    ) -> None:
        self._access = access
        self._objects = objects
        self._freshener = freshener
        self._state: tuple[AccessView, int, ObjectsView, int] | None = None
        # By object, not by value: both come from memories of their own. The entry holds them, so no id is used again.
        self._kept: Memory[tuple[int, int], tuple[RequestInfo, Identity, Decision]] = Memory(most=MOST, share=SHARE)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._kept)

    def decide(self, info: RequestInfo, identity: Identity, *, remember: bool = True) -> Decision:
        """Return what becomes of a request of this identity now; RefusedError as `policy.decide`.

        ``remember``: the same two objects will come again.
        """
        freshness = self._freshener.recent()
        grants = self._access.view
        if not (remember and freshness.fresh):
            return decide(info, identity, grants, freshness)
        self.look()
        key = id(info), id(identity)
        found = self._kept.get(key)
        if found is not None:
            return found[2]
        decision = decide(info, identity, grants, freshness)
        self._kept.put(key, (info, identity, decision), holder=identity.user, size=_size(info, decision))
        return decision

    def look(self) -> None:
        """Forget everything if a view moved on."""
        access, objects = self._access.view, self._objects.view
        state = self._state
        if (
            state is None
            or state[1] != access.sequence
            or state[3] != objects.sequence
            or state[0] is not access
            or state[2] is not objects
        ):
            self._state = access, access.sequence, objects, objects.sequence
            self._kept.clear()
            self.epoch += 1

    @property
    def size(self) -> int:
        """Bytes that are kept, about."""
        return self._kept.size


def _size(info: RequestInfo, decision: Decision) -> int:
    size = _INFO + 3 * len(info.target)  # as it came, its path, and what stands in it
    if isinstance(decision, ListMemory | ListUpstream):
        size += size_of(decision.query, len(decision.names))
    elif isinstance(decision, WatchMemory):
        size += size_of(decision.query)
    elif isinstance(decision, Filtered):
        size += size_of(decision.query, len(decision.scope.names))
    return size
