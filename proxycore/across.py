"""Lists and watches across namespaces: whose they are, and in which namespaces.

A user of Capsule who may not list a kind in the whole cluster gets the list of its tenants' namespaces, decided one by
one by RBAC. Each request upstream is for one namespace and goes as the caller, so RBAC answers once more; nothing here
reads an object under the proxy's own account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import KubeError
from eventcore.kube import api_path
from eventcore.logs import get
from eventcore.numbers import INT64, whole
from proxycore.access_reviews import digest
from proxycore.identities import crossed_namespaces, is_capsule_user, owns_any
from proxycore.kinds import kind_of
from proxycore.listquery import ListQuery, encoded, parse_query
from proxycore.policy import stale
from proxycore.remembering import Memory
from proxycore.rights import Question, Rights
from proxycore.selectors import render
from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord
    from proxycore.access_reviews import Attributes
    from proxycore.discovery import Discovery
    from proxycore.identities import Identity
    from proxycore.plane.answers import Answered
    from proxycore.policy import Freshness
    from proxycore.requestinfo import RequestInfo

    Send = Callable[[str, str], Awaitable[Answered]]
    """Sends a GET as the caller: target, Accept."""

log = get("proxy.across")

VERBS: Final = frozenset({"list", "watch"})
MOST_TOLD: Final = 32 * 2**20
SHARE_TOLD: Final = 4 * 2**20
"""Bytes of what lists told, and of those of one caller."""
_NAME: Final = 64
_SHAPED: Final = frozenset({"limit", "continue", "pretty", "includeObject"})
"""Parameters that are made anew for each request upstream."""


class Across(msgspec.Struct, frozen=True, kw_only=True):
    """A list or a watch of a namespaced kind in every namespace that the caller may list. ``limit`` 0: none."""

    group: str
    version: str
    resource: str
    kind: str
    verb: str
    query: ListQuery = ListQuery()
    limit: int = 0
    token: str = ""

    @property
    def question(self) -> Question:
        """What RBAC must allow in a namespace."""
        return Question(verb=self.verb, group=self.group, version=self.version, resource=self.resource)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def target(self, namespace: str, pairs: list[tuple[str, str]], *, table: bool) -> str:
        """Return the target upstream for one namespace: the client's own selectors, and these parameters."""
        query = self.query
        kept = [(name, value) for name, value in query.passed_on if name not in _SHAPED]
        if query.labels:
            kept.append(("labelSelector", render(query.labels)))
        if table:
            kept.append(("includeObject", query.include_object))
        path = api_path(self.group, self.version, self.resource, namespace=namespace)
        return f"{path}?{encoded([*kept, *pairs])}"


def crosses(info: RequestInfo) -> bool:
    """Tell whether a request may be a list or watch across namespaces, if its kind is a namespaced one."""
    return (
        info.method == "GET"
        and info.is_resource
        and info.verb in VERBS
        and not (info.namespace or info.name or info.subresource)
        and info.resource != "namespaces"
        and kind_of(info) is None
    )


def read(info: RequestInfo, kind: str) -> Across:
    """Return what a request asks for; RefusedError 400 for a query that means nothing or two things."""
    query = parse_query(info.query, legacy_watch=info.legacy_watch, fields=None)
    given = dict(query.passed_on)
    if query.continues and query.resource_version not in {"", "0"}:
        raise RefusedError(bad_request("specifying resource version is not allowed when using continue"))
    return Across(
        group=info.group,
        version=info.version,
        resource=info.resource,
        kind=kind,
        verb="watch" if query.watch else "list",
        query=query,
        limit=whole(given.get("limit", "0"), INT64) or 0,
        token=given.get("continue", ""),
    )


class Told:
    """Of which namespaces the last lists told, by caller, kind and resourceVersion: a watch goes on from there."""

    def __init__(self, most: int = MOST_TOLD, share: int = SHARE_TOLD) -> None:
        self._sets: Memory[tuple[bytes, str, str, str], frozenset[str]] = Memory(most=most, share=share)

    def get(self, identity: Identity, decision: Across, version: str) -> frozenset[str] | None:
        """Return the namespaces of the list that was answered at a version, None when it is not known."""
        return self._sets.get(self._key(identity, decision, version))

    def put(self, identity: Identity, decision: Across, version: str, names: frozenset[str]) -> None:
        """Keep the namespaces of a list."""
        key = self._key(identity, decision, version)
        self._sets.put(key, names, holder=key[0], size=_NAME * len(names))

    def _key(self, identity: Identity, decision: Across, version: str) -> tuple[bytes, str, str, str]:
        return digest(identity), decision.group, decision.resource, version


class Crossing:
    """Decides. ``rights`` and ``told`` serve the lists and watches."""

    def __init__(self, access: Reader[AccessView, GrantRecord], discovery: Discovery, rights: Rights) -> None:
        self.rights = rights
        self.told = Told()
        self.list_kinds: dict[tuple[str, str, str], str] = {}
        """Of kinds whose lists were seen, what the API server calls them."""
        self.streams = 0
        """Watches upstream that are open now."""
        self._access = access
        self._discovery = discovery

    def candidates(self, identity: Identity) -> frozenset[str]:
        """Return the namespaces that the grants of now let a list hold."""
        grants = self._access.view
        return crossed_namespaces(identity, grants) if is_capsule_user(identity, grants) else frozenset()

    async def allowed(self, identity: Identity, decision: Across, *, since: str = "") -> list[str]:
        """Return the namespaces where the caller may do it, by name, from ``since`` on; RefusedError 503."""
        wanted = [name for name in self.candidates(identity) if name >= since]
        return sorted(await self.rights.among(identity, decision.question, wanted))

    async def decide(self, info: RequestInfo, identity: Identity, freshness: Freshness) -> Across | None:
        """Return what is to be answered here, None: forward it as the caller. RefusedError."""
        if not crosses(info) or not self._concerns(identity, freshness):
            return None
        if (kind := await self._namespaced(info.group, info.version, info.resource)) is None:
            return None
        if not freshness.fresh:
            raise RefusedError(stale(freshness))
        decision = read(info, kind)
        if identity.only:
            return decision  # by its URL the request is about one tenant, whatever else the caller may read
        # Whoever may read the whole cluster reads it as ever.
        return None if await self.rights.allowed(identity, decision.question) else decision

    async def grants(self, asked: Attributes, identity: Identity, freshness: Freshness) -> bool:
        """Tell whether a question of one's own rights is about a list or watch that is answered here."""
        if asked.verb not in VERBS or asked.namespace or asked.name or asked.subresource or not freshness.fresh:
            return False
        if asked.resource == "namespaces" or not self._concerns(identity, freshness):
            return False
        versions = await self._versions(asked.group) if asked.version in {"", "*"} else (asked.version,)
        for version in versions:
            if await self._namespaced(asked.group, version, asked.resource) is not None:
                return True
        return False

    def _concerns(self, identity: Identity, freshness: Freshness) -> bool:
        grants = self._access.view
        return not freshness.ready or (
            is_capsule_user(identity, grants) and (owns_any(identity, grants) or bool(self.candidates(identity)))
        )

    async def _namespaced(self, group: str, version: str, resource: str) -> str | None:
        """Return the kind of a namespaced resource that can be listed, None for any other."""
        try:
            found = await self._discovery.find(group, version, resource)
        except KubeError as error:
            log.warning("the API server does not say what it serves, so RBAC alone answers", error=error)
            return None
        return found.kind if found is not None and found.namespaced and "list" in found.verbs else None

    async def _versions(self, group: str) -> tuple[str, ...]:
        try:
            return await self._discovery.versions(group)
        except KubeError as error:
            log.warning("the API server does not say what it serves", error=error)
            return ()
