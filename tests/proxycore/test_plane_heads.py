"""The grammar of heads and chunks: pure, and nothing that a client can write has two readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.plane.chunks import ChunkReader, chunk, last_chunk
from proxycore.plane.heads import METHODS, RequestHead, parse_head, render_answer, render_request
from proxycore.statuses import RefusedError

TOKEN = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=12)
VALUE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(lambda text: text.strip(" \t"))
FRAMING = {"host", "content-length", "transfer-encoding", "connection", "expect"}
FIELDS = st.lists(st.tuples(TOKEN, VALUE), max_size=8).map(
    lambda found: [(name, value) for name, value in found if name.lower().replace("_", "-") not in FRAMING]
)
TARGET = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30).map(lambda text: f"/{text}")
GOOD = b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-A: b\r\n\r\n"


def refused(raw: bytes) -> int:
    """Return the code with which a head is refused, 0 when it is not."""
    try:
        parse_head(raw)
    except RefusedError as error:
        return error.status.code
    return 0


@given(st.sampled_from(sorted(METHODS)), TARGET, FIELDS)
def test_what_is_written_is_read_as_it_was_meant(method: str, target: str, fields: list[tuple[str, str]]) -> None:
    head = parse_head(render_request(method, target, [("Host", "x:1"), *fields]))

    assert head == RequestHead(method=method, target=target, headers=[("Host", "x:1"), *fields])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    assert refused(raw + b"\r\n\r\n") in {0, 400, 431}


@given(st.data())
def test_a_head_with_a_stray_byte_is_refused_or_holds_it_where_it_may_stand(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD)))
    byte = data.draw(st.binary(min_size=1, max_size=3))
    changed = GOOD[:place] + byte + GOOD[place:]
    if code := refused(changed):
        assert code == 400
        return
    head = parse_head(changed)

    # What was read is written back as the same bytes, but for blanks around a value.
    again = render_request(head.method, head.target, head.headers)
    assert again.replace(b" ", b"").replace(b"\t", b"") == changed.replace(b" ", b"").replace(b"\t", b"")
    lengths = [int(value) for name, value in head.headers if name.lower() == "content-length"]
    assert lengths in ([], [head.length])


@pytest.mark.parametrize("control", [chr(code) for code in (*range(9), *range(10, 32), 127)])
def test_no_control_character_stands_in_a_header(control: str) -> None:
    assert refused(f"GET /api HTTP/1.1\r\nHost: x\r\nX-A: a{control}b\r\n\r\n".encode()) == 400


def test_a_head_that_would_take_long_to_refuse_is_refused_at_once() -> None:
    spaces = b"X:" + b" " * 60
    raw = b"GET /api HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join([spaces] * 1000) + b"\r\n\x00\r\n\r\n"

    assert refused(raw) == 400  # by backtracking this would not end


def test_what_the_api_server_vouches_for_cannot_write_a_header_of_its_own() -> None:
    with pytest.raises(RefusedError, match="Impersonate-User cannot stand in a header"):
        render_request("GET", "/api", [("Impersonate-User", "a\r\nImpersonate-Group: system:masters")])


def test_names_outside_ascii_pass_as_they_are() -> None:
    raw = render_request("GET", "/api", [("Host", "x"), ("Impersonate-User", "jürgen")])

    assert b"Impersonate-User: j\xc3\xbcrgen\r\n" in raw
    assert parse_head(raw).headers[1] == ("Impersonate-User", "jürgen")


def test_headers_of_an_answer_pass_in_their_own_bytes() -> None:
    assert render_answer(200, "OK", [("Warning", "299 - \xe9")]) == b"HTTP/1.1 200 OK\r\nWarning: 299 - \xe9\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "keeps", "length"),
    [
        ("HTTP/1.1\r\nHost: x", True, 0),
        ("HTTP/1.1\r\nHost: x\r\nConnection: close", False, 0),
        ("HTTP/1.1\r\nHost: x\r\nConnection: a, Close", False, 0),
        ("HTTP/1.0", False, 0),
        ("HTTP/1.1\r\nHost: x\r\nContent-Length: 7", True, 7),
        ("HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked", True, None),
    ],
)
def test_the_body_and_the_end_of_the_connection_are_read(lines: str, keeps: bool, length: int | None) -> None:
    head = parse_head(f"POST /api {lines}\r\n\r\n".encode())

    assert (head.keeps, head.length) == (keeps, length)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_chunks_are_read_alike_however_they_arrive(pieces: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(map(chunk, pieces)) + last_chunk([("X-Sum", "1")]) + b"GET /next"
    reader = ChunkReader()
    found = b""
    at = turn = 0
    while not reader.over:
        step = cuts[turn % len(cuts)]
        found += b"".join(reader.feed(raw[at : at + step]))
        at, turn = at + step, turn + 1

    assert found == b"".join(pieces)
    assert reader.trailers == [("X-Sum", "1")]
    assert reader.rest + raw[at:] == b"GET /next"


@given(st.binary(max_size=60))
def test_any_bytes_are_chunks_or_refused_or_wait_for_more(raw: bytes) -> None:
    whole, torn = ChunkReader(), ChunkReader()

    def feed(reader: ChunkReader, parts: list[bytes]) -> tuple[bytes, bool, bool]:
        found, failed = b"", False
        try:
            for part in parts:
                if not reader.over:
                    found += b"".join(reader.feed(part))
        except RefusedError:
            failed = True
        return found, reader.over, failed

    first = feed(whole, [raw])
    second = feed(torn, [bytes([byte]) for byte in raw])

    assert first[1:] == second[1:]
    assert first[2] or first[0] == second[0]
