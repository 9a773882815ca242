"""The data plane on real sockets: order, ends, time-outs, what is tried again, and what a renewal changes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from proxycore.certificates import ServingCertificate
from proxycore.main import serving_tls
from proxycore.plane import client, pool
from proxycore.plane.dialling import Dialler
from proxycore.statuses import RefusedError
from tests.proxycore.test_forwarding import CALLER, Between, Seen, body, chunks, plain, run_between, send

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving) as found:
        yield found


def asks(target: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = [f"{method} {target} HTTP/{version}", "Host: x", f"Authorization: Bearer {CALLER}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def until_closed(reader: Reader) -> bytes:
    async with asyncio.timeout(15):
        return await reader.read()


async def test_pipelined_requests_are_answered_in_order(between: Between) -> None:
    async def name(seen: Seen, _: Reader, writer: Writer) -> None:
        await send(writer, seen.line.split()[1].encode())

    between.upstream.answer = name
    targets = [f"/api/v1/pods-{number}" for number in range(20)]
    found = await between.raw(b"".join(map(asks, targets)) + asks("/last", "Connection: close"))

    bodies = [part.partition(b"\r\n\r\n")[2].decode() for part in found.split(b"HTTP/1.1 200 ")[1:]]
    assert bodies == [*targets, "/last"]


async def test_head_and_not_modified_have_a_length_and_no_body(between: Between) -> None:
    async def answer(seen: Seen, _: Reader, writer: Writer) -> None:
        line = "304 Not Modified" if "old" in seen.line else "200 OK"
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 5\r\n\r\n".encode())
        if seen.line.startswith("GET") and "old" not in seen.line:
            writer.write(b"hello")
        await writer.drain()

    between.upstream.answer = answer
    wanted = asks("/api", method="HEAD") + asks("/old") + asks("/api", "Connection: close")
    found = await between.raw(wanted)

    assert found.count(b"Content-Length: 5\r\n") == 3
    assert found.endswith(b"hello")
    assert found.count(b"hello") == 1


async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(between: Between) -> None:
    async def answer(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        await writer.drain()

    between.upstream.answer = answer
    head, _, rest = (await between.raw(asks("/api", version="1.0"))).partition(b"\r\n\r\n")

    assert b"chunked" not in head
    assert rest == b"hello"


async def test_an_answer_that_ends_with_the_connection_is_whole(between: Between) -> None:
    async def answer(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()
        writer.close()

    between.upstream.answer = answer
    async with between.request("GET", "/api") as found:
        assert await found.read() == b"hello"


async def test_trailers_pass_both_ways_without_any_that_say_who_somebody_is(between: Between) -> None:
    trailer = b""

    async def answer(seen: Seen, reader: Reader, writer: Writer) -> None:
        nonlocal trailer
        raw = await reader.readuntil(b"0\r\n")
        trailer = await reader.readuntil(b"\r\n\r\n")
        seen.body = raw
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        writer.write(b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n")
        await writer.drain()

    between.upstream.answer = answer
    sent = asks(
        "/api", "Transfer-Encoding: chunked", "Trailer: X-Up, Authorization", "Connection: close", method="POST"
    )
    found = await between.raw(
        sent + b"2\r\nhi\r\n0\r\nX-Up: 1\r\nAuthorization: Bearer b\r\nImpersonate-User: c\r\n\r\n"
    )

    assert trailer == b"X-Up: 1\r\n\r\n"
    assert between.upstream.seen[0].values("Trailer") == ["X-Up"]
    assert b"Trailer: X-Sum\r\n" in found
    assert found.endswith(b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n")


async def test_a_body_that_the_api_server_does_not_want_is_never_asked_for(between: Between) -> None:
    async def refuse(_: Seen, __: Reader, writer: Writer) -> None:
        await send(writer, b"{}", line="413 Too Large")

    between.upstream.answer = refuse
    reader, writer = await between.connect()
    writer.write(asks("/api", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    found = await until_closed(reader)
    writer.close()

    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in found
    assert between.upstream.seen[0].body == b""


async def test_what_reads_is_sent_again_when_a_kept_connection_was_closed(between: Between) -> None:
    async def once(seen: Seen, reader: Reader, writer: Writer) -> None:
        if len(between.upstream.seen) == 2:
            writer.close()  # after it was asked, so that nobody could know before
        else:
            await plain(seen, reader, writer)

    between.upstream.answer = once
    for _ in range(2):
        async with between.request("GET", "/api") as found:
            assert found.status == 200

    assert len(between.upstream.seen) == 3


async def test_what_writes_is_never_sent_twice(between: Between) -> None:
    async def once(seen: Seen, reader: Reader, writer: Writer) -> None:
        if len(between.upstream.seen) == 2:
            await body(seen, reader)
            writer.close()
        else:
            await plain(seen, reader, writer)

    between.upstream.answer = once
    async with between.request("GET", "/api") as found:
        assert found.status == 200
    async with between.request("POST", "/api", data=b"x") as found:
        assert (found.status, (await found.json())["reason"]) == (503, "ServiceUnavailable")

    assert len(between.upstream.seen) == 2


async def test_bytes_that_nobody_asked_for_reach_no_client(between: Between) -> None:
    async def split(seen: Seen, reader: Reader, writer: Writer) -> None:
        await body(seen, reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await writer.drain()

    between.upstream.answer = split
    async with between.request("GET", "/api") as found:
        assert await found.read() == b"{}"
    between.upstream.answer = plain
    async with between.request("GET", "/api") as found:
        assert await found.read() == b'{"kind": "Anything"}'


async def test_a_client_that_goes_away_ends_its_watch_upstream(between: Between) -> None:
    ended, begun = asyncio.Event(), asyncio.Event()

    async def endless(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
        begun.set()
        await reader.read()
        ended.set()

    between.upstream.answer = endless
    _, writer = await between.connect()
    writer.write(asks("/api/v1/pods?watch=1"))
    async with asyncio.timeout(15):
        await begun.wait()
        writer.close()
        await ended.wait()


async def test_an_api_server_that_does_not_read_slows_the_client(between: Between) -> None:
    over = asyncio.Event()

    async def deaf(_: Seen, __: Reader, writer: Writer) -> None:
        await over.wait()  # and reads nothing
        writer.close()

    between.upstream.answer = deaf
    _, writer = await between.connect()
    total = 200_000_000
    writer.write(asks("/api", f"Content-Length: {total}", method="POST"))
    sent, blocked = 0, False
    while sent < total and not blocked:
        writer.write(b"x" * 1_000_000)
        try:
            async with asyncio.timeout(2):
                await writer.drain()
        except TimeoutError:
            blocked = True
        sent += 1_000_000
    writer.transport.abort()
    over.set()

    assert sent < total / 2


async def test_a_head_that_does_not_come_is_not_waited_for(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HEAD_SECONDS", 0.2)
    reader, writer = await between.connect()
    silent_reader, silent = await between.connect()
    writer.write(b"GET /api HTTP/1.1\r\nHost: ")

    assert (await until_closed(reader)).startswith(b"HTTP/1.1 408 ")
    assert await until_closed(silent_reader) == b""
    for one in (writer, silent):
        one.close()


async def test_a_body_that_stops_coming_is_given_up(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = asyncio.Event()

    async def wait(seen: Seen, reader: Reader, _: Writer) -> None:
        try:
            await body(seen, reader)
        except asyncio.IncompleteReadError:
            broken.set()

    between.upstream.answer = wait
    monkeypatch.setattr(client, "BODY_SECONDS", 0.2)
    reader, writer = await between.connect()
    writer.write(asks("/api", "Content-Length: 5", method="POST") + b"he")

    assert (await until_closed(reader)).startswith(b"HTTP/1.1 408 ")
    async with asyncio.timeout(15):
        await broken.wait()
    writer.close()


async def test_an_idle_connection_is_closed(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "IDLE_SECONDS", 0.2)
    reader, writer = await between.connect()
    writer.write(asks("/api"))

    found = await until_closed(reader)

    assert found.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" not in found
    writer.close()


async def test_an_api_server_that_never_answers_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()

    async def silent(reader: Reader, writer: Writer) -> None:
        await reader.read()
        writer.close()
        closed.set()

    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.05)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    dialler = Dialler(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
    kept = pool.Pool(dialler.connect, trailers=list, answer_seconds=0.2)
    try:
        with pytest.raises(RefusedError) as caught:
            await kept.send("GET", "/api", [("Host", "x")])
        assert caught.value.status.code == 504
        await closed.wait()
    finally:
        kept.close()
        server.close()
        await server.wait_closed()


async def test_an_http_proxy_of_the_kubeconfig_is_used() -> None:
    asked, closed = b"", asyncio.Event()

    async def through(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await send(writer, b"through")
        await reader.read()
        writer.close()
        closed.set()

    server = await asyncio.start_server(through, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialler = Dialler("http://api.example:6443", None, proxy_url=f"http://me:pass@127.0.0.1:{port}")
    kept = pool.Pool(dialler.connect, trailers=list)
    try:
        answer = await kept.send("GET", "/api", [("Host", "x")])
        assert await answer.read() == b"through"
        assert asked.startswith(b"CONNECT api.example:6443 HTTP/1.1\r\nHost: api.example:6443\r\n")
        assert b"Proxy-Authorization: Basic bWU6cGFzcw==\r\n" in asked
    finally:
        kept.close()
        await closed.wait()
        server.close()
        await server.wait_closed()


async def test_a_renewed_certificate_is_served_and_half_a_renewal_is_not(between: Between, pki: ClusterPki) -> None:
    async def serial(tls: ssl.SSLContext) -> object:
        _, writer = await asyncio.open_connection("127.0.0.1", between.service.port, ssl=tls)
        found = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return found

    settings = between.settings
    tls = ssl.create_default_context(cadata=pki.ca_pem)
    first = await serial(tls)
    certificate, key = pki.issue_serving(["127.0.0.1"])
    context = serving_tls(settings)
    assert context is not None
    watched = ServingCertificate(context, settings.proxy_tls_cert, settings.proxy_tls_key)

    _write(settings.proxy_tls_cert, certificate)
    assert not watched.look()  # the key is still the old one
    assert await serial(tls) == first
    _write(settings.proxy_tls_key, key)
    assert watched.look()
    async with asyncio.timeout(15):
        while await serial(tls) == first:
            await asyncio.sleep(0.1)  # the proxy looks at its files now and again, and tells nobody


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - of a string
        file.write(text)


async def test_chunks_of_a_body_arrive_as_they_were_sent(between: Between) -> None:
    async def count(_: Seen, reader: Reader, writer: Writer) -> None:
        await send(writer, b"|".join([part async for part in chunks(reader)]))

    between.upstream.answer = count
    sent = asks("/api", "Transfer-Encoding: chunked", "Connection: close", method="POST")
    found = await between.raw(sent + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")

    assert found.endswith(b"he|llo")
