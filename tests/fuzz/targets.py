"""What a fuzzer feeds: the proxy's parsers, each with a judgement that needs no example.

A target takes any bytes and raises AssertionError when the proxy would be misled. Where there is another parser of the
same thing, ours must read what it reads, or refuse: llhttp for HTTP, the standard library for queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

import httptools
from cryptography import x509

from eventcore.grants import decode_grant
from proxycore.client_certificates import ClientCertificates
from proxycore.headers import asked_identity, bearer_token, forwarded
from proxycore.listquery import NAME_LABEL, parse_query
from proxycore.plane.chunks import ChunkReader, chunk, last_chunk
from proxycore.plane.heads import parse_head, render_request
from proxycore.protobuf import MAGIC, Listed, ProtobufError, filter_list
from proxycore.requestinfo import RequestInfo, parse
from proxycore.selectors import matches, parse_labels, render
from proxycore.statuses import RefusedError
from proxycore.xfcc import certificate_of
from tests.hostile.cases import cases
from tests.proxycore.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_STOP: Final = b"\r\n\r\n"
_AUTHORITY: Final = Authority().pem.encode()
_IDENTITY: Final = ("impersonate-", "x-remote-", "x-forwarded-")
_PROBES: Final[tuple[dict[str, str], ...]] = (
    {},
    {"a": "b"},
    {"a": "", "app.kubernetes.io/name": "x"},
    {NAME_LABEL: "oil-production"},
)


class _Read:
    """What llhttp reads."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode(), value.decode()))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def _fault_of_client(refused: RefusedError) -> None:
    """What cannot be read is a fault of the client's, never one of the proxy's own."""
    assert 400 <= refused.status.code < 500


def _by_llhttp(raw: bytes) -> tuple[Any, _Read]:
    read = _Read()
    parser = httptools.HttpRequestParser(read)
    parser.feed_data(raw)
    return parser, read


def heads(data: bytes) -> None:
    """What we take for a head, and what we write upstream from it, llhttp reads as we do."""
    raw = data.partition(_STOP)[0] + _STOP
    try:
        head = parse_head(raw)
        parse(head.method, head.target)
        passed = forwarded(head.headers, "127.0.0.1")
        written = render_request(head.method, head.target, [("Host", "api"), *passed])
    except RefusedError as refused:
        _fault_of_client(refused)
        return
    names = [name.lower().replace("_", "-") for name, _ in passed]
    assert "authorization" not in names
    assert not [name for name in names if name.startswith(_IDENTITY) and name != "x-forwarded-for"]
    assert names.count("x-forwarded-for") == 1
    parser, read = _by_llhttp(written)
    assert parser.get_method().decode() == head.method
    assert read.url.decode() == head.target
    assert [(name, value.strip(" \t")) for name, value in read.headers] == [("Host", "api"), *passed]
    assert read.complete


def chunks(data: bytes) -> None:
    """However a body in chunks is torn, it is read alike, as llhttp reads it; and written anew it is the same body."""
    cut = data[0] if data else 0
    data = data[1:]
    whole, torn = _feed([data]), _feed([data[:cut], data[cut:]])
    assert (whole is None) == (torn is None)
    if whole is None or torn is None:
        return
    assert b"".join(whole[1]) == b"".join(torn[1])
    assert whole[0].over == torn[0].over
    if not whole[0].over:
        return
    # Trailers pass as headers do; nothing of the length of a body is among them.
    body, trailers = b"".join(whole[1]), forwarded(whole[0].trailers, "")
    written = b"".join(chunk(piece) for piece in whole[1]) + last_chunk(trailers)
    _, read = _by_llhttp(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + written)
    assert (read.body, read.complete) == (body, True)


def _feed(parts: Iterable[bytes]) -> tuple[ChunkReader, list[bytes]] | None:
    reader, pieces = ChunkReader(), []
    try:
        for part in parts:
            if not reader.over:
                pieces += reader.feed(part)
    except RefusedError:
        return None
    return reader, pieces


def targets(data: bytes) -> None:
    """A target that is read has one reading: nothing decodes to a separator, a dot segment or a control character."""
    method, _, text = data.decode("latin-1").partition(" ")
    try:
        info = parse(method, text)
    except RefusedError as refused:
        _fault_of_client(refused)
        return
    raw, _, query = info.target.partition("?")
    assert info.query == query
    assert info.path == unquote(raw)
    assert ".." not in info.path.split("/")
    assert not set(info.path) & set("\\%\x00\r\n")
    for part in (info.group, info.version, info.namespace, info.resource, info.subresource, info.name):
        assert "/" not in part
        assert part in info.path
    assert not (info.is_namespaces and info.namespace and info.name != info.namespace)
    assert _rebuilt(info).issubset(set(info.path.split("/")))


def _rebuilt(info: RequestInfo) -> set[str]:
    return {part for part in (info.prefix, info.group, info.version, info.resource) if part}


def queries(data: bytes) -> None:
    """A query that is read holds each parameter once, and goes upstream with our selector first and none beside it."""
    text = data.decode("latin-1")
    try:
        query = parse_query(text)
        narrowed = query.upstream(("oil-production",))
    except RefusedError as refused:
        _fault_of_client(refused)
        return
    pairs = parse_qsl(narrowed, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs)
    selector = dict(pairs)["labelSelector"]
    found = parse_labels(selector)
    assert (found[0].key, found[0].operator, found[0].values) == (NAME_LABEL, "in", ("oil-production",))
    assert found[1:] == query.labels


def selectors(data: bytes) -> None:
    """A selector written anew means what it meant."""
    try:
        found = parse_labels(data.decode("latin-1"))
    except RefusedError as refused:
        _fault_of_client(refused)
        return
    again = parse_labels(render(found))
    assert again == found
    for labels in _PROBES:
        assert matches(again, labels) == matches(found, labels)


def identities(data: bytes) -> None:
    """Credentials and asked-for identities are read or refused; what is read holds no separator."""
    lines = data.decode("latin-1").replace("\r", "").split("\n")
    headers = [(name, value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]
    try:
        token = bearer_token(headers)
        asked = asked_identity(headers)
    except RefusedError as refused:
        _fault_of_client(refused)
        return
    assert not set(token) & set(" \t\r\n,\x00")
    assert asked is None or asked.user


def grants(data: bytes) -> None:
    """A value of the bucket is a grant for its own key, or none."""
    key, _, value = data.partition(b"\n")
    name = key.decode("latin-1")
    grant = decode_grant(name, value)
    assert grant is None or grant.key().token() == name


def certificates(data: bytes) -> None:
    """A header of a proxy in front tells one certificate, or none; whatever is told is judged without an error."""
    values = data.decode("latin-1").split("\n")
    told = certificate_of(values)
    if told is not None:
        assert len(values) == 1
        x509.load_der_x509_certificate(told)
    judge = ClientCertificates(ttl=1.0)
    judge.trust(_AUTHORITY)
    assert judge.identify(data) is None


def protobufs(data: bytes) -> None:
    """A list in protobuf of which nothing is allowed holds nothing, and reads as it was written."""
    try:
        found = filter_list(data, lambda _: False, volumes=True)
    except ProtobufError:
        return
    assert len(found) <= len(data) + 10  # an envelope's length may be spelled longer than need be
    assert filter_list(found, lambda _: True) == found
    try:
        listed = Listed.of(data)
    except ProtobufError:
        return  # its kind, or its token, is no text
    assert Listed.of(listed.encode()) == listed


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    one.__name__: one
    for one in (heads, chunks, targets, queries, selectors, identities, certificates, grants, protobufs)
}


def seeds(target: str) -> list[bytes]:
    """Return examples to begin with: the hostile requests, cut to what the target reads."""
    found: list[bytes] = []
    for case in cases():
        head, _, body = case.wire.partition(_STOP)
        line, _, fields = head.partition(b"\r\n")
        method, _, rest = line.partition(b" ")
        target_of_line = rest.rpartition(b" ")[0]
        match target:
            case "heads":
                found.append(head)
            case "chunks":
                found.append(b"\x03" + body)
            case "targets":
                found.append(method + b" " + target_of_line)
            case "queries":
                found.append(target_of_line.partition(b"?")[2])
            case "identities":
                found.append(fields.replace(b"\r\n", b"\n"))
            case _:
                pass
    if target == "selectors":
        found = [b"a=b,c!=d", b"a in (b,c),!d", b"x/y notin (z)", b"a>1,b<2", b"a in (),b", b"a==b"]
    if target == "certificates":
        good = Authority("another").client("alice")
        found = [good.xfcc().encode(), good.xfcc(';Subject="CN=\\"a\\"";URI=').encode(), good.der, b'Hash=1;Cert="%2D"']
    if target == "protobufs":
        found = [MAGIC + b"\x12\x12\x0a\x04\x12\x024\x12\x0a\x0a\x08\x0a\x04fast8\x01", MAGIC + b"\x12\x00"]
    if target == "grants":
        found = [
            b'tenant.oil\n{"kind":"tenant","name":"oil","uid":"u","namespaces":["a"]}',
            b'config\n{"kind":"config","users":[{"kind":"User","name":"a"}]}',
        ]
    return sorted(set(found))
