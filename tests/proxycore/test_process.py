"""The proxy as a process: what it needs to start, when it is ready, how it stops, and kubectl before it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore.errors import StartError
from eventcore.logs import get
from eventcore.process import Role
from eventcore.settings import Settings
from proxycore.main import proxy, serving_tls
from tests.proxycore.conftest import kubeconfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.proxycore.conftest import World
    from tether.devcluster.pki import ClusterPki

NAMESPACES = "/api/v1/namespaces"


@pytest.fixture
def kubectl(world: World, pki: ClusterPki, tmp_path: Path) -> Callable[..., Awaitable[str]]:
    """Run kubectl with a kubeconfig for the proxy; returns what it printed, errors too."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on the PATH: this test drives kubectl itself")

    async def run(token: str, *arguments: str) -> str:
        (tmp_path / "ca.crt").write_text(pki.ca_pem)
        config = tmp_path / "tenant.kubeconfig"
        config.write_text(kubeconfig(world.url, str(tmp_path / "ca.crt"), token))
        process = await asyncio.create_subprocess_exec(
            binary,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": str(config)},
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        return out.decode()

    return run


@pytest.mark.kubectl
async def test_kubectl_sees_a_tenants_cluster(world: World, kubectl: Callable[..., Awaitable[str]]) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    await world.tenant("gas", "gas-production")
    await world.settle()

    table = await kubectl(owner.token, "get", "namespaces")
    names = await kubectl(owner.token, "get", "ns", "-o", "name")
    one = await kubectl(owner.token, "get", "ns", "oil-production", "-o", "jsonpath={.metadata.name}")
    other = await kubectl(owner.token, "get", "ns", "gas-production")
    whoami = await kubectl(owner.token, "auth", "whoami")

    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "oil-development", "oil-production"]
    assert names.split() == ["namespace/oil-development", "namespace/oil-production"]
    assert one == "oil-production"
    assert "Forbidden" in other
    assert "system:serviceaccount:oil-system:gitops-reconciler" in whoami


@pytest.mark.kubectl
@pytest.mark.slow
async def test_kubectl_watches_namespaces_come_and_go(world: World, kubectl: Callable[..., Awaitable[str]]) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.namespace("oil-development")
    await world.settle()
    await world.move_on()

    watching = asyncio.ensure_future(
        kubectl(owner.token, "get", "ns", "-w", "--output-watch-events", "--request-timeout=8s")
    )
    async with asyncio.timeout(20):
        while not world.service.feed.followers:
            await asyncio.sleep(0.01)  # kubectl does not say when its watch stands
    await world.tenant("oil", "oil-production", "oil-development")
    await world.tenant("oil", "oil-development")
    events = [line.split()[:2] for line in (await watching).splitlines() if line[:1].isupper()]

    assert ["ADDED", "oil-production"] in events
    assert events.index(["ADDED", "oil-development"]) < events.index(["DELETED", "oil-production"])


async def test_two_processes_share_one_port(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    async with world.proxy(proxy_port=world.service.port) as second:
        assert second.port == world.service.port
        assert await second.feed.settled(15)
        # Each new connection goes to one of the two; both answer alike.
        for _ in range(8):
            found = await owner.get(NAMESPACES, headers={"Connection": "close"})
            assert found.names == ["oil-production"]


async def test_a_proxy_that_stops_finishes_what_is_in_hand(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async with world.proxy() as second:
        stopping = world.role.stopping
        url = f"https://127.0.0.1:{second.port}"
        pieces = _pieces(stopping)
        async with world.session.post(
            f"{url}/apis/authentication.k8s.io/v1/selfsubjectreviews",
            data=pieces,
            headers={"Authorization": f"Bearer {owner.token}", "Content-Type": "application/json"},
        ) as found:
            assert found.status == 201  # it was half sent when the process was told to stop
        assert stopping.is_set()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.02)  # readiness is asked, it does not tell


async def _pieces(stopping: asyncio.Event) -> AsyncIterator[bytes]:
    yield b'{"kind": "SelfSubject'
    stopping.set()
    await asyncio.sleep(0)
    yield b'Review"}'


async def test_the_process_is_ready_once_it_knows_enough_and_not_when_it_stops(world: World) -> None:
    role = world.role
    await _until(lambda: role.readiness.ready)

    role.stopping.set()

    await _until(lambda: not role.readiness.ready)
    assert [name for name, _ in role.readiness.failing()] == ["port"]


async def test_the_requests_are_counted_by_route_verb_and_code(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await owner.get(NAMESPACES)
    await owner.get(f"{NAMESPACES}?resourceVersion=0")
    await owner.get(f"{NAMESPACES}/oil-production")
    await owner.get("/version")
    await world.client("wrong").get("/version")

    text = world.role.metrics.render().decode()

    for labels in (
        'code="200",route="list",verb="list"',
        'code="200",route="memory",verb="list"',
        'code="200",route="read",verb="get"',
        'code="200",route="forward",verb="get"',
        'code="401",route="refused",verb="get"',
    ):
        assert f"tether_proxy_requests_total{{{labels}}} 1.0" in text


# What is wrong is one clear line.


async def test_a_port_in_use_is_said(world: World) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        role = Role(
            name="proxy",
            settings=msgspec.structs.replace(world.settings, proxy_port=port),
            log=get("test"),
        )

        with pytest.raises(ExceptionGroup) as caught:
            await proxy(role)

    (error,) = caught.value.exceptions
    assert isinstance(error, StartError)
    assert str(error) == f"port {port} on 127.0.0.1 is in use: stop what listens there, or set --proxy-port"


async def test_a_wrong_kubeconfig_is_said(world: World, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(world.settings, kubeconfig=str(tmp_path / "missing"))

    with pytest.raises(StartError, match="there is no kubeconfig at"):
        await proxy(Role(name="proxy", settings=settings, log=get("test")))


def test_without_a_certificate_there_is_no_proxy() -> None:
    with pytest.raises(StartError, match="set --proxy-tls-cert and --proxy-tls-key"):
        serving_tls(Settings())


def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("nothing")
    settings = Settings(proxy_tls_cert=str(tmp_path / "tls.crt"), proxy_tls_key=str(tmp_path / "tls.key"))

    with pytest.raises(StartError, match=r"cannot use the certificate .*tls\.crt"):
        serving_tls(settings)
