"""Who only opens connections drives out nobody but itself, and what the process needs for its own work stays free."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from eventcore import logs
from proxycore.peers import network_of
from proxycore.plane import accepting, listener
from proxycore.plane.accepting import LEAST, RESERVED_FILES, Acceptor, Crowd, Limits
from tests.proxycore.test_forwarding import Between, plain, run_between
from tests.proxycore.test_plane import asks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxycore.plane.accepting import Accepted
    from tether.devcluster.pki import ClusterPki

HEAD_END = b"\r\n\r\n"


def refused(between: Between, reason: str) -> float:
    found = between.role.metrics.registry.get_sample_value("tether_proxy_connections_refused_total", {"reason": reason})
    assert found is not None
    return found


def connections(between: Between) -> float:
    return between.role.metrics.registry.get_sample_value("tether_proxy_connections") or 0.0


@asynccontextmanager
async def bare(port: int, number: int, address: str = "127.0.0.1") -> AsyncIterator[list[socket.socket]]:
    """Open connections on which nothing is said, not even the handshake of TLS."""
    found: list[socket.socket] = []
    try:
        for _ in range(number):
            sock = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
            sock.setblocking(False)  # noqa: FBT003 - the way of the standard library
            found.append(sock)
            await asyncio.sleep(0)
        yield found
    finally:
        for sock in found:
            sock.close()


async def useful(between: Between, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, and get an answer on it."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", between.service.port, ssl=between.tls, local_addr=(address, 0)
    )
    writer.write(asks("/api"))
    head = await reader.readuntil(HEAD_END)
    assert head.startswith(b"HTTP/1.1 200 ")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
    return reader, writer


async def closed_at_once(between: Between, address: str = "127.0.0.1") -> bool:
    try:
        async with asyncio.timeout(5):
            await useful(between, address)
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving, max_connections=20, peer_connection_share=0.5) as found:
        found.upstream.answer = plain
        yield found


async def test_connections_that_say_nothing_make_room_for_one_that_asks(
    between: Between, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "json", "proxy")
    async with bare(between.service.port, 200):
        _, writer = await useful(between)

        assert connections(between) <= 10
        assert refused(between, "evicted") >= 190
        assert refused(between, "peer") == refused(between, "full") == 0
        writer.close()

    said = capfd.readouterr().err
    assert said.count('"connections are refused"') == 1
    assert '"peer":"127.0.0.1"' in said


async def test_connections_that_did_something_stay_and_their_network_gets_no_more(between: Between) -> None:
    kept = [await useful(between) for _ in range(10)]

    assert await closed_at_once(between)
    assert refused(between, "peer") == 1

    # another network has a share of its own
    other = await useful(between, "127.0.0.2")
    for reader, writer in (*kept, other):
        writer.write(asks("/api"))
        assert (await reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_credential_that_is_refused_is_nothing_done(between: Between) -> None:
    refusals = []
    for _ in range(10):
        reader, writer = await between.connect()
        writer.write(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 401 ")
        refusals.append(writer)

    _, writer = await useful(between)

    assert refused(between, "evicted") == 1
    for one in (*refusals, writer):
        one.close()


async def test_where_there_is_no_room_at_all_the_oldest_of_any_network_makes_some(between: Between) -> None:
    port = between.service.port
    async with bare(port, 10, "127.0.0.2"), bare(port, 10, "127.0.0.3"):
        kept = [await useful(between, address) for address in ["127.0.0.4"] * 10 + ["127.0.0.5"] * 10]

        assert refused(between, "evicted") == 20
        assert await closed_at_once(between, "127.0.0.6")
        assert refused(between, "full") == 1
        for _, writer in kept:
            writer.close()


async def test_a_proxy_in_front_that_is_trusted_has_no_share(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    async with run_between(
        tmp_path, pki, serving, trusted_proxy_cidrs="127.0.0.0/8", max_connections=20, peer_connection_share=0.1
    ) as between:
        between.upstream.answer = plain
        kept = [await useful(between) for _ in range(20)]

        assert refused(between, "peer") == 0
        for _, writer in kept:
            writer.close()


async def test_a_handshake_that_is_not_made_ends_in_time(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    async with run_between(tmp_path, pki, serving) as between, bare(between.service.port, 3) as socks:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            while connections(between) < 3:
                await asyncio.sleep(0.01)  # a count is asked, it does not tell
            for sock in socks:
                assert await loop.sock_recv(sock, 1) == b""
            while connections(between):
                await asyncio.sleep(0.01)


async def test_without_a_file_for_it_a_connection_waits_and_the_event_loop_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[float] = []
    loop = asyncio.get_running_loop()

    class Poor(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            tries.append(loop.time())
            if len(tries) < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(socket, "socket", Poor)
    monkeypatch.setattr(accepting, "PAUSE_SECONDS", 0.05)
    reasons: list[str] = []
    crowd = Crowd(Limits(most=5, of_network=5), reasons.append)
    opened = asyncio.Event()

    class Peer(asyncio.Protocol):
        idle = True

        def __init__(self, accepted: Accepted) -> None:
            accepted.client = self
            self.accepted = accepted

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            opened.set()

        def connection_lost(self, _: BaseException | None) -> None:
            crowd.forget(self.accepted)

        def abort(self) -> None:
            self.transport.close()

    acceptor = Acceptor(crowd, Peer, None, handshake_seconds=1, shutdown_seconds=1)
    port = await acceptor.start("127.0.0.1", 0)
    try:
        async with bare(port, 1), asyncio.timeout(10):
            await opened.wait()
    finally:
        acceptor.stop()
    async with asyncio.timeout(10):
        for one in crowd.all():
            one.break_off()
        await crowd.empty()

    assert reasons == ["files", "files"]
    assert tries[2] - tries[0] >= 0.09


@pytest.mark.parametrize(
    ("most", "files", "wanted"),
    [
        (20_000, 1_048_576, 20_000),
        (20_000, 1024, (1024 - RESERVED_FILES) // 2),
        (100, 1024, 100),
        (20_000, 64, LEAST),
    ],
)
def test_half_of_the_files_are_for_the_other_side_and_some_for_the_process(most: int, files: int, wanted: int) -> None:
    limits = Limits.of(most, 0.25, files=files, exempt=lambda _: False)

    assert (limits.most, limits.of_network) == (wanted, wanted // 4)


@pytest.mark.parametrize(
    ("peer", "wanted"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
    ],
)
def test_one_network_is_one_peer(peer: str, wanted: str) -> None:
    assert network_of(peer) == wanted
