"""Requests that pass without a task: the second one of a known caller goes in callbacks alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore import passing
from proxycore.accounting import Asked, Run
from proxycore.passage import Passage
from proxycore.plane.heads import HeadReader, RequestHead, parse_head
from proxycore.statuses import RefusedError
from tests.proxycore.test_forwarding import Between, Seen, body, plain, run_between, send
from tests.proxycore.test_plane import asks, until_closed

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture
async def between(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Between]:
    """A proxy that has answered its caller once; what is asked then must pass without a task."""
    begun: list[str] = []

    class Noted(Passage):
        def ask(self) -> bool:
            if sent := super().ask():
                begun.append("sent")
            return sent

    monkeypatch.setattr(passing, "Passage", Noted)
    async with run_between(tmp_path, pki, serving) as found:
        async with found.request("GET", "/api") as first:
            assert await first.read() == b'{"kind": "Anything"}'
        assert not begun
        yield found
        assert begun


@asynccontextmanager
async def connection(between: Between) -> AsyncIterator[tuple[Reader, Writer]]:
    reader, writer = await between.connect()
    yield reader, writer
    writer.close()


async def test_an_answer_without_a_length_streams_head_first_and_piece_by_piece(between: Between) -> None:
    step = asyncio.Event()

    async def drip(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Own: 1\r\n\r\n")
        for word in (b"one\n", b"two\n"):
            await writer.drain()
            await step.wait()
            step.clear()
            writer.write(b"4\r\n" + word + b"\r\n")

    between.upstream.answer = drip
    async with connection(between) as (reader, writer), asyncio.timeout(15):
        writer.write(asks("/api/v1/pods"))
        assert b"X-Own: 1\r\n" in await reader.readuntil(b"\r\n\r\n")  # nothing of the body is there yet
        for word in (b"one\n", b"two\n"):
            step.set()
            assert await reader.readuntil(word + b"\r\n") == b"4\r\n" + word + b"\r\n"


async def test_an_answer_with_a_length_comes_piece_by_piece(between: Between) -> None:
    step = asyncio.Event()

    async def drip(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for word in (b"one\n", b"two\n"):
            await writer.drain()
            writer.write(word)
            await step.wait()

    between.upstream.answer = drip
    async with connection(between) as (reader, writer), asyncio.timeout(15):
        writer.write(asks("/api/v1/pods"))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readline() == b"one\n"  # before the second is written
        step.set()
        assert await reader.readline() == b"two\n"


async def test_a_slow_reader_slows_the_api_server(between: Between) -> None:
    sent, blocked = 0, asyncio.Event()

    async def flood(_: Seen, __: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
        while sent < 200_000_000:
            writer.write(b"x" * 1_000_000)
            sent += 1_000_000
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                return

    between.upstream.answer = flood
    async with connection(between) as (reader, writer), asyncio.timeout(20):
        writer.write(asks("/api/v1/pods"))
        await reader.readuntil(b"\r\n\r\n")
        await blocked.wait()
    assert sent < 100_000_000


@pytest.mark.parametrize("begins", [False, True])
async def test_a_client_that_goes_away_ends_its_request_upstream(between: Between, *, begins: bool) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def endless(_: Seen, reader: Reader, writer: Writer) -> None:
        if begins:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegin")
            await writer.drain()
        asked.set()
        await reader.read()
        ended.set()

    between.upstream.answer = endless
    async with connection(between) as (reader, writer), asyncio.timeout(15):
        writer.write(asks("/api/v1/pods"))
        await asked.wait()
        if begins:
            await reader.readuntil(b"begin")
        writer.transport.abort()
        await ended.wait()

    between.upstream.answer = plain
    async with between.request("GET", "/api") as found:  # and nothing of it is left for the next
        assert await found.read() == b'{"kind": "Anything"}'


async def test_the_client_gets_what_came_before_an_answer_turned_into_nonsense(between: Between) -> None:
    async def answer(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
        await writer.drain()

    between.upstream.answer = answer
    async with connection(between) as (reader, writer):
        writer.write(asks("/api"))

        found = await reader.readuntil(b"hello")

        assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"nonsense" not in await until_closed(reader)


async def test_an_answer_that_breaks_off_breaks_off_for_the_client(between: Between) -> None:
    async def half(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    between.upstream.answer = half
    async with connection(between) as (reader, writer):
        writer.write(asks("/api/v1/pods"))
        assert (await until_closed(reader)).endswith(b"half")


async def test_an_answer_that_is_no_http_is_a_502_and_101_for_nothing_too(between: Between) -> None:
    for answer in (b"SMTP ready\r\n", b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"):

        async def wrong(_: Seen, reader: Reader, writer: Writer, answer: bytes = answer) -> None:
            writer.write(answer)
            await reader.read()

        between.upstream.answer = plain
        async with between.request("GET", "/api") as found:
            assert found.status == 200
        between.upstream.answer = wrong
        async with between.request("GET", "/api") as found:
            assert (found.status, (await found.json())["reason"]) == (502, "InternalError")


@pytest.mark.parametrize("trailers", [False, True], ids=["head", "trailers"])
@pytest.mark.parametrize("more", [b"X-More: 1\r\n", b"x"], ids=["many", "one"])
async def test_an_answer_whose_head_or_trailers_have_no_end_is_given_up(
    between: Between, more: bytes, *, trailers: bool
) -> None:
    begun = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" if trailers else b""

    async def endless(_: Seen, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + begun + b"X-First: ")
        while not writer.is_closing():
            writer.write(more * 10_000)
            await writer.drain()

    between.upstream.answer = endless
    async with connection(between) as (reader, writer):
        writer.write(asks("/api/v1/pods", "Connection: close"))
        found = await until_closed(reader)
    # Once an answer has begun, its end without the last chunk tells.
    assert found.endswith(b"ok\r\n") if trailers else found.startswith(b"HTTP/1.1 502 ")


async def test_a_read_is_sent_once_more_when_its_connection_was_closed_and_no_more(between: Between) -> None:
    async def close(seen: Seen, reader: Reader, writer: Writer) -> None:
        await body(seen, reader)
        writer.close()

    between.upstream.seen.clear()
    between.upstream.answer = close
    async with between.request("GET", "/api") as found:
        assert (found.status, (await found.json())["reason"]) == (503, "ServiceUnavailable")
    assert len(between.upstream.seen) == 2


async def test_each_client_gets_its_own_answer(between: Between) -> None:
    async def name(seen: Seen, _: Reader, writer: Writer) -> None:
        await asyncio.sleep(0.001 * (hash(seen.line) % 3))  # so that answers overtake one another
        await send(writer, seen.line.split()[1].encode())

    async def client(number: int) -> list[bytes]:
        async with connection(between) as (reader, writer):
            found = []
            for place in range(10):
                writer.write(asks(f"/{number}-{place}"))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                found.append(await reader.readexactly(length))
            return found

    between.upstream.answer = name
    async with asyncio.timeout(20):
        clients = await asyncio.gather(*(client(number) for number in range(8)))

    assert clients == [[f"/{number}-{place}".encode() for place in range(10)] for number in range(8)]


async def test_requests_are_counted_once_and_none_stays_in_flight(between: Between) -> None:
    def counted() -> list[str]:
        lines = between.service.metrics.render().decode().splitlines()
        return [
            line
            for line in lines
            if 'requests_total{code="200",route="forward"' in line or line.startswith("tether_proxy_requests_in_flight")
        ]

    for _ in range(3):
        async with between.request("GET", "/version") as found:
            await found.read()

    assert counted() == [
        'tether_proxy_requests_total{code="200",route="forward",verb="get"} 4.0',
        "tether_proxy_requests_in_flight 0.0",
    ]


# The memory of heads.

BLOCKS = st.sampled_from(
    [
        b"Host: x\r\nAuthorization: Bearer a\r\n",
        b"Host: x\r\nAuthorization: Bearer b\r\n",
        b"Host: x\r\nContent-Length: 3\r\n",
        b"Host: x\r\nConnection: close\r\n",
        b"Authorization: Bearer a\r\n",  # no Host: good in HTTP/1.0 alone
        b"Host: x\r\nHost: y\r\n",
    ]
)
LINES = st.sampled_from(
    [b"GET /a HTTP/1.1", b"GET /b HTTP/1.0", b"POST /a HTTP/1.1", b"get /a HTTP/1.1", b"GET a HTTP/1.1"]
)


@given(st.lists(st.tuples(LINES, BLOCKS), max_size=8))
def test_a_head_means_the_same_whatever_came_before_it(heads: list[tuple[bytes, bytes]]) -> None:
    def read(reader: HeadReader | None, raw: bytes) -> RequestHead | int:
        try:
            return parse_head(raw) if reader is None else reader.read(raw)
        except RefusedError as error:
            return error.status.code

    one = HeadReader()
    for line, block in heads:
        raw = line + b"\r\n" + block + b"\r\n"
        assert read(one, raw) == read(None, raw)


def test_what_was_made_of_headers_is_kept_for_the_same_headers_alone() -> None:
    one = HeadReader()
    seen = []
    for token in (b"a", b"a", b"b", b"a"):
        one.read(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
        seen.append(one.remembered)

    assert seen[0] is seen[1]
    assert len({id(found) for found in seen}) == 3


@pytest.mark.parametrize(
    "headers",
    [{}, {"Impersonate-User": "dana", "Impersonate-Group": "devs"}],
    ids=["as itself", "impersonating itself"],
)
async def test_a_caller_that_is_reviewed_first_gets_its_answer_while_a_connection_is_free(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], headers: dict[str, str]
) -> None:
    # given a proxy that remembers nobody, so that each request waits for a review
    async with run_between(tmp_path, pki, serving, identity_cache_ttl=0) as found:
        for _ in range(3):
            # when the connection of the request before is free
            async with found.request("GET", "/api", headers=headers) as answer:
                # then the answer is whole
                assert await answer.read() == b'{"kind": "Anything"}'


async def test_nothing_of_a_request_is_left_to_the_garbage_collector(between: Between) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            async with between.request("GET", "/api") as answer:
                await answer.read()
        left = [type(one).__name__ for one in gc.get_objects() if isinstance(one, Passage | Asked | Run)]
    finally:
        gc.enable()

    assert left == []


async def test_what_connection_names_in_an_answer_does_not_pass_though_the_names_are_the_same(between: Between) -> None:
    values = iter(["keep-alive", "X-Hop", "close, X-Other"])

    async def name(_: Seen, __: Reader, writer: Writer) -> None:
        head = (
            f"HTTP/1.1 200 OK\r\nConnection: {next(values)}\r\nX-Hop: 1\r\nX-Other: 100%s\r\nContent-Length: 0\r\n\r\n"
        )
        writer.write(head.encode())

    between.upstream.answer = name
    seen = []
    for _ in range(3):
        async with between.request("GET", "/api") as answer:
            seen.append({key: answer.headers[key] for key in ("X-Hop", "X-Other") if key in answer.headers})
    assert seen == [{"X-Hop": "1", "X-Other": "100%s"}, {"X-Other": "100%s"}, {"X-Hop": "1"}]
