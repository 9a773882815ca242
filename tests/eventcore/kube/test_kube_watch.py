"""Pages and lines: whatever the borders, the sizes, and the ways in which a watch can end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import ForbiddenError, GoneError, KubeError, KubeUnreachableError, ServerError, WatchInactiveError
from eventcore.kube_watch import LineSplitter, WatchEvent, list_pages, watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.kube import KubeClient

    Connect = Callable[..., Awaitable[KubeClient]]


def line(kind: str, version: int, padding: int = 0) -> bytes:
    data = {"metadata": {"resourceVersion": str(version), "annotations": {"x": "ü" * padding}}}
    return msgspec.json.encode({"type": kind, "object": data}) + b"\n"


def streaming(*chunks: bytes, stay_open: bool = False) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if stay_open:
            await asyncio.Event().wait()
        return response

    return answer


async def events_of(client: KubeClient, **options: Any) -> list[WatchEvent]:
    return [event async for event in watch(client, "/api/v1/namespaces", resource_version="5", **options)]


@given(st.lists(st.binary(max_size=20).filter(lambda part: b"\n" not in part), max_size=10), st.data())
def test_lines_come_out_whole_wherever_the_chunks_break(parts: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(parts)
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    splitter = LineSplitter()
    lines: list[bytes] = []
    for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
        lines += splitter.feed(text[start:end])
    *whole, rest = text.split(b"\n")
    assert lines == [part for part in whole if part.strip()]
    assert splitter.rest() == rest


async def test_a_watch_asks_for_bookmarks_from_its_version(stub: Any, connect: Connect) -> None:
    stub.answer = streaming(line("ADDED", 6), line("BOOKMARK", 9))
    events = await events_of(await connect(), params={"labelSelector": "a=b"}, timeout=30.0)
    assert [event.type for event in events] == ["ADDED", "BOOKMARK"]
    assert msgspec.json.decode(events[1].object)["metadata"]["resourceVersion"] == "9"
    assert dict(stub.requests[0].query) == {
        "labelSelector": "a=b",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "5",
        "timeoutSeconds": "30",
    }


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_survive_any_chunk_borders(size: int, stub: Any, connect: Connect) -> None:
    text = b"".join(line("MODIFIED", version, padding=3) for version in range(20)) + b"\n"
    stub.answer = streaming(*(text[start : start + size] for start in range(0, len(text), size)))
    events = await events_of(await connect())
    versions = [msgspec.json.decode(event.object)["metadata"]["resourceVersion"] for event in events]
    assert versions == [str(version) for version in range(20)]


async def test_an_event_of_megabytes_comes_through(stub: Any, connect: Connect) -> None:
    stub.answer = streaming(line("ADDED", 1, padding=1_500_000), line("DELETED", 2))
    events = await events_of(await connect())
    assert [event.type for event in events] == ["ADDED", "DELETED"]
    assert len(bytes(events[0].object)) > 3_000_000


async def test_an_event_is_yielded_before_the_next_one_is_sent(stub: Any, connect: Connect) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(line("ADDED", 1))
        await go_on.wait()
        await response.write(line("ADDED", 2))
        return response

    stub.answer = answer
    events = []
    async for event in watch(await connect(), "/x", resource_version="1"):
        events.append(event)
        go_on.set()
    assert len(events) == 2


async def test_a_silent_watch_is_inactive(stub: Any, connect: Connect) -> None:
    stub.answer = streaming(line("ADDED", 1), stay_open=True)
    events = watch(await connect(), "/x", resource_version="1", inactivity=0.5)
    async with aclosing(events):
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(WatchInactiveError, match=r"nothing from the API server for 0\.5 s"):
            await anext(events)


async def test_a_slow_reader_is_not_taken_for_a_silent_server(stub: Any, connect: Connect) -> None:
    stub.answer = streaming(*(line("ADDED", version) for version in range(3)))
    seen = 0
    async for _ in watch(await connect(), "/x", resource_version="1", inactivity=0.3):
        seen += 1
        await asyncio.sleep(0.35)  # longer than the limit: time that we take is not silence
    assert seen == 3


async def test_a_server_that_does_not_even_answer_is_unreachable(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    stub.answer = answer
    with pytest.raises(KubeUnreachableError):
        await events_of(await connect(kube_request_timeout=0.1))


@pytest.mark.parametrize("in_stream", [True, False])
async def test_history_that_is_gone_is_told_in_both_ways(in_stream: bool, stub: Any, connect: Connect) -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 5 (9)"}

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response(status, status=410)

    stub.answer = streaming(msgspec.json.encode({"type": "ERROR", "object": status}) + b"\n") if in_stream else refuse
    with pytest.raises(GoneError, match="too old resource version"):
        await events_of(await connect())


async def test_another_error_event_keeps_its_code(stub: Any, connect: Connect) -> None:
    status = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "boom"}
    stub.answer = streaming(line("ADDED", 1), msgspec.json.encode({"type": "ERROR", "object": status}) + b"\n")
    with pytest.raises(ServerError, match=r"boom \(500 InternalError, WATCH"):
        await events_of(await connect())


async def test_a_watch_that_is_refused_raises_at_once(stub: Any, connect: Connect) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "reason": "Forbidden", "message": "no"}, status=403)

    stub.answer = refuse
    with pytest.raises(ForbiddenError):
        await events_of(await connect())


async def test_a_line_that_is_no_event_is_an_error(stub: Any, connect: Connect) -> None:
    stub.answer = streaming(b'{"type":"RENAMED","object":{}}\n')
    with pytest.raises(KubeError, match="a line of the watch is not an event"):
        await events_of(await connect())


@pytest.mark.parametrize("clean", [True, False])
async def test_a_watch_that_breaks_inside_an_event_is_not_taken_for_its_end(
    clean: bool, stub: Any, connect: Connect
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(line("ADDED", 1) + b'{"type":"AD')
        if not clean:
            assert request.transport is not None
            request.transport.close()
        return response

    stub.answer = answer
    events = watch(await connect(), "/x", resource_version="1")
    async with aclosing(events):
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(KubeUnreachableError):
            await anext(events)


async def test_leaving_a_watch_closes_its_connection(stub: Any, connect: Connect) -> None:
    closed = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(line("ADDED", 1))
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()  # the server cancels a handler whose client is gone
        return response

    stub.answer = answer
    client = await connect()
    async with aclosing(watch(client, "/x", resource_version="1")) as events:
        await anext(events)
        assert not closed.is_set()
    async with asyncio.timeout(10):
        await closed.wait()


def page(names: list[str], token: str = "", remaining: int | None = None) -> web.StreamResponse:
    meta: dict[str, Any] = {"resourceVersion": "42"}
    if token:
        meta |= {"continue": token, "remainingItemCount": remaining}
    return web.json_response({"metadata": meta, "items": [{"metadata": {"name": name}} for name in names]})


async def test_a_list_comes_page_by_page_from_one_snapshot(stub: Any, connect: Connect) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return page(["c"]) if "continue" in request.query else page(["a", "b"], "next/page=", 1)

    stub.answer = answer
    params = {"labelSelector": "x", "resourceVersion": "0", "resourceVersionMatch": "NotOlderThan"}
    pages = [one async for one in list_pages(await connect(), "/x", params=params, page_size=2)]
    assert [[msgspec.json.decode(item)["metadata"]["name"] for item in one.items] for one in pages] == [
        ["a", "b"],
        ["c"],
    ]
    assert [(one.resource_version, one.continue_token, one.remaining) for one in pages] == [
        ("42", "next/page=", 1),
        ("42", "", None),
    ]
    assert [dict(request.query) for request in stub.requests] == [
        {**params, "limit": "2"},
        {"labelSelector": "x", "limit": "2", "continue": "next/page="},
    ]


async def test_a_list_without_items_is_one_empty_page(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": None})

    stub.answer = answer
    pages = [one async for one in list_pages(await connect(), "/x")]
    assert [one.items for one in pages] == [[]]


async def test_a_page_that_expired_voids_the_list(stub: Any, connect: Connect) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "continue" not in request.query:
            return page(["a"], "t")
        return web.json_response({"kind": "Status", "code": 410, "reason": "Expired"}, status=410)

    stub.answer = answer
    pages = list_pages(await connect(), "/x")
    assert (await anext(pages)).continue_token == "t"
    with pytest.raises(GoneError):
        await anext(pages)
