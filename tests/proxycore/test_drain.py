"""A proxy that is told to stop breaks no request, whatever state it is in at that moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from proxycore.plane import client
from tests.proxycore.test_forwarding import CALLER, Between, Seen, body, run_between

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
WATCH = "/api/v1/namespaces?watch=1&allowWatchBookmarks=true"


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving, shutdown_grace=15.0) as found:
        yield found


def head(target: str, *lines: str, method: str = "GET") -> bytes:
    rows = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}", *lines]
    return ("\r\n".join(rows) + "\r\n\r\n").encode()


async def answer_of(reader: Reader) -> tuple[bytes, bytes]:
    """Return the head and the rest until the proxy closes."""
    async with asyncio.timeout(15):
        first, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    return first, rest


async def stop(between: Between) -> None:
    """Tell the proxy to stop and wait until its port is closed."""
    between.role.stopping.set()
    async with asyncio.timeout(15):
        while ("port", "stopping") not in between.role.readiness.failing():
            await asyncio.sleep(0)  # closed in the same turn of the loop


async def test_half_a_head_on_a_new_connection_is_waited_for(between: Between) -> None:
    reader, writer = await between.connect()
    whole = head("/version")
    writer.write(whole[:30])
    await writer.drain()
    await settle(between, 1)

    await stop(between)
    writer.write(whole[30:])
    first, rest = await answer_of(reader)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in first
    assert rest == b'{"kind": "Anything"}'
    writer.close()


async def test_a_connection_that_the_kernel_took_before_is_served(between: Between) -> None:
    with socket.create_connection(("127.0.0.1", between.service.port)) as sock:
        between.role.stopping.set()  # before the event loop could accept it

        await stop(between)
        reader, writer = await asyncio.open_connection(sock=sock, ssl=between.tls, server_hostname="127.0.0.1")
        writer.write(head("/version"))
        first, rest = await answer_of(reader)

        assert first.startswith(b"HTTP/1.1 200 ")
        assert rest == b'{"kind": "Anything"}'
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", between.service.port))


async def test_half_a_head_on_a_kept_connection_is_waited_for(between: Between) -> None:
    reader, writer = await kept(between)
    whole = head("/version")
    writer.write(whole[:30])
    await writer.drain()
    await asyncio.sleep(0.05)  # half a head makes no sign on the other side; what is not there yet comes into the quiet

    await stop(between)
    writer.write(whole[30:])
    first, rest = await answer_of(reader)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert rest == b'{"kind": "Anything"}'
    writer.close()


async def test_a_request_on_its_way_on_a_busy_connection_is_answered_and_is_the_last(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_SECONDS", 5.0)  # so that the request surely comes in it, whatever the load
    reader, writer = await kept(between)

    await stop(between)
    writer.write(head("/version"))
    first, rest = await answer_of(reader)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in first
    assert rest == b'{"kind": "Anything"}'
    writer.close()


async def test_an_idle_connection_is_closed_without_a_byte(between: Between) -> None:
    reader, writer = await kept(between)

    await stop(between)

    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_half_sent_and_an_answer_half_received_become_whole(between: Between) -> None:
    goes_on = asyncio.Event()

    async def slow(seen: Seen, reader: Reader, writer: Writer) -> None:
        await body(seen, reader)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nfirst")
        await writer.drain()
        await goes_on.wait()
        writer.write(b"-last")
        await writer.drain()

    between.upstream.answer = slow
    reader, writer = await between.connect()
    writer.write(head("/api/v1/namespaces/a/configmaps", "Content-Length: 8", method="POST") + b"1234")
    other_reader, other = await between.connect()
    other.write(head("/api/v1/namespaces/a/configmaps", "Content-Length: 4", method="POST") + b"1234")
    begun = await other_reader.readuntil(b"first")

    await stop(between)
    writer.write(b"5678")
    goes_on.set()
    _, rest = await answer_of(reader)
    last = await other_reader.read()

    assert begun.startswith(b"HTTP/1.1 201 ")
    assert (rest, last) == (b"first-last", b"-last")
    assert sorted(seen.body for seen in between.upstream.seen) == [b"1234", b"12345678"]
    writer.close()
    other.close()


async def test_watches_end_whole(between: Between) -> None:
    async def forever(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        await writer.drain()
        await reader.read()

    between.upstream.answer = forever
    forwarded_reader, forwarded = await between.connect()
    forwarded.write(head("/api/v1/namespaces/oil-production/pods?watch=1"))
    await forwarded_reader.readuntil(b"{}\n")
    own_reader, own = await between.connect()
    own.write(head(WATCH))
    await own_reader.readuntil(b"\r\n\r\n")

    await stop(between)

    for reader in (forwarded_reader, own_reader):
        async with asyncio.timeout(15):
            assert (await reader.read()).endswith(b"0\r\n\r\n")  # the last chunk: ended, not broken
    forwarded.close()
    own.close()


async def test_a_tunnel_goes_on_until_a_side_closes_it(between: Between) -> None:
    async def echo(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()

    between.upstream.answer = echo
    reader, writer = await between.connect()
    target = "/api/v1/namespaces/oil-production/pods/a/exec?command=sh"
    writer.write(head(target, "Connection: Upgrade", "Upgrade: SPDY/3.1", method="POST"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert between.role.metrics.registry.get_sample_value("tether_proxy_tunnels") == 1.0

    await stop(between)
    for word in (b"one", b"two"):
        writer.write(word)
        async with asyncio.timeout(15):
            assert await reader.readexactly(3) == word
    writer.close()


async def kept(between: Between) -> tuple[Reader, Writer]:
    """Return a connection on which a request was answered."""
    reader, writer = await between.connect()
    writer.write(head("/version"))
    async with asyncio.timeout(15):
        await reader.readuntil(b'"Anything"}')
    return reader, writer


async def settle(between: Between, connections: int) -> None:
    """Wait until the proxy has so many connections."""
    async with asyncio.timeout(15):
        while between.role.metrics.registry.get_sample_value("tether_proxy_connections") != connections:
            await asyncio.sleep(0.01)  # the proxy does not tell who came
