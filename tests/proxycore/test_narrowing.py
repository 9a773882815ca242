"""A URL of one tenant: what is seen and done through it stays in that tenant, and nothing tells of another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError
from tests.proxycore.conftest import Reply, Tenant, World

NAMESPACES = "/api/v1/namespaces"
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
GITOPS = "system:serviceaccount:oil-system:gitops-reconciler"


# Pure: how the prefix is read.


@pytest.mark.parametrize(
    ("target", "tenant", "left", "path"),
    [
        ("/tenant/oil/api/v1/namespaces?limit=1", "oil", "/api/v1/namespaces?limit=1", "/api/v1/namespaces"),
        ("/tenant/oil", "oil", "/", "/"),
        ("/tenant/oil/", "oil", "/", "/"),
        ("/tenant/oil?a=/tenant/gas", "oil", "/?a=/tenant/gas", "/"),
        ("/tenant/o.i-l/api", "o.i-l", "/api", "/api"),
        ("/tenant/tenant/api", "tenant", "/api", "/api"),
        ("/api/v1/namespaces/tenant/pods", "", "/api/v1/namespaces/tenant/pods", "/api/v1/namespaces/tenant/pods"),
        ("/tenants/oil/api", "", "/tenants/oil/api", "/tenants/oil/api"),
        ("/Tenant/oil/api", "", "/Tenant/oil/api", "/Tenant/oil/api"),
    ],
)
def test_the_prefix_is_taken_off_and_its_name_kept(target: str, tenant: str, left: str, path: str) -> None:
    found = parse("GET", target)

    assert (found.tenant, found.target, found.path) == (tenant, left, path)


@pytest.mark.parametrize(
    "target",
    [
        "/tenant",
        "/tenant/",
        "/tenant?x",
        "/tenant//api",
        "/tenant/..%2f",
        "/tenant/../api",
        "/tenant/%2e%2e/api",
        "/tenant/oil%2fapi",
        "/tenant/oil%2Fgas/api",
        "/tenant/%6fil/api",
        "/%74enant/oil/api",
        "/tenan%74/oil/api",
        "/tenant/OIL/api",
        "/tenant/o_l/api",
        "/tenant/oil;gas/api",
        "/tenant/oil,gas/api",
        "/tenant/*/api",
        "/tenant/-oil/api",
        "/tenant/oil%00/api",
        "/tenant/oil%20/api",
        "/tenant/oil/tenant/gas/api",
        "/tenant/oil/%74enant/gas/api",
        "/tenant/oil//api",
        f"/tenant/{'a' * 254}/api",
    ],
)
def test_a_prefix_with_two_readings_is_refused(target: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse("GET", target)

    assert caught.value.status.code == 400


@given(st.text(alphabet="/.%2fetnaoil;\\?", max_size=24))
def test_what_goes_upstream_never_begins_with_the_prefix(tail: str) -> None:
    try:
        found = parse("GET", f"/tenant/{tail}")
    except RefusedError:
        return
    assert found.tenant
    assert not parse("GET", found.target).tenant
    assert parse("GET", found.target).path == found.path


# On the wire.


async def of_two_tenants(world: World) -> tuple[Tenant, Tenant, Tenant]:
    """Return a client that owns oil and gas, and the same by the URLs of each."""
    owner = await world.owner("oil", "oil-production", "oil-test")
    await world.tenant("gas", "gas-production")
    await world.tenant("coal", "coal-production")
    await world.owns("ServiceAccount", GITOPS, "oil", "gas")
    every = [{"apiGroups": ["", "apps"], "resources": ["configmaps", "pods", "namespaces"], "verbs": ["*"]}]
    await world.allow("everywhere", GITOPS, every)
    await world.settle()
    return owner, *(Tenant(world.session, f"{world.url}/tenant/{name}", owner.token) for name in ("oil", "gas"))  # type: ignore[return-value]  # three of them


async def test_namespaces_are_listed_got_and_watched_in_one_tenant(world: World) -> None:
    owner, oil, gas = await of_two_tenants(world)

    assert (await owner.get(NAMESPACES)).names == ["gas-production", "oil-production", "oil-test"]
    for query in ("", "?resourceVersion=0"):
        assert (await oil.get(NAMESPACES + query)).names == ["oil-production", "oil-test"]
        assert (await gas.get(NAMESPACES + query)).names == ["gas-production"]
    assert (await oil.get(f"{NAMESPACES}/oil-test")).status == 200
    elsewhere = await oil.get(f"{NAMESPACES}/gas-production")
    async with gas.watch() as watch:
        assert await watch.named() == ("ADDED", "gas-production")
        await world.tenant("oil", "oil-production", "oil-test", "oil-new")
        await world.tenant("gas", "gas-production", "gas-new")
        assert await watch.named() == ("ADDED", "gas-new")

    assert elsewhere.status == 403
    assert 'the URL is narrowed to the tenant "oil"' in elsewhere.body["message"]


async def test_a_namespace_of_another_tenant_is_refused_even_to_who_has_rights_there(world: World) -> None:
    owner, oil, gas = await of_two_tenants(world)
    body = {"metadata": {"name": "mine"}}

    async def codes(client: Tenant, namespace: str) -> list[int]:
        base = f"{NAMESPACES}/{namespace}/configmaps"
        return [
            (await client.request("POST", base, json=body)).status,
            (await client.get(base)).status,
            (await client.get(f"{base}/mine")).status,
            (await client.request("DELETE", f"{base}/mine")).status,
            (await client.get(f"{NAMESPACES}/{namespace}/pods/x/log")).status,
            (await client.get(f"/api/v1/watch/namespaces/{namespace}/configmaps?timeoutSeconds=1")).status,
        ]

    assert (await codes(owner, "gas-production"))[:4] == [201, 200, 200, 200]
    assert await codes(oil, "gas-production") == [403] * 6
    assert await codes(oil, "kube-system") == [403] * 6
    assert (await codes(oil, "oil-production"))[:4] == (await codes(gas, "gas-production"))[:4] == [201, 200, 200, 200]


async def test_what_is_of_the_whole_cluster_does_not_leave_by_the_url_of_a_tenant(world: World) -> None:
    owner, oil, _ = await of_two_tenants(world)

    assert (await owner.get("/api/v1/configmaps")).status == 200  # by RBAC
    for method, target in (
        ("GET", "/api/v1/configmaps"),
        ("GET", "/api/v1/configmaps?watch=true"),
        ("DELETE", NAMESPACES),
        ("DELETE", f"{NAMESPACES}/gas-production"),
        ("PATCH", f"{NAMESPACES}/coal-production"),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
        ("POST", f"{NAMESPACES}/gas-production/pods"),
    ):
        assert (await oil.request(method, target)).status == 403, (method, target)
    created = await oil.request("POST", NAMESPACES, json={"metadata": {"name": "oil-made"}})

    assert created.status == 201  # whose it is, Capsule says


async def test_a_tenant_that_is_not_ones_own_looks_like_one_that_is_not_there(world: World) -> None:
    owner, _, _ = await of_two_tenants(world)
    _, token = await world.account("elsewhere", "visitor")
    stranger = world.client(token)

    def shape(found: Reply, name: str) -> tuple[int, Any]:
        return found.status, {**found.body, "message": found.body["message"].replace(f'"{name}"', "X"), "details": ()}

    answers = [
        shape(await client.get(f"/tenant/{name}{target}"), name)
        for client in (owner, stranger)
        for name in ("coal", "nowhere", "x")
        for target in (NAMESPACES, "/version", "/api/v1/nodes", f"{NAMESPACES}/{name}-production/pods")
    ]

    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == 404
    assert answers[0][1]["message"] == "tenants.capsule.clastix.io X not found"
    assert (await world.client("wrong").get("/tenant/oil/version")).status == 401


async def test_discovery_passes_and_the_api_server_sees_no_prefix(world: World) -> None:
    _, oil, _ = await of_two_tenants(world)

    assert (await oil.get("/version")).body["major"]
    assert (await oil.get("/apis")).body["kind"] == "APIGroupList"
    assert (await oil.get("/api/v1")).body["kind"] == "APIResourceList"
    found = await oil.request("POST", WHOAMI, json={"kind": "SelfSubjectReview"})
    assert found.body["status"]["userInfo"]["username"] == GITOPS


async def test_tenants_are_only_the_one(world: World) -> None:
    _, oil, _ = await of_two_tenants(world)

    assert (await oil.get("/apis/capsule.clastix.io/v1beta2/tenants/gas")).status == 403


async def test_self_reviews_are_those_of_the_tenant(world: World) -> None:
    owner, oil, _ = await of_two_tenants(world)

    async def may(client: Tenant, verb: str, resource: str, namespace: str = "", name: str = "") -> bool:
        attributes = {"verb": verb, "resource": resource, "namespace": namespace, "name": name}
        body = {"spec": {"resourceAttributes": attributes}}
        reply = await client.request("POST", REVIEW, json=body)
        assert reply.status == 201, reply
        return bool(reply.body["status"]["allowed"])

    async def all_of(client: Tenant) -> list[bool]:
        return [
            await may(client, "get", "configmaps", "oil-production"),
            await may(client, "list", "namespaces"),
            await may(client, "create", "namespaces"),
            await may(client, "get", "namespaces", name="oil-test"),
            await may(client, "get", "configmaps", "gas-production"),
            await may(client, "list", "configmaps"),
            await may(client, "get", "namespaces", name="gas-production"),
            await may(client, "delete", "namespaces", name="gas-production"),
            await may(client, "delete", "namespaces"),
        ]

    rules = await oil.request("POST", RULES, json={"spec": {"namespace": "gas-production"}})

    assert await all_of(owner) == [True] * 9
    assert await all_of(oil) == [True] * 4 + [False] * 5
    named = {name for rule in rules.body["status"]["resourceRules"] for name in rule.get("resourceNames", ())}
    assert {"oil-production", "oil-test"} <= named
    assert not {"gas-production", "gas"} & named
    assert not any("configmaps" in rule["resources"] for rule in rules.body["status"]["resourceRules"])
    assert rules.body["status"]["incomplete"] is True


async def test_a_tenant_that_is_taken_away_ends_its_url(world: World) -> None:
    _, oil, gas = await of_two_tenants(world)
    assert (await oil.get(f"{NAMESPACES}/oil-production/configmaps")).status == 200

    await world.owns("ServiceAccount", GITOPS, "gas")
    await world.settle()

    assert (await oil.get(f"{NAMESPACES}/oil-production/configmaps")).status == 404
    assert (await oil.get(NAMESPACES)).status == 404
    assert (await gas.get(NAMESPACES)).names == ["gas-production"]


async def test_without_current_grants_nothing_goes_by_the_url_of_a_tenant(world: World) -> None:
    owner, _, _ = await of_two_tenants(world)
    world.vouching = False
    async with world.proxy(max_view_age=0.5, mark_interval=0.1) as second:
        async with asyncio.timeout(15):
            while not (second.access.ready and world.role.metrics.registry.get_sample_value("tether_proxy_stale")):
                await asyncio.sleep(0.02)  # a gauge is asked, it does not tell
        url = f"https://127.0.0.1:{second.port}/tenant/oil"
        found = await Tenant(world.session, url, owner.token).get(f"{NAMESPACES}/oil-production/configmaps")

    assert found.status == 503


async def test_who_is_ignored_by_the_filter_is_not_ignored_by_the_url_that_asks_for_it(world: World) -> None:
    owner, _, _ = await of_two_tenants(world)
    async with world.proxy(ignored_username=GITOPS) as second:
        assert await second.feed.settled(15)
        url = f"https://127.0.0.1:{second.port}"
        everything = await Tenant(world.session, url, owner.token).get(NAMESPACES)
        narrowed = await Tenant(world.session, f"{url}/tenant/oil", owner.token).get(NAMESPACES)

    assert "kube-system" in everything.names
    assert narrowed.names == ["oil-production", "oil-test"]
