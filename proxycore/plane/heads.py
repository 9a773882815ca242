"""The head of a request, by one grammar that allows a single reading; and heads as the proxy writes them. Pure.

A general parser is lenient where clients are sloppy, and each leniency is a place where two servers in a row may read
two different requests. Clients of Kubernetes are not sloppy, so what does not match the grammar is refused, and what
goes upstream is written anew from the parts.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from proxycore.headers import Header
from proxycore.statuses import RefusedError, Status, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_HEAD: Final = 262_144
"""Bytes of a whole head: an identity to impersonate may have hundreds of groups."""
LONGEST_FIELD: Final = 65_536
MOST_FIELDS: Final = 1024
LONGEST_KEPT: Final = 512
"""Bytes of a first line, or its target, whose reading is remembered: clients ask for the same few again and again."""
LONGEST_REMEMBERED: Final = 16_384
"""Bytes of a block of headers that is remembered for as long as its connection is open."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # noqa: S105 - a token of RFC 9110
_FIELD_LINE = rf"{_TOKEN}++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n"
# Possessive throughout: what does not match is known after one pass, whatever a client sends.
_LINE = re.compile(rf"({_TOKEN}++) ([^\x00-\x20\x7f]++) HTTP/1\.([01])")
_BLOCK = re.compile(rf"(?:{_FIELD_LINE})*+\r\n")
_FIELDS = re.compile(rf"(?:{_FIELD_LINE})*+")
_FIELD = re.compile(r"([^:\r]++):[ \t]*+([^\r]*+)\r\n")
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*+")
_FRAMING = frozenset({"content-length", "transfer-encoding", "host", "connection", "expect"})
_NO_HTTP: Final = "the request is not HTTP/1.1 as RFC 9112 has it"


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """One request without its body. ``length``: bytes of the body, None when it comes in chunks."""

    method: str
    target: str
    headers: list[Header]
    length: int | None = 0
    keeps: bool = True  # the connection may serve another request
    chunks: bool = True  # the client understands an answer in chunks (HTTP/1.1)
    expects: bool = False  # it waits for 100 Continue before it sends the body


class Remembered:
    """Room for what somebody makes of a block of headers, for as long as the same block comes again."""

    __slots__ = ("meaning",)

    def __init__(self) -> None:
        self.meaning: object = None


class _Forgetting(Remembered):
    """Room for nothing: an open connection of many must not hold what is large."""

    __slots__ = ()

    @property
    def meaning(self) -> object:
        return None

    @meaning.setter
    def meaning(self, _: object) -> None:
        pass


_NOTHING: Final = _Forgetting()


class HeadReader:
    """Reads the heads of one connection. A client repeats its headers, so a block like the last is not read again."""

    def __init__(self) -> None:
        self.remembered = Remembered()
        self._block = b""
        self._minor = ""
        self._last: RequestHead | None = None

    def read(self, raw: bytes) -> RequestHead:
        """Read a head, its empty line included; RefusedError (400, 431) when it has not exactly one meaning."""
        line, _, block = raw.partition(b"\r\n")
        method, target, minor = (_read_line_again if len(line) <= LONGEST_KEPT else _read_line)(line)
        last = self._last
        if last is None or block != self._block or minor != self._minor:
            self._last = None  # what is refused is not remembered
            last = _read_block(block, modern=minor == "1")
            if len(block) <= LONGEST_REMEMBERED:
                self._last, self._block, self._minor, self.remembered = last, block, minor, Remembered()
            else:
                self._block, self.remembered = b"", _NOTHING
        return RequestHead(
            method=method,
            target=target,
            headers=last.headers,
            length=last.length,
            keeps=last.keeps,
            chunks=last.chunks,
            expects=last.expects,
        )


def parse_head(raw: bytes | bytearray) -> RequestHead:
    """Read one head alone, as `HeadReader.read` does."""
    return HeadReader().read(bytes(raw))


def _read_line(line: bytes) -> tuple[str, str, str]:
    """Return method, target, and the minor version of HTTP."""
    try:
        found = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError:
        _refuse("the head is not UTF-8")
    if found is None:
        _refuse(_NO_HTTP)
    method, target, minor = found.groups()
    if method not in METHODS:
        _refuse("the method is none that a Kubernetes API has")
    if target[0] != "/":
        _refuse("the request target must be an absolute path")
    return method, target, minor


_read_line_again = functools.lru_cache(4096)(_read_line)


def _read_block(block: bytes, *, modern: bool) -> RequestHead:
    """Return what the headers say, without method and target."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        _refuse("the head is not UTF-8")
    if not _BLOCK.fullmatch(text):
        _refuse(_NO_HTTP)
    headers = read_fields(text[:-2])
    framing: dict[str, list[str]] = {key: [] for key in _FRAMING}
    for name, value in headers:
        if (key := name.lower()) in _FRAMING:
            framing[key].append(value)
        elif "_" in key and key.replace("_", "-") in _FRAMING:
            _refuse(f"the header {name} could be read as another one")
    if len(framing["host"]) > 1 or (modern and not framing["host"]) or not all(map(_HOST.fullmatch, framing["host"])):
        _refuse("there must be exactly one valid Host header")
    words = {word.strip().lower() for value in framing["connection"] for word in value.split(",")}
    if len(framing["expect"]) > 1:
        _refuse("more than one Expect header")
    return RequestHead(
        method="",
        target="",
        headers=headers,
        length=_body_length(framing["content-length"], framing["transfer-encoding"], modern=modern),
        keeps=modern and "close" not in words,
        chunks=modern,
        expects=modern and bool(framing["expect"]) and framing["expect"][0].lower() == "100-continue",
    )


def read_fields(block: str) -> list[Header]:
    """Return the fields of a block that holds nothing else; RefusedError when there are too many, or one is none."""
    if len(block) > LONGEST_HEAD or block.count("\n") > MOST_FIELDS:
        raise RefusedError(too_large())
    if not _FIELDS.fullmatch(block):
        _refuse(_NO_HTTP)
    found = [(name, value.rstrip(" \t")) for name, value in _FIELD.findall(block)]
    if len(block) > LONGEST_FIELD and any(len(name) + len(value) > LONGEST_FIELD for name, value in found):
        raise RefusedError(too_large())
    return found


def too_large() -> Status:
    """431: the head is longer than any client of Kubernetes needs."""
    return Status(
        code=431,
        reason="RequestHeaderFieldsTooLarge",
        message=f"the head may have {LONGEST_HEAD} bytes and {MOST_FIELDS} headers of {LONGEST_FIELD} bytes each",
    )


def timed_out() -> Status:
    """408: the client did not send what it began."""
    return Status(code=408, reason="Timeout", message="the request did not arrive in time")


def render_request(method: str, target: str, headers: Iterable[Header]) -> bytes:
    """Return a head for the API server; RefusedError (400) when a value cannot stand in a header."""
    return b"%b%b\r\n" % (request_line(method, target), render_fields(headers))


def request_line(method: str, target: str) -> bytes:
    """Return the first line of a request."""
    return f"{method} {target} HTTP/1.1\r\n".encode()


def render_fields(headers: Iterable[Header]) -> bytes:
    """Return header lines for the API server; RefusedError (400) when a value cannot stand in a header.

    The client's own values were read by the grammar. A name that the API server vouches for may still hold a newline.
    """
    lines = []
    for name, value in headers:
        if not _VALUE.fullmatch(value):
            _refuse(f"the value of {name} cannot stand in a header")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode()


def render_answer(code: int, reason: str, headers: Iterable[Header]) -> bytes:
    """Return a head for the client. Headers of the API server pass in the bytes that they came in."""
    return b"%b%b\r\n" % (status_line(code, reason), answer_fields(headers))


@functools.lru_cache(256)
def status_line(code: int, reason: str) -> bytes:
    """Return the first line of an answer."""
    return f"HTTP/1.1 {code} {reason}\r\n".encode("latin-1")


def answer_fields(headers: Iterable[Header]) -> bytes:
    """Return header lines for the client."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1")


def _body_length(lengths: list[str], encodings: list[str], *, modern: bool) -> int | None:
    if encodings:
        encoding = encodings[0]
        # Lower case of some letters outside ASCII is inside it.
        if lengths or len(encodings) > 1 or not modern or not encoding.isascii() or encoding.lower() != "chunked":
            _refuse("the length of the body must be told once: by Content-Length, or by Transfer-Encoding: chunked")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]) or not lengths[0].isascii():
        _refuse("Content-Length must come once and be a whole number")
    return int(lengths[0])


def _refuse(message: str) -> NoReturn:
    raise RefusedError(bad_request(message))
