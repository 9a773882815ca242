"""Whom a request acts as: each identity that the caller asks for is reviewed, unless it is the caller's own.

A ServiceAccount as the target is allowed by the verb impersonate on ``serviceaccounts/<name>`` in its namespace, as the
API server asks, or on ``users/<username>``, as the existing addon's ClusterRole grants.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import KubeError
from eventcore.logs import get
from proxycore.acting import ANONYMOUS_USER, Acting, Target, effective, is_caller, targets
from proxycore.group_filter import GroupFilter
from proxycore.identities import Identity
from proxycore.statuses import RefusedError, Status, forbidden, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxycore.authentication import Poster

log = get("proxy.impersonating")

PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
MAX_REMEMBERED = 20_000
AT_ONCE: Final = 32
"""Reviews of all callers that run at a time, so that a few with many groups do not take the API server's time."""


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class Impersonator:
    """Decides whom a caller may act as; answers are remembered for ``ttl`` seconds.

    ``groups`` drops groups that are asked for before anything else looks at them. ``skip_review``: everybody who
    is known may act as everybody.
    """

    def __init__(
        self,
        reviews: Poster,
        *,
        ttl: float,
        groups: GroupFilter | None = None,
        skip_review: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviews = reviews
        self._ttl = ttl
        self._groups = groups or GroupFilter()
        self._skip_review = skip_review
        self._clock = clock
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._remembered: OrderedDict[tuple[bytes, Target], tuple[bool, float]] = OrderedDict()
        self._running: dict[tuple[bytes, Target], asyncio.Task[bool]] = {}

    @property
    def size(self) -> int:
        """How many answers are remembered."""
        return len(self._remembered)

    async def resolve(self, caller: Identity, asked: Identity | None) -> Acting:
        """Return whom the request acts as; RefusedError 403 in the API server's words, 503 when nobody can tell."""
        if asked is None:
            return Acting(identity=caller, own=True)
        asked = msgspec.structs.replace(asked, groups=self._groups.kept(asked.groups))
        if is_caller(caller, asked):
            return Acting(identity=caller, own=True)
        # Who shows no credential is reviewed all the same.
        skips = self._skip_review and caller.user != ANONYMOUS_USER
        needed = [] if skips else targets(asked)
        by_sort: dict[Target, list[tuple[Target, ...]]] = {}
        for alternatives in needed:
            by_sort.setdefault(alternatives[0].sort, []).append(alternatives)
        asking = _Asking(caller, msgspec.msgpack.encode(caller))
        refused = await asyncio.gather(*(self._refused(asking, sort, wanted) for sort, wanted in by_sort.items()))
        for target in refused:
            if target is not None:
                raise RefusedError(_refusal(caller, target))
        return Acting(identity=effective(asked), own=False)

    async def _refused(self, asking: _Asking, sort: Target, wanted: list[tuple[Target, ...]]) -> Target | None:
        """Return the first of one sort that the caller may not impersonate, None when it may all.

        Of several it is asked first whether any name will do, so that hundreds of groups cost one question.
        """
        if len(wanted) > 1 and await self._allowed(asking, sort):
            return None
        allowed = await asyncio.gather(*(self._any_allowed(asking, alternatives) for alternatives in wanted))
        return next((one[0] for one, good in zip(wanted, allowed, strict=True) if not good), None)

    async def _any_allowed(self, asking: _Asking, alternatives: tuple[Target, ...]) -> bool:
        return any(await asyncio.gather(*(self._allowed(asking, target) for target in alternatives)))

    async def _allowed(self, asking: _Asking, target: Target) -> bool:
        key = asking.digest, target
        found = self._remembered.get(key)
        if found is not None and found[1] > self._clock():
            return found[0]
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(asking.caller, target, key))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # A caller that goes away must not take the review from the others that wait for it.
        return await asyncio.shield(task)

    async def _ask(self, caller: Identity, target: Target, key: tuple[bytes, Target]) -> bool:
        try:
            async with self._gate:
                answer = await self._reviews.create(PATH, _review(caller, target))
            allowed = msgspec.json.decode(answer, type=_Review).status.allowed
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("impersonation review failed", error=error)
            raise RefusedError(
                unavailable("the proxy cannot ask the API server whether you may impersonate; try again")
            ) from None
        self._remembered[key] = allowed, self._clock() + self._ttl
        self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return allowed


class _Asking(msgspec.Struct, frozen=True):
    """Who asks; ``digest`` stands for it where answers are remembered."""

    caller: Identity
    digest: bytes


def _review(caller: Identity, target: Target) -> dict[str, object]:
    attributes = {"verb": "impersonate", **{k: v for k, v in msgspec.structs.asdict(target).items() if v}}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": caller.user,
            "groups": list(caller.groups),
            "uid": caller.uid,
            "extra": {key: list(values) for key, values in caller.extra.items()},
            "resourceAttributes": attributes,
        },
    }


def _refusal(caller: Identity, target: Target) -> Status:
    resource = f"{target.resource}/{target.subresource}" if target.subresource else target.resource
    return forbidden(
        caller.user, "impersonate", resource, name=target.name, group=target.group, namespace=target.namespace
    )
