"""A small HTTPS server that answers as a test tells it, and clients for it: for what HTTP itself can do to us."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from eventcore.kube import KubeClient
from eventcore.metrics import Metrics
from eventcore.settings import Settings
from tether.devcluster.pki import ClusterPki

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Stub:
    """What the server was asked, and how it answers."""

    url: str
    pki: ClusterPki
    answer: Answer
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def kubeconfig(self, user: dict[str, Any] | None = None, **cluster: Any) -> dict[str, Any]:
        """Return a kubeconfig for the stub; the user has the token ``t0ken`` unless told otherwise."""
        ca = base64.b64encode(self.pki.ca_pem.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "dev",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority-data": ca, **cluster}}],
            "users": [{"name": "u", "user": {"token": "t0ken"} if user is None else user}],
            "contexts": [{"name": "dev", "context": {"cluster": "c", "user": "u"}}],
        }


@pytest.fixture(scope="session")
def pki() -> ClusterPki:
    return ClusterPki.load_or_create(None)


@pytest.fixture
async def stub(pki: ClusterPki) -> AsyncIterator[Stub]:
    """A server whose ``answer`` a test sets; it keeps every request and its body."""

    async def nothing(_: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async def handle(request: web.Request) -> web.StreamResponse:
        server.requests.append(request)
        server.bodies.append(await request.read())
        return await server.answer(request)

    server = Stub("", pki, nothing)
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=pki.server_ssl_context()).start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


Write = Callable[..., Path]


@pytest.fixture
def write_kubeconfig(tmp_path: Path) -> Write:
    """Return a function that writes a kubeconfig (a mapping or a text) and returns its path."""

    def write(content: dict[str, Any] | str, name: str = "kubeconfig") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


Connect = Callable[..., Awaitable[KubeClient]]


@pytest.fixture
async def connect(stub: Stub, write_kubeconfig: Write) -> AsyncIterator[Connect]:
    """Return a function that connects to the stub, or with another kubeconfig; keyword arguments are settings."""
    clients: list[KubeClient] = []

    async def make(
        kubeconfig: dict[str, Any] | str | None = None, metrics: Metrics | None = None, **settings: Any
    ) -> KubeClient:
        path = write_kubeconfig(stub.kubeconfig() if kubeconfig is None else kubeconfig)
        client = await KubeClient.connect(Settings(kubeconfig=str(path), **settings), metrics)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()
