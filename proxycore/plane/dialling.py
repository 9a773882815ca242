"""Opens a connection to the API server: straight, or through the HTTP proxy that a kubeconfig may name."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from eventcore.errors import StartError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from proxycore.plane.upstream_connection import UpstreamConnection

HANDSHAKE_SECONDS: Final = 5.0
_LONGEST_GREETING: Final = 65_536
_PORTS: Final = {"http": 80, "https": 443}


class Dialler:
    """Knows where one API server is. ``host_header`` and ``base`` are for the heads of requests."""

    def __init__(
        self,
        server_url: str,
        tls: ssl.SSLContext | None,
        *,
        server_name: str | None = None,
        proxy_url: str | None = None,
    ) -> None:
        parts = urlsplit(server_url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise StartError("the server of the kubeconfig is not a URL such as https://10.0.0.1:6443")
        self.host_header = parts.netloc.rpartition("@")[2]
        self.base = parts.path.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or _PORTS[parts.scheme]
        self._tls = tls if parts.scheme == "https" else None
        self._name = (server_name or parts.hostname) if self._tls is not None else None
        self._proxy = urlsplit(proxy_url) if proxy_url else None
        if self._proxy is not None and (self._proxy.scheme != "http" or not self._proxy.hostname):
            raise StartError("the proxy-url of the kubeconfig must be an http:// URL")

    async def connect(self, make: Callable[[], UpstreamConnection]) -> UpstreamConnection:
        """Return an open connection; OSError when there is none to be had."""
        loop = asyncio.get_running_loop()
        if self._proxy is not None:
            return await self._through_proxy(make)
        limit = HANDSHAKE_SECONDS if self._tls is not None else None
        _, made = await loop.create_connection(
            make, self._host, self._port, ssl=self._tls, server_hostname=self._name, ssl_handshake_timeout=limit
        )
        return made

    async def _through_proxy(self, make: Callable[[], UpstreamConnection]) -> UpstreamConnection:
        proxy = self._proxy
        if proxy is None:
            raise OSError("there is no proxy")
        where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        if proxy.username:
            login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
        loop = asyncio.get_running_loop()
        outer, greeting = await loop.create_connection(_Greeting, proxy.hostname or "", proxy.port or _PORTS["http"])
        try:
            outer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            _check(await greeting.head)
            made = make()
            transport: asyncio.Transport | None = outer
            if self._tls is None:
                outer.set_protocol(made)
            else:
                transport = await loop.start_tls(
                    outer, made, self._tls, server_hostname=self._name, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
        except BaseException:  # a cancellation too must not leave the socket open
            outer.abort()
            raise
        if transport is None:
            raise ConnectionResetError("the connection closed while it opened")
        made.connection_made(transport)
        return made


def _check(greeting: bytes) -> None:
    if greeting.split(b" ", 2)[1:2] != [b"200"]:
        raise ConnectionRefusedError("the proxy of the kubeconfig does not connect to the API server")


class _Greeting(asyncio.Protocol):
    """Waits for the answer to CONNECT."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._found = b""

    def data_received(self, data: bytes) -> None:
        self._found += data
        if not self.head.done() and (b"\r\n\r\n" in self._found or len(self._found) > _LONGEST_GREETING):
            self.head.set_result(self._found)

    def connection_lost(self, exc: BaseException | None) -> None:
        del exc
        if not self.head.done():
            self.head.set_exception(ConnectionResetError("the proxy of the kubeconfig closed the connection"))
