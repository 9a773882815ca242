"""From the upstream answer to the client: as it comes, byte for byte, no faster than the client reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.headers import answered
from proxycore.plane.exchange import JSON, SERVER
from proxycore.statuses import RefusedError, bad_gateway

if TYPE_CHECKING:
    from proxycore.plane.answers import Answered
    from proxycore.plane.exchange import Request

log = get("proxy.relaying")

SWITCHING: Final = 101


async def relay(request: Request, upstream: Answered, stopping: asyncio.Event, *, ends_on_stop: bool) -> None:
    """Send the upstream answer to the client. ``ends_on_stop``: a watch, which a stopping process ends early."""
    if upstream.code == SWITCHING:
        upstream.release()
        raise RefusedError(bad_gateway("the API server's answer cannot be used"))
    headers = answered(upstream.headers)
    if not any(name.lower() == "server" for name, _ in headers):
        headers.append(("Server", SERVER))
    if upstream.length is None and (names := upstream.value("trailer")):
        headers.append(("Trailer", names))
    request.begin(upstream.code, upstream.reason, headers, length=upstream.length)
    if not ends_on_stop:
        await upstream.relay(request)
        return
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await upstream.relay(request, stop=stop)
    finally:
        stop.cancel()


async def tunnel(request: Request, upstream: Answered) -> None:
    """Answer 101 and carry bytes both ways until either side closes; ends both connections.

    Upgraded connections are exec, attach and port-forward, over SPDY or WebSocket. Nothing of them is read.
    """
    headers = [*answered(upstream.headers), ("Connection", "Upgrade"), ("Upgrade", upstream.value("upgrade"))]
    await request.tunnel(upstream, headers)


def begin_stream(request: Request) -> None:
    """Begin an answer of the proxy's own that has no known end."""
    headers = [("Content-Type", JSON), ("Cache-Control", "no-cache, private"), ("Server", SERVER)]
    request.begin(200, "OK", headers)
    request.flush()
