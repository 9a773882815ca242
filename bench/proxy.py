"""``make bench-proxy``: what the proxy costs, beside the same API server without it. The last line is one JSON list."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from bench.proxy_cluster import Cluster, cluster
from bench.proxy_relay import relay, reverse_proxy
from bench.proxy_stage import Stage, counting_stub, fast_stub, stage
from bench.proxy_stub import CLUSTER, CONFIGMAPS, NODES, OBJECT, has_nginx
from bench.proxy_watches import COUNT, watch_many
from bench.wrk import Load, Run, wrk
from eventcore import logs
from proxycore.main import new_loop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

NAMESPACES: Final = "/api/v1/namespaces"
FROM_MEMORY: Final = f"{NAMESPACES}?resourceVersion=0"
TABLE: Final = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PODS: Final = "/api/v1/pods"
CLOSE: Final = "Connection: close"
TENANTS: Final = (1, 10, 1000)
"""Namespaces of the tenant that is measured."""
CLIENTS: Final = (1, 32, 256)
FEW: Final = 8
MAIN: Final = 32
"""Clients of the load that the goals are set for."""
ADDED: Final = 2.0
"""Milliseconds that the proxy may add to the 99th percentile."""
THINK: Final = 3
"""Milliseconds that a client waits on average between two requests where the proxy is to have room."""
LONGER: Final = 3
"""How much longer a run is that is measured for its 99th percentile: one halt of the machine is not the result."""
WARM_SECONDS: Final = 1


class Result(msgspec.Struct, frozen=True):
    """One measurement beside its goal; ``goal`` None: only said."""

    name: str
    value: float
    goal: float | None
    ok: bool


class Bench:
    """Runs wrk, each time for so many seconds, medians of so many runs."""

    def __init__(self, seconds: int, rounds: int) -> None:
        self.seconds = seconds
        self.rounds = rounds
        self.results: list[Result] = []

    def say(self, name: str, value: float, goal: float | None = None, *, least: bool = True) -> None:
        """Note and print a measurement; ``least``: the goal is a lower bound."""
        ok = goal is None or (value >= goal if least else value <= goal)
        self.results.append(Result(name, round(value, 2), goal, ok))
        beside = "" if goal is None else f"  goal {goal:g}: {'reached' if ok else 'missed'}"
        sys.stdout.write(f"{name:70} {value:>10,.2f}{beside}\n")
        sys.stdout.flush()

    async def run(self, url: str, load: Load, times: int = 1) -> Run:
        """Run wrk once, ``times`` as long as usual."""
        return await wrk(url, load, self.seconds * times)

    async def pairs(
        self, name: str, where: Stage, load: Load, *, rate: float | None = None, added: float | None = None
    ) -> None:
        """Measure a load at the API server and through the proxy, in turn; goals for the rate and the added p99."""
        await wrk(where.proxy, load, WARM_SECONDS)  # opens the connections to the API server
        times = 1 if added is None else LONGER
        runs = [
            (await self.run(where.direct, load, times), await self.run(where.proxy, load, times))
            for _ in range(self.rounds)
        ]
        name = f"{name}, {load.clients} clients"
        self.say(f"{name}, direct (req/s)", statistics.median(one.rate for one, _ in runs))
        passed = statistics.median(two.rate for _, two in runs)
        self.say(f"{name}, through the proxy (req/s)", passed, rate)
        found = statistics.median(two.rate / one.rate for one, two in runs)
        self.say(f"{name}, share of direct", found)
        later = statistics.median(two.p99 - one.p99 for one, two in runs)
        self.say(f"{name}, added p99 (ms)", later, added, least=False)

    async def alone(self, name: str, where: Stage, load: Load, goal: float | None = None) -> None:
        """Measure a load that the proxy answers from memory."""
        used, begun = time.process_time(), time.monotonic()
        runs = [await self.run(where.proxy, load) for _ in range(self.rounds)]
        used, took = time.process_time() - used, time.monotonic() - begun
        rate = statistics.median(one.rate for one in runs)
        name = f"{name}, {load.clients} clients"
        self.say(f"{name} (req/s)", rate, goal)
        # On a machine that does other things too, this says more than the rate.
        total = sum(one.total for one in runs)
        self.say(f"{name}, CPU of the proxy (µs a request, busy {used / took:.0%})", used / total * 1e6)


async def throughput(bench: Bench, where: Stage) -> None:
    """Measure what passes, and what is answered here. A further kind of read is one more line here."""
    body = msgspec.json.encode({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"generateName": "x-"}}).decode()
    get = Load(target=OBJECT)
    for clients in CLIENTS:
        rate, added = (20_000, ADDED) if clients == MAIN else (None, None)
        await bench.pairs("get one object", where, replace(get, clients=clients), rate=rate, added=added)
    # Without a pause the proxy is always busy, and a request waits for those of all other clients.
    await bench.pairs(
        f"get one object, each client some {THINK} ms after the last", where, replace(get, think=THINK), added=ADDED
    )
    await bench.alone("get one object", where, get)
    for clients in CLIENTS:
        await bench.pairs(
            "get one object, a new connection each", where, replace(get, clients=clients, headers=(CLOSE,))
        )
    for clients in CLIENTS:
        await bench.pairs("create a ConfigMap", where, Load(target=CONFIGMAPS, clients=clients, body=body))
    for count in TENANTS:
        await where.owns(count)
        for form, headers in (("JSON", ()), ("Table", (TABLE,))):
            name = f"list {count} of {CLUSTER:,} namespaces"
            loads = CLIENTS if count == TENANTS[1] else (MAIN,)
            for clients in loads:
                goal = 30_000 if (count, form, clients) == (10, "JSON", MAIN) else None
                load = Load(target=FROM_MEMORY, clients=clients, headers=headers)
                await bench.alone(f"{name} at version 0, {form}", where, load, goal)
            # With 1,000 names no selector is short enough: the whole list is read and cut down here, one at a time.
            for clients in loads if count < max(TENANTS) else (1,):
                load = Load(target=NAMESPACES, clients=clients, headers=headers)
                await bench.alone(f"{name}, consistent, {form}", where, load)
    await where.owns(10)


async def in_its_place(bench: Bench, where: Stage) -> None:
    """Measure what else could stand in the proxy's place, and decides nothing, in turn with the proxy."""
    load = Load(target=OBJECT)
    async with relay(where.folder, where.direct) as bytes_alone, reverse_proxy(where.folder, where.direct) as nginx:
        urls = {"direct": where.direct, "nginx": nginx, "a relay of bytes in Python": bytes_alone, "proxy": where.proxy}
        runs = [{name: (await bench.run(url, load)).rate for name, url in urls.items()} for _ in range(bench.rounds)]
    name = f"get one object, {load.clients} clients"
    for other in ("nginx", "a relay of bytes in Python"):
        bench.say(f"{name}, {other} in the proxy's place (req/s)", statistics.median(one[other] for one in runs))
        found = statistics.median(one[other] / one["direct"] for one in runs)
        bench.say(f"{name}, {other} in its place, share of direct", found)
    found = statistics.median(one["proxy"] / one["a relay of bytes in Python"] for one in runs)
    bench.say(f"{name}, the proxy's share of that relay", found, 0.5)


async def calls(bench: Bench, where: Stage, ask: Connection) -> None:
    """Count what the API server is asked, with warm memory. It is in Python here, as the proxy is."""
    await bench.pairs("get one object of a stub in Python", where, Load(target=OBJECT))
    loads = {
        "get one object": (Load(target=OBJECT), 1.0),
        "consistent list of namespaces": (Load(target=NAMESPACES), 1.0),
        "list of namespaces at version 0": (Load(target=FROM_MEMORY), 0.0),
        "one namespace at version 0": (Load(target=f"{NAMESPACES}/oil-0?resourceVersion=0"), 0.0),
        "list of nodes at version 0": (Load(target=f"{NODES}?resourceVersion=0"), 0.0),
        "one node at version 0": (Load(target=f"{NODES}/node-0?resourceVersion=0"), 0.0),
    }
    for name, (load, goal) in loads.items():
        await wrk(where.proxy, load, 1)
        requests, reviews = await _counts(ask)
        run = await wrk(where.proxy, load, 1)
        after, reviewed = await _counts(ask)
        # wrk does not count what it asked last, and the proxy itself looks at the API server now and then.
        bench.say(f"upstream calls a request, {name}", (after - requests) / run.total, goal + 0.01, least=False)
        bench.say(f"reviews in {run.total:,} requests, {name}", reviewed - reviews, 1.0, least=False)


async def watches(bench: Bench, where: Stage, ask: Connection) -> None:
    """Measure a thousand watches of Nodes, then of Namespaces."""

    async def node(number: int) -> None:
        ask.send(number + 2)
        await asyncio.to_thread(ask.recv)

    async def one(number: int) -> None:
        await where.change(number % 10, sent=f"{time.monotonic():.6f}")

    async def requests() -> Run:
        return await bench.run(where.proxy, Load(target=OBJECT, clients=FEW, think=THINK))

    for kind, target, happen in (("Nodes", NODES, node), ("Namespaces", NAMESPACES, one)):
        found = await watch_many(where.proxy, where.folder / "ca.crt", f"{target}?watch=true", happen, requests)
        name = f"{COUNT:,} watches of {kind}"
        bench.say(f"{name}, memory (MB)", found.memory, 100.0, least=False)
        bench.say(f"{name}, CPU an event (ms)", found.cpu)
        bench.say(f"{name}, p99 until an event is there (ms)", found.p99)
        bench.say(f"{name}, p99 of requests of {FEW} other clients beside events (ms)", found.beside)
    _, _, opened = await _ask(ask)
    bench.say(f"watches at the API server, for 2 x {COUNT:,} and the lists", opened, 1.0, least=False)


async def beside(bench: Bench, where: Cluster) -> None:
    """Measure the proxies and the API server itself in turn; what a tenant may not list there, an admin does."""
    body = msgspec.json.encode({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"generateName": "x-"}}).decode()
    asked, other = Load(target=OBJECT, token=where.tenant), Load(target=OBJECT, token=where.admin)
    own = f"{NAMESPACES}?labelSelector=capsule.clastix.io%2Ftenant%3Doil"
    loads = {
        "get one object": (asked, asked),
        "get one object, a new connection each": (replace(asked, headers=(CLOSE,)),) * 2,
        "create a ConfigMap, dry run": (replace(asked, target=f"{CONFIGMAPS}?dryRun=All", body=body),) * 2,
        "list the tenant's namespaces, JSON": (replace(other, target=own), replace(asked, target=NAMESPACES)),
        "list the tenant's namespaces, Table": (
            replace(other, target=own, headers=(TABLE,)),
            replace(asked, target=NAMESPACES, headers=(TABLE,)),
        ),
        "list the pods of all namespaces (-A)": (replace(other, target=PODS), replace(asked, target=PODS)),
    }
    (_, direct), *proxies = where.urls.items()
    for name, (plain, filtered) in loads.items():
        # Admission by Capsule takes a write tens of milliseconds: of 256 none would be answered in time.
        for clients in CLIENTS[:2] if plain.body else CLIENTS:
            rates: dict[str, list[float]] = {name: [] for name in where.urls}
            for _ in range(bench.rounds):
                rates["API server"].append((await bench.run(direct, replace(plain, clients=clients))).rate)
                for proxy, url in proxies:
                    rates[proxy].append((await bench.run(url, replace(filtered, clients=clients))).rate)
            for server, found in rates.items():
                bench.say(f"{name}, {clients} clients, {server} (req/s)", statistics.median(found))


async def _counts(ask: Connection) -> tuple[int, int]:
    requests, reviews, _ = await _ask(ask)
    return requests, reviews


async def _ask(ask: Connection) -> tuple[int, int, int]:
    ask.send(0)
    found: tuple[int, int, int] = await asyncio.to_thread(ask.recv)
    return found


async def main() -> int:
    """Measure and say; 1 when wrk is missing."""
    parser = argparse.ArgumentParser(prog="bench-proxy", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="of one run of wrk")
    parser.add_argument("--rounds", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--cluster", action="store_true", help="measure before a real kube-apiserver too")
    options = parser.parse_args()
    logs.configure("error", "json", "bench")
    if shutil.which("wrk") is None:
        sys.stderr.write("bench-proxy: wrk is not on the PATH; it is the Debian package wrk\n")
        return 1
    bench = Bench(options.seconds, options.rounds)
    if has_nginx():
        with tempfile.TemporaryDirectory() as folder:
            async with fast_stub(Path(folder)) as url, stage(Path(folder), url) as where:
                await throughput(bench, where)
                await in_its_place(bench, where)
    else:
        sys.stderr.write("bench-proxy: without nginx there is no API server that is fast enough to compare with\n")
    with tempfile.TemporaryDirectory() as folder:
        async with counting_stub(Path(folder)) as (url, ask), stage(Path(folder), url) as where:
            await calls(bench, where, ask)
            await watches(bench, where, ask)
    if options.cluster:
        with tempfile.TemporaryDirectory() as folder:
            async with cluster(Path(folder)) as real:
                await beside(bench, real)
    sys.stdout.write(msgspec.json.encode(bench.results).decode() + "\n")
    return 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        sys.exit(runner.run(main()))
