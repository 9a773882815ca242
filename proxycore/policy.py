"""What becomes of a request: the one place where the proxy decides, pure.

Whoever is no user of Capsule, and every request that is not about Namespaces themselves or about one of the
cluster-scoped kinds of ``kinds``, goes to the API server as the caller, and RBAC answers there. Only two sorts of
request ever go under the proxy's own account: the list, the watch and the get of Namespaces, and what the grants say
of the other kinds, each narrowed to what is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from eventcore.selectors import Requirement
from proxycore.identities import Grants, Identity, is_capsule_user, namespaces_of, owns_any
from proxycore.kinds import NAMESPACE_KIND, ProxiedKind, kind_of, ruled_kind_of
from proxycore.listquery import ListQuery, parse_query
from proxycore.rules import OPERATION_OF, Scope, is_named, scope_of, selectors_of
from proxycore.statuses import RefusedError, Status, bad_request, unavailable

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


class ReadMemory(msgspec.Struct, frozen=True):
    """Read one of the caller's Namespaces as it stands in memory: any version of it will do."""

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


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """A request about another cluster-scoped kind, under the proxy's account, for the objects of a scope alone.

    ``verb`` is get, list, watch, or that of a write to one object. A get or a write of an object that is not in the
    scope goes on as the caller. Of a kind that is ``discovered`` the API server must first say that it is
    cluster-scoped; else the request goes on as the caller too.
    """

    kind: ProxiedKind
    verb: str
    scope: Scope
    name: str = ""
    query: ListQuery = ListQuery()


class Review(msgspec.Struct, frozen=True):
    """A question of the caller about its own rights goes on as the caller; what the proxy grants is added.

    ``rules``: all rights are asked for, not one.
    """

    rules: bool


Decision = Refuse | Forward | ReadOne | ReadMemory | ListUpstream | ListMemory | WatchMemory | Filtered | Review

_ANY_VERSION = "resourceVersion=0"
_REVIEW_GROUP = "authorization.k8s.io"
_REVIEWS = {"selfsubjectaccessreviews": Review(rules=False), "selfsubjectrulesreviews": Review(rules=True)}


def decide(
    info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness, *, discovered: bool = True
) -> Decision:
    """Return what becomes of a request of this identity; RefusedError (400) for a query that means two things.

    Without ``discovered`` no rule speaks of a kind that is not known here: it is none of the cluster scope.
    """
    kind = kind_of(info)
    if kind is None and discovered and info.method == "GET":
        kind = ruled_kind_of(info)
    if kind is not None:
        return _other_kind(info, kind, identity, grants, freshness)
    if (info.method, info.verb, info.group) == ("POST", "create", _REVIEW_GROUP) and not info.subresource:
        grants_count = freshness.fresh and not info.namespace and is_capsule_user(identity, grants)
        return _REVIEWS.get(info.resource, Forward()) if grants_count else Forward()
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
    if selectors_of(identity, grants, NAMESPACE_KIND, info.verb):
        return _filtered(info, NAMESPACE_KIND, _namespaces(identity, grants, info.verb))
    query = parse_query(info.query, legacy_watch=info.legacy_watch)
    if info.name:  # as the old spelling of a watch may have it
        only = Requirement("metadata.name", "in", (info.name,))
        query = msgspec.structs.replace(query, fields=(only, *query.fields))
    if query.watch:
        return WatchMemory(query)
    names = namespaces_of(identity, grants)
    return ListMemory(names, query) if query.from_cache else ListUpstream(names, query)


def _get(info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness) -> Decision:
    if not freshness.ready:
        return Refuse(stale(freshness))
    if not is_capsule_user(identity, grants):
        return Forward()
    mine = info.name in namespaces_of(identity, grants)
    if not mine and not selectors_of(identity, grants, NAMESPACE_KIND, info.verb):
        return Forward()
    if not freshness.fresh:
        return Refuse(stale(freshness))
    if not mine:
        return _filtered(info, NAMESPACE_KIND, _namespaces(identity, grants, info.verb))
    return ReadMemory(info.name) if info.query == _ANY_VERSION else ReadOne(info.name)


def _namespaces(identity: Identity, grants: Grants, verb: str) -> Scope:
    return scope_of(identity, grants, NAMESPACE_KIND, verb) or Scope()


def _other_kind(
    info: RequestInfo, kind: ProxiedKind, identity: Identity, grants: Grants, freshness: Freshness
) -> Decision:
    reads = info.method == "GET"
    writes_one = info.verb in OPERATION_OF and bool(info.name)
    if info.verb not in kind.verbs or not (reads or writes_one):
        return Forward()
    if not freshness.ready and not kind.discovered:
        return Refuse(stale(freshness))
    if freshness.ready and not is_capsule_user(identity, grants):
        return Forward()
    scope = scope_of(identity, grants, kind, info.verb)
    if scope is None:
        return Forward()
    if not freshness.fresh:
        return Refuse(stale(freshness))
    if kind.discovered and not is_named(identity, grants, kind):
        # Nobody gives the proxy the right to read everything; what it may not read is as if no rule spoke of it.
        kind = msgspec.structs.replace(kind, optional=True)
    return _filtered(info, kind, scope, reads=reads)


def _filtered(info: RequestInfo, kind: ProxiedKind, scope: Scope, *, reads: bool = True) -> Filtered:
    query = parse_query(info.query, legacy_watch=info.legacy_watch, fields=None) if reads else ListQuery()
    if info.legacy_watch and info.name:
        if "fieldSelector" in dict(query.passed_on):
            raise RefusedError(bad_request("a watch of one object takes no field selector"))
        only = ("fieldSelector", f"metadata.name={info.name}")
        query = msgspec.structs.replace(query, passed_on=(*query.passed_on, only))
    return Filtered(
        kind=kind,
        verb="watch" if query.watch and info.verb == "list" else info.verb,
        scope=scope,
        name=info.name,
        query=query,
    )


def is_missing(info: RequestInfo, identity: Identity, grants: Grants, freshness: Freshness, *, exists: bool) -> bool:
    """Tell whether a 403 for this request is better a 404: a namespace that is not there, or an object in one.

    Installers take a 403 for a failure and a 404 for "make it". Only who owns a tenant is told: it learns nothing that
    an attempt to create the namespace would not tell it.
    """
    return (
        info.method == "GET"
        and info.verb == "get"
        and bool(info.namespace)
        and not info.subresource
        and not exists
        and freshness.fresh
        and is_capsule_user(identity, grants)
        and owns_any(identity, grants)
    )


def stale(freshness: Freshness) -> Status:
    """Return the refusal of a filtered answer while memory is not current."""
    if not freshness.ready:
        return unavailable("the proxy is still reading the grants; try again")
    return unavailable(
        f"the proxy's view of the cluster is {freshness.age:.0f} s old, over the limit of {freshness.limit:.0f} s; "
        "try again, and look at the watchers and at NATS",
        retry_after=5,
    )
