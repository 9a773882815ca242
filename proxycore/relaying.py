"""From the upstream answer to the client: as it comes, byte for byte, no faster than the client reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from eventcore.waiting import pause
from proxycore.headers import answered
from proxycore.plane.exchange import JSON, SERVER
from proxycore.plane.heads import answer_fields
from proxycore.statuses import RefusedError, bad_gateway

if TYPE_CHECKING:
    from proxycore.plane.answers import Answered
    from proxycore.plane.exchange import Request

log = get("proxy.relaying")

SWITCHING: Final = 101
_SERVER: Final = b"Server: %b\r\n" % SERVER.encode()
_NAMES_NOTHING: Final = frozenset({b"keep-alive", b"close"})
"""Values of Connection that name no header which would not pass otherwise."""
_STREAM: Final = answer_fields([("Content-Type", JSON), ("Cache-Control", "no-cache, private"), ("Server", SERVER)])


def begin(request: Request, upstream: Answered) -> None:
    """Begin the client's answer with the head of the upstream one; RefusedError (502) when it cannot be passed on."""
    if upstream.code == SWITCHING:
        upstream.release()
        raise RefusedError(bad_gateway("the API server's answer cannot be used"))
    fields = _fields(upstream)
    if upstream.length is None and (names := upstream.value("trailer")):
        fields += answer_fields([("Trailer", names)])
    request.begin(upstream.code, upstream.reason, fields, length=upstream.length)


async def relay(
    request: Request, upstream: Answered, stopping: asyncio.Event, *, ends_on_stop: bool, seconds: float | None = None
) -> None:
    """Send the upstream answer to the client.

    ``ends_on_stop``: a watch, which a stopping process ends early, and which is ended after so many ``seconds``.
    """
    begin(request, upstream)
    if not ends_on_stop:
        await upstream.relay(request)
        return
    stop = asyncio.ensure_future(wait_or_stop(stopping, seconds))
    try:
        await upstream.relay(request, stop=stop)
    finally:
        stop.cancel()


async def wait_or_stop(stopping: asyncio.Event, seconds: float | None) -> None:
    """Wait so many seconds, None for ever, or until the process stops."""
    if seconds is None:
        await stopping.wait()
    else:
        await pause(stopping, seconds)


async def tunnel(request: Request, upstream: Answered) -> None:
    """Answer 101 and carry bytes both ways until either side closes; ends both connections.

    Upgraded connections are exec, attach and port-forward, over SPDY or WebSocket. Nothing of them is read.
    """
    own = answer_fields([("Connection", "Upgrade"), ("Upgrade", upstream.value("upgrade"))])
    await request.tunnel(upstream, _fields(upstream, server=b"") + own)


def begin_stream(request: Request) -> None:
    """Begin an answer of the proxy's own that has no known end."""
    request.begin(200, "OK", _STREAM)


def _fields(upstream: Answered, *, server: bytes = _SERVER) -> bytes:
    heading, values = upstream.heading, upstream.values
    connection = [values[place] for place in heading.connection if values[place] not in _NAMES_NOTHING]
    lines = None if connection or not server else heading.lines
    if lines is None:
        lines = _lines(heading.names, connection, server)
        if server and not connection:
            heading.lines = lines
    form, places = lines
    return form % tuple([values[place] for place in places])


def _lines(names: tuple[bytes, ...], connection: list[bytes], server: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Return the header lines of such an answer with a gap for each value, and the places of the values."""
    places = answered(names, connection)
    lines = [b"%b: %%b\r\n" % names[place].replace(b"%", b"%%") for place in places]
    if b"server" not in {names[place].lower() for place in places}:
        lines.append(server)
    return b"".join(lines), places
