"""Every connection of ours notices a peer that is gone without a word."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from eventcore import health as health_module
from eventcore.health import HealthServer, Readiness
from eventcore.kube import KubeClient
from eventcore.metrics import Metrics
from eventcore.sockets import IDLE_SECONDS, INTERVAL_SECONDS, PROBES, UNANSWERED_SECONDS, Sock, keep_alive

if TYPE_CHECKING:
    from eventcore.kube_auth import KubeAuth

WANTED = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): IDLE_SECONDS,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): INTERVAL_SECONDS,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): PROBES,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): UNANSWERED_SECONDS * 1000,
}


def options(sock: socket.socket) -> dict[tuple[int, int], int]:
    return {option: sock.getsockopt(*option) for option in WANTED}


def test_it_asks_after_15_s_every_15_s_and_9_times() -> None:
    assert (IDLE_SECONDS, INTERVAL_SECONDS, PROBES) == (15, 15, 9)
    with socket.socket() as sock:
        assert options(sock) != WANTED
        keep_alive(sock)
        assert options(sock) == WANTED


def test_what_a_listening_socket_accepts_has_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        keep_alive(listening)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert options(accepted) == WANTED


def test_a_socket_that_is_closed_or_of_another_sort_is_left_alone() -> None:
    left, right = socket.socketpair()
    right.close()
    with left:
        keep_alive(left)
    keep_alive(right)


async def test_probes_and_metrics_listen_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sock] = []
    monkeypatch.setattr(health_module, "keep_alive", seen.append)
    server = HealthServer("127.0.0.1", 0, readiness=Readiness(), metrics=Metrics())
    port = await server.start()
    try:
        assert [one.getsockname()[1] for one in seen] == [port]  # type: ignore[attr-defined]  # they are sockets
    finally:
        await server.stop()


async def test_requests_to_the_api_server_go_over_such_sockets() -> None:
    class Auth:
        server_url = "http://127.0.0.1:1"
        ca_pem = b""
        ssl_context = True
        proxy_url = None
        tls_server_name = None

        async def authorization(self) -> None:
            return None

    accepted = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"gitVersion": "v1"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    Auth.server_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    auth: KubeAuth = Auth()  # type: ignore[assignment]  # all that is asked of it
    client = KubeClient(auth, request_timeout=5)
    try:
        assert await client.version() == "v1"
        connector = client._session.connector  # noqa: SLF001 -- the library shows its sockets nowhere else
        assert connector is not None
        ((kept, _),) = [one for group in connector._conns.values() for one in group]  # noqa: SLF001 -- as above
        sock = kept.transport.get_extra_info("socket") if kept.transport is not None else None
        assert sock is not None
        assert options(sock) == WANTED
    finally:
        await client.close()
        server.close()
        await server.wait_closed()
