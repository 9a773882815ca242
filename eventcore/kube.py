"""The Kubernetes client of watchers, workers and proxy: raw bytes and msgspec over one HTTP session of our own.

Nothing here decodes into model classes, obeys proxy variables of the environment, waits without a limit, or tries a
write again by itself: an error of `eventcore.errors` comes out, and the caller's own loop decides. Configuration and
login come from `eventcore.kube_auth`.

    client = await KubeClient.connect(settings)
    namespace = await client.get_as(Namespace, api_path("", "v1", "namespaces", name="oil-system"))
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import yarl

from eventcore import logs
from eventcore.clock import KUBE, now
from eventcore.errors import KubeError, NotFoundError, StartError
from eventcore.kube_auth import KubeAuth
from eventcore.kube_errors import error_of, unreachable
from eventcore.sockets import tcp_socket

if TYPE_CHECKING:
    from eventcore.metrics import Metrics
    from eventcore.settings import Settings

T = TypeVar("T")
Params = Mapping[str, str | int | bool]
Body = Mapping[str, Any] | msgspec.Struct | bytes
Propagation = Literal["Background", "Foreground", "Orphan"]

JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Accept of a GET or watch that must never carry an object's content."""
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""The same for a list."""

_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"

_CONNECTIONS = 128  # a watch holds one for as long as it lasts
_READ_BUFFER = 2**21  # above the largest object that etcd takes
_REFUSED = 300  # redirects are not followed either
_UNAUTHORIZED = 401
_MAX_EVENT_NOTE = 1024
_MAX_NAME = 253


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Which object an Event is about; namespace is "" for cluster scope."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as the API server minted it. Its text never shows in a repr."""

    token: str
    expires: datetime

    def __repr__(self) -> str:
        return f"IssuedToken(token={logs.HIDDEN}, expires={self.expires.isoformat()})"

    def __rich_repr__(self) -> Any:
        yield "token", logs.HIDDEN
        yield "expires", self.expires.isoformat()


class _TokenStatus(msgspec.Struct, rename="camel"):
    token: str
    expiration_timestamp: datetime


class _TokenRequest(msgspec.Struct):
    status: _TokenStatus


def api_path(
    group: str, version: str, plural: str, *, namespace: str = "", name: str = "", subresource: str = ""
) -> str:
    """Return the path of a collection, object or subresource; every part is percent-encoded. Group "" is the core."""
    parts = ["apis", group, version] if group else ["api", version]
    if namespace:
        parts += ["namespaces", namespace]
    parts.append(plural)
    if name:
        parts.append(name)
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(quote(part, safe="") for part in parts)


class KubeClient:
    """One session with one API server. Make it with `connect`, end it with `close`."""

    def __init__(self, auth: KubeAuth, *, request_timeout: float, metrics: Metrics | None = None) -> None:
        self._auth = auth
        self._timeout = request_timeout
        self._metrics = metrics
        self.server_url = auth.server_url
        self.ca_pem = auth.ca_pem
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=auth.ssl_context, socket_factory=tcp_socket)
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,  # proxies come from the kubeconfig alone; asking the environment costs 5 times a request
            read_bufsize=_READ_BUFFER,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "tether"},
        )

    @classmethod
    async def connect(cls, settings: Settings, metrics: Metrics | None = None) -> KubeClient:
        """Return a client for the cluster of the settings; StartError when the configuration is wrong.

        Nothing is asked of the server yet: see `version`.
        """
        auth = await KubeAuth.load(settings)
        if not _is_server(auth.server_url):
            raise StartError(f"the server of {auth.origin} is not a URL such as https://10.0.0.1:6443")
        return cls(auth, request_timeout=settings.kube_request_timeout, metrics=metrics)

    async def close(self) -> None:
        """Close all connections, also those of watches."""
        await self._session.close()

    async def version(self) -> str:
        """Return the server's git version, for example ``v1.32.4``: one cheap request that shows that it is there."""
        return (await self.get_as(_Version, "/version")).git_version

    # Reading.

    async def get(self, path: str, *, params: Params | None = None, accept: str = JSON) -> bytes:
        """Return the body of a GET."""
        return await self.request("GET", path, params=params, accept=accept)

    async def get_as(self, kind: type[T], path: str, *, params: Params | None = None, accept: str = JSON) -> T:
        """Return a GET decoded into a msgspec type; KubeError when the answer has another shape."""
        body = await self.get(path, params=params, accept=accept)
        return _decode(kind, body, f"GET {path}")

    # Writing. Each returns the stored object.

    async def create(self, path: str, body: Body, *, params: Params | None = None) -> bytes:
        """POST an object to its collection; AlreadyExistsError when there is one of that name."""
        return await self.request("POST", path, params=params, body=_encode(body))

    async def replace(self, path: str, body: Body, *, params: Params | None = None) -> bytes:
        """PUT an object; ConflictError when its resourceVersion is not the current one."""
        return await self.request("PUT", path, params=params, body=_encode(body))

    async def apply(self, path: str, body: Body, *, manager: str, force: bool = False, subresource: str = "") -> bytes:
        """Server-side apply; ConflictError when another manager owns a field, unless forced.

        With ``metadata.uid`` in the body it never creates: it is a ConflictError when that object is gone.
        """
        params: dict[str, str | bool] = {"fieldManager": manager, "force": force}
        target = f"{path}/{quote(subresource, safe='')}" if subresource else path
        return await self.request("PATCH", target, params=params, body=_encode(body), content_type=_APPLY)

    async def json_patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> bytes:
        """Apply a JSON patch; InvalidError when a ``test`` in it fails."""
        return await self.request("PATCH", path, body=msgspec.json.encode(operations), content_type=_JSON_PATCH)

    async def merge_patch(self, path: str, body: Body) -> bytes:
        """Apply a JSON merge patch: null removes a field, lists are replaced."""
        return await self.request("PATCH", path, body=_encode(body), content_type=_MERGE_PATCH)

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
    ) -> bool:
        """Delete an object; False when it is already gone, ConflictError when it is not the one expected."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        expected = {"uid": uid, "resourceVersion": resource_version}
        if preconditions := {field: value for field, value in expected.items() if value is not None}:
            options["preconditions"] = preconditions
        try:
            await self.request("DELETE", path, body=msgspec.json.encode(options))
        except NotFoundError:
            return False
        return True

    async def token_request(
        self,
        namespace: str,
        name: str,
        *,
        audiences: Sequence[str] = (),
        expiration_seconds: int,
        bound_secret: tuple[str, str] | None = None,
    ) -> IssuedToken:
        """Mint a token for a ServiceAccount, bound to a Secret (name, uid) if one is given.

        The life may differ from what was asked: ``expires`` is the truth.
        """
        spec: dict[str, Any] = {"audiences": list(audiences), "expirationSeconds": expiration_seconds}
        if bound_secret is not None:
            secret, uid = bound_secret
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid}
        path = api_path("", "v1", "serviceaccounts", namespace=namespace, name=name, subresource="token")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status = _decode(_TokenRequest, await self.create(path, body), f"POST {path}").status
        return IssuedToken(token=status.token, expires=status.expiration_timestamp)

    async def event(
        self,
        regarding: ObjectRef,
        *,
        reason: str,
        message: str,
        kind: Literal["Normal", "Warning"] = "Normal",
        component: str = "tether",
    ) -> None:
        """Record a core/v1 Event about an object, for ``kubectl describe``; a failure is logged, never raised."""
        namespace = regarding.namespace or "default"
        suffix = uuid.uuid4().hex[:16]
        moment = now().strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{regarding.name[: _MAX_NAME - 1 - len(suffix)]}.{suffix}", "namespace": namespace},
            "involvedObject": msgspec.to_builtins(regarding),
            "reason": reason,
            "message": logs.redact(message)[:_MAX_EVENT_NOTE],
            "type": kind,
            "source": {"component": component},
            "reportingComponent": component,
            "reportingInstance": component,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        try:
            await self.create(api_path("", "v1", "events", namespace=namespace), body)
        except KubeError as error:
            _log.warning("event could not be recorded", reason=reason, about=regarding, error=error)

    # Below all of these.

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> bytes:
        """Send one request and return the answer's body; a KubeError for 400 and above, and for no answer."""
        headers = {"Accept": accept} if body is None else {"Accept": accept, "Content-Type": content_type}
        async with self._send(method, path, params, headers, body, limit=self._timeout) as response:
            try:
                return await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise self._unreachable(error, method, path) from error

    @contextlib.asynccontextmanager
    async def stream(self, path: str, *, params: Params, accept: str = JSON) -> AsyncIterator[aiohttp.StreamReader]:
        """GET without an end: yield the body as it comes; KubeUnreachableError when it breaks inside the block."""
        async with self._send("GET", path, params, {"Accept": accept}, None, limit=None) as response:
            try:
                yield response.content
            except aiohttp.ClientError as error:
                raise self._unreachable(error, "GET", path) from error
            finally:
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()  # left early: a farewell of TLS would outlive the caller

    @contextlib.asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: dict[str, str],
        body: bytes | None,
        *,
        limit: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield an answer below 400. Its headers must come within the request time-out, its body within ``limit``."""
        url = yarl.URL(self.server_url + path + _query(params), encoded=True)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._answer(method, url, headers, body, aiohttp.ClientTimeout(total=limit))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error, method, path) from error
        async with response:
            self._count(method, str(response.status))
            if response.status < _REFUSED:
                yield response
                return
            try:
                async with asyncio.timeout(self._timeout):
                    text = await response.read()
            except (aiohttp.ClientError, TimeoutError):
                text = b""  # the code says enough
            raise error_of(response.status, text, response.headers, request=f"{method} {path}")

    async def _answer(
        self, method: str, url: yarl.URL, headers: dict[str, str], body: bytes | None, limit: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Return the server's answer; after a 401 once more with credentials that were read again."""
        renewed = False
        while True:
            if (authorization := await self._auth.authorization()) is not None:
                headers["Authorization"] = authorization
            sent = time.monotonic()
            response = await self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=limit,
                allow_redirects=False,
                proxy=self._auth.proxy_url,
                server_hostname=self._auth.tls_server_name,
            )
            KUBE.hear_date(response.headers.get("Date"), sent=sent, received=time.monotonic())
            if response.status != _UNAUTHORIZED or authorization is None or renewed:
                return response
            try:
                renewed = await self._auth.renew(authorization)
            except BaseException:
                response.release()
                raise
            if not renewed:
                return response
            response.release()

    def _unreachable(self, error: Exception, method: str, path: str) -> KubeError:
        self._count(method, "none")
        return unreachable(error, url=self.server_url, request=f"{method} {path}")

    def _count(self, method: str, code: str) -> None:
        if self._metrics is not None:
            self._metrics.kube_requests.labels(method, code).inc()


class _Version(msgspec.Struct, rename="camel"):
    git_version: str


_log = logs.get("eventcore.kube")


def _is_server(text: str) -> bool:
    try:
        url = yarl.URL(text)
    except ValueError:
        return False
    return url.scheme in {"http", "https"} and bool(url.host)


def _query(params: Params | None) -> str:
    if not params:
        return ""
    return "?" + urlencode(
        {key: str(value).lower() if isinstance(value, bool) else value for key, value in params.items()}
    )


def _encode(body: Body) -> bytes:
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


def _decode(kind: type[T], body: bytes, request: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # The decoder's message names the field and type, never a value.
        raise KubeError(f"the answer to {request} is not what this API returns: {error}") from error
