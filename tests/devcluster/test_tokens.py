"""ServiceAccount tokens: minted as the API server does, and dead as soon as what they stand on is gone."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import jwt
import pytest

from tether.devcluster import bootstrap, controllers
from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.pki import ClusterPki
from tether.devcluster.resources import SECRETS, SERVICE_ACCOUNTS
from tether.devcluster.store import Store
from tether.devcluster.tokens import ISSUER, InvalidTokenError, TokenIssuer, split_username

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    bootstrap.apply(store)
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "default"}})
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(store: Store, pki: ClusterPki, clock: Clock) -> TokenIssuer:
    return TokenIssuer(store, pki, clock)


def ask(issuer: TokenIssuer, **spec: object) -> Object:
    """Request a token for default/gitops and return the status."""
    status = issuer.request("default", "gitops", {"kind": "TokenRequest", "spec": spec})["status"]
    assert isinstance(status, dict)
    return status


def claims_of(token: str) -> Object:
    return jwt.decode(token, options={"verify_signature": False})


def secret_reference(store: Store, **more: str) -> Object:
    secret = store.create(SECRETS, {"metadata": {"name": "binding", "namespace": "default"}})
    return {"apiVersion": "v1", "kind": "Secret", "name": "binding", "uid": secret["metadata"]["uid"]} | more


def refusal(issuer: TokenIssuer, **spec: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(issuer, **spec)
    return caught.value


def test_a_token_names_its_account_and_lives_an_hour_by_default(store: Store, issuer: TokenIssuer) -> None:
    account = store.get(SERVICE_ACCOUNTS, "default", "gitops")
    assert account is not None

    status = ask(issuer)

    claims = claims_of(status["token"])
    assert claims["iss"] == ISSUER
    assert claims["sub"] == "system:serviceaccount:default:gitops"
    assert claims["aud"] == [ISSUER]
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["nbf"] == claims["iat"] == NOON
    assert claims["kubernetes.io"]["serviceaccount"] == {"name": "gitops", "uid": account["metadata"]["uid"]}
    assert status["expirationTimestamp"] == "2027-01-15T09:00:00Z"
    assert jwt.get_unverified_header(status["token"])["alg"] == "RS256"


def test_a_valid_token_proves_the_account_with_its_groups(store: Store, issuer: TokenIssuer) -> None:
    account = store.get(SERVICE_ACCOUNTS, "default", "gitops")
    assert account is not None
    token = ask(issuer)["token"]

    user = issuer.verify(token).user

    assert user.username == "system:serviceaccount:default:gitops"
    assert user.uid == account["metadata"]["uid"]
    assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:default")
    assert user.extra == {"authentication.kubernetes.io/credential-id": (f"JTI={claims_of(token)['jti']}",)}


def test_two_tokens_are_never_the_same(issuer: TokenIssuer) -> None:
    assert ask(issuer)["token"] != ask(issuer)["token"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (599, "may not specify a duration less than 10 minutes"),
        (-1, "may not specify a duration less than 10 minutes"),
        ((1 << 32) + 1, "may not specify a duration larger than 2^32 seconds"),
    ],
)
def test_a_duration_out_of_bounds_is_invalid(issuer: TokenIssuer, seconds: int, words: str) -> None:
    error = refusal(issuer, expirationSeconds=seconds)

    assert (error.code, error.reason) == (422, "Invalid")
    assert words in error.message
    assert "spec.expirationSeconds" in error.message


def test_a_duration_that_is_no_number_is_a_bad_request(issuer: TokenIssuer) -> None:
    assert refusal(issuer, expirationSeconds="1h").code == 400


def test_the_shortest_duration_is_ten_minutes(issuer: TokenIssuer) -> None:
    claims = claims_of(ask(issuer, expirationSeconds=600)["token"])

    assert claims["exp"] - claims["iat"] == 600


def test_an_account_that_is_not_there_is_not_found(issuer: TokenIssuer) -> None:
    with pytest.raises(ApiError) as caught:
        issuer.request("default", "nobody", {"spec": {}})

    assert caught.value.code == 404
    assert caught.value.message == 'serviceaccounts "nobody" not found'


def test_a_token_dies_with_the_secret_that_it_is_bound_to(store: Store, issuer: TokenIssuer) -> None:
    token = ask(issuer, boundObjectRef=secret_reference(store))["token"]
    assert claims_of(token)["kubernetes.io"]["secret"]["name"] == "binding"
    assert issuer.verify(token).user.username.endswith(":gitops")

    store.delete(SECRETS, "default", "binding")

    with pytest.raises(InvalidTokenError, match="invalidated"):
        issuer.verify(token)


def test_a_secret_made_again_under_the_same_name_does_not_revive_a_token(store: Store, issuer: TokenIssuer) -> None:
    token = ask(issuer, boundObjectRef=secret_reference(store))["token"]
    store.delete(SECRETS, "default", "binding")

    store.create(SECRETS, {"metadata": {"name": "binding", "namespace": "default"}})

    with pytest.raises(InvalidTokenError, match="UID"):
        issuer.verify(token)


def test_a_bound_secret_that_waits_for_a_finalizer_is_dead_after_the_leeway(
    store: Store, issuer: TokenIssuer, clock: Clock
) -> None:
    meta = {"name": "held", "namespace": "default", "finalizers": ["example.com/hold"]}
    secret = store.create(SECRETS, {"metadata": meta})
    reference = {"apiVersion": "v1", "kind": "Secret", "name": "held", "uid": secret["metadata"]["uid"]}
    clock.now = 0
    token = ask(issuer, boundObjectRef=reference, expirationSeconds=1 << 32)["token"]
    store.delete(SECRETS, "default", "held")
    assert issuer.verify(token).user.username.endswith(":gitops")

    clock.now = (1 << 32) - 1.0

    with pytest.raises(InvalidTokenError, match="Secret is gone"):
        issuer.verify(token)


def test_a_token_dies_with_its_account_and_with_a_new_account_of_the_same_name(
    store: Store, issuer: TokenIssuer
) -> None:
    token = ask(issuer)["token"]

    store.delete(SERVICE_ACCOUNTS, "default", "gitops")
    with pytest.raises(InvalidTokenError, match="ServiceAccount is gone"):
        issuer.verify(token)

    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "default"}})
    with pytest.raises(InvalidTokenError, match="UID of the ServiceAccount"):
        issuer.verify(token)


def test_binding_to_an_absent_object_is_not_found(issuer: TokenIssuer) -> None:
    error = refusal(issuer, boundObjectRef={"apiVersion": "v1", "kind": "Secret", "name": "absent"})

    assert (error.code, error.message) == (404, 'secrets "absent" not found')


def test_binding_with_another_uid_is_a_conflict(store: Store, issuer: TokenIssuer) -> None:
    error = refusal(issuer, boundObjectRef=secret_reference(store, uid="another"))

    assert (error.code, error.reason) == (409, "Conflict")
    assert "the UID in the bound object reference (another) does not match the UID in record" in error.message


@pytest.mark.parametrize(
    "reference", [{"apiVersion": "v1", "kind": "ConfigMap"}, {"apiVersion": "x/v1", "kind": "Pod"}]
)
def test_binding_to_another_kind_is_a_bad_request(issuer: TokenIssuer, reference: dict[str, str]) -> None:
    error = refusal(issuer, boundObjectRef={**reference, "name": "x"})

    assert error.code == 400
    assert "cannot bind token to object of type" in error.message


def make_pod(store: Store, account: str) -> Object:
    pods = store.resource("", "pods")
    assert pods is not None
    pod = store.create(
        pods, {"metadata": {"name": "app", "namespace": "default"}, "spec": {"serviceAccountName": account}}
    )
    return {"apiVersion": "v1", "kind": "Pod", "name": "app", "uid": pod["metadata"]["uid"]}


def test_a_token_for_a_pod_of_another_account_is_a_bad_request(store: Store, issuer: TokenIssuer) -> None:
    assert refusal(issuer, boundObjectRef=make_pod(store, "other")).code == 400


def test_a_pod_token_of_3607_seconds_is_extended_to_a_year_and_says_the_short_time(
    store: Store, issuer: TokenIssuer
) -> None:
    reference = make_pod(store, "gitops")

    status = ask(issuer, boundObjectRef=reference, expirationSeconds=3607)

    claims = claims_of(status["token"])
    assert claims["exp"] - claims["iat"] == 365 * 24 * 3600
    assert claims["kubernetes.io"]["warnafter"] - claims["iat"] == 3607
    assert status["expirationTimestamp"] == "2027-01-15T09:00:07Z"
    assert issuer.verify(status["token"]).user.extra["authentication.kubernetes.io/pod-name"] == ("app",)


def test_a_token_of_3607_seconds_without_a_pod_is_not_extended(issuer: TokenIssuer) -> None:
    claims = claims_of(ask(issuer, expirationSeconds=3607)["token"])

    assert claims["exp"] - claims["iat"] == 3607


def test_a_token_is_for_its_audience_alone(issuer: TokenIssuer) -> None:
    token = ask(issuer, audiences=["vault", "proxy"])["token"]

    assert issuer.verify(token, ["proxy", "other"]).audiences == ("proxy",)
    with pytest.raises(InvalidTokenError, match="audiences"):
        issuer.verify(token)
    with pytest.raises(InvalidTokenError, match="audiences"):
        issuer.verify(token, ["other"])


def test_a_token_ends_and_does_not_begin_before_its_time(issuer: TokenIssuer, clock: Clock) -> None:
    token = ask(issuer, expirationSeconds=600)["token"]

    clock.now = NOON + 600 + 59
    assert issuer.verify(token).user.username.endswith(":gitops")
    clock.now = NOON + 600 + 61
    with pytest.raises(InvalidTokenError, match="expired"):
        issuer.verify(token)
    clock.now = NOON - 61
    with pytest.raises(InvalidTokenError, match="not valid yet"):
        issuer.verify(token)


def test_a_token_of_another_cluster_and_garbage_prove_nobody(store: Store, issuer: TokenIssuer) -> None:
    foreign = TokenIssuer(store, ClusterPki.load_or_create(None), lambda: NOON)

    for token in (ask(foreign)["token"], "garbage", "a.b.c", ""):
        with pytest.raises(InvalidTokenError) as caught:
            issuer.verify(token)
        assert not token or token not in str(caught.value)


def test_a_forged_algorithm_proves_nobody(pki: ClusterPki, issuer: TokenIssuer) -> None:
    claims = claims_of(ask(issuer)["token"])
    headers = {"kid": pki.service_account_keys.key_id}

    unsigned = jwt.encode(claims, "", algorithm="none", headers=headers)

    with pytest.raises(InvalidTokenError):
        issuer.verify(unsigned)


def test_the_published_key_verifies_a_token(issuer: TokenIssuer) -> None:
    token = ask(issuer)["token"]
    key = jwt.PyJWKSet.from_dict(issuer.jwks())[jwt.get_unverified_header(token)["kid"]]

    options: jwt.types.Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(token, key, algorithms=["RS256"], audience=ISSUER, options=options)

    assert claims["iss"] == issuer.openid_configuration()["issuer"] == ISSUER
    assert issuer.openid_configuration()["jwks_uri"].endswith("/openid/v1/jwks")


def legacy_secret(store: Store, issuer: TokenIssuer) -> str:
    annotations = {"kubernetes.io/service-account.name": "gitops"}
    meta = {"name": "gitops-token", "namespace": "default", "annotations": annotations}
    store.create(SECRETS, {"metadata": meta, "type": "kubernetes.io/service-account-token"})
    controllers.settle(store, controllers.kubernetes(store, issuer))
    filled = store.get(SECRETS, "default", "gitops-token")
    assert filled is not None
    return base64.b64decode(filled["data"]["token"]).decode()


def test_a_legacy_token_is_valid_while_its_secret_lives(store: Store, issuer: TokenIssuer, clock: Clock) -> None:
    token = legacy_secret(store, issuer)
    clock.now += 10 * 365 * 24 * 3600
    assert issuer.verify(token).user.username == "system:serviceaccount:default:gitops"
    with pytest.raises(InvalidTokenError, match="API only"):
        issuer.verify(token, ["vault"])

    store.delete(SECRETS, "default", "gitops-token")

    with pytest.raises(InvalidTokenError, match="invalidated"):
        issuer.verify(token)


def test_a_legacy_token_that_its_secret_no_longer_holds_is_dead(store: Store, issuer: TokenIssuer) -> None:
    token = legacy_secret(store, issuer)
    secret = store.get(SECRETS, "default", "gitops-token")
    assert secret is not None

    store.update(SECRETS, {**secret, "data": {**secret["data"], "token": "b3RoZXI="}})

    with pytest.raises(InvalidTokenError, match="invalidated"):
        issuer.verify(token)


@pytest.mark.parametrize(
    ("username", "expected"),
    [
        ("system:serviceaccount:a:b", ("a", "b")),
        ("system:serviceaccount:a:b.c", ("a", "b.c")),
        ("system:serviceaccount:a", None),
        ("system:serviceaccount:a:b:c", None),
        ("system:serviceaccount::b", None),
        ("dana", None),
    ],
)
def test_only_four_colon_parts_are_an_account(username: str, expected: tuple[str, str] | None) -> None:
    assert split_username(username) == expected
