"""A running embedded API for each test, an HTTP client with an administrator's certificate, and kubectl."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.kubeapi import Client, Kubectl, Ran, find_kubectl, run_kubectl
from tether.devcluster.api import ApiOptions, EmbeddedApi
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from pathlib import Path


# Before Python 3.14 the first asyncio.get_event_loop() of a thread makes a loop that nobody closes, and pytest-asyncio
# asks for it; whichever test the collector then runs in would fail. After an explicit "none", none is made.
asyncio.set_event_loop(None)


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
    find_kubectl()

    async def run(*arguments: str, kubeconfig: str = "", **options: Any) -> Ran:
        config = tmp_path / "kubeconfig"
        config.write_text(kubeconfig or api.admin_kubeconfig())
        return await run_kubectl(config, tmp_path, *arguments, **options)

    return run
