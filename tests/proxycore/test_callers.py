"""Who calls, whom it acts as, and that nothing else about it reaches the API server."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from multidict import CIMultiDict

from eventcore.events import AuditRecord, decode_body
from eventcore.grants import AccountGrant, BoundSecret
from tests.proxycore.conftest import IMPERSONATION

if TYPE_CHECKING:
    from tests.proxycore.conftest import Reply, Tenant, World

NAMESPACES = "/api/v1/namespaces"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
GITOPS = "system:serviceaccount:oil-system:gitops-reconciler"
IMPERSONATES = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}


def multi(headers: list[tuple[str, str]]) -> CIMultiDict[str]:
    return CIMultiDict(headers)


async def whoami(client: Tenant, asked: Any = None, /, **headers: str) -> Any:
    headers = headers if asked is None else asked
    reply = await client.request("POST", WHOAMI, json={"kind": "SelfSubjectReview"}, headers=headers)
    assert reply.status == 201, reply
    return reply.body["status"]["userInfo"]


async def test_the_caller_goes_upstream_as_itself(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    found = await whoami(owner)

    assert found["username"] == GITOPS
    assert "system:serviceaccounts:oil-system" in found["groups"]


@pytest.mark.parametrize("token", ["", "wrong", "a.b.c", "eyJhbGciOiJub25lIn0.e30."])
async def test_who_cannot_be_identified_gets_401_and_nothing_goes_upstream(world: World, token: str) -> None:
    for target in (NAMESPACES, "/version", "/api", "/healthz", "/"):
        found = await world.client(token).get(target)

        assert found.status == 401, target
        assert found.body == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "Unauthorized",
            "reason": "Unauthorized",
            "code": 401,
        }


async def test_no_or_another_kind_of_authorization_is_401(world: World) -> None:
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer a b"}):
        async with world.session.get(world.url + NAMESPACES, headers=headers) as found:
            assert found.status == 401, headers


async def test_the_probe_alone_needs_no_token(world: World) -> None:
    async with world.session.get(world.url + "/_healthz") as found:
        assert (found.status, await found.text()) == (200, "ok")


async def test_a_token_is_reviewed_once_for_many_requests_at_once(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    await asyncio.gather(*(owner.get(NAMESPACES) for _ in range(40)))

    assert world.service.measures.tally.identities["reviewed"] == 1


async def test_a_token_whose_secret_left_the_account_record_is_dead_at_once(world: World) -> None:
    user, _ = await world.account("oil-system", "gitops-reconciler")
    created = await world.admin.create(f"{NAMESPACES}/oil-system/secrets", {"metadata": {"name": "binding"}})
    secret = _uid(created)
    issued = await world.admin.token_request(
        "oil-system", "gitops-reconciler", expiration_seconds=3600, bound_secret=("binding", secret)
    )
    await world.capsule_users(("ServiceAccount", user))
    bound = BoundSecret(name="binding", uid=secret, generation=1)
    account = AccountGrant(namespace="oil-system", name="gitops-reconciler", uid="u", secrets=(bound,))
    await world.grant(account)
    await world.settle()
    client = world.client(issued.token)
    assert (await client.get(NAMESPACES)).status == 200

    async with client.watch() as watch:
        await world.withdraw(account.key())
        await world.settle()

        assert (await client.get(NAMESPACES)).status == 401
        assert (await client.get("/version")).status == 401
        assert await watch.end() == b""


async def test_a_changed_grant_makes_the_proxy_ask_again_who_the_account_is(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await owner.get(NAMESPACES)
    await world.admin.delete(f"{NAMESPACES}/oil-system/serviceaccounts/gitops-reconciler")
    assert (await owner.get(NAMESPACES)).status == 200  # believed for a while

    await world.owns("ServiceAccount", GITOPS, "oil", "gas")
    await world.settle()

    assert (await owner.get(NAMESPACES)).status == 401


# Impersonation.


async def test_flux_impersonates_the_account_whose_kubeconfig_it_uses(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    listed = await owner.get(NAMESPACES, headers={"Impersonate-User": GITOPS})
    found = await whoami(owner, **{"Impersonate-User": GITOPS})

    assert listed.names == ["oil-production"]
    assert found["username"] == GITOPS


async def test_impersonation_without_the_right_is_refused_in_the_api_servers_words(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    account = await owner.get(NAMESPACES, headers={"Impersonate-User": "system:serviceaccount:gas-system:default"})
    user = await owner.get(NAMESPACES, headers={"Impersonate-User": "dana"})
    await world.allow("itself", GITOPS, [{**IMPERSONATES, "resourceNames": [GITOPS]}])
    group = await owner.get(NAMESPACES, headers={"Impersonate-User": GITOPS, "Impersonate-Group": "system:masters"})

    assert [account.status, user.status, group.status] == [403, 403, 403]
    assert account.body["message"] == (
        f'serviceaccounts "default" is forbidden: User "{GITOPS}" cannot impersonate resource "serviceaccounts" '
        'in API group "" in the namespace "gas-system"'
    )
    assert user.body["message"] == (
        f'users "dana" is forbidden: User "{GITOPS}" cannot impersonate resource "users" '
        'in API group "" at the cluster scope'
    )
    assert 'groups "system:masters" is forbidden' in group.body["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Impersonate-Group": "system:authenticated"},
        {"Impersonate-Group": "system:serviceaccounts:oil-system"},
        {"Impersonate-Uid": "u"},
        {"Impersonate-Extra-Authentication.kubernetes.io%2fcredential-id": "JTI=1"},
        {"Impersonate-Extra-%41": "x"},
    ],
    ids=str,
)
async def test_who_acts_as_itself_in_less_or_more_than_it_is_needs_the_right_to_it(
    world: World, headers: dict[str, str]
) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.allow("proxy-impersonates", "system:serviceaccount:capsule-system:tether-proxy", IMPERSONATION)
    asked = {"Impersonate-User": GITOPS, **headers}

    for reply in (
        await owner.get(NAMESPACES, headers=asked),
        await owner.request("POST", WHOAMI, json={}, headers=asked),
    ):
        assert reply.status == 403, reply
        assert reply.body["message"].startswith(
            f'serviceaccounts "gitops-reconciler" is forbidden: User "{GITOPS}" cannot impersonate'
        )


@pytest.mark.parametrize(
    "rule",
    [
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["deployer"], "verbs": ["impersonate"]},
        {
            "apiGroups": [""],
            "resources": ["users"],
            "resourceNames": ["system:serviceaccount:gas-system:deployer"],
            "verbs": ["impersonate"],
        },
    ],
    ids=["serviceaccounts/<name>", "users/<username>"],
)
async def test_an_account_may_be_impersonated_by_either_right(world: World, rule: dict[str, Any]) -> None:
    owner = await world.owner("oil", "oil-production")
    target, _ = await world.account("gas-system", "deployer")
    await world.tenant("gas", "gas-production")
    await world.owns("ServiceAccount", target, "gas")
    await world.allow("may-impersonate", GITOPS, [rule])
    if rule["resources"] == ["users"]:  # the API server does not know it
        await world.allow("proxy-impersonates", "system:serviceaccount:capsule-system:tether-proxy", IMPERSONATION)
    await world.settle()

    listed = await owner.get(NAMESPACES, headers={"Impersonate-User": target})
    found = await whoami(owner, **{"Impersonate-User": target})

    assert listed.names == ["gas-production"]  # the target's, and none of the caller's
    assert found["username"] == target
    assert set(found["groups"]) == {
        "system:serviceaccounts",
        "system:serviceaccounts:gas-system",
        "system:authenticated",
    }


@pytest.mark.parametrize("filtered", [False, True], ids=["forwarded", "filtered"])
async def test_every_part_of_an_identity_needs_its_right_and_the_proxy_needs_none(
    world: World, *, filtered: bool
) -> None:
    owner = await world.owner("oil", "oil-production")
    if filtered:
        await world.capsule_users(("ServiceAccount", GITOPS), ("Group", "devs"))
        await world.settle()
    rules = [
        {**IMPERSONATES, "resourceNames": ["dana"]},
        {**IMPERSONATES, "resources": ["groups"], "resourceNames": ["devs"]},
    ]
    await world.allow("may-impersonate", GITOPS, rules)
    dana = [("Impersonate-User", "dana"), ("Impersonate-Group", "devs")]

    async def found(*more: tuple[str, str]) -> Reply:
        return await owner.get(NAMESPACES, headers=multi([*dana, *more]))

    good = await whoami(owner, multi(dana))
    refused = [
        await found(("Impersonate-Uid", "u")),
        await found(("Impersonate-Extra-scopes", "all")),
        await found(("Impersonate-Group", "ops")),
    ]

    assert (good["username"], set(good["groups"])) == ("dana", {"devs", "system:authenticated"})
    assert (await found()).status == (200 if filtered else 403)
    assert [reply.status for reply in refused] == [403] * 3
    messages = [reply.body["message"] for reply in refused]
    assert messages[0].startswith(f'uids.authentication.k8s.io "u" is forbidden: User "{GITOPS}" cannot impersonate')
    assert messages[1].startswith('userextras.authentication.k8s.io "all" is forbidden')
    assert 'cannot impersonate resource "userextras/scopes"' in messages[1]
    assert messages[2].startswith('groups "ops" is forbidden')


RANCHER = {
    "Impersonate-Extra-Username": "dana",
    "Impersonate-Extra-Principalid": "local://u-1",
    "Impersonate-Extra-Requesttokenid": "kubeconfig-u-1",
    "Impersonate-Extra-Requesthost": "rancher.example",
}


async def test_who_may_act_as_others_acts_with_extras_by_its_own_token_and_its_own_right(world: World) -> None:
    await world.owner("oil", "oil-production")
    agent, token = await world.account("cattle-system", "cattle")
    await world.capsule_users(("ServiceAccount", GITOPS), ("User", "dana"))
    await world.owns("User", "dana", "oil")
    everything = {"apiGroups": ["", "authentication.k8s.io"], "resources": ["*"], "verbs": ["impersonate"]}
    await world.allow("cattle", agent, [everything])
    await world.settle()
    asked = {"Impersonate-User": "dana", "Impersonate-Group": "system:cattle", **RANCHER}

    me = await whoami(world.client(token), asked)
    listed = await world.client(token).get(NAMESPACES, headers=asked)

    assert me["username"] == "dana"
    assert me["extra"] == {name.removeprefix("Impersonate-Extra-").lower(): [value] for name, value in RANCHER.items()}
    assert listed.names == ["oil-production"]


async def test_who_may_not_act_as_somebody_learns_nothing_of_them(world: World) -> None:
    """Not whether they own a tenant, which one, or what is not there: what the API server says is all."""
    await world.owner("oil", "oil-production")
    nobody, token = await world.account("gas-system", "nobody")
    await world.capsule_users(("ServiceAccount", GITOPS), ("User", "dana"))
    await world.owns("User", "dana", "oil")
    await world.settle()
    client = world.client(token)
    targets = [
        NAMESPACES,
        f"{NAMESPACES}?watch=true&allowWatchBookmarks=true",
        f"{NAMESPACES}?labelSelector=a",
        f"{NAMESPACES}?labelSelector=%3D",
        f"{NAMESPACES}/oil-production",
        f"{NAMESPACES}/missing",
        f"{NAMESPACES}/missing/configmaps/x",
        "/api/v1/nodes",
        "/api/v1/pods",
        "/tenant/oil/api/v1/namespaces",
        "/tenant/gas/api/v1/namespaces",
    ]

    for target in targets:
        said = []
        for user in ("dana", "erin"):
            reply = await client.get(target, headers={"Impersonate-User": user})
            assert reply.status == 403, (target, user, reply)
            said.append(reply.body["message"].replace(user, "…"))
        assert said[0] == said[1], target
        assert said[0].startswith(f'users "…" is forbidden: User "{nobody}" cannot impersonate'), target


async def test_a_missing_namespace_is_404_to_who_may_act_as_an_owner(world: World) -> None:
    await world.owner("oil", "oil-production")
    agent, token = await world.account("ops-system", "agent")
    await world.capsule_users(("User", "dana"))
    await world.owns("User", "dana", "oil")
    await world.allow("agent", agent, [{**IMPERSONATES, "resourceNames": ["dana"]}])
    await world.settle()
    missing, there = (f"{NAMESPACES}/{name}/configmaps/x" for name in ("missing", "oil-production"))

    found = [await world.client(token).get(one, headers={"Impersonate-User": "dana"}) for one in (missing, there)]

    assert [reply.status for reply in found] == [404, 403]
    assert 'User "dana" cannot get' in found[1].body["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Impersonate-Group": "system:masters"},
        {"Impersonate-Uid": "u"},
        {"Impersonate-Extra-scopes": "all"},
        {"Impersonate-User": ""},
        {"Impersonate-Anything": "x"},
        {"Impersonate_User": "dana"},
    ],
    ids=str,
)
async def test_an_incomplete_or_odd_impersonation_is_refused(world: World, headers: dict[str, str]) -> None:
    owner = await world.owner("oil", "oil-production")

    found = await owner.get(NAMESPACES, headers=headers)

    assert (found.status, found.body["reason"]) == (400, "BadRequest")


async def test_the_connection_header_can_neither_drop_nor_add_an_identity(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    found = await whoami(
        owner,
        **{
            "Connection": "keep-alive, Authorization, Impersonate-User, Impersonate-Group",
            "Impersonate-User": GITOPS,
            "X-Remote-User": "system:admin",
            "X-Remote-Group": "system:masters",
        },
    )

    assert found["username"] == GITOPS
    assert "system:masters" not in found["groups"]


async def test_a_websockets_subprotocol_carries_a_token(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    text = base64.urlsafe_b64encode(owner.token.encode()).decode().rstrip("=")
    headers = {"Sec-WebSocket-Protocol": f"base64url.bearer.authorization.k8s.io.{text}, v5.channel.k8s.io"}

    async with world.session.get(world.url + NAMESPACES, headers=headers) as found:
        assert found.status == 200
    async with world.session.get(world.url + WHOAMI, headers=headers) as found:
        assert found.status != 401


async def test_a_hundred_groups_cost_no_review_and_all_of_them_reach_the_api_server(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    rules = [{"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]}]
    await world.allow("may-impersonate", GITOPS, rules)
    await owner.get("/version")
    groups = [f"group-{number}" for number in range(100)]
    posts = world.role.metrics.kube_requests.labels("POST", "201")
    before = posts._value.get()  # noqa: SLF001 -- the library has no reader
    headers = [("Authorization", f"Bearer {owner.token}"), ("Impersonate-User", "dana")]
    headers += [("Impersonate-Group", group) for group in groups]

    for _ in range(2):
        async with world.session.post(world.url + WHOAMI, json={"kind": "SelfSubjectReview"}, headers=headers) as found:
            user = (await found.json())["status"]["userInfo"]

    assert set(user["groups"]) == {*groups, "system:authenticated"}
    assert posts._value.get() - before == 0  # noqa: SLF001 -- as above


# What is said about it.


async def test_refusals_are_on_the_audit_stream_without_secrets(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.client("wrong").get("/version?token=in-the-query")
    await owner.get(f"{NAMESPACES}/kube-system")
    await owner.get(f"{NAMESPACES}/kube-system")  # the same again is not said again
    await owner.get(NAMESPACES, headers={"Impersonate-User": "dana"})

    records = await _records(world, 3)

    assert [record.action for record in records] == ["refused"] * 3
    assert [record.account for record in records] == ["", *["oil-system/gitops-reconciler"] * 2]
    assert records[0].message == "refused requests of nobody known: 1, addresses: 1, from 127.0.0.1 alone: 1"
    assert records[1].object == "namespaces//kube-system"
    assert "asked to act as dana" in records[2].message
    text = str(records)
    assert owner.token not in text
    assert "in-the-query" not in text
    assert "wrong" not in text


async def test_tokens_are_in_no_log_and_in_no_file_of_nats(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    owner = await world.owner("oil", "oil-production")
    impersonate = {"Impersonate-User": "dana", "Connection": "Authorization"}
    for headers in ({}, impersonate, {"Impersonate-Group": "x"}, {"Expect": "what"}):
        await owner.get(NAMESPACES, headers=headers)
    await owner.get("/api/v1/namespaces/../secrets")
    await owner.get(f"{NAMESPACES}/kube-system")
    await world.client(owner.token + "x").get(NAMESPACES)
    await _records(world, 3)

    said = capsys.readouterr()
    assert owner.token not in said.out + said.err + caplog.text
    signature = owner.token.rpartition(".")[2]
    assert signature not in said.out + said.err + caplog.text
    for file in world.nats.folder.rglob("*"):
        if file.is_file():
            assert signature.encode() not in file.read_bytes(), file


def _uid(body: bytes) -> str:
    found: str = msgspec.json.decode(body)["metadata"]["uid"]
    return found


async def _records(world: World, count: int) -> list[AuditRecord]:
    """Return the first audit records of the proxy, once there are so many."""
    found: list[AuditRecord] = []
    subscription = await world.bus.js.subscribe("audit.proxy.>", ordered_consumer=True)
    try:
        while len(found) < count:
            message = await subscription.next_msg(timeout=10)
            found.append(decode_body(AuditRecord, message.data))
    finally:
        await subscription.unsubscribe()
    return found
