"""Hostile requests: bytes that try to make the proxy and the API server read two different things.

Each case says what may become of it: ``refuse`` (a 4xx and nothing upstream), ``pass`` (exactly one request upstream,
in the caller's name), or ``either`` of the two. What must hold for every case stands in `tests.hostile.judging`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

Verdict = Literal["refuse", "pass", "either"]
TOKEN = "caller-token"
PATH = "/api/v1/namespaces/oil-production/configmaps"
MARK = "@MARK@"
"""Replaced by the case's own name in bytes, so that whatever reaches the API server can be told apart."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation. ``requests``: how many may at most arrive upstream. ``torn``: sent byte by byte."""

    name: str
    wire: bytes
    verdict: Verdict
    requests: int = 1
    torn: bool = False
    hangs_up: bool = False


def wire(
    *lines: str, body: str = "", line: str = f"GET {PATH} HTTP/1.1", host: bool = True, token: bool = True
) -> bytes:
    """Return a request: the line, the usual headers, then these lines, then the body."""
    head = [line, *(["Host: proxy"] if host else []), f"User-Agent: {MARK}"]
    if token:
        head.append(f"Authorization: Bearer {TOKEN}")
    return ("\r\n".join([*head, *lines]) + "\r\n\r\n" + body).encode("utf-8", "surrogateescape")


def smuggled(path: str = "/api/v1/secrets") -> str:
    """Return a request that should never be one."""
    return f"GET {path}?smuggled={MARK} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"


POST = f"POST {PATH} HTTP/1.1"
ENCODINGS: list[tuple[str, bool]] = [
    ("chunked", True),
    ("Chunked", True),
    ("chunked ", True),
    (" chunked\t", True),
    ("identity", False),
    ("gzip", False),
    ("gzip, chunked", False),
    ("chunked, identity", False),
    ("chunked, chunked", False),
    ("chunked,", False),
    (",chunked", False),
    ("chunked;q=1", False),
    ('"chunked"', False),
    ("\x0bchunked", False),
    ("chunked\x0c", False),
    ("chunked\x00", False),
    ("chun\rked", False),
    ("\r\n chunked", False),
    ("", False),
    ("chunkedd", False),
    ("xchunked", False),
    ("chun\u212aed", False),
    ("\u00a0chunked", False),
    ("chunked\u0085", False),
]
LENGTHS = [
    *("+5", "-1", "-0", "0x5", "5,5", "5, 5", "5, 6", "5 5", "5;", "", "\uff15", "1e1", "5\x0b", "9" * 19, "9" * 400),
    *('"5"', "5\r", "1_0", "\u0663", "5.0", "five", "5\x00", "0 5", "\x005", "5\u0085"),
]
SIZES = [
    *(
        "5;ext=1",
        "5 ",
        " 5",
        "0x5",
        "-5",
        "+5",
        "5\t",
        "",
        "g",
        "F" * 17,
        "5;",
        '5;a="b',
        "5\x00",
        "5,5",
        "5_0",
        "\uff15",
    ),
    *("00000000000000000005", "5;\n", "5\r5", "5\n", "5\x0b", "5;a=b\n0"),
]
SECRET_HEADERS = [
    *("Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes", "X-Remote-User"),
    *("X-Remote-Group", "X-Remote-Extra-Scopes", "X-Forwarded-Client-Cert", "X-Forwarded-For", "X-Forwarded-User"),
    *("X-Forwarded-Access-Token", "X-Real-Ip", "Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto"),
]
MUTATIONS: list[tuple[str, str, Verdict]] = [
    ("plain", "{name}: system:admin", "either"),
    ("lower", "{lower}: system:admin", "either"),
    ("upper", "{upper}: system:admin", "either"),
    ("underscore", "{under}: system:admin", "either"),
    ("space before colon", "{name} : system:admin", "refuse"),
    ("tab before colon", "{name}\t: system:admin", "refuse"),
    ("leading space", " {name}: system:admin", "refuse"),
    ("folded", "X-Kept: a\r\n {name}: system:admin", "refuse"),
    ("folded with a tab", "X-Kept: a\r\n\t{name}: system:admin", "refuse"),
    ("after a bare return", "X-Kept: a\r{name}: system:admin", "refuse"),
    ("after a bare newline", "X-Kept: a\n{name}: system:admin", "refuse"),
    ("null in the name", "{name}\x00: system:admin", "refuse"),
    ("null in the value", "{name}: system:\x00admin", "refuse"),
    ("vertical tab", "\x0b{name}: system:admin", "refuse"),
    ("delete sign", "{name}\x7f: system:admin", "refuse"),
    ("letters outside ASCII", "{name}\u212a: system:admin", "refuse"),
    ("no colon", "{name} system:admin", "refuse"),
    ("named by Connection", "Connection: {name}\r\n{name}: system:admin", "either"),
]
SEGMENTS: list[tuple[str, Verdict]] = [
    *[
        (text, "refuse")
        for text in (".", "..", "%2e", "%2E%2e", ".%2e", "%252e%252e", "a%2fb", "a%2Fb", "a%5cb", "a\\b")
    ],
    *[(text, "refuse") for text in ("%00", "a%0d%0ab", "%", "%zz", "%c0%ae", "%ff", "", "%252f", "%7f", "a%09b")],
    *[(text, "either") for text in ("..;", "a;b=c", "...", "%20", "%e2%80%ae")],
]


def cases() -> list[Case]:
    """Return every case; each name is its own."""
    found = [
        case
        for make in (
            lengths,
            encodings,
            chunks,
            lines,
            targets,
            tenants,
            headers,
            connections,
            hosts,
            upgrades,
            queries,
            overrides,
            credentials,
            sizes,
            pipelines,
            closes,
        )
        for case in make()
    ]
    return [
        msgspec.structs.replace(case, wire=case.wire.replace(MARK.encode(), b"case-%04d-" % number))
        for number, case in enumerate(found)
    ]


def lengths() -> Iterator[Case]:
    """Lengths that two servers may count differently."""
    for value in LENGTHS:
        lines = f"Content-Length: {value}"
        yield Case(name=f"length {value!r}", wire=wire(lines, line=POST, body="hello" + smuggled()), verdict="refuse")
    for first, second in (("5", "5"), ("5", "6"), ("0", "5"), ("5", "0"), ("5", "")):
        lines = f"Content-Length: {first}\r\nContent-Length: {second}"
        yield Case(name=f"lengths {first} {second}", wire=wire(lines, line=POST, body="hello"), verdict="refuse")
    for name in ("Content_Length", "Content-Length ", "\tContent-Length", "Content\x00-Length", "Content-Length\x0b"):
        yield Case(name=f"length as {name!r}", wire=wire(f"{name}: 5", line=POST, body="hello"), verdict="refuse")
    for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        inner = smuggled().replace(MARK, "x" * len("case-0000-"))
        yield Case(
            name=f"a request as the body of {method}",
            wire=wire(f"Content-Length: {len(inner)}", line=f"{method} {PATH} HTTP/1.1", body=inner),
            verdict="pass",
        )
    yield Case(name="leading zeros", wire=wire("Content-Length: 005", line=POST, body="hello"), verdict="pass")


def encodings() -> Iterator[Case]:
    """Transfer codings that one server sees and another does not."""
    body = "5\r\nhello\r\n0\r\n\r\n"
    for value, good in ENCODINGS:
        line = f"Transfer-Encoding: {value}"
        alone: Verdict = "pass" if good else "refuse"
        yield Case(name=f"coding {value!r}", wire=wire(line, line=POST, body=body), verdict=alone)
        for length in ("5", "0", str(len(body))):
            for order in ((line, f"Content-Length: {length}"), (f"Content-Length: {length}", line)):
                yield Case(
                    name=f"coding {value!r} and length {length} ({order[0][0]})",
                    wire=wire(*order, line=POST, body=body + smuggled()),
                    verdict="refuse",
                )
        yield Case(
            name=f"coding {value!r} and chunked",
            wire=wire(line, "Transfer-Encoding: chunked", line=POST, body=body),
            verdict="refuse",
        )
        yield Case(
            name=f"coding {value!r} in HTTP/1.0",
            wire=wire(line, line=f"POST {PATH} HTTP/1.0", body=body),
            verdict="refuse",
        )
    for name in (
        "Transfer_Encoding",
        "Transfer-Encoding ",
        " Transfer-Encoding",
        "Transfer-Encoding\t",
        "Transfer\x00-Encoding",
    ):
        yield Case(name=f"coding as {name!r}", wire=wire(f"{name}: chunked", line=POST, body=body), verdict="refuse")


def chunks() -> Iterator[Case]:
    """Chunks that end elsewhere for another reader."""
    coding = "Transfer-Encoding: chunked"
    for size in SIZES:
        for end in ("", smuggled()):
            body = f"{size}\r\nhello\r\n0\r\n\r\n{end}"
            name = f"chunk size {size!r}{' and a request' if end else ''}"
            yield Case(name=name, wire=wire(coding, line=POST, body=body), verdict="refuse")
    for end in ("\n", "\r", "xx", "", "\n\r", "\r\r\n", " \r\n"):
        body = f"5\r\nhello{end}0\r\n\r\n{smuggled()}"
        yield Case(name=f"chunk ends with {end!r}", wire=wire(coding, line=POST, body=body), verdict="refuse")
    for trailer in (
        "Impersonate-User: a",
        "Authorization: Bearer b",
        "Host: b",
        "Content-Length: 5",
        "X-Remote-User: a",
    ):
        body = f"5\r\nhello\r\n0\r\n{trailer}\r\n\r\n"
        yield Case(name=f"trailer {trailer}", wire=wire(coding, line=POST, body=body), verdict="pass")
    for trailer in (" folded", "a b: c", "X: a\n", "X: \x00", "nothing", "X : a", ": a", "X: a\rY: b"):
        body = f"5\r\nhello\r\n0\r\n{trailer}\r\n\r\n"
        yield Case(name=f"trailer {trailer!r}", wire=wire(coding, line=POST, body=body), verdict="refuse")
    yield Case(name="endless trailer", wire=wire(coding, line=POST, body="0\r\nX: " + "a" * 40_000), verdict="refuse")


def lines() -> Iterator[Case]:
    """Request lines that are none."""
    for method in (
        "CONNECT",
        "TRACE",
        "TRACK",
        "DEBUG",
        "get",
        "Get",
        "G ET",
        "GET\t",
        "PRI",
        "PROPFIND",
        "",
        "GET\x00",
    ):
        yield Case(name=f"method {method!r}", wire=wire(line=f"{method} {PATH} HTTP/1.1"), verdict="refuse")
    for version in (
        *(
            "",
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/2.0",
            "HTTP/11",
            "http/1.1",
            "HTTP/1.1 ",
            "HTTP/1.1\t",
            "HTTP/1,1",
            "HTTP/1.1x",
        ),
        *("HTTP /1.1", "HTTP/1.", "HTTP/1.1 HTTP/1.1", "HTTP/1.1\x00", "HTTP/-1.1", "HTTPS/1.1", "SPDY/3"),
    ):
        yield Case(name=f"version {version!r}", wire=wire(line=f"GET {PATH} {version}"), verdict="refuse")
    for start in ("\r\n", "\n", " ", "\r", "\x00", "\t", "\ufeff", "0\r\n\r\n"):
        data = start.encode() + wire()
        yield Case(name=f"starts with {start!r}", wire=data, verdict="refuse")
    yield Case(name="lines end with a newline alone", wire=wire().replace(b"\r\n", b"\n"), verdict="refuse")
    yield Case(name="lines end with a return alone", wire=wire().replace(b"\r\n", b"\r"), verdict="refuse")
    yield Case(name="no line at all", wire=b"\r\n\r\n", verdict="refuse")
    yield Case(name="a TLS hello", wire=b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", verdict="refuse")
    yield Case(name="HTTP/2 preface", wire=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", verdict="refuse")


def targets() -> Iterator[Case]:
    """Targets that mean another object to another reader."""
    for target in (
        *("http://proxy/api", "https://other/api/v1/secrets", "proxy:443", "*", "", "api/v1/pods", "//api/v1/pods"),
        *("/api//v1/pods", "/api/v1/pods#x", "/api/v1/pods\\..", "/api/v1/pods?a;b", "/api/v1/pods?a=%zz", "?a=b"),
        *(
            "/api/v1/p\u00f6ds",
            "/api/v1/pods\x7f",
            "/api/v1/pods\x0b",
            "/api/v1/pods\tx",
            "/api/v1/pods a",
            "http:/api",
        ),
        *(
            "/api/v1/namespaces/../../../metrics",
            "/api/v1/namespaces/%2e%2e/secrets",
            "@other/api",
            "/api/v1/pods?\x00",
        ),
    ):
        yield Case(name=f"target {target!r}", wire=wire(line=f"GET {target} HTTP/1.1"), verdict="refuse")
    whole = ["api", "v1", "namespaces", "oil-production", "pods", "p", "log"]
    for place in range(len(whole)):
        for text, verdict in SEGMENTS:
            target = "/" + "/".join([*whole[:place], text, *whole[place + 1 :]])
            # An empty last segment is a slash at the end, which the API server takes too.
            soft: Verdict = "either" if text == "" and place == len(whole) - 1 else verdict
            yield Case(name=f"segment {place} is {text!r}", wire=wire(line=f"GET {target} HTTP/1.1"), verdict=soft)


def tenants() -> Iterator[Case]:
    """The prefix of a tenant: plain, or refused, and nothing outside of the tenant behind it."""
    inside = "api/v1/namespaces/oil-production/pods"
    for target in (f"/tenant/oil/{inside}", "/tenant/oil/api", "/tenant/oil", "/tenant/oil/?a=/tenant/gas"):
        yield Case(name=f"prefix {target}", wire=wire(line=f"GET {target} HTTP/1.1"), verdict="pass")
    for name in (
        "..%2f",
        "..",
        "%2e%2e",
        "%6fil",
        "oil%2f",
        "oil%2fgas",
        "%2foil",
        "oil%5c",
        "oil%00",
        "oil;gas",
        "OIL",
    ):
        yield Case(name=f"tenant {name}", wire=wire(line=f"GET /tenant/{name}/{inside} HTTP/1.1"), verdict="refuse")
    for prefix in (
        *("/tenant", "/tenant/", "/tenant//", "/%74enant/oil", "/tenan%54/oil", "//tenant/oil", "/./tenant/oil"),
        *(
            "/tenant/oil/tenant/oil",
            "/tenant/oil/tenant/gas",
            "/tenant/oil/%74enant/gas",
            "/tenant/oil/",
            "/tenant/gas",
        ),
        *("/tenant/oil/../gas", "/tenant/oil/..", "/tenant/oil/%2e%2e", "/tenant/oil%2f..", "/tenant/nowhere"),
    ):
        data = wire(line=f"GET {prefix}/{inside} HTTP/1.1")
        verdict: Verdict = "either" if prefix == "/tenan%54/oil" else "refuse"  # another word, so another path
        yield Case(name=f"prefix {prefix}", wire=data, verdict=verdict)
    for outside in (
        *("api/v1/pods", "api/v1/namespaces/gas-production/pods", "api/v1/namespaces/gas-production", "api/v1/secrets"),
        *("api/v1/watch/namespaces/gas-production/pods", "api/v1/watch/pods", "apis/apps/v1/deployments"),
        *("api/v1/namespaces/kube-system/secrets", "apis/apps/v1/namespaces/gas-production/deployments"),
    ):
        data = wire(line=f"GET /tenant/oil/{outside} HTTP/1.1")
        yield Case(name=f"outside of the tenant: {outside}", wire=data, verdict="refuse")


def headers() -> Iterator[Case]:
    """Headers that say who somebody is, in every spelling."""
    for name in SECRET_HEADERS:
        for how, shape, verdict in MUTATIONS:
            text = shape.format(name=name, lower=name.lower(), upper=name.upper(), under=name.replace("-", "_"))
            yield Case(name=f"{name}: {how}", wire=wire(text), verdict=verdict)
    for text in (
        ":",
        ": a",
        "a b: c",
        "a\u00e4: b",
        "(a): b",
        "a@b: c",
        "a[b]: c",
        "a{b}: c",
        '"a": b',
        "a/b: c",
        "a\\b: c",
    ):
        yield Case(name=f"header {text!r}", wire=wire(text), verdict="refuse")
    yield Case(name="a value that is no UTF-8", wire=wire("X-A: \udcff"), verdict="refuse")


def connections() -> Iterator[Case]:
    """Connection names headers that it must not take away, or give."""
    for named in (
        *("Authorization", "authorization", "AUTHORIZATION", "Host", "Content-Length", "Transfer-Encoding", "Cookie"),
        *(
            "Impersonate-User",
            "close, Authorization",
            "keep-alive, Authorization",
            "Authorization, close",
            ",,Authorization",
        ),
        *(
            "X-Forwarded-For",
            "User-Agent-",
            "Accept",
            "Authorization,Impersonate-User,Impersonate-Group",
            "\u212aeep-alive",
        ),
    ):
        yield Case(name=f"Connection: {named}", wire=wire(f"Connection: {named}"), verdict="pass")
        lines = (f"Connection: {named}", "Content-Length: 5")
        yield Case(name=f"Connection: {named}, with a body", wire=wire(*lines, line=POST, body="hello"), verdict="pass")
    for name in ("Proxy-Connection", "Keep-Alive", "TE", "Proxy-Authorization", "Trailer", "Proxy-Authenticate"):
        yield Case(name=f"hop by hop {name}", wire=wire(f"{name}: Authorization"), verdict="pass")


def hosts() -> Iterator[Case]:
    """Host says one thing once."""
    yield Case(name="no host", wire=wire(host=False), verdict="refuse")
    yield Case(name="two hosts", wire=wire("Host: other"), verdict="refuse")
    for value in (
        "a b",
        "a/b",
        "a@b",
        "a,b",
        "a:999999",
        "[::1",
        "a\x00",
        "a\\b",
        "a?b",
        "a#b",
        "http://a",
        "a:b:c",
        "\u00e4",
    ):
        yield Case(name=f"host {value!r}", wire=wire(f"Host: {value}", host=False), verdict="refuse")
    yield Case(name="host in another spelling", wire=wire("hOST: other", host=False), verdict="pass")
    yield Case(name="host as Host_", wire=wire("Host : x", host=False), verdict="refuse")


def upgrades() -> Iterator[Case]:
    """Upgrades that no API server speaks, or that hide a request."""
    settings = "HTTP2-Settings: AAMAAABkAAQAAP__"
    for lines in (
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", settings),
        ("Connection: Upgrade", "Upgrade: h2"),
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
        ("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Upgrade: websocket, h2c"),
        ("Upgrade: websocket",),
        ("Connection: Upgrade",),
        ("Connection: Upgrade", "Upgrade: "),
        ("Connection: Upgrade", "Upgrade: SPDY/3.1"),  # and the API server does not upgrade
        ("Connection: Upgrade", "Upgrade: websocket"),
    ):
        yield Case(name=f"upgrade {' '.join(lines)}", wire=wire(*lines), verdict="pass")
    for protocol in ("websocket", "SPDY/3.1"):
        lines = ("Connection: Upgrade", f"Upgrade: {protocol}", "Content-Length: 5")
        yield Case(name=f"{protocol} with a body", wire=wire(*lines, line=POST, body="hello"), verdict="refuse")
        chunked = ("Connection: Upgrade", f"Upgrade: {protocol}", "Transfer-Encoding: chunked")
        body = "5\r\nhello\r\n0\r\n\r\n"
        yield Case(name=f"{protocol} with chunks", wire=wire(*chunked, line=POST, body=body), verdict="refuse")


def queries() -> Iterator[Case]:
    """Queries of the filtered list that try to widen it."""
    own = "kubernetes.io%2Fmetadata.name"
    for query in (
        *("labelSelector=a&labelSelector=b", "labelSelector=&labelSelector=", "labelSelector=)", "labelSelector=a)(b"),
        *(
            "labelSelector=a,,b",
            "labelSelector=a%20in%20(",
            "labelSelector=a%00b",
            "labelSelector=%0d%0a",
            "limit=1&limit=2",
        ),
        *(
            "fieldSelector=a",
            "fieldSelector=metadata.uid%3Dx",
            "fieldSelector=metadata.name%3Da&fieldSelector=",
            "watch=2",
        ),
        *(
            "watch=true&watch=false",
            "watch=yes",
            "resourceVersion=1&resourceVersion=0",
            "labelSelector=a;b",
            "labelSelector=%ff",
        ),
        *("labelSelector=a%3Db%0aX:%20y", "labelSelector=a||b", "labelSelector=!!a", "timeoutSeconds=x&watch=1"),
        *("includeObject=All", "sendInitialEvents=true", "labelSelector=%25zz", "labelSelector=a%3Db%26watch%3D1"),
    ):
        line = f"GET /api/v1/namespaces?{query} HTTP/1.1"
        yield Case(name=f"query {query}", wire=wire(line=line), verdict="either")
    for query in (
        f"labelSelector={own}%20in%20(kube-system)",
        f"labelSelector={own}%3Dkube-system",
        f"labelSelector={own}",
        f"labelSelector={own}!%3Doil-production",
        "fieldSelector=metadata.name%3Dkube-system",
        "LABELSELECTOR=a",
        "labelSelector%5B%5D=a",
        "pretty=true",
        "limit=7",
        "",
    ):
        line = f"GET /api/v1/namespaces?{query} HTTP/1.1"
        yield Case(name=f"query {query or 'empty'}", wire=wire(line=line), verdict="pass")
    # One that is not the caller's is asked for in its own name, whatever version will do.
    for query in (
        "resourceVersion=0",
        "resourceVersion=%30",
        "resourceVersion=0&resourceVersion=0",
        "resourceVersion=",
    ):
        line = f"GET /api/v1/namespaces/kube-system?{query} HTTP/1.1"
        yield Case(name=f"another's namespace, {query}", wire=wire(line=line), verdict="pass")


def overrides() -> Iterator[Case]:
    """Headers that make another request of it."""
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override"):
        for method in ("DELETE", "PUT", "CONNECT"):
            yield Case(name=f"{name}: {method}", wire=wire(f"{name}: {method}"), verdict="pass")
    for name in ("X-Original-URL", "X-Rewrite-URL", "X_Original_URL"):
        yield Case(name=f"{name}", wire=wire(f"{name}: /api/v1/secrets"), verdict="pass")


def credentials() -> Iterator[Case]:
    """Credentials in forms that two readers may take differently."""
    for value in (
        *(
            "",
            "Bearer",
            "Bearer ",
            "Basic ZGFuYTp4",
            f"Bearer {TOKEN} x",
            f"Bearer {TOKEN}, Bearer x",
            f"Bearer  x {TOKEN}",
        ),
        *(
            f"bearer\t{TOKEN}x",
            f"Token {TOKEN}",
            TOKEN,
            f"Bearer: {TOKEN}",
            f'Bearer "{TOKEN}"',
            f"Bearer {TOKEN}\u00e4",
        ),
        *(
            f"Negotiate {TOKEN}",
            "Bearer wrong",
            f"Bearer {TOKEN}%00",
            f"Bearer {TOKEN};",
            "Bearer null",
            f"BearerX {TOKEN}",
        ),
    ):
        data = wire(f"Authorization: {value}", token=False)
        yield Case(name=f"authorization {value!r}", wire=data, verdict="refuse")
    for extra in (f"Authorization: Bearer {TOKEN}", "authorization: Bearer wrong", "AUTHORIZATION: Basic eA=="):
        yield Case(name=f"a second {extra}", wire=wire(extra), verdict="refuse")
    for query in ("access_token", "token", "authorization", "bearer_token"):
        line = f"GET {PATH}?{query}={TOKEN} HTTP/1.1"
        yield Case(name=f"token as {query}", wire=wire(line=line, token=False), verdict="refuse")
    prefix = "base64url.bearer.authorization.k8s.io."
    for value in (f"{prefix}x", f"{prefix}", f"{prefix}YQ, {prefix}Yg", f"{prefix}%%%", "base64url.bearer"):
        data = wire(f"Sec-WebSocket-Protocol: {value}", token=False)
        yield Case(name=f"subprotocol {value}", wire=data, verdict="refuse")
    yield Case(name="no credentials", wire=wire(token=False), verdict="refuse")


def sizes() -> Iterator[Case]:
    """More than anybody needs."""
    yield Case(name="a head of 300 kB", wire=wire(*(f"X-{n}: {'a' * 1000}" for n in range(300))), verdict="refuse")
    yield Case(name="2,000 headers", wire=wire(*(f"X-{n}: a" for n in range(2000))), verdict="refuse")
    yield Case(name="a header of 70 kB", wire=wire("X-Long: " + "a" * 70_000), verdict="refuse")
    yield Case(name="a name of 70 kB", wire=wire("X" * 70_000 + ": a"), verdict="refuse")
    yield Case(name="a target of 300 kB", wire=wire(line=f"GET /api/{'a' * 300_000} HTTP/1.1"), verdict="refuse")
    yield Case(name="an endless method", wire=b"A" * 300_000, verdict="refuse")
    yield Case(name="an endless name", wire=wire()[:-2] + b"A" * 300_000, verdict="refuse")
    yield Case(name="500 words of Connection", wire=wire("Connection: " + ",".join(["a"] * 500)), verdict="pass")


def pipelines() -> Iterator[Case]:
    """Several requests at once: each is one, in order, and after a refusal none."""
    yield Case(name="two at once", wire=wire() + wire("Connection: close"), verdict="pass", requests=2)
    yield Case(name="fifty at once", wire=wire() * 49 + wire("Connection: close"), verdict="pass", requests=50)
    good = wire("Content-Length: 5", line=POST, body="hello")
    yield Case(name="a body, then another", wire=good + wire("Connection: close"), verdict="pass", requests=2)
    yield Case(name="nonsense, then a request", wire=wire("X : a") + smuggled().encode(), verdict="refuse")
    yield Case(name="nonsense after a request", wire=wire() + b"\x00\x01" + smuggled().encode(), verdict="pass")
    yield Case(name="a request after close", wire=wire("Connection: close") + smuggled().encode(), verdict="pass")
    old = wire(line=f"GET {PATH} HTTP/1.0")
    yield Case(name="a request after HTTP/1.0", wire=old + smuggled().encode(), verdict="pass")
    for extra in (b"GET", b"G", b"\r\n", b"0\r\n\r\n", b"hello"):
        yield Case(name=f"a request and {extra!r}", wire=wire() + extra, verdict="pass", hangs_up=True)


def closes() -> Iterator[Case]:
    """Clients that go away, or send byte by byte."""
    whole = wire("Content-Length: 5", line=POST, body="hello")
    for size in (1, 10, 40, 80, len(whole) - 6):
        yield Case(name=f"gone after {size} bytes", wire=whole[:size], verdict="refuse", hangs_up=True)
    yield Case(name="gone in the body", wire=whole[:-2], verdict="refuse", hangs_up=True)
    yield Case(name="byte by byte", wire=wire("Connection: close"), verdict="pass", torn=True)
    yield Case(name="a body byte by byte", wire=whole, verdict="pass", torn=True)
    chunked = wire("Transfer-Encoding: chunked", line=POST, body="5\r\nhello\r\n0\r\nX: y\r\n\r\n")
    yield Case(name="chunks byte by byte", wire=chunked, verdict="pass", torn=True)
    yield Case(name="nonsense byte by byte", wire=wire("X : a"), verdict="refuse", torn=True)
