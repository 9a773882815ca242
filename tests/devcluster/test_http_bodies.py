"""Request bodies and representations: JSON, YAML, protobuf, and whatever else somebody may send."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tether.devcluster import bodies, shapes
from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.resources import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kubeapi import Client

NS = "/api/v1/namespaces"
CM = f"{NS}/default/configmaps"
SECRETS = f"{NS}/default/secrets"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"a: [", "application/yaml", 400),
        (b"a: &a [*a]", "application/yaml", 400),
        (b"x", "text/plain", 415),
        (b"x", "application/vnd.kubernetes.protobuf", 400),
        (b"k8s\x00\xff\xff", "application/vnd.kubernetes.protobuf", 400),
        (b"x" * (bodies.MAX_BYTES + 1), "application/json", 413),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(client: Client, body: bytes, content_type: str, code: int) -> None:
    # when
    refused = await client.request("POST", CM, data=io.BytesIO(body), headers={"Content-Type": content_type})
    # then
    assert (refused.status, refused.body["kind"]) == (code, "Status")


async def test_aliases_that_write_out_to_a_giant_are_refused(client: Client) -> None:
    # given
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    # when
    refused = await client.request(
        "POST", CM, data="\n".join(lines).encode(), headers={"Content-Type": "application/yaml"}
    )
    # then
    assert refused.status == 400
    assert "too large" in refused.body["message"]


async def test_yaml_is_read_and_written(client: Client) -> None:
    # given
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {at: 2020-01-01}}\n"
    # when
    made = await client.request("POST", CM, data=text, headers={"Content-Type": "application/yaml"})
    shown = await client.get(f"{CM}/a", headers={"Accept": "application/yaml"})
    # then
    assert made.status == 201, made
    assert made.body["metadata"]["annotations"] == {"at": "2020-01-01"}
    assert shown.headers["Content-Type"].startswith("application/yaml")
    assert "kind: ConfigMap" in shown.body


async def test_a_representation_that_is_not_there_is_not_acceptable(client: Client) -> None:
    # when
    refused = await client.get(CM, headers={"Accept": "text/html"})
    fallback = await client.get(CM, headers={"Accept": "text/html, application/json;q=0.5"})
    # then
    assert (refused.status, refused.body["reason"]) == (406, "NotAcceptable")
    assert fallback.status == 200


async def test_a_protobuf_namespace_is_created(client: Client) -> None:
    # given -- runtime.Unknown{typeMeta{v1, Namespace}, raw Namespace{metadata{name: "pb"}}}
    raw = bytes([0x0A, 4, 0x0A, 2]) + b"pb"
    type_meta = bytes([0x0A, 2]) + b"v1" + bytes([0x12, 9]) + b"Namespace"
    body = b"k8s\x00" + bytes([0x0A, len(type_meta)]) + type_meta + bytes([0x12, len(raw)]) + raw
    # when
    made = await client.request("POST", NS, data=body, headers={"Content-Type": "application/vnd.kubernetes.protobuf"})
    # then
    assert (made.status, made.body["metadata"]["name"]) == (201, "pb")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "metadata", "spec", "labels", "rules", "names", "versions", "data"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(st.sampled_from(["metadata", "spec", "data", "rules", "roleRef", "subjects", "status"]), _JSON)
)
async def test_no_object_makes_the_server_fail(client: Client, body: Object) -> None:
    for path in (NS, SECRETS, f"{ROLES}/roles", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"):
        # when
        answers = [
            await client.post(f"{path}?dryRun=All", body),
            await client.patch(f"{path}/x", body, dryRun="All"),
            await client.apply(f"{path}/x", body, "me", dryRun="All"),
            await client.delete(f"{path}/x", json=body),
        ]
        # then
        assert all(answer.status < 500 for answer in answers), answers


def _outcome(work: Callable[[], object]) -> int:
    try:
        work()
    except ApiError as error:
        return error.code
    return 200


@given(st.binary(max_size=60), st.sampled_from(bodies.READABLE))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes, content_type: str) -> None:
    for raw in (body, b"k8s\x00" + body):
        # when
        outcome = _outcome(lambda raw=raw: bodies.decode(raw, content_type))  # type: ignore[misc]  # bound at once
        # then
        assert outcome in {200, 400, 415}


@given(st.sampled_from(BUILT_IN), st.dictionaries(st.sampled_from(["metadata", "rules", "spec", "data"]), _JSON))
def test_a_shape_fits_or_is_a_bad_request(resource: Any, body: Object) -> None:
    assert _outcome(lambda: shapes.check(resource, body)) in {200, 400}


async def test_secret_data_is_kept_as_it_was_sent(client: Client) -> None:
    # given
    encoded = base64.b64encode(b"\x00\xff").decode()
    # when
    made = await client.post(SECRETS, {"metadata": {"name": "s"}, "data": {"k": encoded}, "stringData": {"l": "x"}})
    # then
    assert made.body["data"] == {"k": encoded, "l": "eA=="}
