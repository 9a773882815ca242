"""Decisions that are taken again and again: remembered until anything that decides has changed.

A decision depends on the request, the identity, and the two views. Whatever a view applies moves its sequence on, so
what was decided before is forgotten with it. How fresh the views are is asked for each request: nothing remembered is
used, and nothing is remembered, once they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxycore.policy import decide

if TYPE_CHECKING:
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.freshness import Freshener
    from proxycore.identities import Identity
    from proxycore.policy import Decision
    from proxycore.requestinfo import RequestInfo

MOST: Final = 4096
"""Decisions that are kept."""


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
        self._kept: dict[tuple[int, int], tuple[RequestInfo, Identity, Decision]] = {}
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
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[key] = info, identity, decision
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
