"""What stands in the proxy's place to compare with: a relay of bytes in Python, and nginx as a plain reverse proxy.

The relay reads nothing of what passes but its length. It has the event loop, TLS and the sockets of the proxy, and no
HTTP, no callers and no decisions: what it costs, any proxy in Python costs.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bench.proxy_stub import run_nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

_HTTP: Final = """
  upstream api {{
    server {upstream};
    keepalive 512;
    keepalive_requests 1000000000;
  }}
"""
_SERVER: Final = """
    location / {
      proxy_pass https://api;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffer_size 16k;
      proxy_buffers 16 16k;
    }
"""
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"Content-Length: "


class _Upstream(asyncio.Protocol):
    """One connection to the API server; gives itself back when an answer is whole."""

    def __init__(self, free: list[_Upstream]) -> None:
        self.transport: asyncio.Transport
        self.client: asyncio.Transport | None = None
        self._free = free
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio types the base class only

    def ask(self, client: asyncio.Transport, data: bytes) -> None:
        self.client = client
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            end = data.index(_HEAD_END) + len(_HEAD_END)
            at = data.index(_LENGTH) + len(_LENGTH)
            self._left = end + int(data[at : data.index(b"\r", at)])
        self._left -= len(data)
        client = self.client
        if not self._left:
            self._free.append(self)
        if client is not None:
            client.write(data)


class _Client(asyncio.Protocol):
    """One connection of a client, which sends a request when it has the answer to the one before."""

    def __init__(self, free: list[_Upstream], dial: Callable[[], Awaitable[_Upstream]]) -> None:
        self._transport: asyncio.Transport
        self._free = free
        self._dial = dial
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio types the base class only

    def data_received(self, data: bytes) -> None:
        if self._free:
            self._free.pop().ask(self._transport, data)
            return
        task = asyncio.ensure_future(self._open(data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, data: bytes) -> None:
        (await self._dial()).ask(self._transport, data)


@asynccontextmanager
async def reverse_proxy(folder: Path, direct: str) -> AsyncIterator[str]:
    """Run nginx before an API server; yields its URL."""
    http = _HTTP.format(upstream=urlsplit(direct).netloc)
    async with run_nginx(folder, "reverse", http=http, server=_SERVER) as url:
        yield url


@asynccontextmanager
async def relay(folder: Path, direct: str) -> AsyncIterator[str]:
    """Run the relay before an API server, with the certificates of the folder; yields its URL."""
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    there = ssl.create_default_context(cafile=folder / "ca.crt")
    loop, where = asyncio.get_running_loop(), urlsplit(direct)
    free: list[_Upstream] = []
    opened: list[_Upstream] = []

    async def dial() -> _Upstream:
        _, made = await loop.create_connection(lambda: _Upstream(free), "127.0.0.1", where.port or 0, ssl=there)
        opened.append(made)
        return made

    server = await loop.create_server(lambda: _Client(free, dial), "127.0.0.1", 0, ssl=here, backlog=1024)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for one in opened:
            one.transport.abort()
        await asyncio.sleep(0)  # one turn of the loop, in which the aborted transports close
