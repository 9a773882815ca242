"""What passes through the proxy, byte for byte, against an API server that does what the test says."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest
import yaml

from eventcore import topology
from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.events import Mark, encode_body
from eventcore.grants import CapsuleUserRef, ConfigGrant, SubjectGrant, TenantGrant, encode_grant
from eventcore.keys import mark_subject
from eventcore.kube_auth import KubeAuth
from eventcore.logs import get
from eventcore.process import Role
from eventcore.settings import Settings
from proxycore.main import Service, serving_tls
from tether.devcluster.nats import NatsServer

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

PROXY_TOKEN = "the-token-of-the-proxy"
CALLER = "caller-token"
Answer = Callable[["Seen", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Seen(msgspec.Struct):
    """One request as the API server received it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Upstream:
    """Speaks HTTP/1.1 on a socket. ``answer`` handles all but the proxy's own questions."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Answer = plain
        self.reviews = 0
        self.versions = 0
        self.reviewing = asyncio.Event()  # while unset, no review is answered
        self.reviewing.set()
        self.client_ca = ""
        self.url = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                seen = _head(await reader.readuntil(b"\r\n\r\n"))
                if await self._own_question(seen, reader, writer):
                    continue
                self.seen.append(seen)
                await self.answer(seen, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _own_question(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = seen.line.split()[1]
        if path.endswith("tokenreviews"):
            self.reviews += 1
            asked = msgspec.json.decode(await body(seen, reader))
            good = asked["spec"]["token"] == CALLER
            await self.reviewing.wait()
            user = {"username": "dana", "groups": ["devs", "system:authenticated"]}
            await send(writer, msgspec.json.encode({"status": {"authenticated": good, "user": user}}))
        elif path == "/version" and seen.values("Authorization") == [f"Bearer {PROXY_TOKEN}"]:
            self.versions += 1
            await send(writer, b'{"gitVersion": "v1.32.4"}')
        elif path.startswith("/api/v1/namespaces?limit=1"):
            await send(writer, b'{"metadata": {"resourceVersion": "100"}, "items": []}')
        elif path == "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication":
            await send(writer, msgspec.json.encode({"data": {"client-ca-file": self.client_ca}}))
        else:
            return False
        return True


def _head(raw: bytes) -> Seen:
    line, *rest = raw.decode("latin-1").strip().split("\r\n")
    return Seen(line, [(name, value.strip()) for name, _, value in (row.partition(":") for row in rest)])


async def body(seen: Seen, reader: asyncio.StreamReader) -> bytes:
    """Read the rest of a request."""
    if seen.values("Transfer-Encoding") == ["chunked"]:
        seen.body = b"".join([chunk async for chunk in chunks(reader)])
    elif length := seen.values("Content-Length"):
        seen.body = await reader.readexactly(int(length[0]))
    return seen.body


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of a chunked body as they come."""
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readline() not in {b"\r\n", b""}:
        continue  # trailers


async def send(writer: asyncio.StreamWriter, data: bytes, *headers: str, line: str = "200 OK") -> None:
    """Answer with a body of known length."""
    head = [f"HTTP/1.1 {line}", f"Content-Length: {len(data)}", "Content-Type: application/json", *headers]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
    await writer.drain()


async def plain(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer that all is well."""
    await body(seen, reader)
    await send(writer, b'{"kind": "Anything"}')


class Between:
    """The proxy, what stands behind it, and a way to speak to it."""

    def __init__(
        self,
        upstream: Upstream,
        service: Service,
        session: aiohttp.ClientSession,
        tls: ssl.SSLContext,
        role: Role,
    ) -> None:
        self.role = role
        self.settings = role.settings
        self.upstream = upstream
        self.service = service
        self.session = session
        self.tls = tls
        self.url = f"https://127.0.0.1:{service.port}"

    def request(self, method: str, target: str, **options: object) -> aiohttp.client._RequestContextManager:
        headers = {"Authorization": f"Bearer {CALLER}", **options.pop("headers", {})}  # type: ignore[dict-item]  # of a test
        return self.session.request(method, self.url + target, headers=headers, **options)  # type: ignore[arg-type]  # same

    async def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return all that comes back until the proxy closes."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(15):
            found = await reader.read()
        writer.close()
        return found

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.service.port, ssl=self.tls)


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving) as found:
        yield found


@asynccontextmanager
async def run_between(
    tmp_path: Path,
    pki: ClusterPki,
    serving: tuple[str, str],
    user: dict[str, str] | None = None,
    **changes: object,
) -> AsyncIterator[Between]:
    """Run a proxy before a scripted API server; user dana owns tenant oil with oil-production.

    ``user``: the proxy's own credentials, as a kubeconfig names them.
    """
    upstream = Upstream()
    await upstream.start()
    (tmp_path / "tls.crt").write_text(serving[0])
    (tmp_path / "tls.key").write_text(serving[1])
    (tmp_path / "kubeconfig").write_text(kubeconfig(upstream.url, user or {"token": PROXY_TOKEN}, pki.ca_pem))
    tls = ssl.create_default_context(cadata=pki.ca_pem)
    async with NatsServer(tmp_path / "nats") as nats:
        settings = Settings(
            nats_url=nats.url,
            kubeconfig=str(tmp_path / "kubeconfig"),
            proxy_port=0,
            proxy_tls_cert=str(tmp_path / "tls.crt"),
            proxy_tls_key=str(tmp_path / "tls.key"),
        )
        settings = msgspec.structs.replace(settings, **changes)
        bus = await Bus.connect(settings, "proxy")
        for stream in topology.streams(settings):
            await bus.js.add_stream(stream)
        await _grants(bus)
        role = Role(name="proxy", settings=settings, log=get("test"))
        service = Service(role, bus, await KubeAuth.load(settings), serving_tls(settings))
        task = asyncio.ensure_future(service.run())
        try:
            async with asyncio.timeout(15):
                await service.listening.wait()
            assert await service.feed.settled(15)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), auto_decompress=False) as session:
                yield Between(upstream, service, session, tls, role)
        finally:
            role.stopping.set()
            await asyncio.wait_for(task, 20)
            await bus.close()
            await upstream.stop()


async def _grants(bus: Bus) -> None:
    for grant in (
        ConfigGrant(users=(CapsuleUserRef(kind="Group", name="devs"),)),
        SubjectGrant(subject_kind="User", name="dana", tenants=("oil",)),
        TenantGrant(name="oil", uid="u", namespaces=("oil-production",)),
    ):
        await bus.kv_put(grant.key(), encode_grant(grant), revision=0)
    for kind in ("Namespace", "Tenant", "CapsuleConfiguration"):
        await bus.publish(mark_subject(kind), encode_body(Mark(kind=kind, resource_version="100", time=now())))


def kubeconfig(url: str, user: dict[str, str], ca: str) -> str:
    """Return the proxy's kubeconfig."""
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca.encode()).decode()}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )


async def test_a_request_passes_as_it_came_with_the_callers_own_token(between: Between) -> None:
    target = "/api/v1/namespaces/a/configmaps?labelSelector=a%3Db&fieldManager=x+y"
    async with between.request("POST", target, data=b'{"a": 1}', headers={"X-Custom": "1", "Accept": "x/y"}) as found:
        assert (found.status, await found.read()) == (200, b'{"kind": "Anything"}')

    (seen,) = between.upstream.seen
    assert seen.line == f"POST {target} HTTP/1.1"
    assert seen.values("Authorization") == [f"Bearer {CALLER}"]
    assert seen.values("Host") == [between.upstream.url.removeprefix("http://")]
    assert seen.values("Content-Length") == ["8"]
    assert seen.values("X-Custom") == ["1"]
    assert seen.values("Accept") == ["x/y"]
    assert seen.body == b'{"a": 1}'


async def test_a_namespaces_list_goes_under_the_proxys_account_narrowed(between: Between) -> None:
    async with between.request("GET", "/api/v1/namespaces?labelSelector=a%3Db&limit=5") as found:
        assert found.status == 200

    (seen,) = between.upstream.seen
    assert seen.line == (
        "GET /api/v1/namespaces?limit=5&labelSelector=kubernetes.io%2Fmetadata.name%3Doil-production%2Ca%3Db HTTP/1.1"
    )
    assert seen.values("Authorization") == [f"Bearer {PROXY_TOKEN}"]
    assert not [name for name, _ in seen.headers if name.lower().startswith("impersonate")]


async def test_a_refused_request_stops_and_no_byte_of_it_reaches_the_api_server(between: Between) -> None:
    refused = [
        ("GET", "/api/v1/namespaces?labelSelector=a&labelSelector=b", {}),
        ("POST", "/api/v1/namespaces/a/pods", {"Authorization": "Bearer wrong"}),
        ("POST", "/api/v1/namespaces/a/pods", {"Impersonate-Group": "system:masters"}),
        ("POST", "/api/v1/namespaces/a/pods", {"Expect": "something"}),
    ]
    for method, target, headers in refused:
        data = b"x" * 100_000 if method == "POST" else None
        async with between.request(method, target, data=data, headers=headers) as found:
            assert 400 <= found.status < 500, (target, headers)
            assert (await found.json())["kind"] == "Status"

    assert between.upstream.seen == []


async def test_headers_that_say_who_somebody_is_never_pass(between: Between) -> None:
    headers = [
        "X-Remote-User: system:admin",
        "x-remote-group: system:masters",
        "X_Remote_User: system:admin",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
        "Connection: close, Authorization, X-Listed",
        "X-Listed: 1",
        "Proxy-Authorization: Basic x",
        "Keep-Alive: timeout=5",
        "X-Kept: 1",
    ]
    head = ["GET /api HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}", *headers]
    found = await between.raw("\r\n".join(head).encode() + b"\r\n\r\n")

    assert found.startswith(b"HTTP/1.1 200 ")
    (seen,) = between.upstream.seen
    names = {name.lower() for name, _ in seen.headers} - {"host", "connection"}
    assert names == {"authorization", "x-forwarded-for", "x-kept"}
    assert seen.values("Authorization") == [f"Bearer {CALLER}"]
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]


HOSTILE = {
    "two authorizations": [
        "GET /api HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CALLER}",
        "authorization: Bearer x",
    ],
    "length and chunked": [
        "POST /api HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CALLER}",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ],
    "two lengths": ["POST /api HTTP/1.1", "Host: x", "Content-Length: 5", "Content-Length: 6"],
    "space before the colon": [
        "GET /api HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CALLER}",
        "Impersonate-User : a",
    ],
    "folded header": [
        "GET /api HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CALLER}",
        "X: a",
        " Impersonate-User: b",
    ],
    "a bare carriage return": [
        "GET /api HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {CALLER}",
        "X: a\rImpersonate-User: b",
    ],
    "a newline alone": ["GET /api HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}", "X: a\nImpersonate-User: b"],
    "absolute target": ["GET https://other/api HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "asterisk": ["OPTIONS * HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "dot segments": ["GET /api/v1/../v1/namespaces HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "encoded dots": ["GET /api/v1/%2e%2e/v1/namespaces HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "encoded slash": ["GET /api/v1/namespaces%2Fkube-system HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "double slash": ["GET //api/v1/namespaces HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "encoded null": ["GET /api/v1/namespaces/a%00 HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "fragment": ["GET /api/v1/namespaces#x HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}"],
    "underscore": ["GET /api HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}", "Impersonate_User: a"],
}


@pytest.mark.parametrize("lines", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_could_be_read_in_two_ways_is_refused(
    between: Between, lines: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = b"0\r\n\r\n" if lines[0].startswith("POST") else b""
    found = await between.raw("\r\n".join([*lines, "Connection: close"]).encode("latin-1") + b"\r\n\r\n" + rest)

    head, _, status = found.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400", found
    assert msgspec.json.decode(status)["kind"] == "Status"
    assert CALLER.encode() not in found
    assert CALLER not in caplog.text + "".join(capsys.readouterr())
    assert between.upstream.seen == []


async def test_an_answer_streams_as_it_comes(between: Between) -> None:
    step = asyncio.Event()

    async def drip(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n")
        for word in (b"one\n", b"two\n"):
            writer.write(b"%x\r\n%s\r\n" % (len(word), word))
            await writer.drain()
            await step.wait()
        writer.write(b"0\r\n\r\n")

    between.upstream.answer = drip
    async with between.request("GET", "/api/v1/pods?watch=true") as found:
        assert await found.content.readline() == b"one\n"  # before the second is written
        step.set()
        assert await found.content.readline() == b"two\n"
        assert await found.read() == b""


async def test_a_body_streams_up_as_it_comes(between: Between) -> None:
    reached = asyncio.Event()

    async def listen(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        async for chunk in chunks(reader):
            total += len(chunk)
            reached.set()
        await send(writer, str(total).encode())

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 10
        await reached.wait()  # the API server has it while the client still sends
        yield b"b" * 200_000

    between.upstream.answer = listen
    async with between.request("POST", "/api/v1/namespaces/a/pods", data=pieces()) as found:
        assert await found.read() == b"200010"


async def test_a_slow_reader_slows_the_api_server(between: Between) -> None:
    sent = 0
    blocked = asyncio.Event()

    async def flood(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    async with between.request("GET", "/api/v1/pods") as found:
        await found.content.readany()
        async with asyncio.timeout(20):
            await blocked.wait()
        assert sent < 100_000_000


async def test_compressed_answers_pass_untouched(between: Between) -> None:
    packed = gzip.compress(b'{"kind": "PodList"}')

    async def zipped(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, packed, "Content-Encoding: gzip", "Warning: 299 - one", "Warning: 299 - two")

    between.upstream.answer = zipped
    async with between.request("GET", "/api/v1/pods", headers={"Accept-Encoding": "gzip"}) as found:
        assert await found.read() == packed
        assert found.headers["Content-Encoding"] == "gzip"
        assert found.headers.getall("Warning") == ["299 - one", "299 - two"]
    assert between.upstream.seen[0].values("Accept-Encoding") == ["gzip"]


async def test_a_client_that_expects_100_is_told_to_go_on_only_when_it_may(between: Between) -> None:
    async def allow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await plain(seen, reader, writer)

    between.upstream.answer = allow
    head = "POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n"
    reader, writer = await between.connect()
    writer.write(f"{head}Connection: close\r\nAuthorization: Bearer {CALLER}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    refused = await between.raw(f"{head}Connection: close\r\nAuthorization: Bearer wrong\r\n\r\n".encode())

    (seen,) = between.upstream.seen
    assert seen.body == b"body"
    assert seen.values("Expect") == ["100-continue"]  # whether to go on is for the API server to say
    assert refused.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("protocol", ["SPDY/3.1", "websocket"])
async def test_an_upgraded_connection_carries_bytes_both_ways(between: Between, protocol: str) -> None:
    async def echo(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nX-Stream: 1\r\n\r\n"
        writer.write(head.encode() + b"first words")  # in the same piece as the answer
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    between.upstream.answer = echo
    reader, writer = await between.connect()
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(
        f"GET /api/v1/namespaces/a/pods/p/exec?command=ls HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CALLER}\r\n"
        f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n{key}"
        "Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj\r\n\r\n".encode()
    )
    big = bytes(range(256)) * 20_000
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(11) == b"first words"
        writer.write(big)
        assert await reader.readexactly(len(big)) == big
        writer.close()
    (seen,) = between.upstream.seen

    assert head.startswith(b"HTTP/1.1 101 ")
    assert f"upgrade: {protocol}".lower().encode() in head.lower()
    assert seen.values("Upgrade") == [protocol]
    assert seen.values("Authorization") == [f"Bearer {CALLER}"]
    assert seen.values("Sec-WebSocket-Protocol") == ["v5.channel.k8s.io"]


async def test_a_refused_upgrade_is_answered_as_the_api_server_says(between: Between) -> None:
    async def refuse(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, b'{"kind": "Status", "code": 403}', line="403 Forbidden")

    between.upstream.answer = refuse
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    async with between.request("POST", "/api/v1/namespaces/a/pods/p/exec", headers=headers) as found:
        assert (found.status, await found.json()) == (403, {"kind": "Status", "code": 403})


async def test_a_dead_api_server_is_a_503_status(between: Between) -> None:
    async with between.request("GET", "/api") as found:
        assert found.status == 200
    await between.upstream.stop()

    async with between.request("GET", "/api") as found:
        status = await found.json()

    assert (found.status, status["kind"], status["reason"]) == (503, "Status", "ServiceUnavailable")
    assert found.headers["Retry-After"] == "1"


async def test_an_answer_that_is_no_http_is_a_502_status(between: Between) -> None:
    async def nonsense(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n\r\n")
        await writer.drain()

    between.upstream.answer = nonsense
    async with between.request("GET", "/api") as found:
        assert (found.status, (await found.json())["kind"]) == (502, "Status")


async def test_an_answer_that_breaks_off_breaks_off_for_the_client(between: Between) -> None:
    async def half(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    between.upstream.answer = half
    async with between.request("GET", "/api") as found:
        with pytest.raises(aiohttp.ClientError):
            await found.read()


async def test_refused_credentials_of_the_proxy_are_not_blamed_on_the_caller(between: Between) -> None:
    async def refuse(seen: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del seen
        await send(writer, b'{"kind": "Status", "code": 401}', line="401 Unauthorized")

    between.upstream.answer = refuse
    async with between.request("GET", "/api/v1/namespaces") as found:
        assert found.status == 503
    async with between.request("GET", "/api/v1/pods") as found:
        assert found.status == 401  # its own token, its own answer


async def test_one_review_serves_many_requests_and_a_refusal_is_remembered(between: Between) -> None:
    for _ in range(3):
        async with between.request("GET", "/api") as found:
            assert found.status == 200
        async with between.request("GET", "/api", headers={"Authorization": "Bearer wrong"}) as found:
            assert found.status == 401

    assert between.upstream.reviews == 2


async def test_views_that_are_too_old_refuse_filtered_answers_only(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    async with run_between(tmp_path, pki, serving, max_view_age=1.0, mark_interval=0.1) as between:
        code = 200
        async with asyncio.timeout(15):
            while code != 503:
                await asyncio.sleep(0.05)  # nothing tells of the passing of time
                async with between.request("GET", "/api/v1/namespaces") as found:
                    code, status = found.status, await found.json()
        async with between.request("GET", "/api/v1/namespaces/a/pods") as forwarded:
            assert forwarded.status == 200
        async with between.request("GET", "/api/v1/namespaces/oil-production") as single:
            assert single.status == 503

    assert status["reason"] == "ServiceUnavailable"
    assert int(found.headers["Retry-After"]) >= 1
