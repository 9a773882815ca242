"""From the upstream answer to the client: as it comes, byte for byte, no faster than the client reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web

from eventcore.logs import get
from proxycore.headers import answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from proxycore.headers import Header

log = get("proxy.relaying")

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER: Final = "tether-proxy"
JSON: Final = "application/json"


def headers_of(request: web.BaseRequest) -> list[Header]:
    """Return the request's headers as they came, in order."""
    return _decoded(request.raw_headers)


async def body_of(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """Yield the request's body as it comes; a client that waits for 100 Continue is told to go on."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(CONTINUE)
    async for chunk in request.content.iter_any():
        yield chunk


async def relay(
    request: web.BaseRequest, upstream: aiohttp.ClientResponse, stopping: asyncio.Event, *, ends_on_stop: bool
) -> web.StreamResponse:
    """Send the upstream answer to the client. ``ends_on_stop``: a watch, which a stopping process ends early."""
    answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in answered(_decoded(upstream.raw_headers)):
        answer.headers.add(name, value)
    answer.headers.setdefault("Server", SERVER)
    try:
        await answer.prepare(request)
        if ends_on_stop:
            await _relay_until(answer, upstream, stopping)
        else:
            async for chunk in upstream.content.iter_any():
                await answer.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        # The answer has begun: only a broken connection tells the client that it is not whole.
        log.info("upstream answer broke off", error=error)
        if request.transport is not None:
            request.transport.abort()
        return answer
    finally:
        upstream.release()
    await answer.write_eof()
    return answer


async def answer_json(request: web.BaseRequest, code: int, body: bytes, extra: Iterable[Header] = ()) -> web.Response:
    """Return an answer of the proxy's own."""
    del request
    headers = {"Content-Type": JSON, "Cache-Control": "no-cache, private", "Server": SERVER, **dict(extra)}
    return web.Response(status=code, body=body, headers=headers)


async def begin_stream(request: web.BaseRequest) -> web.StreamResponse:
    """Begin an answer of the proxy's own that has no known end."""
    answer = web.StreamResponse(
        status=200, headers={"Content-Type": JSON, "Cache-Control": "no-cache, private", "Server": SERVER}
    )
    await answer.prepare(request)
    return answer


async def _relay_until(answer: web.StreamResponse, upstream: aiohttp.ClientResponse, stopping: asyncio.Event) -> None:
    stop = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            read = asyncio.ensure_future(upstream.content.readany())
            await asyncio.wait({read, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                read.cancel()
                return
            if not (chunk := read.result()):
                return
            await answer.write(chunk)
    finally:
        stop.cancel()


def _decoded(raw: tuple[tuple[bytes, bytes], ...]) -> list[Header]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
