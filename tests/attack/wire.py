"""What a neighbour on the network reaches without a credential: NATS, the port of the probes, the proxy's own paths.

The NATS of a development cluster takes who does not log in for its operator, so the one that is tried here is another,
with the users that ship and nobody else.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import nats
from nats.errors import Error as NatsError

from tests.attack.asking import EMPTY, REFUSED, Ask, asking
from tests.attack.cases import Attack, Case, Ground
from tests.attack.stage import ROLES, Stage
from tests.behaviour.conftest import path
from tether.dev_layout import HOST, choose_ports, write_private
from tether.dev_nats import USERS, users_config
from tether.devcluster.nats import find_binary, render_config

_PASSWORD: Final = "p0123456789"
_ANSWER_SECONDS: Final = 5.0

LOGINS: Final[dict[str, dict[str, Any]]] = {
    "nobody": {},
    "a user that there is not": {"user": "mallory", "password": "p"},
    "an empty user": {"user": "", "password": ""},
    "a token": {"token": "t"},
    **{f"{role} with a wrong password": {"user": role, "password": "wrong"} for role in USERS},
    **{f"{role} with an empty password": {"user": role, "password": ""} for role in ROLES},
    "worker with a password of 60,000 letters": {"user": "worker", "password": "a" * 60_000},
    "the system account": {"user": "sys", "password": "sys"},
}


def login(how: dict[str, Any]) -> Attack:
    """Return a login to NATS that must not come about."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            port = choose_ports(["nats-alone"])["nats-alone"]
            config = Path(folder) / "nats.conf"
            users = users_config(dict.fromkeys(USERS, _PASSWORD))
            users = "\n".join(line for line in users.splitlines() if not line.startswith("no_auth_user"))
            store = Path(folder) / "jetstream"
            await asyncio.to_thread(write_private, config, render_config(port=port, store_dir=store, extra=users))
            process = await asyncio.create_subprocess_exec(
                str(find_binary()), "-c", str(config), stderr=asyncio.subprocess.DEVNULL
            )
            try:
                await _listening(port)
                # Given that the right password opens it
                good = await nats.connect(f"nats://{HOST}:{port}", user="worker", password=_PASSWORD)
                await good.close()
                if await _logs_in(port, how):
                    ground.found.leaked.append("it was let into NATS")
            finally:
                process.terminate()
                await process.wait()
        yield

    return attack


async def _logs_in(port: int, how: dict[str, Any]) -> bool:
    async def quiet(_: Exception) -> None:
        await asyncio.sleep(0)

    with suppress(NatsError, OSError, TimeoutError, ValueError):
        client = await nats.connect(
            f"nats://{HOST}:{port}", allow_reconnect=False, connect_timeout=2, error_cb=quiet, **how
        )
        await client.flush()
        await client.close()
        return True
    return False


async def _listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                return
            await asyncio.sleep(0.05)


PROBES: Final[dict[str, tuple[str, str, bytes]]] = {
    "the metrics": ("GET", "/metrics", b""),
    "the probe of life": ("GET", "/healthz", b""),
    "the probe of readiness": ("GET", "/readyz", b""),
    "the root": ("GET", "/", b""),
    "the variables of a debugger": ("GET", "/debug/vars", b""),
    "a path upwards": ("GET", "/../../../../etc/passwd", b""),
    "an encoded path upwards": ("GET", "/%2e%2e/%2e%2e/etc/passwd", b""),
    "the metrics by a write": ("POST", "/metrics", b"a" * 100_000),
    "a path of 60,000 letters": ("GET", "/" + "a" * 60_000, b""),
    "an end by request": ("POST", "/quitquitquit", b""),
}


def probing(method: str, target: str, body: bytes) -> Attack:
    """Ask every process on the port of its probes: it says nothing that is secret, and goes on."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        secrets = [*stage.secrets, *(one.token for one in stage.attackers.values() if one.token)]
        async with aiohttp.ClientSession(trust_env=False) as session:
            for name in await _roles(stage):
                text, status = await _asked(session, stage, name, method, target, body)
                if any(secret in text for secret in secrets):
                    ground.found.leaked.append(f"{name} tells a secret at {target[:40]}")
                if "root:" in text:
                    ground.found.leaked.append(f"{name} shows a file of the machine")
                if status >= 500 and target != "/readyz":
                    ground.found.stopped.append(f"{name} answers {status} to {method} {target[:40]}")
        yield

    return attack


async def _asked(
    session: aiohttp.ClientSession, stage: Stage, name: str, method: str, target: str, body: bytes
) -> tuple[str, int]:
    """Send a request as it is written; ("", 0) where the process ends the conversation."""
    port = stage.layout.load().ports[name]
    head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(head.encode() + body)
                raw = await reader.read(2**22)
                while more := await reader.read(2**20):
                    raw += more
            finally:
                writer.transport.abort()
        words = raw.split(b" ", 2)
        return raw.decode(errors="replace"), int(words[1]) if len(words) > 2 and words[1].isdigit() else 0
    return "", 0


async def _roles(stage: Stage) -> list[str]:
    return [name for name, one in (await stage.processes()).items() if one is not None and not name.startswith("nats")]


async def slow_probes(ground: Ground) -> AsyncIterator[None]:
    """Hold 200 connections to the port of the probes of every process, each with half of a request."""
    stage = ground.stage
    writers: list[asyncio.StreamWriter] = []

    async def close() -> None:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    ground.later(close)
    for name in await _roles(stage):
        for _ in range(200):
            with suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, stage.layout.load().ports[name])
                writers.append(writer)
                writer.write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
    yield


OWN: Final[dict[str, Callable[[Stage], Ask]]] = {
    "the metrics of the proxy": lambda _: Ask(path="/metrics"),
    "the discovery": lambda _: Ask(path="/apis", expected=EMPTY),
    "the version": lambda _: Ask(path="/version", expected=EMPTY),
    "the schema": lambda _: Ask(path="/openapi/v2", expected=EMPTY),
    "the API server's metrics": lambda _: Ask(path="/metrics/cadvisor"),
    "the API server's logs": lambda _: Ask(path="/logs/kube-apiserver.log"),
    "the API server's readiness": lambda _: Ask(path="/readyz?verbose=1", expected=EMPTY),
    "a node's kubelet": lambda _: Ask(path="/api/v1/nodes/attacked-node/proxy/metrics"),
    "a pod by its proxy": lambda s: Ask(path=f"{path('Secret', s.foreign).rpartition('/')[0]}/pods/a/proxy/"),
    "a review of a token": lambda s: Ask(
        method="POST",
        path="/apis/authentication.k8s.io/v1/tokenreviews",
        body={"spec": {"token": s.attackers["pod"].token}},
        expected=REFUSED,
    ),
    "a certificate": lambda _: Ask(
        method="POST", path="/apis/certificates.k8s.io/v1/certificatesigningrequests", body={"metadata": {"name": "m"}}
    ),
}


def cases() -> Iterator[Case]:
    """All cases of this room."""
    for what, how in LOGINS.items():
        yield Case(
            name=f"logs in to NATS as {what}",
            section="E22",
            who="unknown",
            attack=login(how),
            quick=what in {"nobody", "worker with a wrong password"},
            shares=True,
        )
    for what, request in PROBES.items():
        yield Case(
            name=f"asks every process for {what}",
            section="E",
            who="unknown",
            attack=probing(*request),
            quick=what == "the metrics",
            shares=True,
        )
    yield Case(name="holds the port of the probes", section="D17", who="unknown", attack=slow_probes, alone=True)
    for what, make in OWN.items():
        for who in ("unknown", "pod"):
            yield Case(name=f"asks the proxy for {what}", section="E", who=who, attack=asking(who, make), shares=True)
