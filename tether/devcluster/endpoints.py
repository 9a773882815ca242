"""From an authorised request to its answer: which verb of which kind, documents of discovery, virtual kinds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from tether.devcluster import answers, bodies, discovery, errors
from tether.devcluster.answers import Answer
from tether.devcluster.contracts import Object, Resource, UserInfo, VirtualHandler
from tether.devcluster.negotiation import JSON, Representation, negotiate
from tether.devcluster.objects import metadata
from tether.devcluster.reads import list_objects, matcher_of
from tether.devcluster.requests import (
    RequestInfo,
    delete_options,
    list_options,
    write_options,
)
from tether.devcluster.watching import Watch
from tether.devcluster.writes import Call, Writer

if TYPE_CHECKING:
    from tether.devcluster.resources import Served
    from tether.devcluster.store import Store

Document = Callable[[], Object]

_ROOT_PATHS = ("/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version")
# Kinds whose DELETE answers with the object; of all others it answers with a Status.
_RETURNED_ON_DELETE = frozenset(
    {
        "namespaces",
        "pods",
        "services",
        "serviceaccounts",
        "persistentvolumes",
        "persistentvolumeclaims",
        "resourcequotas",
    }
)
_SUBRESOURCE_VERBS = {"status": {"get", "update", "patch"}, "finalize": {"update"}, "token": {"create"}}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request after authentication and authorization."""

    user: UserInfo
    info: RequestInfo
    method: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]]

    def accept(self, *, streaming: bool = False, transforms: bool = True) -> Representation:
        return negotiate(self.headers.get("Accept", ""), streaming=streaming, transforms=transforms)

    async def body(self) -> Object:
        """Return the decoded body, which must be there."""
        return bodies.decode(await self.read_body(), self.headers.get("Content-Type", ""))


class WatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that goes on: the HTTP side streams it."""

    watch: Watch
    resource: Resource
    how: Representation


class Endpoints:
    """Answers requests; the documents are served under their paths as they are."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        virtual: Mapping[tuple[str, str], VirtualHandler],
        documents: Mapping[str, Document],
        bookmark_every: float,
    ) -> None:
        self._store = store
        self._writer = writer
        self._virtual = virtual
        self._documents = documents
        self._bookmark_every = bookmark_every

    async def answer(self, asked: Asked) -> Answer | WatchAnswer:
        """Return the answer; ApiError for a failure."""
        if asked.info.resource:
            return await self._resource(asked)
        return self._document(asked)

    def _document(self, asked: Asked) -> Answer:
        path = asked.info.path.rstrip("/") or "/"
        if asked.method not in {"GET", "HEAD"}:
            raise errors.method_not_allowed() if path in self._documents else errors.no_such_path()
        if path in {"/healthz", "/livez", "/readyz"}:
            return Answer(status=200, body=b"ok", media_type="text/plain")
        if path == "/openid/v1/jwks" and path in self._documents:
            body = answers.encode(self._documents[path](), JSON)
            return Answer(status=200, body=body, media_type="application/jwk-set+json")
        if path == "/openapi/v2":
            return discovery.OPENAPI_V2
        found = self._document_at(path, asked.headers.get("Host", ""))
        if found is None:
            raise errors.no_such_path()
        return answers.document(found, asked.accept(transforms=False))

    def _document_at(  # noqa: C901, PLR0911 -- one case for each path
        self, path: str, host: str
    ) -> Object | None:
        if path in self._documents:
            return self._documents[path]()
        kinds = self._store.kinds.all()
        parts = path.strip("/").split("/")
        match parts:
            case [""]:
                return {"paths": sorted([*_ROOT_PATHS, *self._documents])}
            case ["version"]:
                return discovery.VERSION
            case ["api"]:
                return discovery.api_versions(host)
            case ["api", version]:
                return discovery.resource_list(kinds, "", version)
            case ["apis"]:
                return discovery.api_groups(kinds)
            case ["apis", group]:
                return discovery.api_group(kinds, group)
            case ["apis", group, version]:
                return discovery.resource_list(kinds, group, version)
            case ["openapi", "v3"]:
                return discovery.openapi_index(kinds)
            case ["openapi", "v3", *rest]:
                return discovery.openapi(kinds, "/".join(rest))
        return None

    async def _resource(self, asked: Asked) -> Answer | WatchAnswer:
        info = asked.info
        served = self._store.kinds.find(info.group, info.version, info.resource)
        if served is None:
            raise errors.no_such_path()
        self._check_path(served.resource, info)
        handler = self._virtual.get((info.group, f"{info.resource}/{info.subresource}".rstrip("/")))
        if handler is not None and info.verb == "create":
            how = asked.accept(transforms=False)
            api_version, kind = discovery.kind_of(served.resource, info.subresource)
            body = {"kind": kind, "apiVersion": api_version} | await asked.body()
            return answers.document(await handler(asked.user, info.in_namespace, info.name, body), how, 201)
        allowed = _SUBRESOURCE_VERBS.get(info.subresource, set()) if info.subresource else set(served.resource.verbs)
        if info.verb not in allowed:
            raise errors.method_not_allowed()
        return await self._verb(asked, served)

    def _check_path(self, resource: Resource, info: RequestInfo) -> None:
        if info.in_namespace and not resource.namespaced:
            raise errors.no_such_path()
        if info.subresource and info.subresource not in resource.subresources:
            raise errors.no_such_path()
        if resource.namespaced and not info.in_namespace:
            if info.verb in {"list", "watch"}:
                return
            raise errors.method_not_allowed() if not info.name else errors.no_such_path()
        if info.verb == "create" and info.name and not info.subresource:
            raise errors.method_not_allowed()
        if info.verb in {"update", "patch"} and not info.name:
            raise errors.method_not_allowed()

    async def _verb(self, asked: Asked, served: Served) -> Answer | WatchAnswer:
        info, resource, query = asked.info, served.resource, asked.query
        if info.verb == "watch":
            how = asked.accept(streaming=True)
            watch = Watch(self._store, resource, info.in_namespace, list_options(query), self._bookmark_every)
            return WatchAnswer(watch=watch, resource=resource, how=how)
        how = asked.accept()
        if info.verb == "list":
            items, meta = list_objects(self._store, resource, info.in_namespace, list_options(query))
            return answers.many(resource, items, meta, how, query)
        if info.verb == "get":
            obj = self._store.get(resource, info.in_namespace, info.name)
            if obj is None:
                raise errors.not_found(resource, info.name)
            return answers.one(resource, obj, how, query)
        if info.verb in {"delete", "deletecollection"}:
            return await self._delete(asked, served, how)
        return await self._write(asked, served, how)

    async def _write(self, asked: Asked, served: Served, how: Representation) -> Answer:
        warnings: list[str] = []
        call = Call(
            user=asked.user,
            info=asked.info,
            served=served,
            options=write_options(asked.query, asked.headers.get("User-Agent", "")),
            warnings=warnings,
        )
        status = 200
        if asked.info.verb == "patch":
            media_type = bodies.media_type_of(asked.headers.get("Content-Type", ""))
            obj, created = self._writer.patch(call, await asked.read_body(), media_type)
            status = 201 if created else 200
        elif asked.info.verb == "create":
            obj, status = self._writer.create(call, await asked.body()), 201
        else:
            obj = self._writer.update(call, await asked.body())
        answer = answers.one(served.resource, obj, how, asked.query, status)
        if not warnings:
            return answer
        text = "; ".join(dict.fromkeys(warnings)).replace('"', '\\"')
        return msgspec.structs.replace(answer, headers={"Warning": f'299 - "{text}"'})

    async def _delete(self, asked: Asked, served: Served, how: Representation) -> Answer:
        raw = await asked.read_body()
        body = bodies.decode(raw, asked.headers.get("Content-Type", "")) if raw.strip() else {}
        options = delete_options(asked.query, body)
        call = Call(
            user=asked.user,
            info=asked.info,
            served=served,
            options=msgspec.structs.replace(write_options({}, ""), dry_run=options.dry_run),
        )
        if asked.info.verb == "deletecollection":
            matches = matcher_of(served.resource, list_options(asked.query))
            deleted = self._writer.delete_collection(call, options, matches)
            return answers.many(
                served.resource, deleted, {"resourceVersion": str(self._store.version)}, how, asked.query
            )
        obj, gone = self._writer.delete(call, options)
        if not gone or served.resource.plural in _RETURNED_ON_DELETE:
            return answers.one(served.resource, obj, how, asked.query)
        details: Object = {"name": asked.info.name, "kind": served.resource.plural, "uid": metadata(obj)["uid"]}
        if served.resource.group:
            details["group"] = served.resource.group
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return answers.document(status, Representation(how.media_type))
