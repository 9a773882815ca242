"""The port: accepts connections, looks after those that take too long, and lets the rest finish when it closes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from eventcore.logs import get
from proxycore.plane.accepting import Accepted, Acceptor, Crowd, Limits
from proxycore.plane.client import HEAD_SECONDS, ClientConnection
from proxycore.plane.outgoing import Turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from proxycore.plane.exchange import Request

    Handler = Callable[[Request], Coroutine[None, None, None] | None]

log = get("proxy.listener")

LOOK_SECONDS: Final = 1.0
SHUTDOWN_SECONDS: Final = 5.0
PLENTY: Final = Limits(most=20_000, of_network=20_000)


class Listener:
    """Accepts clients and gives each request to ``handler``.

    ``on_refused`` hears the code of what was no request, ``on_turned_away`` why a connection was not taken.
    The handler begins at once, in the callback that read the request, and returns what has to be awaited if anything.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits = PLENTY,
        on_refused: Callable[[int], None] = lambda _: None,
        on_turned_away: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = Turn(self.loop.call_soon)
        self.is_closing = False
        self.refused = on_refused
        self.port = 0
        self._handler = handler
        self._crowd = Crowd(limits, on_turned_away)
        self._connections: set[ClientConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor: Acceptor | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """How many connections there are, those behind a handshake too."""
        return len(self._crowd)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Listen; OSError when the address cannot be had. Several processes may share one port."""
        self._acceptor = Acceptor(
            self._crowd,
            lambda accepted: ClientConnection(self, accepted),
            tls,
            handshake_seconds=HEAD_SECONDS,
            shutdown_seconds=SHUTDOWN_SECONDS,
        )
        self.port = await self._acceptor.start(host, port)
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    async def close(self, grace: float) -> None:
        """Accept no more, let what is in hand finish for so many seconds, then break what is left."""
        self.is_closing = True
        if self._acceptor is not None:
            self._acceptor.stop()
        for connection in list(self._connections):
            connection.stop()
        try:
            async with asyncio.timeout(grace):
                await self._crowd.empty()
        except TimeoutError:
            log.warning("connections are broken at the end of the grace", left=len(self._crowd))
            for accepted in self._crowd.all():
                accepted.break_off()
            await asyncio.sleep(0)  # one turn of the loop, in which the aborted transports close
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._acceptor is not None:
            await self._acceptor.end()

    # From connections.

    def opened(self, connection: ClientConnection, accepted: Accepted) -> None:
        """Take note of a connection."""
        accepted.client = connection
        self._connections.add(connection)
        if self.is_closing:
            connection.stop()  # it was let in before

    def closed(self, connection: ClientConnection, accepted: Accepted) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._crowd.forget(accepted)

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
