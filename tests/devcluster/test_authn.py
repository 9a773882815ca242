"""Who a request is from, and who it may act as."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from multidict import CIMultiDict

from tether.devcluster import bootstrap
from tether.devcluster.authn import DevAuthenticator, bearer_token
from tether.devcluster.contracts import ApiError, Object, UserInfo
from tether.devcluster.pki import ClusterPki
from tether.devcluster.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, RbacAuthorizer
from tether.devcluster.resources import SERVICE_ACCOUNTS
from tether.devcluster.store import Store
from tether.devcluster.tokens import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = UserInfo(username="root", groups=("system:masters", "system:authenticated"))
BOB = UserInfo(username="bob", groups=("system:authenticated",))


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    bootstrap.apply(store)
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "default"}})
    yield store
    store.close()


@pytest.fixture
def issuer(store: Store, pki: ClusterPki) -> TokenIssuer:
    return TokenIssuer(store, pki)


@pytest.fixture
def authenticator(store: Store, pki: ClusterPki, issuer: TokenIssuer) -> DevAuthenticator:
    return DevAuthenticator(store, pki, issuer, RbacAuthorizer(store))


def token_of(issuer: TokenIssuer) -> str:
    return str(issuer.request("default", "gitops", {"spec": {}})["status"]["token"])


def certificate_of(pki: ClusterPki, user: str, *groups: str) -> bytes:
    pem, _ = pki.client_certificate(user, groups)
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def impersonate(authenticator: DevAuthenticator, user: UserInfo, *headers: tuple[str, str]) -> UserInfo:
    many = CIMultiDict(headers)
    return authenticator.impersonate(user, many, lambda name: many.getall(name, []))


def refused(authenticator: DevAuthenticator, user: UserInfo, *headers: tuple[str, str]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        impersonate(authenticator, user, *headers)
    return caught.value


def allow(store: Store, *rules: Object) -> None:
    """Let bob do what the rules say, everywhere."""
    store.create(CLUSTER_ROLES, {"metadata": {"name": "granted"}, "rules": list(rules)})
    store.create(
        CLUSTER_ROLE_BINDINGS,
        {
            "metadata": {"name": "granted"},
            "roleRef": {"kind": "ClusterRole", "name": "granted"},
            "subjects": [{"kind": "User", "name": "bob"}],
        },
    )


def rule(resource: str, *names: str, group: str = "") -> Object:
    rule: Object = {"apiGroups": [group], "resources": [resource], "verbs": ["impersonate"]}
    return rule | ({"resourceNames": list(names)} if names else {})


def test_without_credentials_a_request_is_anonymous(authenticator: DevAuthenticator) -> None:
    user = authenticator.authenticate({}, None)

    assert (user.username, user.groups) == ("system:anonymous", ("system:unauthenticated",))


def test_a_bearer_token_authenticates_its_account(authenticator: DevAuthenticator, issuer: TokenIssuer) -> None:
    user = authenticator.authenticate({"Authorization": f"Bearer {token_of(issuer)}"}, None)

    assert user.username == "system:serviceaccount:default:gitops"
    assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated")


def test_a_wrong_token_is_unauthorized_and_never_anonymous(authenticator: DevAuthenticator) -> None:
    with pytest.raises(ApiError) as caught:
        authenticator.authenticate({"Authorization": "Bearer wrong"}, None)

    assert (caught.value.code, caught.value.reason, caught.value.message) == (401, "Unauthorized", "Unauthorized")


def test_a_token_for_another_audience_is_unauthorized(authenticator: DevAuthenticator, issuer: TokenIssuer) -> None:
    token = issuer.request("default", "gitops", {"spec": {"audiences": ["vault"]}})["status"]["token"]

    with pytest.raises(ApiError) as caught:
        authenticator.authenticate({"Authorization": f"Bearer {token}"}, None)

    assert caught.value.code == 401


def test_a_client_certificate_counts_before_a_token(
    authenticator: DevAuthenticator, issuer: TokenIssuer, pki: ClusterPki
) -> None:
    headers = {"Authorization": f"Bearer {token_of(issuer)}"}

    user = authenticator.authenticate(headers, certificate_of(pki, "dana", "cedar-devs"))

    assert (user.username, user.groups) == ("dana", ("cedar-devs", "system:authenticated"))


def test_a_certificate_of_another_authority_is_unauthorized(authenticator: DevAuthenticator) -> None:
    stranger = certificate_of(ClusterPki.load_or_create(None), "dana", "system:masters")

    with pytest.raises(ApiError) as caught:
        authenticator.authenticate({}, stranger)

    assert caught.value.code == 401


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer abc", "abc"), ("Bearer ", ""), ("Basic YTpi", ""), ("", ""), ("abc", "")],
)
def test_only_the_bearer_scheme_carries_a_token(header: str, token: str) -> None:
    assert bearer_token(header) == token


def test_without_impersonation_headers_a_user_stays_itself(authenticator: DevAuthenticator) -> None:
    assert impersonate(authenticator, BOB) is BOB


def test_an_impersonated_user_gets_the_group_of_the_authenticated(authenticator: DevAuthenticator) -> None:
    user = impersonate(authenticator, ADMIN, ("Impersonate-User", "dana"))

    assert user == UserInfo(username="dana", groups=("system:authenticated",))


def test_impersonated_groups_are_taken_as_they_are_given(authenticator: DevAuthenticator) -> None:
    headers = [("Impersonate-User", "dana"), ("Impersonate-Group", "a"), ("Impersonate-Group", "b")]

    user = impersonate(authenticator, ADMIN, *headers)

    assert user.groups == ("a", "b", "system:authenticated")


def test_impersonating_nobody_stays_unauthenticated(authenticator: DevAuthenticator) -> None:
    user = impersonate(authenticator, ADMIN, ("Impersonate-User", "system:anonymous"))

    assert user.groups == ("system:unauthenticated",)


def test_an_impersonated_account_gets_its_groups_only_when_none_are_given(authenticator: DevAuthenticator) -> None:
    account = ("Impersonate-User", "system:serviceaccount:default:gitops")

    alone = impersonate(authenticator, ADMIN, account)
    with_group = impersonate(authenticator, ADMIN, account, ("Impersonate-Group", "a"))

    assert alone.groups == ("system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated")
    assert with_group.groups == ("a", "system:authenticated")


def test_uid_and_extra_are_impersonated_with_the_user(authenticator: DevAuthenticator) -> None:
    user = impersonate(
        authenticator,
        ADMIN,
        ("impersonate-user", "dana"),
        ("impersonate-uid", "42"),
        ("Impersonate-Extra-Acme.com%2Fproject", "one"),
        ("Impersonate-Extra-Acme.com%2Fproject", "two"),
    )

    assert user.uid == "42"
    assert user.extra == {"acme.com/project": ("one", "two")}


@pytest.mark.parametrize("header", ["Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes"])
def test_impersonation_without_a_user_is_a_bad_request(authenticator: DevAuthenticator, header: str) -> None:
    assert refused(authenticator, ADMIN, (header, "x")).code == 400


def test_impersonation_needs_the_right_and_says_so_in_the_api_server_s_words(authenticator: DevAuthenticator) -> None:
    error = refused(authenticator, BOB, ("Impersonate-User", "dana"))

    assert (error.code, error.reason) == (403, "Forbidden")
    assert error.message == (
        'users "dana" is forbidden: User "bob" cannot impersonate resource "users" in API group "" at the cluster scope'
    )


def test_a_right_to_users_does_not_reach_accounts(store: Store, authenticator: DevAuthenticator) -> None:
    allow(store, rule("users"))

    error = refused(authenticator, BOB, ("Impersonate-User", "system:serviceaccount:default:gitops"))

    assert error.message.startswith('serviceaccounts "gitops" is forbidden')
    assert error.message.endswith('in the namespace "default"')


def test_an_account_is_impersonated_by_the_right_to_it(store: Store, authenticator: DevAuthenticator) -> None:
    allow(store, rule("serviceaccounts", "gitops"))

    user = impersonate(authenticator, BOB, ("Impersonate-User", "system:serviceaccount:default:gitops"))

    assert user.username == "system:serviceaccount:default:gitops"


def test_every_group_uid_and_extra_value_is_reviewed(store: Store, authenticator: DevAuthenticator) -> None:
    authentication = "authentication.k8s.io"
    allow(
        store,
        rule("users", "dana"),
        rule("groups", "a"),
        rule("uids", "1", group=authentication),
        rule("userextras/scopes", "view", group=authentication),
    )
    dana = ("Impersonate-User", "dana")
    good = (dana, ("Impersonate-Group", "a"), ("Impersonate-Uid", "1"), ("Impersonate-Extra-Scopes", "view"))
    assert impersonate(authenticator, BOB, *good).extra == {"scopes": ("view",)}

    group = refused(authenticator, BOB, *good, ("Impersonate-Group", "system:masters"))
    uid = refused(authenticator, BOB, dana, ("Impersonate-Uid", "2"))
    extra = refused(authenticator, BOB, *good, ("Impersonate-Extra-Scopes", "admin"))

    assert group.message.startswith('groups "system:masters" is forbidden')
    assert uid.message.startswith('uids.authentication.k8s.io "2" is forbidden')
    assert 'cannot impersonate resource "userextras/scopes" in API group "authentication.k8s.io"' in extra.message
