"""Probes and metrics over HTTP: is the event loop alive, may work come here, and what was counted.

``/healthz`` says only that this process answers: a NATS outage must not make Kubernetes restart the fleet. ``/readyz``
is what the role says of itself by named checks.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

from aiohttp import web

from eventcore.errors import StartError
from eventcore.metrics import CONTENT_TYPE, Metrics
from eventcore.printable import printable
from eventcore.sockets import keep_alive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MOST: Final = 64
"""Connections of probes and scrapers at a time; the oldest makes room for another, so that a probe always gets in."""


class Readiness:
    """Named checks of one process. It is ready when there is at least one and all hold."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """Record a check; ``why`` says in a few words what is missing while it does not hold."""
        self._why[name] = "" if ok else (why or "not ready")

    def expect(self, *names: str) -> None:
        """Name checks that do not hold yet, so that a process is not ready before it has begun."""
        for name in names:
            self._why.setdefault(name, "not yet")

    @property
    def ready(self) -> bool:
        return bool(self._why) and not self.failing()

    def failing(self) -> list[tuple[str, str]]:
        """Return (name, why) of each check that does not hold, by name."""
        return sorted((name, why) for name, why in self._why.items() if why)

    def report(self) -> str:
        """Return ``ok``, or a line for each failing check."""
        if self.ready:
            return "ok"
        lines = [f"{name}: {printable(why)}" for name, why in self.failing()]
        return "\n".join(lines or ["starting: no check has been made yet"])


class HealthServer:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics`` on one port. ``text`` makes other metrics."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        readiness: Readiness,
        metrics: Metrics,
        text: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._readiness = readiness
        self._metrics = metrics
        self._text = text
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen and return the port; StartError when the address cannot be used."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._serve_metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        server = runner.server
        if server is None:
            raise RuntimeError("the runner has no server")

        def make() -> asyncio.Protocol:
            for old in server.connections[: max(0, len(server.connections) - MOST + 1)]:
                old.force_close()
            return server()

        try:
            listening = await asyncio.get_running_loop().create_server(make, self._host, self._port)
        except OSError as error:
            await runner.cleanup()
            raise StartError(_cannot_listen(self._host, self._port, error)) from error
        for sock in listening.sockets:
            keep_alive(sock)  # those of the connections follow
        self._runner, self._listening = runner, listening
        return int(listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening; does nothing when not started."""
        runner, self._runner = self._runner, None
        if self._listening is not None:
            self._listening.close()
        if runner is not None:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text=self._readiness.report() + "\n", status=200 if self._readiness.ready else 503)

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        body = self._metrics.render() if self._text is None else await self._text()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    where = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or set --http-port (0 picks a free one)"
    if isinstance(error, socket.gaierror):
        return f"{host} is not an address of this machine: set --http-host"
    if error.errno == errno.EACCES:
        return f"{where} needs rights that this process has not: set --http-port to 1024 or more"
    return f"cannot listen at {where} ({error.strerror or error}): set --http-host and --http-port"
