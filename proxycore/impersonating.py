"""Whom a caller may act as: every single thing that it asks for is reviewed, the user first, up to the first no.

Where a caller's own token can be sent on and nothing is filtered, the API server decides instead. Only what it would
not allow is asked for here in any case: to be a ServiceAccount it wants the verb impersonate on
``serviceaccounts/<name>`` in the namespace, while here ``users/<username>`` will do, as the existing addon's
ClusterRole grants; the request then goes under the proxy's account.
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

    def wanted(self, caller: Identity, asked: Identity | None) -> Acting:
        """Return whom a request would act as: the caller itself, or somebody that nothing is proven of yet."""
        if asked is None:
            return Acting(identity=caller, own=True)
        asked = msgspec.structs.replace(asked, groups=self._groups.kept(asked.groups))
        if is_caller(caller, asked):
            return Acting(identity=caller, own=True)
        return Acting(identity=effective(asked), own=False, asked=asked, proven=False)

    async def leaves(self, caller: Identity, acting: Acting) -> bool:
        """Tell whether the API server can be left to decide, as it has the same rule as the proxy for this user.

        RefusedError as `resolve`.
        """
        if self._skip_review or acting.asked is None:
            return False
        user = targets(acting.asked)[0]
        return len(user) == 1 or await self._allowed(Asker.of(caller), user[0])

    async def resolve(self, caller: Identity, acting: Acting, *, token: bool) -> Acting:
        """Return as whom the request acts, proven. ``token``: the caller has one that can be sent on.

        RefusedError 403 in the API server's words, 429 when the caller asks for too much at a time, 503 when nobody
        can tell.
        """
        if acting.proven or acting.asked is None:
            return acting
        by_token = False
        # Who shows no credential is reviewed all the same.
        if not self._skip_review or caller.user == ANONYMOUS_USER:
            by_token = await self._review(Asker.of(caller), targets(acting.asked)) and token
        return msgspec.structs.replace(acting, asked=acting.asked if by_token else None, proven=True)

    async def _review(self, asker: Asker, needed: list[tuple[Target, ...]]) -> bool:
        """Return when all is allowed, and whether the API server would allow it too; RefusedError."""
        by_sort: dict[Target, list[tuple[Target, ...]]] = {}
        for alternatives in needed:
            by_sort.setdefault(alternatives[0].sort, []).append(alternatives)
        left = MOST_NAMES
        everywhere = True
        for sort, wanted in by_sort.items():
            # Of several of one sort it is asked first whether any name will do: hundreds of groups cost one question.
            if len(wanted) > 1 and await self._allowed(asker, sort):
                continue
            left -= len(wanted)
            if left < 0:
                raise RefusedError(_refusal(asker.identity, sort, _TOO_MANY))
            for at in range(0, len(wanted), TOGETHER):
                some = wanted[at : at + TOGETHER]
                found = await asyncio.gather(*(self._first_allowed(asker, alternatives) for alternatives in some))
                for alternatives, allowed in zip(some, found, strict=True):
                    if allowed is None:
                        raise RefusedError(_refusal(asker.identity, alternatives[0]))
                    everywhere &= allowed is alternatives[0]
        return everywhere

    async def _first_allowed(self, asker: Asker, alternatives: tuple[Target, ...]) -> Target | None:
        for target in alternatives:
            if await self._allowed(asker, target):
                return target
        return None

    async def _allowed(self, asker: Asker, target: Target) -> bool:
        attributes = Attributes(verb="impersonate", **msgspec.structs.asdict(target))
        return await self._reviews.allowed(asker, attributes, believed=(self._ttl, self._ttl))


_TOO_MANY: Final = (
    f"one request may name {MOST_NAMES} things that need a right each; ask for fewer, or get the right to every name"
)


def _refusal(caller: Identity, target: Target, why: str = "") -> Status:
    return forbidden(
        caller.user,
        "impersonate",
        target.resource,
        subresource=target.subresource,
        name=target.name,
        group=target.group,
        namespace=target.namespace,
        why=why,
    )
