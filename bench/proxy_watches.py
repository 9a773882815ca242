"""A thousand watches at once: what they cost in memory and time, and how late an event is at the last of them."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from bench.wrk import TOKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

    from bench.wrk import Run

COUNT: Final = 1000
EVENTS: Final = 20
PAUSE: Final = 0.1
"""Seconds between two events beside which requests are measured."""
AT_ONCE: Final = 32
_SENT: Final = b'"sent":"'


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What the watches cost: MB of the proxy, its CPU milliseconds an event, and milliseconds until all have it.

    ``beside``: the p99 in milliseconds of requests that come while there are events.
    """

    memory: float
    cpu: float
    p99: float
    beside: float


async def watch_many(
    url: str, ca: Path, target: str, happen: Callable[[int], Awaitable[None]], requests: Callable[[], Awaitable[Run]]
) -> Watched:
    """Open watches in a process of its own, let ``happen`` make an event again and again, and measure."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_clients, args=(theirs, url, str(ca), target), daemon=True)
    before = _resident()
    process.start()
    try:
        await _recv(ours)  # all stand
        memory = _resident() - before
        late: list[float] = []
        used = time.process_time()
        for number in range(EVENTS):
            await happen(number)
            late += await _recv(ours)
        used = time.process_time() - used
        running = asyncio.ensure_future(requests())
        number = EVENTS
        while not running.done():
            await happen(number)
            await _recv(ours)
            await asyncio.sleep(PAUSE)  # events at a rate, not as many as the machine can make
            number += 1
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
    late.sort()
    return Watched(
        memory=memory / 2**20,
        cpu=used * 1000 / EVENTS,
        p99=late[int(len(late) * 0.99)] * 1000,
        beside=running.result().p99,
    )


async def _recv(pipe: Connection) -> list[float]:
    found: list[float] = await asyncio.to_thread(pipe.recv)
    return found


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, heard: Callable[[float], None]) -> None:
        self._request = request
        self._heard = heard
        self._pending = b""
        self.standing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # asyncio types the base class only

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self.standing.done():
            if not data.startswith(b"HTTP/1.1 200 "):
                self.standing.set_exception(RuntimeError(data[:200].decode(errors="replace")))
                return
            self.standing.set_result(None)
        lines = (self._pending + data).split(b"\n")
        self._pending = lines.pop()
        for line in lines:
            _, found, rest = line.partition(_SENT)
            if found and (sent := float(rest.split(b'"', 1)[0])):
                self._heard(now - sent)


def _clients(pipe: Connection, url: str, ca: str, target: str) -> None:
    """Be the clients: tell when all watches stand, then for each event how late it was at each of them."""
    tls = ssl.create_default_context(cafile=ca)
    port = int(url.rpartition(":")[2])
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    late: list[float] = []

    def heard(seconds: float) -> None:
        late.append(seconds)
        if len(late) == COUNT:
            pipe.send(late)
            late.clear()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with gate:
                _, client = await loop.create_connection(
                    lambda: _Client(request, heard), "127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1"
                )
                await client.standing

        await asyncio.gather(*(one() for _ in range(COUNT)))
        pipe.send([])
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
