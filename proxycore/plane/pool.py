"""Connections to the API server: kept open, used by one request at a time, tried again only where that is safe."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.plane.answers import StaleError
from proxycore.plane.heads import render_fields, request_line
from proxycore.plane.outgoing import Turn
from proxycore.plane.upstream_connection import UpstreamConnection
from proxycore.statuses import RefusedError, gateway_timeout, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxycore.headers import Header
    from proxycore.plane.answers import Answered, Taker
    from proxycore.plane.exchange import Request

log = get("proxy.pool")

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 75.0
"""Seconds until an answer must begin, once the request is sent; an API server itself gives up after 60."""
IDLE_SECONDS: Final = 55.0
"""An unused connection is closed after this time, before an API server does it (90 s)."""
MOST_IDLE: Final = 512
LOOK_SECONDS: Final = 1.0
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent again when nobody knows whether they arrived."""
CLOSED: Final = unavailable("the API server closed the connection; try again")


class Pool:
    """Connections to one server with one set of credentials. ``connect`` opens one; the protocol is made by it."""

    def __init__(
        self,
        connect: Callable[[Callable[[], UpstreamConnection]], Awaitable[UpstreamConnection]],
        *,
        trailers: Callable[[list[Header]], list[Header]],
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = Turn(self.loop.call_soon)
        self.trailers = trailers
        self.answer_seconds = answer_seconds
        self._connect = connect
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    async def send(self, method: str, target: str, headers: list[Header], body: Request | None = None) -> Answered:
        """Send a request and return its answer when it begins; RefusedError 502, 503 or 504 when none does.

        Without a body, what reads only is sent once more when a kept connection turns out to be closed.
        """
        chunked = body is not None and body.length is None
        if chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        elif body is not None:
            headers = [*headers, ("Content-Length", str(body.length))]
        head = b"%b%b\r\n" % (request_line(method, target), render_fields(headers))
        retries = body is None and method in SAFE
        while True:
            connection = self._kept() or await self._open()
            awaited = _Awaited(self.loop)
            connection.ask(head, method, awaited, body, chunked=chunked)
            try:
                return await awaited.answer
            except asyncio.CancelledError:
                connection.abort()
                raise
            except StaleError:
                if not retries:
                    raise RefusedError(CLOSED) from None
                retries = False

    def ask(self, head: bytes, method: str, taker: Taker) -> UpstreamConnection | None:
        """Send a request without a body on a kept connection and return that; None, and nothing sent, without one."""
        connection = self._kept()
        if connection is not None:
            connection.ask(head, method, taker)
        return connection

    def close(self) -> None:
        """Close all connections."""
        self._timer.cancel()
        for connection in list(self._all):
            connection.abort()

    def opened(self, connection: UpstreamConnection) -> None:
        """Take note of a connection."""
        self._all.add(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        """Forget a connection."""
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection for another request."""
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.hang_up()

    def _kept(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    async def _open(self) -> UpstreamConnection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect(lambda: UpstreamConnection(self))
        except TimeoutError:
            raise RefusedError(gateway_timeout("the API server did not answer in time")) from None
        except (OSError, ValueError) as error:
            log.warning("no answer from the API server", error=error)
            raise RefusedError(unavailable("the API server cannot be reached; try again")) from None

    def _look(self) -> None:
        now = self.loop.time()
        for connection in list(self._idle):
            if now - connection.since > IDLE_SECONDS:
                self._idle.remove(connection)
                connection.hang_up()
        for connection in list(self._all):
            connection.look(now)
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)


class _Awaited:
    """Waits for an answer in a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Answered] = loop.create_future()

    def answer_begins(self, answer: Answered) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def answer_failed(self, error: RefusedError | StaleError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
