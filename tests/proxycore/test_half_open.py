"""A peer that is gone without a word: its connection ends, on both sides of the proxy, and so does a watch in time."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from eventcore import sockets
from proxycore import passing
from proxycore.passing import LONGEST_WATCH, WATCH_MARGIN, watch_seconds
from proxycore.plane.dialling import Dialler
from proxycore.plane.listener import Listener
from proxycore.plane.pool import Pool
from proxycore.statuses import RefusedError
from tests.eventcore.test_sockets import WANTED, options
from tests.proxycore.test_forwarding import Between, Seen, run_between
from tests.proxycore.test_measures import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from proxycore.plane.accepting import Accepted
    from proxycore.plane.exchange import Request
    from tether.devcluster.pki import ClusterPki

WATCH = "/api/v1/namespaces/oil-production/pods?watch=1"
OURS, THEIRS = "10.213.7.1", "10.213.7.2"


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving) as found:
        yield found


async def for_ever(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("watch=1", LONGEST_WATCH),
        ("watch=1&timeoutSeconds=300", 300),
        ("timeoutSeconds=007&watch=1", 7),
        ("watch=1&timeoutSeconds=0", LONGEST_WATCH),
        ("watch=1&timeoutSeconds=-5", LONGEST_WATCH),
        ("watch=1&timeoutSeconds=" + "9" * 5000, LONGEST_WATCH),
        ("watch=1&timeoutSeconds=" + "0" * 200_000 + "x", LONGEST_WATCH),
        ("watch=1&xtimeoutSeconds=5", LONGEST_WATCH),
    ],
)
def test_a_forwarded_watch_has_its_own_time_and_a_margin(query: str, wanted: float) -> None:
    assert watch_seconds(query) == wanted + WATCH_MARGIN


async def test_a_forwarded_watch_that_the_api_server_does_not_end_is_ended(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "WATCH_MARGIN", -0.8)
    between.upstream.answer = for_ever

    async with asyncio.timeout(15), between.request("GET", f"{WATCH}&timeoutSeconds=1") as found:
        assert await found.content.read() == b"{}\n"  # ended whole: the client lists or watches again


async def _hold(_: Request) -> None:
    await asyncio.Event().wait()


async def test_both_sides_of_the_proxy_have_keep_alive() -> None:
    held: list[Accepted] = []
    listener = Listener(_hold)
    await listener.start("127.0.0.1", 0, None)
    pool = Pool(Dialler(f"http://127.0.0.1:{listener.port}", None).connect, trailers=list)
    asking = asyncio.ensure_future(pool.send("GET", "/", [("Host", "x")]))
    try:
        await until(lambda: listener.size == 1)
        held = listener._crowd.all()  # noqa: SLF001 -- the sockets show nowhere else
        (connection,) = pool._all  # noqa: SLF001 -- as above
        assert options(held[0].sock) == WANTED
        assert options(connection.transport.get_extra_info("socket")) == WANTED
    finally:
        pool.close()
        with pytest.raises(RefusedError):
            await asking
        await listener.close(0.1)


# A peer whose link is cut. Real, in a network namespace; so it needs the rights for one.

CLIENT = f"""
import socket, sys, time
sock = socket.create_connection(({OURS!r}, int(sys.argv[1])))
sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print("asked", flush=True)
time.sleep(120)
"""
SERVER = f"""
import socket, time
listening = socket.create_server(({THEIRS!r}, 0))
print(listening.getsockname()[1], flush=True)
sock, _ = listening.accept()
sock.recv(65536)
sock.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n3\\r\\n{{}}\\n\\r\\n")
print("answered", flush=True)
time.sleep(120)
"""


class Elsewhere:
    """Another machine: a network namespace with a link to here that can be cut."""

    def __init__(self) -> None:
        self.name = f"tether-{os.getpid()}"
        self.link = f"th{os.getpid() % 100000}"

    def make(self) -> None:
        """Make the link; CalledProcessError, and nothing is left."""
        try:
            _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip("address", "add", f"{OURS}/30", "dev", self.link)
            _ip("link", "set", self.link, "up")
            self._inside("address", "add", f"{THEIRS}/30", "dev", "eth0")
            self._inside("link", "set", "eth0", "up")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove all of it; the link by itself, since the namespace takes a while to go."""
        subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)  # noqa: S603, S607 -- our own words
        _ip("netns", "del", self.name)

    def cut(self) -> None:
        """Let nothing through any more, and let nobody know."""
        self._inside("link", "set", "eth0", "down")

    async def run(self, code: str, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.name, sys.executable, "-c", code, *arguments), stdout=subprocess.PIPE
        )

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)  # noqa: S603, S607 -- our own words


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and iproute2")
    # The same in seconds instead of minutes.
    quick = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 3000}
    changed = tuple((level, name, quick.get(name, value)) for level, name, value in sockets._OPTIONS)  # noqa: SLF001 -- as above
    monkeypatch.setattr(sockets, "_OPTIONS", changed)
    found = Elsewhere()
    try:
        _ip("netns", "add", found.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    found.make()
    try:
        yield found
    finally:
        found.remove()


@pytest.mark.slow
async def test_a_client_whose_link_is_cut_is_noticed(elsewhere: Elsewhere) -> None:
    listener = Listener(_hold)
    await listener.start(OURS, 0, None)
    process = await elsewhere.run(CLIENT, str(listener.port))
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"asked\n"
        await until(lambda: listener.size == 1)

        elsewhere.cut()

        await until(lambda: listener.size == 0)
    finally:
        process.kill()
        await process.wait()
        await listener.close(0.1)


@pytest.mark.slow
async def test_an_api_server_whose_link_is_cut_is_noticed_by_a_watch(elsewhere: Elsewhere) -> None:
    process = await elsewhere.run(SERVER)
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    pool = Pool(Dialler(f"http://{THEIRS}:{port}", None).connect, trailers=list)
    try:
        answer = await pool.send("GET", "/", [("Host", "x")])
        assert await process.stdout.readline() == b"answered\n"

        elsewhere.cut()

        with pytest.raises(RefusedError):
            await asyncio.wait_for(answer.read(), 15)
    finally:
        pool.close()
        process.kill()
        await process.wait()
