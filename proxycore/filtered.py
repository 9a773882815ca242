"""Cluster-scoped kinds for tenants: read under the proxy's account, judged object by object, and cut down.

Nothing of an object that the scope does not allow leaves this module: neither its name, nor how many of them there are,
nor where a page would go on. What is not the caller's is answered by nobody here: the request then goes to the API
server as the caller, and RBAC says what it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import msgspec

from eventcore.errors import ForbiddenError, KubeError, KubeUnreachableError, NotFoundError, UnauthorizedError
from eventcore.kube import METADATA_LIST
from eventcore.logs import get
from eventcore.numbers import version
from proxycore.documents import View, filter_list, filter_one, names_in, view_for
from proxycore.kinds import VOLUMES
from proxycore.listquery import ListQuery, encoded
from proxycore.rule_matching import ANY
from proxycore.rules import Scope, Seen
from proxycore.selectors import render
from proxycore.shapes import Objects, Rows
from proxycore.shared import SharedKind, SharedKinds
from proxycore.shared_watch import fields_of, selects
from proxycore.statuses import RefusedError, Status, bad_gateway, expired, unavailable
from proxycore.table_memory import SharedTable, SharedVolumes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from eventcore.kube import KubeClient
    from proxycore.discovery import Discovery
    from proxycore.kind_memory import Record
    from proxycore.kinds import ProxiedKind
    from proxycore.policy import Filtered
    from proxycore.representations import Form
    from proxycore.shapes import Shape
    from proxycore.shared import K
    from proxycore.upstream import Upstream

log = get("proxy.filtered")

T = TypeVar("T")

START_SECONDS: Final = 5.0
"""How long a client waits for memory to hold a kind; then the API server is asked."""
_NOT_SENT: Final = frozenset({"limit", "continue", "includeObject", "pretty"})
"""Parameters that would cut or shape the answer before it is judged."""


class FilteredKinds:
    """Reads under the proxy's account. The client for watches is its own, since an open one holds a connection."""

    def __init__(self, client: KubeClient, upstream: Upstream, discovery: Discovery) -> None:
        self._client = client
        self._upstream = upstream
        self._discovery = discovery
        self._shared = SharedKinds(client)

    def close(self) -> None:
        """Follow nothing any more."""
        self._shared.close()

    @property
    def followed(self) -> list[SharedKind]:
        """The kinds that are in memory now."""
        return self._shared.all()

    async def held(self, decision: Filtered, form: Form) -> tuple[SharedKind, Shape] | None:
        """Return the kind of a watch or of a read at resourceVersion=0 in memory, and how it is shown there.

        None when memory cannot answer it. Kinds that rules alone speak of are not held: any of them may be large, and
        few look at it.
        """
        if form == "table":
            rows = await self._rows(decision)
            return None if rows is None else (rows, Rows(rows, include=decision.query.include_object))
        kind = await self._held(decision, SharedKind)
        return None if kind is None else (kind, Objects(kind, form))

    async def _held(self, decision: Filtered, made: type[K]) -> K | None:
        query = decision.query
        kind = decision.kind
        if kind.by_node or kind.discovered or query.initial_events is False or fields_of(query) is None:
            return None
        shared = self._shared.of(kind.path, made)
        if not await shared.loaded(START_SECONDS):
            return None
        if query.initial_events and shared.version < (version(query.resource_version) or 0):
            return None  # what there is at that version or later
        return shared

    async def _rows(self, decision: Filtered) -> SharedTable | None:
        if decision.query.include_object == "Object":  # whole objects are not held in rows
            return None
        rows = await self._held(decision, SharedVolumes if decision.kind.setting == VOLUMES else SharedTable)
        if rows is not None and decision.query.from_the_beginning:
            try:
                await rows.print_anew()
            except (KubeError, msgspec.DecodeError) as error:
                log.warning("rows cannot be printed anew", path=rows.path, error=error)
                return None
        return rows

    async def past(self, decision: Filtered, kind: SharedKind) -> dict[str, Record]:
        """Return what a client knows that goes on from before memory began; RefusedError 410 if that is history."""
        asked = {"resourceVersion": decision.query.resource_version, "resourceVersionMatch": "Exact"}
        if narrowed := (*decision.scope.selector(), *decision.query.labels):
            asked["labelSelector"] = render(narrowed)
        return (await _refusing(kind.read(asked)))[0]

    async def answer(self, decision: Filtered, accept: str) -> bytes | None:
        """Return a list or an object, in JSON or protobuf; None: not the caller's, so RBAC answers. RefusedError."""
        view = view_of(decision, accept)
        scope = decision.scope
        if decision.name and scope.by_name_alone and not scope.allows(Seen(name=decision.name)):
            return None
        held = await self._memory(decision, view)
        return await self._ask(decision, view) if held is None else held

    async def _ask(self, decision: Filtered, view: View) -> bytes | None:
        judge = await self._judge(decision)
        try:
            if decision.verb == "list":
                if decision.query.continues:
                    # Pages are not made here: a token of the API server's would tell of objects in between.
                    raise RefusedError(expired("of the continue token", 0))
                body = await self._get(decision.kind.path, _list_query(decision, view), view.accept("list"))
                return filter_list(body, view, judge)
            target = f"{decision.kind.path}/{quote(decision.name, safe='')}"
            return filter_one(await self._get(target, _one_query(decision, view), view.accept("one")), view, judge)
        except NotFoundError as error:
            if decision.verb == "list":
                raise RefusedError(status_of(error)) from None
            return None
        except ForbiddenError as error:
            if decision.kind.optional:
                return None
            raise RefusedError(status_of(error)) from None
        except KubeError as error:
            raise RefusedError(status_of(error)) from None
        except msgspec.DecodeError:
            raise RefusedError(bad_gateway("the API server's answer cannot be read")) from None

    async def _memory(self, decision: Filtered, view: View) -> bytes | None:
        """Return a read at resourceVersion=0 from memory; None when it cannot tell, or another is asked for."""
        fields = fields_of(decision.query)
        if decision.verb not in {"list", "get"} or not decision.query.from_cache or view.binary or fields is None:
            return None
        if (held := await self.held(decision, view.form)) is None:
            return None
        kind, shape = held
        if decision.name:
            one = kind.records.get(decision.name)
            return shape.body(one) if one is not None and decision.scope.allows(one.seen) else None
        records = (kind.records[name] for name in sorted(kind.records))
        return shape.listed((one for one in records if selects(one.seen, decision, fields)), kind.version)

    async def is_served(self, decision: Filtered) -> bool:
        """Tell whether a kind that is discovered is one of the cluster scope; RefusedError 503 when nobody can say.

        A watch of an optional one is none that the proxy can answer unless it may read the kind.
        """
        kind = decision.kind
        if not kind.discovered:
            return True
        if not await self.version_of(kind.group, kind.version, kind.resource):
            return False
        return not (kind.optional and decision.verb == "watch") or await self.may_read(kind)

    async def may_read(self, kind: ProxiedKind) -> bool:
        """Tell whether the proxy's account may read a kind; RefusedError when nobody can say."""
        try:
            await self._get(kind.path, encoded([("limit", "1")]), METADATA_LIST)
        except ForbiddenError:
            return False
        except KubeError as error:
            raise RefusedError(status_of(error)) from None
        return True

    async def version_of(self, group: str, version: str, resource: str) -> str:
        """Return the version in which a resource can be read in the whole cluster, "" for none.

        ``version``: "" or ``*`` for any, the preferred one first. RefusedError (503) when the API server does not say:
        without knowing that a kind is cluster-scoped no rule speaks of it.
        """
        try:
            versions = await self._discovery.versions(group) if version in {"", ANY} else (version,)
            for one in versions:
                found = await self._discovery.find(group, one, resource)
                if found is not None and not found.namespaced and "get" in found.verbs and "/" not in resource:
                    return one
        except KubeError as error:
            log.warning("the API server's discovery cannot be read", error=error)
            why = "the API server does not say which kinds are cluster-scoped; try again"
            raise RefusedError(unavailable(why)) from None
        return ""

    async def permits(self, decision: Filtered) -> bool:
        """Tell whether a write is to an object of the caller's that exists."""
        judged = msgspec.structs.replace(decision, verb="get", query=ListQuery())
        return await self.answer(judged, "application/json") is not None

    async def known(self, decision: Filtered) -> frozenset[str]:
        """Return the names in the scope as they were at the version of a watch; RefusedError 410 if that is history."""
        query = msgspec.structs.replace(decision.query, resource_version_match="Exact", initial_events=None)
        view = View(form="json")
        listed = _list_query(msgspec.structs.replace(decision, query=query), view)
        return await self._names(decision, decision.kind.path, listed, view)

    def stream(self, decision: Filtered, view: View) -> AbstractAsyncContextManager[aiohttp.StreamReader]:
        """Open a watch of the whole kind; KubeError."""
        return self._client.stream(
            f"{decision.kind.path}?{watch_query(decision, view)}", params={}, accept=view.accept("one")
        )

    async def _judge(self, decision: Filtered) -> Callable[[Seen], bool]:
        """Return what judges an object. Metrics carry no labels of their own: the Node of that name decides."""
        if not decision.kind.by_node:
            return decision.scope.allows
        listed = encoded(_pushed(decision.scope))
        mine = await self._names(decision, "/api/v1/nodes", listed, View(form="metadata"))
        return lambda seen: seen.name in mine

    async def _names(self, decision: Filtered, path: str, query: str, view: View) -> frozenset[str]:
        """Return the names in the scope that a list upstream holds; RefusedError."""

        async def read() -> frozenset[str]:
            return names_in(await self._get(path, query, view.accept("list")), decision.scope.allows)

        return await _refusing(read())

    async def _get(self, path: str, query: str, accept: str) -> bytes:
        return await self._upstream.read(f"{path}?{query}" if query else path, accept)


async def _refusing(read: Awaitable[T]) -> T:
    """Await what is read for a caller, who hears of a failure; RefusedError."""
    try:
        return await read
    except KubeError as error:
        raise RefusedError(status_of(error)) from None
    except msgspec.DecodeError:
        raise RefusedError(bad_gateway("the API server's answer cannot be read")) from None


def view_of(decision: Filtered, accept: str) -> View:
    """Return how the caller wants it; RefusedError 406."""
    return view_for(
        accept,
        watch=decision.verb == "watch",
        single=decision.verb == "get",
        include=decision.query.include_object,
        whole=decision.kind.setting == VOLUMES,
    )


def watch_query(decision: Filtered, view: View) -> str:
    """Return the query of the watch upstream."""
    query = decision.query
    pairs = [("watch", "true"), *_shared(decision, view)]
    if query.bookmarks:
        pairs.append(("allowWatchBookmarks", "true"))
    if query.initial_events is not None:
        pairs.append(("sendInitialEvents", "true" if query.initial_events else "false"))
    if query.timeout is not None:
        pairs.append(("timeoutSeconds", str(query.timeout)))
    return encoded([*pairs, *_version(query)])


def status_of(error: KubeError) -> Status:
    """Return what the caller is told of a failure of the proxy's own request."""
    if isinstance(error, ForbiddenError | UnauthorizedError):
        log.error("the proxy's account may not read a kind that tenants may see", error=error)
        return unavailable("the proxy's own account may not read this kind; tell the administrator", retry_after=5)
    if isinstance(error, KubeUnreachableError) or not error.status:
        log.warning("no answer from the API server", error=error)
        return unavailable("the API server cannot be reached; try again")
    retry = int(error.retry_after or 0)
    # Without the request in brackets at its end: that is the proxy's own and not what the caller asked.
    message = str(error).rsplit(" (", 1)[0]
    return Status(code=error.status, reason=error.reason or "Unknown", message=message, retry_after=retry)


def _list_query(decision: Filtered, view: View) -> str:
    pairs = _shared(decision, view)
    return encoded([*pairs, *_version(decision.query)])


def _one_query(decision: Filtered, view: View) -> str:
    include = [("includeObject", view.asked_include)] if view.form == "table" else []
    return encoded([*include, *_version(decision.query)])


def _shared(decision: Filtered, view: View) -> list[tuple[str, str]]:
    query = decision.query
    pairs = [(name, value) for name, value in query.passed_on if name not in _NOT_SENT]
    if not decision.kind.by_node:
        # What is the scope's stands beside what is the client's; both only narrow, and each object is judged again.
        query = msgspec.structs.replace(query, labels=(*decision.scope.selector(), *query.labels))
    if query.labels:
        pairs.append(("labelSelector", render(query.labels)))
    if view.form == "table":
        pairs.append(("includeObject", view.asked_include))
    return pairs


def _pushed(scope: Scope) -> list[tuple[str, str]]:
    return [("labelSelector", render(scope.selector()))] if scope.selector() else []


def _version(query: ListQuery) -> list[tuple[str, str]]:
    found = [("resourceVersion", query.resource_version), ("resourceVersionMatch", query.resource_version_match)]
    return [(name, value) for name, value in found if value]
