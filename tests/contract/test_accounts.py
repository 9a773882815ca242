"""ServiceAccounts: what every namespace begins with, tokens, what they are bound to, and their end."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from tests.contract.conftest import AsToken, Until
from tests.kubeapi import Client, Object

pytestmark = pytest.mark.xdist_group("contract")

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
SLACK = 5.0  # seconds that a busy machine may add


@pytest.fixture
async def account(admin: Client, namespace: str) -> Object:
    """The ServiceAccount ``a`` of the test's namespace."""
    made: Object = (
        await admin.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "a"}})
    ).body
    return made


def _path(namespace: str, rest: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/{rest}"


async def _request(admin: Client, namespace: str, **spec: Any) -> Object:
    made = await admin.post(_path(namespace, "serviceaccounts/a/token"), {"spec": spec})
    assert made.status == 201, made
    body: Object = made.body
    return body


async def _review(admin: Client, token: str, **spec: Any) -> Object:
    reviewed = await admin.post(REVIEWS, {"spec": {"token": token, **spec}})
    assert reviewed.status == 201, reviewed
    status: Object = reviewed.body["status"]
    return status


async def test_a_namespace_begins_with_its_account_and_the_authority(
    admin: Client, namespace: str, until: Until[bool]
) -> None:
    async def both() -> bool:
        paths = ("serviceaccounts/default", "configmaps/kube-root-ca.crt")
        return all([(await admin.get(_path(namespace, path))).status == 200 for path in paths])

    authority = (await admin.get(_path(namespace, "configmaps/kube-root-ca.crt"))).body["data"]["ca.crt"]
    labels = (await admin.get(f"/api/v1/namespaces/{namespace}")).body["metadata"]["labels"]
    assert authority.startswith("-----BEGIN CERTIFICATE-----")
    assert labels == {"kubernetes.io/metadata.name": namespace}
    # and they come back
    old = (await admin.get(_path(namespace, "serviceaccounts/default"))).body["metadata"]["uid"]
    await admin.delete(_path(namespace, "serviceaccounts/default"))
    await admin.delete(_path(namespace, "configmaps/kube-root-ca.crt"))
    await until(both)
    assert (await admin.get(_path(namespace, "serviceaccounts/default"))).body["metadata"]["uid"] != old


async def test_a_token_is_its_account(admin: Client, as_token: AsToken, namespace: str, account: Object) -> None:
    # given
    request = await _request(admin, namespace)
    # when
    client = await as_token(request["status"]["token"])
    user = (await client.post(WHOAMI, {})).body["status"]["userInfo"]
    # then
    assert (request["kind"], request["apiVersion"]) == ("TokenRequest", "authentication.k8s.io/v1")
    assert user["username"] == f"system:serviceaccount:{namespace}:a"
    assert user["uid"] == account["metadata"]["uid"]
    expected = {"system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"}
    assert set(user["groups"]) == expected


async def test_a_token_says_in_its_claims_what_it_is(admin: Client, namespace: str, account: Object) -> None:
    # given
    issuer = (await admin.get("/.well-known/openid-configuration")).body["issuer"]
    # when
    request = await _request(admin, namespace, expirationSeconds=900)
    claims = jwt.decode(request["status"]["token"], options={"verify_signature": False})
    # then
    assert claims["iss"] == issuer
    assert claims["sub"] == f"system:serviceaccount:{namespace}:a"
    assert claims["exp"] - claims["iat"] == 900
    assert claims["aud"] == request["spec"]["audiences"]
    assert claims["kubernetes.io"]["namespace"] == namespace
    assert claims["kubernetes.io"]["serviceaccount"] == {"name": "a", "uid": account["metadata"]["uid"]}
    assert {"jti", "nbf"} <= set(claims)


async def test_the_answer_tells_when_a_token_expires(admin: Client, namespace: str, account: Object) -> None:
    # when
    request = await _request(admin, namespace, expirationSeconds=600)
    # then
    expires = datetime.fromisoformat(request["status"]["expirationTimestamp"])
    assert abs(expires - datetime.now(UTC) - timedelta(seconds=600)) < timedelta(seconds=60)
    assert request["spec"]["expirationSeconds"] == 600


async def test_a_life_under_ten_minutes_is_invalid(admin: Client, namespace: str, account: Object) -> None:
    # when
    refused = await admin.post(_path(namespace, "serviceaccounts/a/token"), {"spec": {"expirationSeconds": 599}})
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert refused.body["details"]["causes"][0]["field"] == "spec.expirationSeconds"
    assert "may not specify a duration less than 10 minutes" in refused.body["message"]


async def test_a_token_for_another_audience_does_not_open_this_api(
    admin: Client, as_token: AsToken, namespace: str, account: Object
) -> None:
    # given
    token = (await _request(admin, namespace, audiences=["elsewhere"]))["status"]["token"]
    # when
    refused = await (await as_token(token)).post(WHOAMI, {})
    without = await _review(admin, token)
    wanted = await _review(admin, token, audiences=["elsewhere", "another"])
    # then
    assert (refused.status, refused.body["reason"]) == (401, "Unauthorized")
    assert not without.get("authenticated")
    assert (wanted["authenticated"], wanted["audiences"]) == (True, ["elsewhere"])


async def test_a_token_of_an_account_that_is_not_there_is_not_found(admin: Client, namespace: str) -> None:
    # when
    refused = await admin.post(_path(namespace, "serviceaccounts/nobody/token"), {"spec": {}})
    # then
    assert (refused.status, refused.body["reason"]) == (404, "NotFound")
    assert refused.body["message"] == 'serviceaccounts "nobody" not found'


async def test_a_token_ends_with_the_secret_that_it_is_bound_to(
    admin: Client, as_token: AsToken, namespace: str, account: Object, until: Until[bool]
) -> None:
    # given
    secret = (await admin.post(_path(namespace, "secrets"), {"metadata": {"name": "s"}})).body["metadata"]
    bound = {"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": secret["uid"]}
    token = (await _request(admin, namespace, boundObjectRef=bound))["status"]["token"]
    client = await as_token(token)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (await client.post(WHOAMI, {})).status == 201
    # when
    start = time.monotonic()
    await admin.delete(_path(namespace, "secrets/s"))

    async def refused() -> bool:
        return (await client.post(WHOAMI, {})).status == 401

    # then
    assert claims["kubernetes.io"]["secret"] == {"name": "s", "uid": secret["uid"]}
    await until(refused)
    assert time.monotonic() - start < 10 + SLACK  # an API server keeps what it found out for as long
    assert not (await _review(admin, token)).get("authenticated")


async def test_a_token_is_bound_to_the_uid_of_its_secret(admin: Client, namespace: str, account: Object) -> None:
    # given
    await admin.post(_path(namespace, "secrets"), {"metadata": {"name": "s"}})
    other = {"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "5a9ac3a6-6d94-4b2e-8a3c-1fb8a3a1a001"}
    absent = {"apiVersion": "v1", "kind": "Secret", "name": "nothing"}
    # when
    replies = [
        await admin.post(_path(namespace, "serviceaccounts/a/token"), {"spec": {"boundObjectRef": reference}})
        for reference in (other, absent)
    ]
    # then
    assert [(reply.status, reply.body["reason"]) for reply in replies] == [(409, "Conflict"), (404, "NotFound")]


async def test_a_token_ends_with_its_account_even_when_it_is_made_again(
    admin: Client, as_token: AsToken, namespace: str, account: Object, until: Until[bool]
) -> None:
    # given
    token = (await _request(admin, namespace))["status"]["token"]
    client = await as_token(token)
    # when
    await admin.delete(_path(namespace, "serviceaccounts/a"))
    await admin.post(_path(namespace, "serviceaccounts"), {"metadata": {"name": "a"}})

    async def refused() -> bool:
        return (await client.post(WHOAMI, {})).status == 401

    # then
    await until(refused)


async def test_a_token_secret_of_the_old_kind_is_filled_and_goes_with_its_account(
    admin: Client, as_token: AsToken, namespace: str, account: Object, until: Until[Any]
) -> None:
    # given
    annotations = {"kubernetes.io/service-account.name": "a"}
    body = {"metadata": {"name": "t", "annotations": annotations}, "type": "kubernetes.io/service-account-token"}
    await admin.post(_path(namespace, "secrets"), body)

    async def filled() -> Object | None:
        secret: Object = (await admin.get(_path(namespace, "secrets/t"))).body
        return secret if "token" in secret.get("data", {}) else None

    # when
    secret = await until(filled)
    token = base64.b64decode(secret["data"]["token"]).decode()
    user = (await (await as_token(token)).post(WHOAMI, {})).body["status"]["userInfo"]
    await admin.delete(_path(namespace, "serviceaccounts/a"))

    async def gone() -> bool:
        return (await admin.get(_path(namespace, "secrets/t"))).status == 404

    # then
    assert user["username"] == f"system:serviceaccount:{namespace}:a"
    assert set(secret["data"]) == {"token", "ca.crt", "namespace"}
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"] == account["metadata"]["uid"]
    await until(gone)


async def test_a_token_secret_needs_an_account(admin: Client, namespace: str) -> None:
    # when
    nameless = await admin.post(
        _path(namespace, "secrets"), {"metadata": {"name": "t"}, "type": "kubernetes.io/service-account-token"}
    )
    # then
    assert (nameless.status, nameless.body["reason"]) == (422, "Invalid")


async def test_a_review_tells_who_a_token_is_or_why_it_is_nobody(
    admin: Client, namespace: str, account: Object
) -> None:
    # given
    token = (await _request(admin, namespace))["status"]["token"]
    # when
    known = await _review(admin, token)
    unknown = await _review(admin, "nonsense")
    # then
    assert known["authenticated"] is True
    assert known["user"]["username"] == f"system:serviceaccount:{namespace}:a"
    assert known["audiences"]
    assert "authentication.kubernetes.io/credential-id" in known["user"]["extra"]
    assert not unknown.get("authenticated")
    assert unknown["error"]


async def test_a_wrong_token_is_nobody_and_no_token_is_anonymous(as_token: AsToken) -> None:
    # when
    wrong = await (await as_token("nonsense")).get("/api/v1/namespaces")
    none = await (await as_token("")).get("/api/v1/namespaces")
    # then
    assert (wrong.status, wrong.body["reason"], wrong.body["message"]) == (401, "Unauthorized", "Unauthorized")
    assert (none.status, none.body["reason"]) == (403, "Forbidden")
    assert 'User "system:anonymous" cannot list resource "namespaces"' in none.body["message"]
