"""Requests of a router that wait to be published: what is urgent first, and each source in its turn. Pure.

A tenant can write what asks for thousands of keys. So what it writes waits behind changes of accounts, owners, Tenants
and namespaces, by which rights are given and taken; of each source, a tenant or a namespace without one, goes one
request in turn; and a key that waits already is not asked for twice.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.events import WorkRequest
from eventcore.keys import Key, WorkerName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.routing import Route

URGENT: Final = 0
"""Changes of what an administrator or Capsule writes, and of accounts."""
USUAL: Final = 1
"""Changes of what tenants write, and of our own objects."""
BULK: Final = 2
"""Starts and sweeps: everything that there is."""
URGENT_KINDS: Final = frozenset(
    {"ServiceAccount", "Namespace", "Tenant", "TenantOwner", "CapsuleConfiguration", "CASecret", "CAConfigMap"}
)


class Outgoing(msgspec.Struct, frozen=True):
    """One request on its way to WORK. ``source``: whose change asks for it."""

    worker: WorkerName
    key: Key
    request: WorkRequest
    msg_id: str = ""
    urgency: int = BULK
    source: str = ""

    @property
    def route(self) -> Route:
        return self.worker, self.key


class Outbox:
    """What waits, one request for each worker and key."""

    def __init__(self) -> None:
        self._waiting: dict[Route, Outgoing] = {}
        self._turns: tuple[OrderedDict[str, OrderedDict[Route, None]], ...] = tuple(
            OrderedDict() for _ in range(BULK + 1)
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, one: Outgoing) -> None:
        """Let a request wait. One of the same key that waits already is asked for once, as the more urgent of both."""
        before = self._waiting.get(one.route)
        if before is None:
            self._insert(one)
            return
        self._drop(before)
        self._insert(_both(before, one))

    def take(self, most: int) -> list[Outgoing]:
        """Return the next requests, at most so many; they wait no more."""
        found: list[Outgoing] = []
        for sources in self._turns:
            while sources and len(found) < most:
                source, routes = next(iter(sources.items()))
                found.append(self._waiting[next(iter(routes))])
                sources.move_to_end(source)
                self._drop(found[-1])
        return found

    def put_back(self, requests: Iterable[Outgoing]) -> None:
        """Let requests that could not be published wait again, unless the key was asked for since."""
        for one in requests:
            since = self._waiting.get(one.route)
            if since is not None:
                self._drop(since)
            self._insert(one if since is None else _both(one, since), first=True)

    def _insert(self, one: Outgoing, *, first: bool = False) -> None:
        self._waiting[one.route] = one
        routes = self._turns[one.urgency].setdefault(one.source, OrderedDict())
        routes[one.route] = None
        if first:
            routes.move_to_end(one.route, last=False)

    def _drop(self, one: Outgoing) -> None:
        del self._waiting[one.route]
        sources = self._turns[one.urgency]
        del sources[one.source][one.route]
        if not sources[one.source]:
            del sources[one.source]


def _both(before: Outgoing, after: Outgoing) -> Outgoing:
    """Return one request for two of the same key: the later cause, the earlier time since when it is wanted."""
    said = after if after.request.cause or not before.request.cause else before
    times = [one.request.since for one in (before, after) if one.request.since is not None]
    first = min(before, after, key=lambda one: one.urgency)
    request = msgspec.structs.replace(said.request, since=min(times, default=None))
    return msgspec.structs.replace(said, request=request, urgency=first.urgency, source=first.source)
