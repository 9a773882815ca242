"""The client on the wire: paths, bodies, headers, and what comes back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import ConflictError, KubeError
from eventcore.kube import METADATA, IssuedToken, ObjectRef, api_path
from eventcore.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.kube import KubeClient

    Connect = Callable[..., Awaitable[KubeClient]]


class Meta(msgspec.Struct):
    name: str


class Named(msgspec.Struct):
    metadata: Meta


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (api_path("", "v1", "namespaces"), "/api/v1/namespaces"),
        (api_path("", "v1", "namespaces", name="oil"), "/api/v1/namespaces/oil"),
        (
            api_path("", "v1", "serviceaccounts", namespace="oil", name="a.b", subresource="token"),
            "/api/v1/namespaces/oil/serviceaccounts/a.b/token",
        ),
        (
            api_path("rbac.authorization.k8s.io", "v1", "clusterroles", name="capsule:x/../y"),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/capsule%3Ax%2F..%2Fy",
        ),
        (
            api_path("capsule.clastix.io", "v1beta2", "tenants", name="oil", subresource="status"),
            "/apis/capsule.clastix.io/v1beta2/tenants/oil/status",
        ),
    ],
)
def test_paths_are_those_of_the_api(path: str, expected: str) -> None:
    assert path == expected


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.encode(errors="replace").decode() == text))
def test_a_name_can_not_leave_its_part_of_the_path(name: str) -> None:
    *parts, last = api_path("", "v1", "secrets", namespace="oil", name=name).split("/")
    assert parts == ["", "api", "v1", "namespaces", "oil", "secrets"]
    assert unquote(last) == name


async def test_a_get_returns_the_bytes_as_they_came(stub: Any, connect: Connect) -> None:
    body = b'{"kind": "Namespace",  "metadata":{"name":"oil"}}'

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    stub.answer = answer
    client = await connect()
    got = await client.get("/api/v1/namespaces/oil", params={"pretty": False, "limit": 5}, accept=METADATA)
    assert got == body
    (request,) = stub.requests
    assert request.raw_path == "/api/v1/namespaces/oil?pretty=false&limit=5"
    assert request.headers["Accept"] == METADATA
    assert request.headers["Authorization"] == "Bearer t0ken"


async def test_an_encoded_name_reaches_the_server_as_it_is(stub: Any, connect: Connect) -> None:
    client = await connect()
    await client.get(api_path("rbac.authorization.k8s.io", "v1", "clusterroles", name="capsule:a/b c"))
    assert stub.requests[0].raw_path.endswith("/clusterroles/capsule%3Aa%2Fb%20c")


async def test_a_get_decodes_into_a_type_and_says_when_the_shape_is_another(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"name": "oil" if len(stub.requests) == 1 else 7}})

    stub.answer = answer
    client = await connect()
    assert (await client.get_as(Named, "/x")).metadata.name == "oil"
    with pytest.raises(KubeError, match=r"answer to GET /x .*\$\.metadata\.name"):
        await client.get_as(Named, "/x")


async def test_writes_use_the_method_and_content_type_of_their_kind(stub: Any, connect: Connect) -> None:
    client = await connect()
    await client.create("/c", {"a": 1})
    await client.replace("/c/x", b'{"a":2}')
    await client.apply("/c/x", {"a": 3}, manager="tether", force=True, subresource="status")
    await client.json_patch("/c/x", [{"op": "test", "path": "/a", "value": 1}])
    await client.merge_patch("/c/x", {"a": None})
    sent = [
        (request.method, request.raw_path, request.headers["Content-Type"], body)
        for request, body in zip(stub.requests, stub.bodies, strict=True)
    ]
    assert sent == [
        ("POST", "/c", "application/json", b'{"a":1}'),
        ("PUT", "/c/x", "application/json", b'{"a":2}'),
        ("PATCH", "/c/x/status?fieldManager=tether&force=true", "application/apply-patch+yaml", b'{"a":3}'),
        ("PATCH", "/c/x", "application/json-patch+json", b'[{"op":"test","path":"/a","value":1}]'),
        ("PATCH", "/c/x", "application/merge-patch+json", b'{"a":null}'),
    ]


async def test_a_delete_carries_its_preconditions(stub: Any, connect: Connect) -> None:
    client = await connect()
    assert await client.delete("/c/x", uid="u1", resource_version="7", propagation="Foreground")
    assert await client.delete("/c/x")
    assert [msgspec.json.decode(body) for body in stub.bodies] == [
        {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": "u1", "resourceVersion": "7"},
        },
        {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"},
    ]


async def test_deleting_what_is_gone_is_false_and_what_is_another_object_is_a_conflict(
    stub: Any, connect: Connect
) -> None:
    codes = [404, 409]

    async def answer(_: web.Request) -> web.StreamResponse:
        code = codes.pop(0)
        return web.json_response({"kind": "Status", "code": code, "message": "no"}, status=code)

    stub.answer = answer
    client = await connect()
    assert await client.delete("/c/x") is False
    with pytest.raises(ConflictError):
        await client.delete("/c/x", uid="u1")


async def test_a_token_is_asked_for_bound_to_its_secret(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        status = {"token": "eyJ.secret.token", "expirationTimestamp": "2030-01-02T03:04:05Z"}
        return web.json_response({"kind": "TokenRequest", "status": status}, status=201)

    stub.answer = answer
    client = await connect()
    issued = await client.token_request(
        "oil", "gitops", audiences=["a"], expiration_seconds=600, bound_secret=("gitops-token-1", "u1")
    )
    assert stub.requests[0].path == "/api/v1/namespaces/oil/serviceaccounts/gitops/token"
    assert msgspec.json.decode(stub.bodies[0])["spec"] == {
        "audiences": ["a"],
        "expirationSeconds": 600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "gitops-token-1", "uid": "u1"},
    }
    assert issued == IssuedToken(token="eyJ.secret.token", expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert "secret" not in f"{issued!r} {issued!s} {list(issued.__rich_repr__())}"


async def test_an_event_is_about_its_object_and_holds_no_secret(stub: Any, connect: Connect) -> None:
    client = await connect()
    about = ObjectRef(api_version="v1", kind="ServiceAccount", namespace="oil", name="g" * 253, uid="u1")
    await client.event(about, reason="Refused", message="Bearer abcdefghijkl " + "x" * 2000, kind="Warning")
    event = msgspec.json.decode(stub.bodies[0])
    assert stub.requests[0].path == "/api/v1/namespaces/oil/events"
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "namespace": "oil",
        "name": "g" * 253,
        "uid": "u1",
    }
    assert (event["type"], event["reason"], event["source"]) == ("Warning", "Refused", {"component": "tether"})
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) == 1024
    assert "abcdefghijkl" not in event["message"]


async def test_an_event_about_a_cluster_object_goes_to_default_and_its_failure_does_not_raise(
    stub: Any, connect: Connect
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "reason": "Forbidden"}, status=403)

    stub.answer = answer
    client = await connect()
    about = ObjectRef(api_version="capsule.clastix.io/v1beta2", kind="Tenant", name="oil")
    await client.event(about, reason="NoOwners", message="the tenant has no owners")
    assert stub.requests[0].path == "/api/v1/namespaces/default/events"


async def test_requests_are_counted_by_verb_and_code(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if len(stub.requests) == 1 else 404)

    stub.answer = answer
    metrics = Metrics()
    client = await connect(metrics=metrics)
    await client.get("/x")
    await client.delete("/x")
    text = metrics.render().decode()
    assert 'tether_kube_requests_total{code="200",verb="GET"} 1.0' in text
    assert 'tether_kube_requests_total{code="404",verb="DELETE"} 1.0' in text


async def test_the_version_shows_that_the_server_is_there(stub: Any, connect: Connect) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"gitVersion": "v1.32.4"})

    stub.answer = answer
    client = await connect()
    assert await client.version() == "v1.32.4"
    assert client.server_url == stub.url
    assert client.ca_pem == stub.pki.ca_pem.encode()


async def test_the_environment_can_not_send_requests_elsewhere(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = await connect()
    assert await client.get("/x") == b"{}"
