"""Probes: alive, ready by named checks, metrics, and one clear line when the port is taken."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from eventcore.errors import StartError
from eventcore.health import MOST, HealthServer, Readiness
from eventcore.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def serving(readiness: Readiness, metrics: Metrics | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    server = HealthServer("127.0.0.1", 0, readiness=readiness, metrics=metrics or Metrics())
    port = await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await server.stop()


async def ask(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as response:
        return response.status, await response.text()


async def test_alive_does_not_mean_ready() -> None:
    readiness = Readiness()
    readiness.set("nats", ok=False, why="not connected")
    async with serving(readiness) as session:
        assert await ask(session, "/healthz") == (200, "ok\n")
        assert await ask(session, "/readyz") == (503, "nats: not connected\n")


async def test_a_process_without_checks_is_still_starting() -> None:
    async with serving(Readiness()) as session:
        assert (await ask(session, "/readyz"))[0] == 503


async def test_ready_when_every_expected_check_holds() -> None:
    readiness = Readiness()
    readiness.expect("nats", "view")
    async with serving(readiness) as session:
        readiness.set("view", ok=True)
        assert await ask(session, "/readyz") == (503, "nats: not yet\n")
        readiness.set("nats", ok=True)
        assert await ask(session, "/readyz") == (200, "ok\n")
        readiness.set("view", ok=False)
        readiness.set("nats", ok=False, why="not connected")
        assert await ask(session, "/readyz") == (503, "nats: not connected\nview: not ready\n")


def test_expecting_a_check_that_already_holds_changes_nothing() -> None:
    readiness = Readiness()
    readiness.set("nats", ok=True)
    readiness.expect("nats")
    assert readiness.ready


async def test_metrics_are_served_in_the_text_format() -> None:
    metrics = Metrics()
    metrics.reconnects.inc()
    async with serving(Readiness(), metrics) as session, session.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "tether_bus_reconnects_total 1.0" in await response.text()


async def test_a_port_in_use_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HealthServer("127.0.0.1", port, readiness=Readiness(), metrics=Metrics())
        with pytest.raises(StartError, match=rf"^port {port} on 127\.0\.0\.1 is in use: .*--http-port.*$"):
            await server.start()
        await server.stop()


async def test_an_address_of_another_machine_is_one_line_too() -> None:
    server = HealthServer("192.0.2.1", 0, readiness=Readiness(), metrics=Metrics())
    with pytest.raises(StartError, match=r"192\.0\.2\.1.*--http-host"):
        await server.start()


async def test_stopping_frees_the_port() -> None:
    server = HealthServer("127.0.0.1", 0, readiness=Readiness(), metrics=Metrics())
    port = await server.start()
    await server.stop()
    again = HealthServer("127.0.0.1", port, readiness=Readiness(), metrics=Metrics())
    assert await again.start() == port
    await again.stop()


async def test_connections_that_say_nothing_keep_no_probe_out() -> None:
    server = HealthServer("127.0.0.1", 0, readiness=Readiness(), metrics=Metrics())
    port = await server.start()
    silent: list[asyncio.StreamWriter] = []
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            assert await ask(session, "/healthz") == (200, "ok\n")  # on a connection that it keeps
            for _ in range(2 * MOST):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                silent.append(writer)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as other:
                assert await ask(other, "/healthz") == (200, "ok\n")
        assert sum(1 for fd in _open_sockets(port)) <= MOST + 1  # and the one that listens
    finally:
        await server.stop()
        for writer in silent:
            writer.close()


def _open_sockets(port: int) -> list[str]:
    """Return this process's sockets whose own end is at a port."""
    ours = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(entry.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line[9] for line in lines if line[1].endswith(f":{port:04X}") and f"socket:[{line[9]}]" in ours]
