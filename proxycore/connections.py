"""Connections of clients: aiohttp's, made quiet about what a client sent and impatient with one that sends nothing.

aiohttp quotes a broken request in its answer and logs it with a traceback; the broken line can hold a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from eventcore.logs import get
from proxycore.relaying import JSON, SERVER
from proxycore.statuses import Status, bad_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.web_server import Server

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = get("proxy.connections")

HEAD_SECONDS: Final = 15.0
"""Seconds until the first request of a connection must be there."""
KEEP_ALIVE_SECONDS: Final = 75.0
LONGEST_LINE: Final = 65_536
"""Bytes of a header: a token with hundreds of groups is longer than aiohttp's limit."""
MOST_HEADERS: Final = 1024
"""An identity to impersonate has a header for each group."""
_SERVER_ERROR: Final = 500


class Connection(RequestHandler):
    """One connection of a client."""

    __slots__ = ("_impatience",)

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._impatience = self._loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Say that something failed, and nothing of what the client sent."""
        del args
        log.warning("connection failed", error=type(kw.get("exc_info")).__name__)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is no HTTP, with a Status and without a quotation."""
        del message
        log.info("request is no HTTP", code=status, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        said = bad_request("the request is not HTTP/1.1 as RFC 9112 has it")
        if status >= _SERVER_ERROR:
            said = Status(code=status, reason="InternalError", message="the proxy failed on this request")
        answer = web.Response(status=status, body=said.encode(), headers={"Content-Type": JSON, "Server": SERVER})
        answer.force_close()
        return answer

    def _give_up(self) -> None:
        if not self._request_count and self.transport is not None:
            self.transport.abort()


class Connections(web.Server):
    """Makes a `Connection` of each that a client opens. Requests go to ``handler``."""

    def __init__(self, handler: Handler) -> None:
        # A client that went away must not keep a watch upstream.
        super().__init__(handler, handler_cancellation=True)

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            max_headers=MOST_HEADERS,
        )
