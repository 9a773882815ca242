"""Where the proxy is measured: a stub of an API server, a nats-server with 10,000 namespaces, and the proxy."""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from bench.proxy_stub import CLUSTER, USER, namespace, nginx, serve
from eventcore import logs, topology
from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.events import Mark, encode_body, object_event
from eventcore.grants import (
    CapsuleUserRef,
    Choice,
    ConfigGrant,
    Grant,
    SelectorTerm,
    SubjectGrant,
    TenantGrant,
    encode_grant,
)
from eventcore.keys import ObjectKey, mark_subject
from eventcore.kube_auth import KubeAuth
from eventcore.process import Role
from eventcore.publishable import publishable
from eventcore.settings import Settings
from proxycore.identities import Identity
from proxycore.main import Service, serving_tls, spare_the_collector
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection
    from pathlib import Path

CHUNK: Final = 500
OWNER: Final = Identity(user=USER, groups=("system:serviceaccounts:oil-system",))


class Stage:
    """The running parts: URLs of the API server and of the proxy, and ways to change what the proxy knows."""

    def __init__(self, direct: str, proxy: str, service: Service, bus: Bus, folder: Path) -> None:
        self.direct = direct
        self.proxy = proxy
        self.service = service
        self.folder = folder
        self._bus = bus
        self._version = CLUSTER

    async def owns(self, count: int) -> None:
        """Give the tenant so many namespaces, and wait until the proxy knows."""
        names = tuple(sorted(f"oil-{number}" for number in range(count)))
        terms = (SelectorTerm(key="pool", operator="In", values=("oil",)),)
        choices = {"Nodes": Choice(selectors=(terms,))}
        may: dict[str, dict[str, tuple[str, ...]]] = {"oil": {"Nodes": ("List",)}}
        for grant in (
            ConfigGrant(users=(CapsuleUserRef(kind="Group", name="system:serviceaccounts:oil-system"),)),
            SubjectGrant(subject_kind="ServiceAccount", name=USER, tenants=("oil",), operations=may),
            TenantGrant(name="oil", uid="u", namespaces=names, choices=choices),
        ):
            await self._write(grant)
        await self.service.access.barrier(30)
        if not await self.service.feed.settled(30):
            raise RuntimeError("the proxy did not read its grants in time")

    async def change(self, number: int, **annotations: str) -> None:
        """Change a Namespace, as a watcher tells it."""
        self._version += 1
        body = namespace(number)
        body["metadata"] |= {"resourceVersion": str(self._version), "annotations": annotations}
        await publish(self._bus, body)

    async def _write(self, grant: Grant) -> None:
        found = await self._bus.kv_get(grant.key())
        await self._bus.kv_put(grant.key(), encode_grant(grant), revision=found.revision if found else 0)


@asynccontextmanager
async def stage(folder: Path, direct: str) -> AsyncIterator[Stage]:
    """Run the proxy before an API server that is already there; `certificates` of the folder must be."""
    (folder / "kubeconfig").write_text(_kubeconfig(direct, folder / "ca.crt"))
    async with NatsServer(folder / "nats") as nats:
        settings = Settings(
            nats_url=nats.url,
            kubeconfig=str(folder / "kubeconfig"),
            proxy_port=0,
            proxy_tls_cert=str(folder / "tls.crt"),
            proxy_tls_key=str(folder / "tls.key"),
            max_view_age=3600.0,  # nobody marks the views while the measurement has both cores
        )
        bus = await Bus.connect(settings, "proxy")
        for stream in topology.streams(settings):
            await bus.js.add_stream(stream)
        for start in range(0, CLUSTER, CHUNK):
            await asyncio.gather(*(publish(bus, namespace(number)) for number in range(start, start + CHUNK)))
        for kind in ("Namespace", "Tenant", "CapsuleConfiguration"):
            mark = Mark(kind=kind, resource_version=str(2 * CLUSTER), time=now())
            await bus.publish(mark_subject(kind), encode_body(mark))
        role = Role(name="proxy", settings=settings, log=logs.get("bench"))
        service = Service(role, bus, await KubeAuth.load(settings), serving_tls(settings))
        task = asyncio.ensure_future(service.run())
        await service.listening.wait()
        found = Stage(direct, f"https://127.0.0.1:{service.port}", service, bus, folder)
        await service.objects.barrier(60)
        await spare_the_collector(service)
        await found.owns(10)
        try:
            yield found
        finally:
            role.stopping.set()
            await task
            await bus.close()


@asynccontextmanager
async def fast_stub(folder: Path) -> AsyncIterator[str]:
    """Run nginx as the API server; yields its URL."""
    certificates(folder)
    async with nginx(folder) as url:
        yield url


@asynccontextmanager
async def counting_stub(folder: Path) -> AsyncIterator[tuple[str, Connection]]:
    """Run the stub in Python; yields its URL and a pipe to ask it, see `proxy_stub.serve`."""
    certificates(folder)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, str(folder / "tls.crt"), str(folder / "tls.key")), daemon=True)
    process.start()
    try:
        yield f"https://127.0.0.1:{await asyncio.to_thread(ours.recv)}", ours
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


def certificates(folder: Path) -> None:
    """Write tls.crt, tls.key and ca.crt."""
    pki = ClusterPki.load_or_create(None)
    certificate, key = pki.issue_serving(["127.0.0.1", "localhost"])
    for name, text in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", pki.ca_pem)):
        (folder / name).write_text(text)


async def publish(bus: Bus, body: dict[str, Any]) -> None:
    """Publish a Namespace as a watcher does."""
    meta = body["metadata"]
    key = ObjectKey("Namespace", "", meta["name"])
    event = object_event("bench", key, uid=meta["uid"], resource_version=meta["resourceVersion"], deleted=False)
    await bus.publish(key.subject(), publishable("Namespace", msgspec.json.encode(body)), event)


def _kubeconfig(url: str, ca: Path) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(ca)}}],
            "users": [{"name": "u", "user": {"token": "the-proxy"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )
