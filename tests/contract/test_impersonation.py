"""Impersonation by somebody who has only some rights to it: an account with its own token."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import AsToken, Until
from tests.contract.tenants import may
from tests.kubeapi import Client, Object, Reply

pytestmark = pytest.mark.xdist_group("contract")

RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.fixture
async def caller(admin: Client, as_token: AsToken, namespace: str, until: Until[Any]) -> Client:
    """An account that may impersonate the user ``<ns>-jane``, the group ``<ns>-devs``, the account b and one extra."""
    rules = [
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [f"{namespace}-jane"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": [f"{namespace}-devs"]},
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["userextras/scopes"],
            "verbs": ["impersonate"],
            "resourceNames": ["read"],
        },
    ]
    at_home = {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"], "resourceNames": ["b"]}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}

    def binding(kind: str) -> Object:
        reference = {"apiGroup": GROUP, "kind": kind, "name": namespace}
        return {"metadata": {"name": namespace}, "roleRef": reference, "subjects": [subject]}

    local = f"{RBAC}/namespaces/{namespace}"
    await admin.post(f"{RBAC}/clusterroles", {"metadata": {"name": namespace}, "rules": rules})
    await admin.post(f"{RBAC}/clusterrolebindings", binding("ClusterRole"))
    await admin.post(f"{local}/roles", {"metadata": {"name": namespace}, "rules": [at_home]})
    await admin.post(f"{local}/rolebindings", binding("Role"))
    request = await admin.post(f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", {"spec": {}})
    client = await as_token(request.body["status"]["token"])

    async def counts() -> bool:
        at = {"namespace": namespace}
        attributes = {"verb": "impersonate", "resource": "serviceaccounts", "name": "b", **at}
        asked = {"spec": {"resourceAttributes": attributes}}
        answer: Reply = await client.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asked)
        return bool(answer.body["status"]["allowed"])

    await until(counts)
    assert not await may(client, "impersonate", "users")
    return client


async def _who(client: Client) -> tuple[int, str]:
    """Return the status, and the username or what was refused."""
    reply = await client.post(WHOAMI, {})
    if reply.status != 201:
        return reply.status, reply.body["message"]
    return reply.status, reply.body["status"]["userInfo"]["username"]


async def test_who_has_the_right_to_a_user_or_group_acts_as_it(caller: Client, namespace: str) -> None:
    # then
    assert await _who(caller.acting(f"{namespace}-jane")) == (201, f"{namespace}-jane")
    assert await _who(caller.acting(f"{namespace}-jane", f"{namespace}-devs")) == (201, f"{namespace}-jane")
    assert await _who(caller.acting(f"{namespace}-jane", Extra_scopes="read")) == (201, f"{namespace}-jane")


async def test_who_has_the_right_to_an_account_in_its_namespace_acts_as_it(caller: Client, namespace: str) -> None:
    # given
    user = f"system:serviceaccount:{namespace}:b"
    # then
    assert await _who(caller.acting(user)) == (201, user)
    status, _ = await _who(caller.acting(f"system:serviceaccount:{namespace}:c"))
    assert status == 403


async def test_what_is_not_allowed_is_refused_and_named(caller: Client, namespace: str) -> None:
    # when
    user = await _who(caller.acting(f"{namespace}-joe"))
    group = await _who(caller.acting(f"{namespace}-jane", "system:masters"))
    uid = await _who(caller.acting(f"{namespace}-jane", Uid="42"))
    extra = await _who(caller.acting(f"{namespace}-jane", Extra_scopes="write"))
    account = await _who(caller.acting("system:serviceaccount:default:default"))
    # then
    assert [status for status, _ in (user, group, uid, extra, account)] == [403] * 5
    assert 'cannot impersonate resource "users"' in user[1]
    assert 'groups "system:masters" is forbidden' in group[1]
    assert 'cannot impersonate resource "uids"' in uid[1]
    assert 'cannot impersonate resource "userextras/scopes"' in extra[1]
    assert 'cannot impersonate resource "serviceaccounts"' in account[1]


async def test_a_group_without_a_user_is_refused(caller: Client, namespace: str) -> None:
    # when
    reply = await caller.post(WHOAMI, {}, headers={"Impersonate-Group": f"{namespace}-devs"})
    # then
    assert (reply.status, reply.body["reason"]) == (400, "BadRequest")
    assert "without impersonating a user" in reply.body["message"]


async def _whoami(client: Client) -> Object:
    user: Object = (await client.post(WHOAMI, {})).body["status"]["userInfo"]
    return user


async def test_who_impersonates_is_that_user(admin: Client) -> None:
    # when
    plain = await _whoami(admin.acting("jane"))
    grouped = await _whoami(admin.acting("jane", "devs", "ops"))
    account = await _whoami(admin.acting("system:serviceaccount:ns:a"))
    full = await _whoami(admin.acting("jane", "devs", Uid="42", Extra_scopes="read"))
    # then
    assert (plain["username"], plain["groups"]) == ("jane", ["system:authenticated"])
    assert sorted(grouped["groups"]) == ["devs", "ops", "system:authenticated"]
    expected = ["system:authenticated", "system:serviceaccounts", "system:serviceaccounts:ns"]
    assert sorted(account["groups"]) == expected
    assert (full["uid"], full["extra"]) == ("42", {"scopes": ["read"]})


@pytest.mark.parametrize(
    ("name", "key"), [("%41", "A"), ("%61", "a"), ("a%2Fb", "a/b"), ("%2541", "%41"), ("a%zz%41", "a%zz%41")]
)
async def test_the_key_of_an_extra_is_unescaped_after_it_became_lower_case(admin: Client, name: str, key: str) -> None:
    found = await _whoami(admin.acting("jane", **{f"Extra_{name}": "x"}))

    assert found["extra"] == {key: ["x"]}


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        (("system:authenticated",), ["system:authenticated"]),
        (("system:serviceaccounts",), ["system:authenticated", "system:serviceaccounts"]),
    ],
)
async def test_an_account_in_groups_that_are_named_has_no_other_of_its_own(
    admin: Client, groups: tuple[str, ...], wanted: list[str]
) -> None:
    found = await _whoami(admin.acting("system:serviceaccount:ns:a", *groups))

    assert sorted(found["groups"]) == wanted


async def test_a_name_that_no_account_can_have_is_a_user(admin: Client) -> None:
    found = await _whoami(admin.acting("system:serviceaccount:Ns:a"))

    assert found["groups"] == ["system:authenticated"]
