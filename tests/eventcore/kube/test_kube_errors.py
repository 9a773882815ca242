"""Each refusal and each silence is an error of ours, with a message that a person can act on."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from eventcore import errors
from eventcore.kube_errors import MAX_MESSAGE, cut, error_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.kube import KubeClient

    Connect = Callable[..., Awaitable[KubeClient]]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", errors.KubeError),
        (401, "Unauthorized", errors.UnauthorizedError),
        (403, "Forbidden", errors.ForbiddenError),
        (404, "NotFound", errors.NotFoundError),
        (409, "Conflict", errors.ConflictError),
        (409, "AlreadyExists", errors.AlreadyExistsError),
        (410, "Expired", errors.GoneError),
        (415, "UnsupportedMediaType", errors.KubeError),
        (422, "Invalid", errors.InvalidError),
        (429, "TooManyRequests", errors.TooManyRequestsError),
        (500, "InternalError", errors.ServerError),
        (503, "ServiceUnavailable", errors.ServerError),
        (504, "Timeout", errors.ServerError),
    ],
)
async def test_a_refusal_is_an_error_of_its_own_type(
    code: int, reason: str, kind: type[errors.KubeError], stub: Any, connect: Connect
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        status = {"kind": "Status", "reason": reason, "message": "because of this", "code": code}
        return web.json_response(status, status=code)

    stub.answer = answer
    client = await connect()
    with pytest.raises(errors.KubeError) as caught:
        await client.get("/api/v1/namespaces/oil")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (code, reason, None)
    assert str(caught.value) == f"because of this ({code} {reason}, GET /api/v1/namespaces/oil)"


async def test_a_redirect_is_not_followed(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "https://elsewhere.example/"})

    stub.answer = answer
    client = await connect()
    with pytest.raises(errors.KubeError) as caught:
        await client.get("/x")
    assert caught.value.status == 302


def test_the_causes_of_a_refusal_are_kept() -> None:
    body = (
        b'{"kind":"Status","reason":"Forbidden","message":"no","details":'
        b'{"causes":[{"reason":"NamespaceTerminating","message":"x","field":"metadata.namespace"}]}}'
    )
    error = error_of(403, body, {}, request="POST /x")
    assert error.causes == ("NamespaceTerminating",)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, b"", 7.0),
        ({}, b'{"kind":"Status","details":{"retryAfterSeconds":3}}', 3.0),
        ({"Retry-After": "0"}, b'{"kind":"Status","details":{"retryAfterSeconds":3}}', 0.0),
        ({"Retry-After": "soon"}, b"", None),
        ({"Retry-After": "9" * 5000}, b"", 86_400.0),
        ({"Retry-After": "\u00b2"}, b"", None),
        ({"Retry-After": "Thu, 01 Jan 9999 00:00:00 GMT"}, b"", 86_400.0),
        ({}, b'{"kind":"Status","details":{"retryAfterSeconds":%b}}' % (b"9" * 400), 86_400.0),
        ({}, b'{"kind":"Status","details":{"retryAfterSeconds":%b}}' % (b"9" * 5000), None),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, b"", 0.0),
        ({}, b"", None),
    ],
)
def test_the_wait_that_the_server_asks_for_is_kept(headers: dict[str, str], body: bytes, seconds: float | None) -> None:
    assert error_of(429, body, headers, request="GET /x").retry_after == seconds


def test_a_wait_until_a_date_is_seconds_from_now() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    waited = error_of(503, b"", {"Retry-After": until}, request="GET /x").retry_after
    assert waited is not None
    assert 3000 < waited <= 3600


@pytest.mark.parametrize(
    "body", [b"", b"<html>password=hunter2</html>", b'{"kind":"Pod","message":"hunter2"}', b"\xff\xfe"]
)
def test_a_body_that_is_no_status_is_dropped(body: bytes) -> None:
    error = error_of(502, body, {}, request="GET /x")
    assert str(error) == "the API server refused without saying why (502 -, GET /x)"


def test_a_path_that_is_not_served_says_so() -> None:
    error = error_of(404, b"404 page not found\n", {}, request="GET /apis/x/v1/y")
    assert isinstance(error, errors.NotFoundError)
    assert str(error) == "the API server does not serve this path (404 -, GET /apis/x/v1/y)"


@given(st.text(max_size=600), st.text(max_size=300))
def test_a_message_is_never_longer_than_its_limit_and_keeps_its_end(message: str, tail: str) -> None:
    short = cut(message, tail)
    assert len(short) <= MAX_MESSAGE
    assert short.endswith(tail[:MAX_MESSAGE])


def test_no_token_comes_through_a_message() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    body = f'{{"kind":"Status","reason":"Invalid","message":"bad value {token} here"}}'.encode()
    assert token not in str(error_of(422, body, {}, request="POST /x"))


async def test_a_server_that_is_not_there_is_named_with_what_to_check(connect: Connect, stub: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    client = await connect(stub.kubeconfig(server=f"https://127.0.0.1:{free}"))
    with pytest.raises(errors.KubeUnreachableError) as caught:
        await client.version()
    assert f"https://127.0.0.1:{free}" in str(caught.value)
    assert "check that it runs, and the server in the kubeconfig" in str(caught.value)
    assert caught.value.__cause__ is not None


async def test_a_certificate_of_another_authority_is_not_trusted(
    connect: Connect, stub: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = type(stub.pki).load_or_create(tmp_path_factory.mktemp("other"))
    path = tmp_path_factory.mktemp("ca") / "ca.crt"
    path.write_text(other.ca_pem)
    config = stub.kubeconfig()
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    config["clusters"][0]["cluster"]["certificate-authority"] = str(path)
    client = await connect(config)
    with pytest.raises(errors.KubeUnreachableError, match=r"certificate is not trusted.*certificate-authority"):
        await client.get("/x")
    assert stub.requests == []


async def test_a_server_name_that_the_certificate_lacks_is_refused_and_one_that_it_has_is_taken(
    connect: Connect, stub: Any
) -> None:
    good = await connect(stub.kubeconfig(**{"tls-server-name": "kubernetes.default.svc"}))
    assert await good.get("/x") == b"{}"
    bad = await connect(stub.kubeconfig(**{"tls-server-name": "elsewhere.example"}))
    with pytest.raises(errors.KubeUnreachableError, match="is for another name"):
        await bad.get("/x")


async def test_skipping_verification_is_honoured(connect: Connect, stub: Any) -> None:
    config = stub.kubeconfig(**{"insecure-skip-tls-verify": True})
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    client = await connect(config)
    assert await client.get("/x") == b"{}"


async def test_plain_http_behind_https_is_a_tls_failure(connect: Connect, stub: Any) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = await connect(stub.kubeconfig(server=f"https://127.0.0.1:{port}"))
        with pytest.raises(errors.KubeUnreachableError, match="TLS failed"):
            await client.get("/x")


async def test_a_server_that_keeps_silent_is_given_up(connect: Connect, stub: Any) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    stub.answer = answer
    client = await connect(kube_request_timeout=0.2)
    with pytest.raises(errors.KubeUnreachableError, match="nothing came in time"):
        await client.get("/x")


async def test_an_answer_that_stops_halfway_is_given_up(connect: Connect, stub: Any) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        if request.path == "/close":
            assert request.transport is not None
            request.transport.abort()
        await asyncio.Event().wait()
        raise AssertionError

    stub.answer = answer
    hasty = await connect(kube_request_timeout=0.3)
    with pytest.raises(errors.KubeUnreachableError, match="nothing came in time"):
        await hasty.get("/wait")
    patient = await connect()
    with pytest.raises(errors.KubeUnreachableError, match="broke before the answer was whole"):
        await patient.get("/close")


async def test_a_write_is_sent_once_even_when_its_connection_breaks(connect: Connect, stub: Any) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    stub.answer = answer
    client = await connect()
    with pytest.raises(errors.KubeUnreachableError):
        await client.create("/x", {})
    assert len(stub.requests) == 1
