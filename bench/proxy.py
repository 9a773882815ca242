"""``make bench-proxy``: what the proxy costs, beside the same API server without it. The last line is one JSON list."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import shutil
import statistics
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import yaml

from bench.proxy_stub import OBJECT, USER, serve
from eventcore import logs, topology
from eventcore.bus import Bus
from eventcore.events import Mark, encode_body, now, object_event
from eventcore.grants import CapsuleUserRef, ConfigGrant, SubjectGrant, TenantGrant, encode_grant
from eventcore.keys import ObjectKey, mark_subject
from eventcore.kube_auth import KubeAuth
from eventcore.objects import publishable
from eventcore.process import Role
from eventcore.settings import Settings
from proxycore.main import Service, serving_tls
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS: Final = 3
ROUNDS: Final = 3
CLIENTS: Final = (1, 32, 256)
NAMESPACES: Final = 10
TOKEN: Final = "a-token-of-the-bench"  # noqa: S105 - the stub believes everybody
FROM_MEMORY: Final = "/api/v1/namespaces?resourceVersion=0"
_RATE = re.compile(r"Requests/sec:\s+([0-9.]+)")
_P99 = re.compile(r"99%\s+([0-9.]+)(us|ms|s)")
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_MILLISECONDS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Result(msgspec.Struct, frozen=True):
    """One measurement beside its goal; ``goal`` None: only said."""

    name: str
    value: float
    goal: float | None
    ok: bool


class Run(msgspec.Struct, frozen=True):
    """One run of wrk: requests a second, and the 99th percentile in milliseconds."""

    rate: float
    p99: float


async def wrk(url: str, clients: int, *headers: str) -> Run:
    """Load a URL; RuntimeError when an answer was no success."""
    arguments = ["-t1", f"-c{clients}", f"-d{SECONDS}s", "--latency", "-H", f"Authorization: Bearer {TOKEN}"]
    for header in headers:
        arguments += ["-H", header]
    process = await asyncio.create_subprocess_exec("wrk", *arguments, url, stdout=asyncio.subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    rate, p99 = _RATE.search(text), _P99.search(text)
    if rate is None or p99 is None or _BAD.search(text):
        raise RuntimeError(f"wrk says: {text}")
    return Run(float(rate[1]), float(p99[1]) * _MILLISECONDS[p99[2]])


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Run the stub in a process of its own and the proxy in this one; yields the URL of each."""
    pki = ClusterPki.load_or_create(None)
    certificate, key = pki.issue_serving(["127.0.0.1", "localhost"])
    for name, text in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", pki.ca_pem)):
        (folder / name).write_text(text)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    stub = spawn.Process(target=serve, args=(theirs, str(folder / "tls.crt"), str(folder / "tls.key")), daemon=True)
    stub.start()
    direct = f"https://127.0.0.1:{await asyncio.to_thread(ours.recv)}"
    (folder / "kubeconfig").write_text(_kubeconfig(direct, folder / "ca.crt"))
    try:
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
            await _publish(bus)
            role = Role(name="proxy", settings=settings, log=logs.get("bench"))
            service = Service(role, bus, await KubeAuth.load(settings), serving_tls(settings))
            task = asyncio.ensure_future(service.run())
            await service.listening.wait()
            if not await service.feed.settled(15):
                raise RuntimeError("the proxy did not read its grants in time")
            yield direct, f"https://127.0.0.1:{service.port}"
            role.stopping.set()
            await task
            await bus.close()
    finally:
        stub.terminate()
        await asyncio.to_thread(stub.join)


async def _publish(bus: Bus) -> None:
    names = tuple(f"oil-{number}" for number in range(NAMESPACES))
    for grant in (
        ConfigGrant(users=(CapsuleUserRef(kind="Group", name="system:serviceaccounts:oil-system"),)),
        SubjectGrant(subject_kind="ServiceAccount", name=USER, tenants=("oil",)),
        TenantGrant(name="oil", uid="u", namespaces=names),
    ):
        await bus.kv_put(grant.key(), encode_grant(grant), revision=0)
    for number, name in enumerate(names):
        uid, version = f"u{number}", str(number + 1)
        meta = {"name": name, "uid": uid, "resourceVersion": version, "labels": {"a": "b"}}
        body = msgspec.json.encode({"metadata": meta, "status": {"phase": "Active"}})
        key = ObjectKey("Namespace", "", name)
        event = object_event("bench", key, uid=uid, resource_version=version, deleted=False)
        await bus.publish(key.subject(), publishable("Namespace", body), event)
    for kind in ("Namespace", "Tenant"):
        await bus.publish(mark_subject(kind), encode_body(Mark(kind=kind, resource_version="200", time=now())))


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


async def measure(direct: str, proxy: str) -> list[Result]:
    """Return all measurements: medians of paired runs, direct and through the proxy in turn."""
    results = []
    for clients in CLIENTS:
        pairs = [(await wrk(direct + OBJECT, clients), await wrk(proxy + OBJECT, clients)) for _ in range(ROUNDS)]
        plain = statistics.median(one.rate for one, _ in pairs)
        passed = statistics.median(two.rate for _, two in pairs)
        ratio = statistics.median(two.rate / one.rate for one, two in pairs)
        added = statistics.median(two.p99 - one.p99 for one, two in pairs)
        main = clients == 32  # noqa: PLR2004 - the load that the goals are set for
        results += [
            _result(f"get, direct, {clients} clients (req/s)", plain, None),
            _result(f"get, passed through, {clients} clients (req/s)", passed, 20_000 if main else None),
            _result(f"get, share of direct, {clients} clients", ratio, 0.5 if main else None),
            _result(f"get, added p99, {clients} clients (ms)", added, 2.0 if main else None, least=False),
        ]
    listed = statistics.median([(await wrk(proxy + FROM_MEMORY, 32)).rate for _ in range(ROUNDS)])
    results.append(_result(f"list of {NAMESPACES} namespaces from memory, 32 clients (req/s)", listed, 30_000))
    fresh = statistics.median([(await wrk(proxy + OBJECT, 32, "Connection: close")).rate for _ in range(ROUNDS)])
    return [*results, _result("get, a new connection each, 32 clients (req/s)", fresh, None)]


def _result(name: str, value: float, goal: float | None, *, least: bool = True) -> Result:
    ok = goal is None or (value >= goal if least else value <= goal)
    return Result(name, round(value, 2), goal, ok)


async def main() -> int:
    """Measure and say; 1 when wrk is missing."""
    logs.configure("error", "json", "bench")
    if shutil.which("wrk") is None:
        sys.stderr.write("bench-proxy: wrk is not on the PATH; it is the Debian package wrk\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        async with stage(Path(folder)) as (direct, proxy):
            results = await measure(direct, proxy)
    for one in results:
        goal = "" if one.goal is None else f"  goal {one.goal:g}: {'reached' if one.ok else 'missed'}"
        sys.stdout.write(f"{one.name:62} {one.value:>10,.2f}{goal}\n")
    sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
