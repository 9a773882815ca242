"""One judgement for each hostile request: what reached the API server, in whose name, and what came back."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from tests.hostile.cases import SECRET_HEADERS, TOKEN, Case
from tests.proxycore.test_forwarding import PROXY_TOKEN, Between, Seen, body, send

if TYPE_CHECKING:
    from collections.abc import Iterable

AT_ONCE = 8
ANSWER_SECONDS = 8
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CASE = re.compile(r"case-(\d{4})-")
_NEVER = {name.lower() for name in SECRET_HEADERS} - {"x-forwarded-for"}
_OVERRIDES = {"x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"}
_HOP = {"connection", "keep-alive", "te", "upgrade", "proxy-authorization", "proxy-connection", "http2-settings"}
_NARROWED = re.compile(
    r"GET /api/v1/namespaces\?(?:[^ ]*&)?labelSelector=kubernetes\.io%2Fmetadata\.name%3Doil-production(?:%2C[^ &]*)?"
    r"(?:&[^ ]*)? HTTP/1\.1"
)
_OPEN_TARGET = re.compile(r"[\\#\x00-\x20\x7f-\xff]|%2f|%5c|%00|%25|(?:^|/)(?:\.|%2e){1,2}(?:/|$|\?)|//", re.IGNORECASE)
_REVIEW = "POST /apis/authorization.k8s.io/v1/subjectaccessreviews HTTP/1.1"


class Reply(msgspec.Struct):
    """What a client got: the codes of the answers, all bytes, and whether the proxy closed."""

    codes: list[int]
    raw: bytes
    closed: bool


class Recorder:
    """The API server: answers that all is well, and knows which requests came whole."""

    def __init__(self) -> None:
        self.whole: list[Seen] = []

    async def answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await body(seen, reader)
        except ValueError:
            seen.headers.append(("X-Judged", "broken chunks"))  # the proxy wrote what is no HTTP
        self.whole.append(seen)
        await send(writer, b'{"kind": "Anything"}')


async def judge(between: Between, cases: list[Case]) -> list[str]:
    """Run all cases; return a line for each by which the proxy was misled."""
    recorder = Recorder()
    between.upstream.answer = recorder.answer
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> Reply:
        async with gate:
            return await _converse(between, case)

    replies = await asyncio.gather(*(one(case) for case in cases))
    begun, whole = _by_case(between.upstream.seen), _by_case(recorder.whole)
    wrong = [f"nobody's request reached the API server: {seen.line}" for seen in begun.pop(None, [])]
    for number, (case, reply) in enumerate(zip(cases, replies, strict=True)):
        found = [
            *of_answer(case, reply),
            *_of_count(case, begun.get(number, []), whole.get(number, [])),
            *(why for seen in begun.get(number, []) for why in of_request(seen)),
        ]
        wrong += [f"{case.name}: {why}" for why in found]
    return wrong


async def _converse(between: Between, case: Case) -> Reply:
    reader, writer = await between.connect()
    pieces = [bytes([byte]) for byte in case.wire] if case.torn else [case.wire]
    raw, closed = b"", False
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if case.hangs_up and case.verdict == "refuse":
            return Reply([], b"", closed=True)
        async with asyncio.timeout(ANSWER_SECONDS):
            while not closed and not _enough(case, raw):
                data = await reader.read(65536)
                raw, closed = raw + data, not data
    except (ConnectionError, TimeoutError):
        closed = False
    finally:
        writer.close()
    return Reply([int(code) for code in _STATUS.findall(raw)], raw, closed)


def _enough(case: Case, raw: bytes) -> bool:
    """Tell whether all answers are there. Where the proxy says that it closes, that is waited for."""
    codes = _STATUS.findall(raw)
    return b"Connection: close\r\n" not in raw and len(codes) >= case.requests


def _by_case(requests: Iterable[Seen]) -> dict[int | None, list[Seen]]:
    found: dict[int | None, list[Seen]] = {}
    for seen in requests:
        if seen.line == _REVIEW:
            continue
        text = seen.line + "".join(value for _, value in seen.headers)
        mark = _CASE.search(text)
        # A list under the proxy's own name carries the client's User-Agent too.
        found.setdefault(int(mark[1]) if mark else None, []).append(seen)
    return found


def of_answer(case: Case, reply: Reply) -> list[str]:
    """Return what is wrong with what came back."""
    if case.hangs_up and case.verdict == "refuse":
        return []
    first = reply.codes[0] if reply.codes else 0
    refused = 400 <= first < 500 and len(reply.codes) == 1
    wrong = []
    if TOKEN.encode() in reply.raw or PROXY_TOKEN.encode() in reply.raw:
        wrong.append("a token came back")
    if not first or any(code >= 500 for code in reply.codes):
        wrong.append(f"answered {reply.codes}")
    if case.verdict == "refuse" and not refused:
        wrong.append(f"answered {reply.codes}, not refused")
    if b"Connection: close\r\n" in reply.raw and not reply.closed:
        wrong.append("said to close, and stays open")
    if case.verdict == "pass" and reply.codes[: case.requests] != [200] * case.requests:
        wrong.append(f"answered {reply.codes}, not passed")
    return wrong


def _of_count(case: Case, begun: list[Seen], whole: list[Seen]) -> list[str]:
    if case.verdict == "pass" and len(whole) != case.requests:
        return [f"{len(whole)} requests reached the API server, not {case.requests}"]
    if case.verdict == "either" and len(begun) > case.requests:
        return [f"{len(begun)} requests reached the API server"]
    if case.verdict == "refuse" and whole:
        return [f"{whole[0].line} reached the API server"]
    streams = case.hangs_up or b"ransfer-Encoding: chunked" in case.wire
    if case.verdict == "refuse" and begun and not streams:
        return [f"a part reached the API server: {begun[0].line}"]
    return []


def of_request(seen: Seen) -> list[str]:
    """Return what is wrong with what reached the API server."""
    names = [name.lower().replace("_", "-") for name, _ in seen.headers]
    bearer = [value.removeprefix("Bearer ") for value in seen.values("Authorization")]
    target = seen.line.split(" ")[1]
    # With the caller's own token the API server itself decides about whom it asks to be, in headers made anew.
    own = {name.lower() for name, _ in seen.headers if name.startswith("Impersonate-")} if bearer == [TOKEN] else set()
    never = (_NEVER - own) | _OVERRIDES | {"x-judged"}
    wrong = [f"{name} reached the API server" for name in names if name in never]
    if unquote(target).startswith("/tenant/"):
        wrong.append("the prefix of a tenant reached the API server")
    if "smuggled" in seen.line:
        wrong.append("a hidden request reached the API server")
    if bearer not in ([TOKEN], [PROXY_TOKEN]):
        wrong.append(f"credentials of {len(bearer)} kinds reached the API server")
    if bearer == [PROXY_TOKEN] and not _NARROWED.fullmatch(seen.line):
        wrong.append(f"under the proxy's name: {seen.line}")
    if seen.values("X-Forwarded-For") not in (["127.0.0.1"], []):
        wrong.append("a forged X-Forwarded-For reached the API server")
    if len(seen.values("Host")) != 1 or seen.values("Host")[0].split(":")[0] != "127.0.0.1":
        wrong.append("another Host reached the API server")
    if len(seen.values("Content-Length")) + len(seen.values("Transfer-Encoding")) > 1:
        wrong.append("the body's length is told twice")
    if _OPEN_TARGET.search(target.partition("?")[0]):
        wrong.append(f"the target has two readings: {target}")
    if any(name in _HOP for name in names) and seen.values("Upgrade") not in (["websocket"], ["SPDY/3.1"]):
        wrong.append("hop-by-hop headers reached the API server")
    return wrong
