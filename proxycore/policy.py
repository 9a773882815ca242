"""What becomes of a request: the one place where the proxy decides, pure.

Whoever is no user of Capsule, and every request that is not about Namespaces themselves, goes to the API server as the
caller, and RBAC answers there. Only three requests ever go under the proxy's own account: the list, the watch and the
get of Namespaces, each narrowed to what the caller's tenants own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from proxycore.identities import Grants, Identity, is_capsule_user, namespaces_of
from proxycore.listquery import ListQuery, parse_query
from proxycore.selectors import Requirement
from proxycore.statuses import Status, unavailable

if TYPE_CHECKING:
    from proxycore.requestinfo import RequestInfo


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """How current memory is: ``ready`` when both views are complete, ``age`` of the older one in seconds."""

    ready: bool
    age: float = 0.0
    limit: float = 30.0

    @property
    def fresh(self) -> bool:
        return self.ready and self.age <= self.limit


class Refuse(msgspec.Struct, frozen=True):
    """The request ends here."""

    status: Status


class Forward(msgspec.Struct, frozen=True):
    """The request goes to the API server as the caller, as it came."""


class ReadOne(msgspec.Struct, frozen=True):
    """A Namespace of the caller's is read under the proxy's account."""

    name: str


class ListUpstream(msgspec.Struct, frozen=True):
    """A consistent list under the proxy's account, narrowed to these names."""

    names: frozenset[str]
    query: ListQuery


class ListMemory(msgspec.Struct, frozen=True):
    """A list from memory, narrowed to these names."""

    names: frozenset[str]
    query: ListQuery


class WatchMemory(msgspec.Struct, frozen=True):
    """A watch from memory that follows the caller's grants."""

    query: ListQuery


Decision = Refuse | Forward | ReadOne | ListUpstream | ListMemory | WatchMemory


def decide(info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness) -> Decision:
    """Return what becomes of a request of this identity; RefusedError (400) for a query that means two things."""
    if info.method != "GET" or not info.is_namespaces:
        return Forward()
    if info.verb == "get":
        return _get(info, identity, grants, freshness)
    return _collection(info, identity, grants, freshness) if info.verb in {"list", "watch"} else Forward()


def _collection(info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness) -> Decision:
    if freshness.ready and not is_capsule_user(identity, grants):
        return Forward()
    if not freshness.fresh:
        return Refuse(stale(freshness))
    query = parse_query(info.query, legacy_watch=info.legacy_watch)
    if info.legacy_watch and info.name:
        only = Requirement("metadata.name", "in", (info.name,))
        query = msgspec.structs.replace(query, fields=(only, *query.fields))
    if query.watch:
        return WatchMemory(query)
    names = namespaces_of(identity, grants)
    return ListMemory(names, query) if query.from_cache else ListUpstream(names, query)


def _get(info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness) -> Decision:
    if not is_capsule_user(identity, grants) or info.name not in namespaces_of(identity, grants):
        return Forward()
    return ReadOne(info.name) if freshness.fresh else Refuse(stale(freshness))


def stale(freshness: Freshness) -> Status:
    """Return the refusal of a filtered answer while memory is not current."""
    if not freshness.ready:
        return unavailable("the proxy is still reading the grants; try again")
    return unavailable(
        f"the proxy's view of the cluster is {freshness.age:.0f} s old, over the limit of {freshness.limit:.0f} s; "
        "try again, and look at the watchers and at NATS",
        retry_after=5,
    )
