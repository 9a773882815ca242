"""Whom a request acts as: each identity that the caller asks for is reviewed, unless it is the caller's own.

A ServiceAccount as the target is allowed by the verb impersonate on ``serviceaccounts/<name>`` in its namespace, as the
API server asks, or on ``users/<username>``, as the existing addon's ClusterRole grants.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from eventcore.errors import KubeError
from eventcore.logs import get
from proxycore.identities import Identity, account_groups
from proxycore.statuses import RefusedError, Status, forbidden, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxycore.authentication import Poster

log = get("proxy.impersonating")

PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
AUTHENTICATED = "system:authenticated"
_AUTHENTICATION_GROUP = "authentication.k8s.io"
MAX_REMEMBERED = 20_000


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to impersonate, as RBAC names it."""

    resource: str  # users, groups, serviceaccounts, uids or userextras
    name: str
    group: str = ""
    subresource: str = ""
    namespace: str = ""


class Acting(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request acts as. ``own``: the caller itself, so its own token goes upstream."""

    identity: Identity
    own: bool


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


def effective(asked: Identity) -> Identity:
    """Return the identity that the API server makes of what was asked for: groups that come by themselves are added."""
    groups = asked.groups
    if not groups and asked.account is not None:
        groups = account_groups(asked.account[0])
    if AUTHENTICATED not in groups and asked.user != "system:anonymous":
        groups = (*groups, AUTHENTICATED)
    return msgspec.structs.replace(asked, groups=groups)


def is_caller(caller: Identity, asked: Identity) -> bool:
    """Tell whether the asked-for identity is exactly the caller's own."""
    return (
        asked.user == caller.user
        and frozenset(effective(asked).groups) == frozenset(caller.groups)
        and asked.uid in {"", caller.uid}
        and all(value in caller.extra.get(key, ()) for key, values in asked.extra.items() for value in values)
    )


def targets(caller: Identity, asked: Identity) -> list[tuple[Target, ...]]:
    """Return what must be allowed: all of the list, each by any one of its alternatives."""
    found: list[tuple[Target, ...]] = []
    if asked.user != caller.user:
        user = Target(resource="users", name=asked.user)
        account = asked.account
        if account is None:
            found.append((user,))
        else:
            namespace, name = account
            found.append((Target(resource="serviceaccounts", namespace=namespace, name=name), user))
    found += [(Target(resource="groups", name=group),) for group in asked.groups if group not in caller.groups]
    if asked.uid and asked.uid != caller.uid:
        found.append((Target(group=_AUTHENTICATION_GROUP, resource="uids", name=asked.uid),))
    found += [
        (Target(group=_AUTHENTICATION_GROUP, resource="userextras", subresource=key, name=value),)
        for key, values in asked.extra.items()
        for value in values
        if value not in caller.extra.get(key, ())
    ]
    return found


class Impersonator:
    """Decides whom a caller may act as; answers are remembered for ``ttl`` seconds."""

    def __init__(self, reviews: Poster, *, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._reviews = reviews
        self._ttl = ttl
        self._clock = clock
        self._remembered: OrderedDict[tuple[bytes, Target], tuple[bool, float]] = OrderedDict()

    async def resolve(self, caller: Identity, asked: Identity | None) -> Acting:
        """Return whom the request acts as; RefusedError 403 in the API server's words, 503 when nobody can tell."""
        if asked is None or is_caller(caller, asked):
            return Acting(identity=caller, own=True)
        needed = targets(caller, asked)
        allowed = await asyncio.gather(*(self._any_allowed(caller, alternatives) for alternatives in needed))
        for alternatives, good in zip(needed, allowed, strict=True):
            if not good:
                raise RefusedError(_refusal(caller, alternatives[0]))
        return Acting(identity=effective(asked), own=False)

    async def _any_allowed(self, caller: Identity, alternatives: tuple[Target, ...]) -> bool:
        return any(await asyncio.gather(*(self._allowed(caller, target) for target in alternatives)))

    async def _allowed(self, caller: Identity, target: Target) -> bool:
        key = msgspec.msgpack.encode(caller), target
        found = self._remembered.get(key)
        if found is not None and found[1] > self._clock():
            return found[0]
        try:
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
