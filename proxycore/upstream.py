"""The way to the API server: two pools that never mix, and its failures as Statuses.

Requests of callers carry the caller's own token over connections without a client certificate: with one, the API server
would take every caller for the proxy. Requests of the proxy itself carry its own credentials.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from eventcore.errors import KubeError, KubeUnreachableError
from eventcore.kube_errors import error_of
from eventcore.logs import get
from proxycore.headers import forwarded
from proxycore.plane.dialling import Dialler
from proxycore.plane.heads import render_fields, request_line
from proxycore.plane.pool import ANSWER_SECONDS, Pool
from proxycore.statuses import RefusedError, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube_auth import KubeAuth
    from proxycore.headers import Header
    from proxycore.plane.answers import Answered, Taker
    from proxycore.plane.exchange import Request
    from proxycore.plane.upstream_connection import UpstreamConnection

log = get("proxy.upstream")

_REFUSED: Final = 400
_UNAUTHORIZED: Final = 401


class Upstream:
    """Sends requests to one API server. Make it inside the event loop, end it with `close`.

    ``read_seconds`` limits a whole `read`, ``answer_seconds`` the time until any other answer begins.
    """

    def __init__(self, auth: KubeAuth, *, read_seconds: float, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._auth = auth
        self._read_seconds = read_seconds
        self._dialler = _dialler(auth, auth.ssl_context)
        self._as_caller = _pool(_dialler(auth, _caller_tls(auth)), answer_seconds)
        self._as_proxy = _pool(self._dialler, answer_seconds)
        self._own: tuple[str | None, bytes] = None, b""  # the proxy's credentials, and the header line of them

    def close(self) -> None:
        """Close all connections."""
        self._as_caller.close()
        self._as_proxy.close()

    async def as_caller(
        self, method: str, target: str, headers: Iterable[Header], *, token: str, body: Request | None = None
    ) -> Answered:
        """Send a request with the caller's token, with none for ""; RefusedError 502, 503 or 504 without an answer."""
        authorization = f"Bearer {token}" if token else None
        return await self._send(self._as_caller, method, target, headers, authorization, body)

    def caller_fields(self, headers: Iterable[Header], *, token: str) -> bytes:
        """Return the end of the head of a request without a body, as `as_caller` sends it: all after its first line."""
        sent = [("Host", self._dialler.host_header), *headers, ("Authorization", f"Bearer {token}")]
        return render_fields(sent) + b"\r\n"

    def ask_as_caller(self, method: str, target: str, fields: bytes, taker: Taker) -> UpstreamConnection | None:
        """Send a request without a body on an open connection and return that; None when none is free."""
        return self._as_caller.ask(request_line(method, self._dialler.base + target) + fields, method, taker)

    def proxy_fields(self, headers: Iterable[Header]) -> bytes:
        """Return the header lines of a request without a body, as `as_proxy` sends it, without the credentials."""
        return render_fields([("Host", self._dialler.host_header), *headers])

    def ask_as_proxy(self, method: str, target: str, fields: bytes, taker: Taker) -> UpstreamConnection | None:
        """Send a request with the proxy's credentials on an open connection and return that.

        None when no connection is free, or the credentials have to be read first. A 401 is for `as_proxy` to mend.
        """
        if self._auth.is_due:
            return None
        authorization = self._auth.header
        if authorization != self._own[0]:
            self._own = authorization, render_fields([("Authorization", authorization)]) if authorization else b""
        head = b"%b%b%b\r\n" % (request_line(method, self._dialler.base + target), fields, self._own[1])
        return self._as_proxy.ask(head, method, taker)

    async def as_proxy(
        self, method: str, target: str, headers: Iterable[Header], *, body: Request | None = None
    ) -> Answered:
        """Send a request with the proxy's credentials; RefusedError 502, 503 or 504 when no answer comes."""
        authorization = await self._auth.authorization()
        answer = await self._send(self._as_proxy, method, target, headers, authorization, body)
        refused = answer.code == _UNAUTHORIZED and authorization is not None
        if refused and await self._renewed(authorization or "") and body is None:
            answer.release()
            renewed = await self._auth.authorization()
            answer = await self._send(self._as_proxy, method, target, headers, renewed, body)
        if answer.code == _UNAUTHORIZED:
            # Not the caller's fault, and its token is fine.
            answer.release()
            log.error("the API server refuses the proxy's own credentials")
            raise RefusedError(unavailable("the API server refuses the proxy's own credentials", retry_after=5))
        return answer

    async def read(self, target: str, accept: str) -> bytes:
        """Return the body of a GET with the proxy's credentials.

        KubeError for an answer of 400 and above and for one that is not whole in time; RefusedError for none.
        """
        try:
            async with asyncio.timeout(self._read_seconds):
                answer = await self.as_proxy("GET", target, [("Accept", accept), ("User-Agent", "tether")])
                body = await answer.read()
        except TimeoutError:
            why = f"the API server's answer is not whole after {self._read_seconds:g} s (GET {target})"
            raise KubeUnreachableError(why) from None
        if answer.code >= _REFUSED:
            after = {"Retry-After": answer.value("retry-after")}
            raise error_of(answer.code, body, after, request=f"GET {target}")
        return body

    async def _renewed(self, refused: str) -> bool:
        try:
            return await self._auth.renew(refused)
        except KubeError as error:
            log.error("the proxy has no credentials that the API server takes", error=error)
            return False

    async def _send(
        self,
        pool: Pool,
        method: str,
        target: str,
        headers: Iterable[Header],
        authorization: str | None,
        body: Request | None,
    ) -> Answered:
        sent = [("Host", self._dialler.host_header), *headers]
        if authorization is not None:
            sent.append(("Authorization", authorization))
        if body is not None:
            if body.length is None and (names := announced(body.headers)):
                sent.append(("Trailer", names))
            if body.expects:
                sent.append(("Expect", "100-continue"))
        return await pool.send(method, self._dialler.base + target, sent, body)


def announced(headers: Iterable[Header]) -> str:
    """Return the names of the trailers that are announced and may pass, "" for none."""
    names = [word.strip() for name, value in headers if name.lower() == "trailer" for word in value.split(",")]
    return ", ".join(name for name, _ in forwarded([(name, "") for name in names if name], ""))


def _pool(dialler: Dialler, answer_seconds: float) -> Pool:
    return Pool(dialler.connect, trailers=lambda found: forwarded(found, ""), answer_seconds=answer_seconds)


def _dialler(auth: KubeAuth, tls: ssl.SSLContext) -> Dialler:
    return Dialler(auth.server_url, tls, server_name=auth.tls_server_name, proxy_url=auth.proxy_url)


def _caller_tls(auth: KubeAuth) -> ssl.SSLContext:
    """Return a context that trusts what the proxy trusts, and holds no certificate of the proxy's."""
    context = ssl.create_default_context(cadata=auth.ca_pem.decode() if auth.ca_pem else None)
    own = auth.ssl_context
    context.check_hostname = own.check_hostname
    context.verify_mode = own.verify_mode
    context.verify_flags = own.verify_flags
    return context
