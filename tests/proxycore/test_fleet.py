"""``tether proxy --workers N`` as a process: all serve, none breaks a request when it stops, a dead one comes back."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventcore.metrics import Metrics
from proxycore.fleet_metrics import merged

if TYPE_CHECKING:
    from tests.proxycore.conftest import World

NAMESPACES = "/api/v1/namespaces"


class Running:
    """The process. Its log tells what its workers do."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"https://127.0.0.1:{port}"
        self.pids: dict[int, int] = {}
        self.probes = ""

    async def until(self, event: str, **wanted: Any) -> dict[str, Any]:
        """Return the next line of the log about an event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while line := await self.process.stderr.readline():
                try:
                    found = msgspec.json.decode(line, type=dict[str, Any])
                except msgspec.DecodeError:
                    raise AssertionError(line.decode()) from None
                if "http_port" in found and not self.probes:
                    self.probes = f"http://127.0.0.1:{found['http_port']}"
                if found["event"] == "worker started":
                    self.pids[found["worker"]] = found["pid"]
                if found["event"] == event and wanted.items() <= found.items():
                    return found
        raise AssertionError(f"the process ended before {event}")


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else gets: bound, but not listened at."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@asynccontextmanager
async def running(world: World, port: int, *flags: str) -> AsyncIterator[Running]:
    settings = world.settings
    environ = {
        "TETHER_NATS_URL": settings.nats_url,
        "TETHER_KUBECONFIG": settings.kubeconfig,
        "TETHER_PROXY_TLS_CERT": settings.proxy_tls_cert,
        "TETHER_PROXY_TLS_KEY": settings.proxy_tls_key,
        "TETHER_CLUSTER": settings.cluster,
        "TETHER_LOG_FORMAT": "json",
    }
    command = ["proxy", "--workers", "2", "--http-port", "0", "--proxy-port", str(port), *flags]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "tether.cli"),
        *command,
        env={name: value for name, value in os.environ.items() if not name.startswith("TETHER_")} | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    found = Running(process, port)
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # The workers end with their parent, and with the last of them its stderr: then nothing is left in the loop.
        assert process.stderr is not None
        async with asyncio.timeout(30):
            while await process.stderr.read(65536):
                pass


@pytest.mark.timeout(150)
@pytest.mark.slow
async def test_a_fleet_serves_loses_a_worker_and_drains(world: World, port: int) -> None:
    # One story and one start of the processes: each start takes seconds.
    owner = await world.owner("oil", "oil-production")
    async with running(world, port, "--shutdown-delay", "10m") as fleet:
        for _ in range(2):
            await fleet.until("worker is ready")
        client = world.client(owner.token)
        client.url = fleet.url

        await _both_serve(world, fleet, client)
        await _a_killed_one_comes_back(fleet, client)
        await _a_stop_finishes_what_is_in_hand(world, fleet, client)


async def _both_serve(world: World, fleet: Running, client: Any) -> None:
    served: set[str] = set()
    async with asyncio.timeout(30):
        while served != {"0", "1"}:  # the kernel chooses for each connection
            found = await client.get(NAMESPACES, headers={"Connection": "close"})
            assert found.names == ["oil-production"]
            text = await _text(world.session, f"{fleet.probes}/metrics")
            served = {
                sample.labels["worker"]
                for family in text_string_to_metric_families(text)
                if family.name == "tether_proxy_requests"
                for sample in family.samples
                if sample.value
            }
    assert await _text(world.session, f"{fleet.probes}/readyz") == "ok\n"


async def _a_killed_one_comes_back(fleet: Running, client: Any) -> None:
    first = fleet.pids[0]
    os.kill(first, signal.SIGKILL)
    ended = await fleet.until("worker ended and is started again", worker=0)
    assert ended["code"] == -signal.SIGKILL
    found = await client.get(NAMESPACES, headers={"Connection": "close"})  # the other one serves on
    assert found.names == ["oil-production"]
    assert await _text(client.session, f"{fleet.probes}/readyz") == "ok\n"  # so the probes let it
    await fleet.until("worker is ready", worker=0)
    assert fleet.pids[0] != first


async def _a_stop_finishes_what_is_in_hand(world: World, fleet: Running, client: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"kind": "SelfSubject'
        fleet.process.send_signal(signal.SIGTERM)
        await fleet.until("leaving")
        # For a while new connections are taken, though no probe says so.
        assert (await client.get(NAMESPACES, headers={"Connection": "close"})).names == ["oil-production"]
        assert "process: stopping" in await _text(world.session, f"{fleet.probes}/readyz")
        fleet.process.send_signal(signal.SIGTERM)  # ends the while
        await fleet.until("stopping")
        yield b'Review"}'

    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}
    review = f"{fleet.url}/apis/authentication.k8s.io/v1/selfsubjectreviews"
    async with world.session.post(review, data=pieces(), headers=headers) as found:
        assert found.status == 201
    async with asyncio.timeout(30):
        assert await fleet.process.wait() == 0
    for pid in fleet.pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_thousands_of_silent_connections_keep_nobody_out(world: World, port: int) -> None:
    # Given a process that begins with the soft limit of most systems
    owner = await world.owner("oil", "oil-production")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    starting = running(world, port)
    fleet = await starting.__aenter__()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    silent: list[socket.socket] = []
    try:
        for _ in range(2):
            await fleet.until("worker is ready")

        # When somebody opens more connections than that, and says nothing
        for _ in range(2600):
            silent.append(socket.create_connection(("127.0.0.1", port)))
            await asyncio.sleep(0)

        # Then a caller is answered, and so are the probes
        client = world.client(owner.token)
        client.url = fleet.url
        for _ in range(10):
            found = await client.get(NAMESPACES, headers={"Connection": "close"})
            assert found.names == ["oil-production"]
        assert await _text(world.session, f"{fleet.probes}/readyz") == "ok\n"
        assert "tether_proxy_connections{" in await _text(world.session, f"{fleet.probes}/metrics")
    finally:
        for sock in silent:
            sock.close()
        await starting.__aexit__(None, None, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
async def test_workers_end_with_the_process_that_started_them(world: World, port: int) -> None:
    async with running(world, port) as fleet:
        await fleet.until("worker is ready")
        fleet.process.kill()
        await fleet.process.wait()
        # They hold the other end of its stderr, so that ends when they do.
        assert fleet.process.stderr is not None
        async with asyncio.timeout(30):
            await fleet.process.stderr.read()


async def test_a_fleet_that_cannot_start_says_why_and_ends(world: World, port: int) -> None:
    async with running(world, port, "--proxy-tls-cert", "/nowhere", "--proxy-tls-key", "/nowhere") as fleet:
        assert fleet.process.stderr is not None
        async with asyncio.timeout(60):
            said = (await fleet.process.stderr.read()).decode()
            assert await fleet.process.wait() == 1

    assert re.search(r"tether proxy-\d: cannot use the certificate /nowhere", said)
    assert "before it could serve; it says above why" in said


async def test_a_fleet_needs_a_port_that_can_be_shared(world: World) -> None:
    async with running(world, 0) as fleet:
        assert fleet.process.stderr is not None
        async with asyncio.timeout(60):
            said = (await fleet.process.stderr.read()).decode()
            assert await fleet.process.wait() == 2

    assert "set --proxy-port to another one than 0" in said


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as found:
        return await found.text()


def test_metrics_of_workers_are_one_text_with_each_series_once_for_every_worker() -> None:
    texts = {}
    for number in (0, 1):
        metrics = Metrics()
        metrics.kube_requests.labels("GET", 'a"b} c').inc(number + 1)
        metrics.connected.set(number)
        texts[number] = metrics.render().decode()

    text = merged(texts, {0: True, 1: True, 2: False})

    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = [
        (one.labels["worker"], one.labels["code"], one.value) for one in families["tether_kube_requests"].samples
    ]
    assert sorted(one for one in requests if one[2]) == [("0", 'a"b} c', 1.0), ("1", 'a"b} c', 2.0)]
    assert [(one.labels, one.value) for one in families["tether_bus_connected"].samples] == [
        ({"worker": "0"}, 0.0),
        ({"worker": "1"}, 1.0),
    ]
    assert [one.value for one in families["tether_proxy_worker_up"].samples] == [1.0, 1.0, 0.0]
    assert text.count("# TYPE tether_kube_requests_total ") == 1
