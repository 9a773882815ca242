"""The ``apiserver`` of the contract suite: the embedded API or a real control plane, each as its own processes.

``--cluster embedded`` (the default) or ``--cluster real``. One server serves all tests of a run, so every test makes
objects with names of its own.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
import pytest
import yaml

from tests.contract.tenants import Tenancy
from tests.kubeapi import Client, Kubectl, Object, Ran, find_kubectl, run_kubectl

T = TypeVar("T")

WAIT = 40.0
"""Seconds within which anything must have happened; a bound for broken runs, not a measure."""

CONFIGURATION = "/apis/capsule.clastix.io/v1beta2/capsuleconfigurations/default"

Until = Callable[[Callable[[], Awaitable[T]]], Coroutine[Any, Any, T]]
AsToken = Callable[[str], Coroutine[Any, Any, Client]]


class ApiServer(msgspec.Struct, frozen=True, kw_only=True):
    """An API server to hold to the contract."""

    kind: Literal["embedded", "real"]
    kubeconfig: Path  # of a cluster-admin
    url: str
    ca_pem: str
    admin_pem: Path  # certificate and key of that cluster-admin

    def plain_tls(self) -> ssl.SSLContext:
        """Return the TLS of a client without a certificate."""
        return ssl.create_default_context(cadata=self.ca_pem)

    def admin_tls(self) -> ssl.SSLContext:
        tls = self.plain_tls()
        tls.load_cert_chain(self.admin_pem)
        return tls


@pytest.fixture(scope="session")
def apiserver(control_plane: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("apiserver")
    if control_plane is not None:
        yield _read("real", control_plane, folder)
        return
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TETHER_")}
    process = subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-P", "-m", "tether.cli", "devcluster", "--dir", str(folder / "data"), "--port", "0"],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            said = [process.stdout.readline() for _ in range(2)]  # the second line says that the kubeconfig is there
            assert said[-1].startswith("kubectl "), said
            yield _read("embedded", folder / "data" / "admin.kubeconfig", folder)
        finally:
            process.terminate()
    assert process.returncode == 0, process.returncode


def _read(kind: Literal["embedded", "real"], kubeconfig: Path, folder: Path) -> ApiServer:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    admin = folder / "admin.pem"
    admin.touch(mode=0o600)
    pair = [base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")]
    admin.write_bytes(b"\n".join(pair))
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return ApiServer(kind=kind, kubeconfig=kubeconfig, url=cluster["server"], ca_pem=authority, admin_pem=admin)


@pytest.fixture
async def admin(apiserver: ApiServer) -> AsyncIterator[Client]:
    """A cluster-admin, by certificate."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=apiserver.admin_tls())) as session:
        yield Client(apiserver.url, session)


@pytest.fixture
async def as_token(apiserver: ApiServer) -> AsyncIterator[AsToken]:
    """A function that returns a client with a bearer token; "" is without any credentials."""
    async with AsyncExitStack() as stack:

        async def make(token: str) -> Client:
            connector = aiohttp.TCPConnector(ssl=apiserver.plain_tls())
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            return Client(apiserver.url, session, {"Authorization": f"Bearer {token}"} if token else {})

        yield make


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"c{secrets.token_hex(4)}"


@pytest.fixture
async def namespace(admin: Client, name: str, until: Until[Any]) -> str:
    """A new namespace, once what Kubernetes puts into it is there."""
    made = await admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
    assert made.status == 201, made

    async def ready() -> bool:
        paths = ("serviceaccounts/default", "configmaps/kube-root-ca.crt")
        return {(await admin.get(f"/api/v1/namespaces/{name}/{path}")).status for path in paths} == {200}

    await until(ready)
    return name


@pytest.fixture
def kubectl(apiserver: ApiServer, tmp_path: Path) -> Kubectl:
    """A function that runs kubectl, as cluster-admin unless a kubeconfig (text) is given."""
    find_kubectl()

    async def run(*arguments: str, kubeconfig: str = "", **options: Any) -> Ran:
        config = apiserver.kubeconfig
        if kubeconfig:
            config = tmp_path / "other.kubeconfig"
            config.touch(mode=0o600)
            config.write_text(kubeconfig)
        return await run_kubectl(config, tmp_path, *arguments, **options)

    return run


@pytest.fixture
def until() -> Until[Any]:
    """A function that asks until the answer is true and returns it: where a server tells nobody what it does."""

    async def ask(question: Callable[[], Awaitable[Any]]) -> Any:
        deadline = time.monotonic() + WAIT
        while not (answer := await question()):
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.03)
        return answer

    return ask


@pytest.fixture
async def tenancy(admin: Client, name: str, until: Until[Any]) -> Tenancy:
    """A tenant of this test alone, not made yet."""
    configured = await admin.get(CONFIGURATION)
    if configured.status == 404:  # the chart makes it; without a chart somebody has to
        body: Object = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "CapsuleConfiguration",
            "metadata": {"name": "default"},
            "spec": {"enableTLSReconciler": False, "users": []},
        }
        made = await admin.post(CONFIGURATION.rpartition("/")[0], body)
        assert made.status in {201, 409}, made
    return Tenancy(admin, name, until)
