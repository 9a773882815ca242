"""Whom a caller may act as: every single thing that it asks for is reviewed, the user first, up to the first no.

A ServiceAccount as the target is allowed by the verb impersonate on ``serviceaccounts/<name>`` in its namespace, as the
API server asks, or on ``users/<username>``, as the existing addon's ClusterRole grants.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from proxycore.access_reviews import Asker, Attributes
from proxycore.acting import ANONYMOUS_USER, Acting, Target, effective, is_caller, targets
from proxycore.group_filter import GroupFilter
from proxycore.statuses import RefusedError, Status, forbidden

if TYPE_CHECKING:
    from proxycore.access_reviews import AccessReviews
    from proxycore.identities import Identity

MOST_NAMES: Final = 100
"""Names of one request that are reviewed one by one."""
TOGETHER: Final = 16
"""Of those, so many wait for their turns at a time; after a no there are no more."""


class Impersonator:
    """Decides whom a caller may act as; answers are remembered for ``ttl`` seconds.

    ``groups`` drops groups that are asked for before anything else looks at them. ``skip_review``: everybody who
    is known may act as everybody.
    """

    def __init__(
        self,
        reviews: AccessReviews,
        *,
        ttl: float,
        groups: GroupFilter | None = None,
        skip_review: bool = False,
    ) -> None:
        self._reviews = reviews
        self._ttl = ttl
        self._groups = groups or GroupFilter()
        self._skip_review = skip_review

    async def resolve(self, caller: Identity, asked: Identity | None) -> Acting:
        """Return whom the request acts as.

        RefusedError 403 in the API server's words, 429 when the caller asks for too much at a time, 503 when nobody
        can tell.
        """
        if asked is None:
            return Acting(identity=caller, own=True)
        asked = msgspec.structs.replace(asked, groups=self._groups.kept(asked.groups))
        if is_caller(caller, asked):
            return Acting(identity=caller, own=True)
        # Who shows no credential is reviewed all the same.
        if not self._skip_review or caller.user == ANONYMOUS_USER:
            await self._review(Asker.of(caller), targets(asked))
        return Acting(identity=effective(asked), own=False)

    async def _review(self, asker: Asker, needed: list[tuple[Target, ...]]) -> None:
        by_sort: dict[Target, list[tuple[Target, ...]]] = {}
        for alternatives in needed:
            by_sort.setdefault(alternatives[0].sort, []).append(alternatives)
        left = MOST_NAMES
        for sort, wanted in by_sort.items():
            # Of several of one sort it is asked first whether any name will do: hundreds of groups cost one question.
            if len(wanted) > 1 and await self._allowed(asker, sort):
                continue
            left -= len(wanted)
            if left < 0:
                raise RefusedError(_refusal(asker.identity, sort, _TOO_MANY))
            for at in range(0, len(wanted), TOGETHER):
                some = wanted[at : at + TOGETHER]
                allowed = await asyncio.gather(*(self._any_allowed(asker, alternatives) for alternatives in some))
                for alternatives, good in zip(some, allowed, strict=True):
                    if not good:
                        raise RefusedError(_refusal(asker.identity, alternatives[0]))

    async def _any_allowed(self, asker: Asker, alternatives: tuple[Target, ...]) -> bool:
        for target in alternatives:
            if await self._allowed(asker, target):
                return True
        return False

    async def _allowed(self, asker: Asker, target: Target) -> bool:
        attributes = Attributes(verb="impersonate", **msgspec.structs.asdict(target))
        return await self._reviews.allowed(asker, attributes, believed=(self._ttl, self._ttl))


_TOO_MANY: Final = (
    f"one request may name {MOST_NAMES} things that need a right each; ask for fewer, or get the right to every name"
)


def _refusal(caller: Identity, target: Target, why: str = "") -> Status:
    resource = f"{target.resource}/{target.subresource}" if target.subresource else target.resource
    return forbidden(
        caller.user, "impersonate", resource, name=target.name, group=target.group, namespace=target.namespace, why=why
    )
