"""A running embedded API for each test, an HTTP client with an administrator's certificate, and kubectl."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from tether.devcluster.api import ApiOptions, EmbeddedApi
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from pathlib import Path


# Before Python 3.14 the first asyncio.get_event_loop() of a thread makes a loop that nobody closes, and pytest-asyncio
# asks for it; whichever test the collector then runs in would fail. After an explicit "none", none is made.
asyncio.set_event_loop(None)


class Reply(msgspec.Struct, frozen=True):
    """One HTTP answer, its body decoded if it is JSON."""

    status: int
    body: Any
    headers: dict[str, str]


class Client:
    """Speaks HTTPS with one API; ``request`` takes what aiohttp takes."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.url + path, **options) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            body = msgspec.json.decode(raw) if is_json and raw else raw.decode()
            return Reply(response.status, body, dict(response.headers))

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        return await self.request("POST", path, json=body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Reply:
        return await self.request("PUT", path, json=body, **options)

    async def delete(self, path: str, **options: Any) -> Reply:
        return await self.request("DELETE", path, **options)

    async def patch(self, path: str, body: Any, kind: str = "merge-patch+json", **params: str) -> Reply:
        headers = {"Content-Type": f"application/{kind}"}
        data = msgspec.json.encode(body)
        return await self.request("PATCH", path, data=data, headers=headers, params=params)

    async def apply(self, path: str, body: Any, manager: str, **params: str) -> Reply:
        return await self.patch(path, body, "apply-patch+yaml", fieldManager=manager, **params)


class Ran(msgspec.Struct, frozen=True):
    """What a finished kubectl left."""

    code: int
    out: str
    err: str


Kubectl = Callable[..., Coroutine[Any, Any, Ran]]


@pytest.fixture(scope="session")
def pki() -> ClusterPki:
    return ClusterPki.load_or_create(None)


@pytest.fixture
async def api(pki: ClusterPki) -> AsyncIterator[EmbeddedApi]:
    embedded = EmbeddedApi(ApiOptions(bookmark_every=0.05), pki=pki)
    await embedded.start()
    yield embedded
    await embedded.stop()


@pytest.fixture
async def client(api: EmbeddedApi, tmp_path: Path) -> AsyncIterator[Client]:
    certificate, key = api.pki.client_certificate("kubernetes-admin", ["system:masters"])
    chain = tmp_path / "admin.pem"
    chain.write_text(certificate + key)
    tls = ssl.create_default_context(cadata=api.pki.ca_pem)
    tls.load_cert_chain(chain)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        yield Client(api.url, session)


@pytest.fixture
async def stranger(api: EmbeddedApi) -> AsyncIterator[Client]:
    """A client without any credentials."""
    tls = ssl.create_default_context(cadata=api.pki.ca_pem)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        yield Client(api.url, session)


@pytest.fixture
def kubectl(api: EmbeddedApi, tmp_path: Path) -> Kubectl:
    """A function that runs kubectl, as an administrator unless a kubeconfig (text) is given."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on the PATH: this test drives kubectl itself")

    async def run(*arguments: str, stdin: str = "", kubeconfig: str = "", expect: int | None = 0) -> Ran:
        config = tmp_path / "kubeconfig"
        config.write_text(kubeconfig or api.admin_kubeconfig())
        process = await asyncio.create_subprocess_exec(
            binary,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": str(config)},
        )
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate(stdin.encode())
        except BaseException:
            process.kill()
            await process.wait()
            raise
        ran = Ran(process.returncode or 0, out.decode(), err.decode())
        if expect is not None:
            assert ran.code == expect, f"kubectl {' '.join(arguments)}: {ran}"
        return ran

    return run
