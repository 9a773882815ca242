"""The port: accepts connections, looks after those that take too long, and lets the rest finish when it closes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.plane.client import HEAD_SECONDS, ClientConnection
from proxycore.plane.outgoing import Turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from proxycore.plane.exchange import Request

    Handler = Callable[[Request], Coroutine[None, None, None] | None]

log = get("proxy.listener")

LOOK_SECONDS: Final = 1.0
MOST_CONNECTIONS: Final = 20_000
"""Connections of clients at a time; more are closed at once, so that memory stays bounded."""
SHUTDOWN_SECONDS: Final = 5.0
_BACKLOG: Final = 1024


class Listener:
    """Accepts clients and gives each request to ``handler``. ``on_refused`` hears the code of what was no request.

    The handler begins at once, in the callback that read the request, and returns what has to be awaited if anything.
    """

    def __init__(self, handler: Handler, *, on_refused: Callable[[int], None] = lambda _: None) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = Turn(self.loop.call_soon)
        self.is_closing = False
        self.refused = on_refused
        self.port = 0
        self._handler = handler
        self._connections: set[ClientConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Listen; OSError when the address cannot be had. Several processes may share one port."""
        self._server = await self.loop.create_server(
            lambda: ClientConnection(self),
            host,
            port,
            ssl=tls,
            reuse_port=True,
            backlog=_BACKLOG,
            ssl_handshake_timeout=HEAD_SECONDS if tls else None,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls else None,
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    async def close(self, grace: float) -> None:
        """Accept no more, let what is in hand finish for so many seconds, then break what is left."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.stop()
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            log.warning("connections are broken at the end of the grace", left=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)  # one turn of the loop, in which the aborted transports close
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    # From connections.

    def opened(self, connection: ClientConnection) -> None:
        """Take note of a connection."""
        if self.is_closing or len(self._connections) >= MOST_CONNECTIONS:
            connection.abort()
            return
        self._connections.add(connection)
        self._empty.clear()

    def closed(self, connection: ClientConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def serve(self, request: Request) -> Coroutine[None, None, None] | None:
        """Handle a request; return what is left to be awaited for it, None when nothing is."""
        try:
            return self._handler(request)
        except Exception as error:  # noqa: BLE001 - nothing of a request may reach the log of the event loop
            log.warning("connection failed", error=type(error).__name__)
            request.break_off()
            return None

    def run(self, request: Request, waits: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Await the rest of a request in a task of its own; cancelled when the client goes away."""
        task = self.loop.create_task(self._run(request, waits))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, request: Request, waits: Coroutine[None, None, None]) -> None:
        try:
            await waits
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing of a request may reach the log of the event loop
            log.warning("connection failed", error=type(error).__name__)
        finally:
            if not request.answer_over:
                request.break_off()

    def _look(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            connection.look(now)
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
