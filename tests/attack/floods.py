"""More of everything than one caller needs: connections, tokens, paths, groups, selectors, watches. All from loopback.

Each flood is bounded in number and goes on for as long as the victim lives, or stands open meanwhile; it comes from an
address of its own, as a pod's would.
"""

from __future__ import annotations

import asyncio
import base64
import resource
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from tests.attack.asking import Ask, acting, send
from tests.attack.cases import Attack, Case, Ground, Who
from tests.attack.judging import of_answer
from tests.attack.stage import ADDRESSES, NAMESPACES, Stage
from tests.behaviour.conftest import path

MANY: Final = 2600
_AT_ONCE: Final = 32
_CONNECT_SECONDS: Final = 10.0
_SAID_IN_AUDIT: Final = 200
REFUSALS: Final = frozenset({400, 401, 403, 404, 413, 414, 429, 431, 503})
"""What a flood may be answered with: here a limit is a good answer too."""


def sockets(count: int, first: bytes, *, tls: bool, who: Who = "unknown") -> Attack:
    """Connections that are opened and left there; ``first`` is what is sent on each, and nothing after it."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        url = urlsplit(ground.stage.cluster.environ["TETHER_PROXY_URL"])
        trust = _no_questions() if tls else None
        gate = asyncio.Semaphore(_AT_ONCE)
        writers: list[asyncio.StreamWriter] = []

        async def one() -> None:
            async with gate:
                with suppress(OSError, TimeoutError, ssl.SSLError):
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        _, writer = await asyncio.open_connection(
                            url.hostname, url.port, local_addr=(ADDRESSES[who], 0), ssl=trust
                        )
                        writers.append(writer)
                        writer.write(first)

        async def close() -> None:
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0)

        ground.later(close)
        _allow_files(count + 500)
        await asyncio.gather(*(one() for _ in range(count)))
        ground.notes.append(f"{len(writers)} of {count} were opened")
        yield

    return attack


def _no_questions() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def requests(who: Who, count: int, make: Callable[[Stage, int], Ask], *, sampled: bool = False) -> Attack:
    """So many requests, some at once, while the victim lives. ``sampled``: they must not be recorded one by one."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        client = await stage.door(who)
        gate = asyncio.Semaphore(_AT_ONCE)
        before = await _records(stage) if sampled else 0

        async def one(number: int) -> None:
            ask = make(stage, number)
            async with gate:
                try:
                    answer = await send(client, ask)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    return  # an attacker who is not served: the victim is what counts
            ground.found.add(of_answer(f"{ask.method} {ask.path[:80]}", answer, {*ask.expected}, stage.secrets))

        flood = asyncio.gather(*(one(number) for number in range(count)))
        yield
        await flood
        if sampled and (more := await _records(stage) - before) > _SAID_IN_AUDIT:
            ground.found.stopped.append(f"{more} records in AUDIT of {count} requests of nobody")

    return attack


async def _records(stage: Stage) -> int:
    async with stage.cluster.bus() as bus:
        info = await bus.js.stream_info("AUDIT")
    return info.state.messages


def watches(count: int, *, read: bool) -> Attack:
    """Watches of a tenant of its own namespaces, each over a connection of its own; those not read are left open."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        token = stage.attackers["mallory"].token
        url, trust = stage.cluster.way(direct=False)
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(ssl=trust, local_addr=(ADDRESSES["mallory"], 0), limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=connector, trust_env=False, timeout=timeout, read_bufsize=1024)
            )
            gate, opened = asyncio.Semaphore(_AT_ONCE), []

            async def one() -> None:
                async with gate:
                    with suppress(aiohttp.ClientError, TimeoutError):
                        response = await session.get(
                            f"{url}{NAMESPACES}?watch=1&allowWatchBookmarks=1",
                            headers={"Authorization": f"Bearer {token}"},
                        )
                        if read and response.status == 200:
                            await response.content.readline()
                        opened.append(response)

            await asyncio.gather(*(one() for _ in range(count)))
            ground.notes.append(f"{sum(response.status == 200 for response in opened)} of {count} were opened")
            yield
            for response in opened:
                response.close()

    return attack


def _garbage(kind: str) -> Callable[[Stage, int], Ask]:
    def token(stage: Stage, number: int) -> str:
        if kind == "words":
            return f"nobody-{number}"
        if kind == "60,000 letters":
            return f"{number}-" + "a" * 60_000
        claims: dict[str, Any] = {
            "iss": "https://kubernetes.default.svc",
            "sub": stage.bystander.user,
            "aud": ["https://kubernetes.default.svc"],
            "exp": 4_000_000_000 + number,
        }
        head = {"alg": "none" if kind == "without a signature" else "RS256", "kid": f"k{number}" * 50}
        parts = [_encoded(msgspec.json.encode(part)) for part in (head, claims)]
        if kind == "with the victim's claims and another signature":
            parts = [*stage.bystander_token.split(".")[:2], _encoded(f"{number}".encode() * 64)]
        elif kind == "of nested claims":
            parts = [parts[0], _encoded(b"[" * 5000 + f"{number}".encode()), "a"]
        return ".".join([*parts, ""] if len(parts) == 2 else parts)

    def make(stage: Stage, number: int) -> Ask:
        bearer = ("Authorization", f"Bearer {token(stage, number)}")
        return Ask(path=NAMESPACES, headers=(bearer,), expected=REFUSALS)

    return make


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _groups(user: Callable[[Stage], str]) -> Callable[[Stage, int], Ask]:
    def make(stage: Stage, number: int) -> Ask:
        groups = [f"group-{number}-{one}" for one in range(1000)]
        return Ask(path=NAMESPACES, headers=acting(user(stage), *groups), expected=REFUSALS)

    return make


def _selected(_: Stage, number: int) -> Ask:
    terms = ",".join(f"key-{number}-{one}=value" for one in range(5000))
    return Ask(path=f"{NAMESPACES}?labelSelector={quote(terms, safe='')}", expected=REFUSALS | {200})


PATHS: Final[dict[str, Callable[[Stage, int], Ask]]] = {
    "paths that are nowhere": lambda _, number: Ask(path=f"/no/such/path/{number}", expected=REFUSALS),
    "kinds that are nowhere": lambda _, n: Ask(path=f"/apis/g{n}.example/v1/things", expected=REFUSALS),
    "names of 2,000 letters": lambda s, n: Ask(path=path("Secret", s.foreign, f"{n}-" + "a" * 2000), expected=REFUSALS),
    "writes": lambda s, n: Ask(
        method="POST", path=path("ConfigMap", s.foreign), body={"metadata": {"name": f"n{n}"}}, expected=REFUSALS
    ),
    "tenants that are nowhere": lambda _, n: Ask(path=f"/tenant/t{n}/api/v1/pods", expected=REFUSALS),
}


def of_connections() -> Iterator[Case]:
    """Connections without a request, or with half of one."""
    half = b"GET /api/v1/namespaces HTTP/1.1\r\nHost: proxy\r\nX-Slow: "
    kinds: dict[str, tuple[int, bytes, bool]] = {
        f"{MANY} bare connections": (MANY, b"", False),
        "600 connections with a byte of TLS": (600, b"\x16", False),
        "600 connections with something else than TLS": (600, b"GET / HTTP/1.1\r\n\r\n", False),
        "300 connections over TLS without a request": (300, b"", True),
        "300 connections over TLS with half of a request": (300, half, True),
        "300 connections over TLS with a body that never comes": (
            300,
            b"POST /api/v1/namespaces HTTP/1.1\r\nHost: proxy\r\nContent-Length: 1000\r\n\r\n",
            True,
        ),
    }
    for what, (count, first, tls) in kinds.items():
        yield Case(
            name=what,
            section="D17",
            who="unknown",
            attack=sockets(count, first, tls=tls),
            quick=count == MANY,
            alone=True,
        )


def cases() -> Iterator[Case]:
    """All cases of this room."""
    yield from of_connections()
    kinds = (
        "words",
        "60,000 letters",
        "without a signature",
        "with keys that are nowhere",
        "with the victim's claims and another signature",
        "of nested claims",
    )
    for kind in kinds:
        yield Case(
            name=f"600 tokens that are garbage: {kind}",
            section="D18",
            who="unknown",
            attack=requests("unknown", 600, _garbage(kind)),
            quick=kind == "words",
            alone=True,
        )
    for what, make in PATHS.items():
        for who in ("unknown", "pod"):
            yield Case(
                name=f"1,500 requests for {what}",
                section="D16",
                who=who,
                attack=requests(who, 1500, make, sampled=who == "unknown"),
                quick=who == "unknown" and what == "paths that are nowhere",
                alone=True,
            )
    users: dict[str, Callable[[Stage], str]] = {
        "nobody": lambda _: "nobody",
        "the victim": lambda s: s.bystander.user,
        "itself": lambda s: s.mallory.user,
    }
    for what, user in users.items():
        yield Case(
            name=f"12 requests as {what} in 1,000 groups each",
            section="D15",
            who="mallory",
            attack=requests("mallory", 12, _groups(user)),
            quick=what == "nobody",
            alone=True,
        )
    yield Case(
        name="60 lists with selectors of 5,000 terms, each another",
        section="D19",
        who="mallory",
        attack=requests("mallory", 60, _selected),
        alone=True,
    )
    for read in (True, False):
        yield Case(
            name=f"400 watches that are {'read' if read else 'never read'}",
            section="D20",
            who="mallory",
            attack=watches(400, read=read),
            alone=True,
        )
