"""Upgraded connections (exec, attach, port-forward; SPDY and WebSocket): bytes in both directions, nothing read.

Once the API server has answered 101, each side's bytes go to the other as they are. A side that reads slowly stops the
reading of the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from proxycore.headers import answered

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.base_protocol import BaseProtocol

SWITCHING = 101
_HIGH_WATER = 2**18


class _Pipe:
    """Takes what one side received after the upgrade, as aiohttp hands it out, and writes it to the other."""

    def __init__(self, source: BaseProtocol, target: BaseProtocol, closed: asyncio.Event) -> None:
        self._source = source
        self._target = target
        self._closed = closed
        self._waiting: asyncio.Task[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        transport = self._target.transport
        if transport is None or transport.is_closing():
            self._closed.set()
            return True, b""
        transport.write(data)
        if transport.get_write_buffer_size() > _HIGH_WATER and self._waiting is None:
            self._source.pause_reading()
            self._waiting = asyncio.create_task(self._resume_when_drained())
        return False, b""

    def feed_eof(self) -> None:
        self._closed.set()

    def set_exception(self, *_: object) -> None:
        self._closed.set()

    async def _resume_when_drained(self) -> None:
        try:
            await self._target._drain_helper()  # noqa: SLF001 - aiohttp's own wait for an empty write buffer
        except (ConnectionError, asyncio.CancelledError):
            self._closed.set()
            return
        finally:
            self._waiting = None
        self._source.resume_reading()


async def tunnel(request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """Answer 101 and carry bytes until either side closes; ends both connections."""
    connection = upstream.connection
    client = request.protocol
    if connection is None or connection.protocol is None or client.transport is None:
        raise ConnectionError("one side closed during the upgrade")
    server = connection.protocol
    answer = web.StreamResponse(status=SWITCHING, reason=upstream.reason)
    for name, value in answered(_decoded(upstream.raw_headers)):
        answer.headers.add(name, value)
    answer.headers["Connection"] = "Upgrade"
    answer.headers["Upgrade"] = upstream.headers.get("Upgrade", "")
    await answer.prepare(request)
    closed = asyncio.Event()
    # Typed for WebSocketReader; any object with feed_data and feed_eof will do.
    client.set_parser(cast("Any", _Pipe(client, server, closed)))
    server.set_parser(_Pipe(server, client, closed), _Ignored())
    if server.transport is None:
        closed.set()
    try:
        await closed.wait()
    finally:
        for side in (server.transport, client.transport):
            if side is not None:
                side.close()  # what is in its buffer still goes out
    return answer


class _Ignored:
    """Stands where aiohttp's client expects a queue of messages."""

    def feed_eof(self) -> None:
        """Nothing reads from it."""

    def set_exception(self, *_: object) -> None:
        """Nothing reads from it."""


def _decoded(raw: tuple[tuple[bytes, bytes], ...]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
