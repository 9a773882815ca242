"""What the API answers about identities and rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tether.devcluster import bootstrap, reviews
from tether.devcluster.authn import DevAuthenticator
from tether.devcluster.contracts import ApiError, Object, UserInfo
from tether.devcluster.rbac import CLUSTER_ROLES, ROLE_BINDINGS, RbacAuthorizer
from tether.devcluster.resources import SERVICE_ACCOUNTS
from tether.devcluster.store import Store
from tether.devcluster.tokens import ISSUER, TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tether.devcluster.pki import ClusterPki

    Ask = Callable[..., Awaitable[Object]]

BOB = UserInfo(username="bob", uid="7", groups=("devs", "system:authenticated"), extra={"scopes": ("a",)})
AUTHORIZATION = "authorization.k8s.io"


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    bootstrap.apply(store)
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "default"}})
    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}
    store.create(CLUSTER_ROLES, {"metadata": {"name": "reader"}, "rules": [rule]})
    store.create(
        ROLE_BINDINGS,
        {
            "metadata": {"name": "readers", "namespace": "default"},
            "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "Group", "name": "devs"}],
        },
    )
    yield store
    store.close()


@pytest.fixture
def issuer(store: Store, pki: ClusterPki) -> TokenIssuer:
    return TokenIssuer(store, pki)


@pytest.fixture
def ask(store: Store, pki: ClusterPki, issuer: TokenIssuer) -> Ask:
    """Post a spec to a review as bob and return the whole answer."""
    authorizer = RbacAuthorizer(store)
    handlers = reviews.handlers(store, DevAuthenticator(store, pki, issuer, authorizer), authorizer, issuer)

    async def post(group: str, resource: str, spec: Object, *, namespace: str = "", name: str = "") -> Object:
        return await handlers[group, resource](BOB, namespace, name, {"kind": "Review", "spec": spec})

    return post


def secret(name: str = "a", verb: str = "get", namespace: str = "default") -> Object:
    return {"verb": verb, "resource": "secrets", "namespace": namespace, "name": name}


async def test_a_token_review_tells_who_a_token_proves(ask: Ask, issuer: TokenIssuer) -> None:
    token = issuer.request("default", "gitops", {"spec": {}})["status"]["token"]

    answer = await ask("authentication.k8s.io", "tokenreviews", {"token": token})

    status = answer["status"]
    assert status["authenticated"] is True
    assert status["audiences"] == [ISSUER]
    assert status["user"]["username"] == "system:serviceaccount:default:gitops"
    assert status["user"]["groups"] == [
        "system:serviceaccounts",
        "system:serviceaccounts:default",
        "system:authenticated",
    ]
    assert status["user"]["uid"]
    assert status["user"]["extra"]["authentication.kubernetes.io/credential-id"][0].startswith("JTI=")


async def test_a_token_review_is_for_the_audiences_that_it_names(ask: Ask, issuer: TokenIssuer) -> None:
    token = issuer.request("default", "gitops", {"spec": {"audiences": ["proxy"]}})["status"]["token"]

    matching = await ask("authentication.k8s.io", "tokenreviews", {"token": token, "audiences": ["proxy", "x"]})
    other = await ask("authentication.k8s.io", "tokenreviews", {"token": token})

    assert matching["status"]["authenticated"] is True
    assert matching["status"]["audiences"] == ["proxy"]
    assert "authenticated" not in other["status"]
    assert "audiences" in other["status"]["error"]


async def test_a_token_review_of_a_wrong_token_says_why_without_the_token(ask: Ask) -> None:
    answer = await ask("authentication.k8s.io", "tokenreviews", {"token": "wrong-token"})

    assert answer["status"]["user"] == {}
    assert answer["status"]["error"].startswith("invalid bearer token")
    assert "wrong-token" not in answer["status"]["error"]


async def test_a_token_review_without_a_token_is_a_bad_request(ask: Ask) -> None:
    with pytest.raises(ApiError) as caught:
        await ask("authentication.k8s.io", "tokenreviews", {})

    assert caught.value.code == 400


async def test_a_self_subject_review_shows_the_caller(ask: Ask) -> None:
    answer = await ask("authentication.k8s.io", "selfsubjectreviews", {})

    assert answer["status"]["userInfo"] == {
        "username": "bob",
        "uid": "7",
        "groups": ["devs", "system:authenticated"],
        "extra": {"scopes": ["a"]},
    }


@pytest.mark.parametrize(("name", "expected"), [("a", True), ("b", False)])
async def test_a_self_subject_access_review_is_about_the_caller(ask: Ask, name: str, *, expected: bool) -> None:
    answer = await ask(AUTHORIZATION, "selfsubjectaccessreviews", {"resourceAttributes": secret(name)})

    assert answer["status"]["allowed"] is expected


async def test_an_allowed_review_gives_the_binding_as_its_reason(ask: Ask) -> None:
    answer = await ask(AUTHORIZATION, "selfsubjectaccessreviews", {"resourceAttributes": secret()})

    assert answer["status"]["reason"] == (
        'RBAC: allowed by RoleBinding "readers/default" of ClusterRole "reader" to Group "devs"'
    )


@pytest.mark.parametrize(
    ("who", "expected"),
    [({"groups": ["devs"]}, True), ({"user": "eve"}, False), ({"user": "eve", "groups": ["devs"]}, True)],
)
async def test_a_subject_access_review_is_about_whom_it_names_alone(ask: Ask, who: Object, *, expected: bool) -> None:
    answer = await ask(AUTHORIZATION, "subjectaccessreviews", {**who, "resourceAttributes": secret()})

    assert answer["status"]["allowed"] is expected


async def test_a_path_is_reviewed_too(ask: Ask) -> None:
    spec = {"groups": ["system:authenticated"], "nonResourceAttributes": {"verb": "get", "path": "/apis/apps"}}

    assert (await ask(AUTHORIZATION, "subjectaccessreviews", spec))["status"]["allowed"] is True


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"resourceAttributes": secret()}, "at least one of user or group must be specified"),
        ({"user": "eve"}, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        (
            {"user": "eve", "resourceAttributes": secret(), "nonResourceAttributes": {"verb": "get", "path": "/"}},
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
    ],
)
async def test_a_review_that_asks_nothing_clear_is_invalid(ask: Ask, spec: Object, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        await ask(AUTHORIZATION, "subjectaccessreviews", spec)

    assert caught.value.code == 422
    assert words in caught.value.message


async def test_a_local_review_stays_in_its_namespace(ask: Ask) -> None:
    spec = {"groups": ["devs"], "resourceAttributes": secret()}
    answer = await ask(AUTHORIZATION, "localsubjectaccessreviews", spec, namespace="default")
    assert answer["status"]["allowed"] is True

    with pytest.raises(ApiError, match="must match namespace: kube-system") as caught:
        await ask(AUTHORIZATION, "localsubjectaccessreviews", spec, namespace="kube-system")

    assert caught.value.code == 400


async def test_a_rules_review_lists_what_the_caller_may_do_in_a_namespace(ask: Ask) -> None:
    here = (await ask(AUTHORIZATION, "selfsubjectrulesreviews", {"namespace": "default"}))["status"]
    elsewhere = (await ask(AUTHORIZATION, "selfsubjectrulesreviews", {"namespace": "kube-system"}))["status"]

    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}
    assert rule in here["resourceRules"]
    assert rule not in elsewhere["resourceRules"]
    assert any("/version" in rule["nonResourceURLs"] for rule in here["nonResourceRules"])
    assert here["incomplete"] is False


async def test_a_rules_review_without_a_namespace_is_a_bad_request(ask: Ask) -> None:
    with pytest.raises(ApiError) as caught:
        await ask(AUTHORIZATION, "selfsubjectrulesreviews", {})

    assert caught.value.code == 400


async def test_a_token_request_answers_with_what_was_asked_and_its_status(ask: Ask) -> None:
    spec = {"expirationSeconds": 600}

    answer = await ask("", "serviceaccounts/token", spec, namespace="default", name="gitops")

    assert answer["spec"] == {"expirationSeconds": 600, "audiences": [ISSUER]}
    assert answer["status"]["token"].count(".") == 2
    assert answer["status"]["expirationTimestamp"].endswith("Z")
