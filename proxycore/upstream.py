"""The way to the API server: two sessions that never mix, and its failures as Statuses.

Requests of callers carry the caller's own token over connections without a client certificate: with one, the API server
would take every caller for the proxy. Requests of the proxy itself carry its own credentials.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

import aiohttp
import yarl
from multidict import CIMultiDict

from eventcore.errors import KubeError
from eventcore.logs import get
from proxycore.statuses import RefusedError, bad_gateway, gateway_timeout, unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from eventcore.kube_auth import KubeAuth
    from proxycore.headers import Header

log = get("proxy.upstream")

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 75.0
"""Seconds until an answer must begin; an API server itself gives up after 60."""
_READ_BUFFER: Final = 2**18
_UNAUTHORIZED: Final = 401
_OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Upstream:
    """Sends requests to one API server. Make it inside the event loop, end it with `close`."""

    def __init__(self, auth: KubeAuth, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._auth = auth
        self._answer_seconds = answer_seconds
        self._as_caller = _session(_caller_tls(auth))
        self._as_proxy = _session(auth.ssl_context)

    async def close(self) -> None:
        """Close all connections."""
        await self._as_caller.close()
        await self._as_proxy.close()

    async def as_caller(
        self, method: str, target: str, headers: Iterable[Header], *, token: str, body: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        """Send a request with the caller's token; RefusedError 502, 503 or 504 when no answer comes."""
        sent = CIMultiDict([*headers, ("Authorization", f"Bearer {token}")])
        return await self._send(self._as_caller, method, target, sent, body)

    async def as_proxy(
        self, method: str, target: str, headers: Iterable[Header], *, body: AsyncIterator[bytes] | None = None
    ) -> aiohttp.ClientResponse:
        """Send a request with the proxy's credentials; RefusedError 502, 503 or 504 when no answer comes."""
        authorization = await self._auth.authorization()
        sent = CIMultiDict(headers)
        if authorization is not None:
            sent["Authorization"] = authorization
        response = await self._send(self._as_proxy, method, target, sent, body)
        refused = response.status == _UNAUTHORIZED and authorization is not None
        if refused and await self._renewed(authorization or "") and body is None:
            response.release()
            sent["Authorization"] = await self._auth.authorization() or ""
            response = await self._send(self._as_proxy, method, target, sent, body)
        if response.status == _UNAUTHORIZED:
            # Not the caller's fault, and its token is fine.
            response.release()
            log.error("the API server refuses the proxy's own credentials")
            raise RefusedError(unavailable("the API server refuses the proxy's own credentials", retry_after=5))
        return response

    async def _renewed(self, refused: str) -> bool:
        try:
            return await self._auth.renew(refused)
        except KubeError as error:
            log.error("the proxy has no credentials that the API server takes", error=error)
            return False

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        target: str,
        headers: CIMultiDict[str],
        body: AsyncIterator[bytes] | None,
    ) -> aiohttp.ClientResponse:
        url = yarl.URL(self._auth.server_url + target, encoded=True)
        # A body may come slowly, and its sender's own limits count.
        limit = self._answer_seconds if body is None else None
        try:
            async with asyncio.timeout(limit):
                return await session.request(
                    method,
                    url,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    proxy=self._auth.proxy_url,
                    server_hostname=self._auth.tls_server_name,
                )
        except TimeoutError:
            raise RefusedError(gateway_timeout("the API server did not answer in time")) from None
        except aiohttp.ClientConnectionError as error:
            log.warning("no answer from the API server", error=error)
            raise RefusedError(unavailable("the API server cannot be reached; try again")) from None
        except (aiohttp.ClientError, ValueError) as error:
            log.warning("the API server's answer cannot be used", error=error)
            raise RefusedError(bad_gateway("the API server's answer cannot be used")) from None


def _session(tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        trust_env=False,  # asking the environment costs five times a request
        auto_decompress=False,  # what is compressed passes as it is
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_OWN_HEADERS,
        read_bufsize=_READ_BUFFER,
    )


def _caller_tls(auth: KubeAuth) -> ssl.SSLContext:
    """Return a context that trusts what the proxy trusts, and holds no certificate of the proxy's."""
    context = ssl.create_default_context(cadata=auth.ca_pem.decode() if auth.ca_pem else None)
    own = auth.ssl_context
    if isinstance(own, ssl.SSLContext):
        context.check_hostname = own.check_hostname
        context.verify_mode = own.verify_mode
    return context
