"""The proxy beside a real kube-apiserver with Capsule, and beside another proxy before the same one.

CAPSULE_PROXY_BIN names the program of capsule-proxy; it runs with the flags that lift its client limits.
"""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import msgspec
import yaml

from bench.proxy_stage import certificates
from bench.proxy_stub import free_port
from eventcore.errors import NotFoundError
from eventcore.kube import KubeClient, api_path
from eventcore.settings_reading import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[1]
HOME: Final = "oil-system"
ACCOUNT: Final = "gitops-reconciler"
NAMESPACES: Final = 10
"""Namespaces of the tenant."""
OTHERS: Final = 90
"""Namespaces of the cluster beside them."""
PODS: Final = 3
"""Pods in each namespace of the tenant."""
WAIT: Final = 120.0
_CREATED: Final = 201
_CONFLICT: Final = 409


class _NotYetError(Exception):
    """It is too early: Tether and Capsule do their part a little later."""


class Cluster:
    """A running cluster with one tenant: URLs, and tokens of an administrator and of the tenant's account."""

    def __init__(self, urls: dict[str, str], admin: str, tenant: str) -> None:
        self.urls = urls
        self.admin = admin
        self.tenant = tenant


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Run a control plane and all of Tether; ``urls`` by name, the API server's first."""
    plane, dev = folder / "plane", folder / "dev"
    async with AsyncExitStack() as stack:
        python = {"PYTHONPATH": str(ROOT / "tests")}
        stack.push_async_callback(_run, "-m", "controlplane", "down", "--dir", str(plane), **python)
        kubeconfig = (await _run("-m", "controlplane", "up", "--dir", str(plane), **python)).split()[-1]
        settings = {"TETHER_PROXY_ALL_NAMESPACED": "true", "TETHER_LOG_LEVEL": "error"}
        stack.push_async_callback(_run, "-m", "tether.cli", "dev", "down", "--dir", str(dev))
        await _run("-m", "tether.cli", "dev", "up", "--dir", str(dev), "--kubeconfig", kubeconfig, **settings)
        client = await KubeClient.connect(load({}, {"kubeconfig": kubeconfig, "log_level": "error"}))
        stack.push_async_callback(client.close)
        urls = {"API server": client.server_url, "Tether": _exported(dev, "TETHER_PROXY_URL")}
        tenant = await _tenant(client)
        if program := os.environ.get("CAPSULE_PROXY_BIN"):
            urls["capsule-proxy"] = await stack.enter_async_context(_other(program, folder, kubeconfig, client))
        found = Cluster(urls, await _administrator(client), tenant)
        await _fill(client, found)
        yield found


async def _run(*arguments: str, **environ: str) -> str:
    """Run one of our own programs; RuntimeError with what it said when it fails."""
    # In a thread: what these programs leave running holds the stdout that uvloop gives a child, so it never ends.
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stdout}")
    return done.stdout


def _exported(folder: Path, name: str) -> str:
    lines = (folder / "env.sh").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"export {name}=")]
    return line.partition("=")[2].strip("'")


async def _tenant(client: KubeClient) -> str:
    """Make the guide's tenant; return the token that Tether gives its account."""
    for name in ("capsule-configuration.yaml", "oil.yaml"):
        for body in yaml.safe_load_all((ROOT / "examples" / name).read_text()):
            await client.apply(_path(body), body, manager="bench", force=True)
    secret = api_path("", "v1", "secrets", namespace=HOME, name=f"{ACCOUNT}-token")

    async def token() -> str:
        try:
            found = msgspec.json.decode(await client.get(secret), type=dict[str, Any])
        except NotFoundError as error:
            raise _NotYetError from error
        return base64.b64decode(found["data"]["token"]).decode()

    return await _eventually(token)


def _path(body: dict[str, Any]) -> str:
    group, _, version = body["apiVersion"].rpartition("/")
    metadata = body["metadata"]
    plural = f"{body['kind'].lower()}s"
    return api_path(group, version, plural, namespace=metadata.get("namespace", ""), name=metadata["name"])


async def _administrator(client: KubeClient) -> str:
    """Return a token of a cluster-admin, for what a tenant may not ask of the API server itself."""
    core = api_path("", "v1", "serviceaccounts", namespace="default")
    await client.create(core, {"metadata": {"name": "bench"}})
    subjects = [{"kind": "ServiceAccount", "name": "bench", "namespace": "default"}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    bindings = api_path("rbac.authorization.k8s.io", "v1", "clusterrolebindings")
    await client.create(bindings, {"metadata": {"name": "bench"}, "subjects": subjects, "roleRef": role})
    return (await client.token_request("default", "bench", expiration_seconds=3600)).token


async def _fill(client: KubeClient, found: Cluster) -> None:
    """Make the namespaces, and what lies in those of the tenant, as the tenant does."""
    core = api_path("", "v1", "namespaces")
    for number in range(OTHERS):
        await client.create(core, {"metadata": {"name": f"other-{number}"}})
    async with aiohttp.ClientSession(
        found.urls["Tether"], connector=aiohttp.TCPConnector(ssl=False), trust_env=False
    ) as session:

        async def post(path: str, body: dict[str, Any]) -> None:
            headers = {"Authorization": f"Bearer {found.tenant}"}

            async def made() -> bool:
                async with session.post(path, json=body, headers=headers) as response:
                    if response.status in {_CREATED, _CONFLICT}:
                        return True
                    raise _NotYetError(await response.text())

            await _eventually(made)

        for number in range(NAMESPACES):
            name = f"oil-{number}"
            await post(core, {"metadata": {"name": name}})
            pods = api_path("", "v1", "pods", namespace=name)
            for pod in range(PODS):
                spec = {
                    "containers": [{"name": "c", "image": "example.org/none"}],
                    "automountServiceAccountToken": False,
                }
                await post(pods, {"metadata": {"name": f"p{pod}"}, "spec": spec})
        maps = api_path("", "v1", "configmaps", namespace="oil-0")
        await post(maps, {"metadata": {"name": "settings"}, "data": {"a": "x" * 10_000}})


async def _eventually(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again until there is an answer."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                return await ask()
            except _NotYetError:
                await asyncio.sleep(0.1)  # Tether, Capsule and Kubernetes have a part in it; no one event tells of all


@asynccontextmanager
async def _other(program: str, folder: Path, kubeconfig: str, client: KubeClient) -> AsyncIterator[str]:
    """Run capsule-proxy; yields its URL."""
    for name in ("proxysettings", "globalproxysettings"):
        body = yaml.safe_load((ROOT / "deploy" / "crds" / f"{name}.yaml").read_text())
        await client.apply(_path(body), body, manager="bench", force=True)
    certificates(folder)
    port = free_port()
    flags = {
        "listening-port": str(port),
        "ssl-cert-path": str(folder / "tls.crt"),
        "ssl-key-path": str(folder / "tls.key"),
        "auth-preferred-types": "BearerToken",
        "client-connection-qps": "100000",
        "client-connection-burst": "100000",
        "metrics-addr": "0",
        "zap-log-level": "error",
    }
    process = await asyncio.create_subprocess_exec(
        program,
        *(f"--{name}={value}" for name, value in flags.items()),
        env={**os.environ, "KUBECONFIG": kubeconfig, "NAMESPACE": "capsule-system"},
        stdin=subprocess.DEVNULL,
    )
    url = f"https://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False), trust_env=False) as session:

            async def ready() -> bool:
                if process.returncode is not None:
                    raise RuntimeError(f"{program} ended with {process.returncode}; it says above why")
                try:
                    async with session.get(f"{url}/_healthz") as response:
                        return response.ok
                except aiohttp.ClientError as error:
                    raise _NotYetError from error

            await _eventually(ready)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
