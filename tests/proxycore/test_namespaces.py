"""Namespaces through the proxy: a tenant sees its own, all of them, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from eventcore.keys import key
from tests.proxycore.conftest import TABLE

if TYPE_CHECKING:
    from tests.proxycore.conftest import World

NAMESPACES = "/api/v1/namespaces"
METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
FROM_MEMORY = f"{NAMESPACES}?resourceVersion=0"


@pytest.mark.parametrize("target", [NAMESPACES, FROM_MEMORY], ids=["consistent", "from memory"])
async def test_an_owner_lists_exactly_its_namespaces(world: World, target: str) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    await world.tenant("gas", "gas-production")
    await world.settle()

    found = await owner.get(target)

    assert found.status == 200
    assert found.names == ["oil-development", "oil-production"]
    assert found.body["kind"] == "NamespaceList"
    assert int(found.version) > 0


@pytest.mark.parametrize("target", [NAMESPACES, FROM_MEMORY], ids=["consistent", "from memory"])
@pytest.mark.parametrize(("accept", "kind"), [(TABLE, "Table"), (METADATA, "PartialObjectMetadataList")])
async def test_other_representations_show_the_same_namespaces(
    world: World, target: str, accept: str, kind: str
) -> None:
    owner = await world.owner("oil", "oil-production")

    found = await owner.get(target, headers={"Accept": accept})

    assert found.status == 200
    assert found.body["kind"] == kind
    assert found.names == ["oil-production"]


@pytest.mark.parametrize("accept", ["application/json", TABLE, METADATA.replace("MetadataList", "Metadata")])
async def test_a_get_at_version_0_is_the_api_servers_answer_from_memory(world: World, accept: str) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.tenant("gas", "gas-production")
    await world.settle()
    headers = {"Accept": accept}

    there = await owner.get(f"{NAMESPACES}/oil-production", headers=headers)
    here = await owner.get(f"{NAMESPACES}/oil-production?resourceVersion=0", headers=headers)
    others = await owner.get(f"{NAMESPACES}/gas-production?resourceVersion=0", headers=headers)

    assert (here.status, comparable(here.body)) == (200, comparable(there.body))
    assert (others.status, others.body["reason"]) == (403, "Forbidden")
    sample = world.role.metrics.registry.get_sample_value
    count = [sample("tether_proxy_requests_total", labels(route)) for route in ("memory", "read")]
    assert count == [1, 1]


def labels(route: str) -> dict[str, str]:
    return {"route": route, "verb": "get", "code": "200"}


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without ages, how columns are described, and the managedFields, which memory does not hold."""
    for column in body.get("columnDefinitions", []):
        column["description"] = ""
    for row in body.get("rows", []):
        row["cells"][-1] = ""
        comparable(row["object"])
    body["metadata"].pop("managedFields", None)
    return body


async def test_a_get_at_version_0_of_what_memory_lacks_is_the_api_servers(world: World) -> None:
    # given a namespace that the grants know and memory does not
    owner = await world.owner("oil", "oil-production")
    await world.admin.delete(f"{NAMESPACES}/oil-production")
    await _gone(world, "oil-production")

    found = await owner.get(f"{NAMESPACES}/oil-production?resourceVersion=0")

    assert (found.status, found.body["reason"]) == (404, "NotFound")


@pytest.mark.parametrize("target", [NAMESPACES, FROM_MEMORY], ids=["consistent", "from memory"])
async def test_a_capsule_user_who_owns_nothing_gets_an_empty_list(world: World, target: str) -> None:
    _, token = await world.account("oil-system", "stranger")
    await world.capsule_users(("Group", "system:serviceaccounts:oil-system"))
    await world.settle()

    found = await world.client(token).get(target)

    assert (found.status, found.names) == (200, [])


async def test_who_is_no_user_of_capsule_is_answered_by_the_api_servers_own_rules(world: World) -> None:
    await world.owner("oil", "oil-production")
    await world.capsule_users()
    user, token = await world.account("ops", "robot")
    await world.settle()
    robot = world.client(token)

    refused = await robot.get(NAMESPACES)
    await world.allow("namespace-reader", user, [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]}])
    allowed = await robot.get(NAMESPACES)

    assert refused.status == 403
    assert refused.body["message"] == (
        f'namespaces is forbidden: User "{user}" cannot list resource "namespaces" in API group "" at the cluster scope'
    )
    assert "kube-system" in allowed.names


async def test_the_api_server_itself_refuses_the_list_to_the_same_token(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    async with world.session.get(
        world.api.url + NAMESPACES, headers={"Authorization": f"Bearer {owner.token}"}
    ) as direct:
        assert direct.status == 403


async def test_tenants_of_the_account_and_of_each_of_its_groups_are_a_union(world: World) -> None:
    user, token = await world.account("oil-system", "gitops-reconciler")
    await world.capsule_users(("ServiceAccount", user))
    await world.tenant("oil", "oil-production")
    await world.tenant("gas", "gas-production", "gas-development")
    await world.tenant("sun", "sun-production")
    await world.tenant("wind", "wind-production")
    await world.owns("ServiceAccount", user, "oil")
    await world.owns("Group", "system:serviceaccounts:oil-system", "gas")
    await world.owns("Group", "system:authenticated", "sun")
    await world.owns("User", user, "wind")  # by its user name, which is what Capsule and RBAC compare
    await world.settle()

    found = await world.client(token).get(NAMESPACES)

    assert found.names == [
        "gas-development",
        "gas-production",
        "oil-production",
        "sun-production",
        "wind-production",
    ]


async def test_a_tenant_called_global_is_a_tenant_like_any_other(world: World) -> None:
    owner = await world.owner("global", "global-production")
    await world.tenant("oil", "oil-production")
    await world.settle()

    assert (await owner.get(NAMESPACES)).names == ["global-production"]


@pytest.mark.parametrize("target", [NAMESPACES, FROM_MEMORY], ids=["consistent", "from memory"])
async def test_a_name_in_the_grants_without_a_namespace_is_not_invented(world: World, target: str) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    await world.admin.delete(f"{NAMESPACES}/oil-development")
    await _gone(world, "oil-development")

    assert (await owner.get(target)).names == ["oil-production"]


async def test_a_namespace_label_of_a_tenant_grants_nothing(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.namespace("trap", labels={"app": "trap"})
    await world.admin.merge_patch(f"{NAMESPACES}/trap", {"metadata": {"labels": {"team": "oil"}}})
    await world.settle()

    assert (await owner.get(NAMESPACES)).names == ["oil-production"]


# The client's own selectors only ever narrow.

SELECTORS = [
    ("labelSelector=stage%3Dproduction", ["oil-production"]),
    ("labelSelector=stage%20in%20(production%2Cdevelopment)", ["oil-development", "oil-production"]),
    ("labelSelector=stage!%3Dproduction", ["oil-development"]),
    ("labelSelector=!stage", []),
    ("labelSelector=", ["oil-development", "oil-production"]),
    ("labelSelector=kubernetes.io%2Fmetadata.name%3Dkube-system", []),
    ("labelSelector=kubernetes.io%2Fmetadata.name%20in%20(kube-system%2Coil-production)", ["oil-production"]),
    ("labelSelector=kubernetes.io%2Fmetadata.name", ["oil-development", "oil-production"]),
    ("fieldSelector=metadata.name%3Doil-production", ["oil-production"]),
    ("fieldSelector=metadata.name%3Dkube-system", []),
    ("fieldSelector=metadata.name!%3Doil-production", ["oil-development"]),
    ("fieldSelector=status.phase%3DActive", ["oil-development", "oil-production"]),
    ("limit=500", ["oil-development", "oil-production"]),
]


@pytest.mark.parametrize("memory", [False, True], ids=["consistent", "from memory"])
async def test_selectors_of_the_client_only_narrow(world: World, memory: bool) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    for stage in ("production", "development"):
        await world.admin.merge_patch(f"{NAMESPACES}/oil-{stage}", {"metadata": {"labels": {"stage": stage}}})
    await world.settle()

    found = {}
    for query, _ in SELECTORS:
        reply = await owner.get(f"{NAMESPACES}?{query}{'&resourceVersion=0' if memory else ''}")
        assert reply.status == 200, (query, reply)
        found[query] = reply.names

    assert found == dict(SELECTORS)


BYPASSES = [
    "labelSelector=a&labelSelector=kubernetes.io%2Fmetadata.name%3Dkube-system",
    "labelSelector=&labelSelector=",
    "labelSelector=a%20notin%20(",
    "labelSelector=a)%2Cb%20in%20(c",
    "labelSelector=a%20in%20(b))",
    "labelSelector=a,b%20or%20c",
    "labelSelector=%2C",
    "fieldSelector=metadata.name%3Da&fieldSelector=metadata.name%3Dkube-system",
    "fieldSelector=spec.hidden%3Da",
    "fieldSelector=metadata.name%3Da%5C%2Cb",
    "watch=false&watch=true",
    "watch=yes",
    "watch=",
    "a=1;labelSelector=b",
    "labelSelector=%zz",
    "resourceVersion=0&resourceVersion=1",
    "watch=1&resourceVersion=abc",
    "watch=1&continue=abc",
    "watch=1&timeoutSeconds=--1",
    "sendInitialEvents=true",
    "watch=1&sendInitialEvents=true",
    "watch=1&resourceVersionMatch=Exact",
    "includeObject=All",
]


async def test_a_query_that_could_mean_two_things_is_refused_and_stops(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    for query in BYPASSES:
        found = await owner.get(f"{NAMESPACES}?{query}")

        assert found.status == 400, (query, found)
        assert found.body["kind"] == "Status", query
        assert found.body["reason"] == "BadRequest", query


# Single namespaces.


async def test_get_agrees_with_list(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.tenant("gas", "gas-production")
    await world.settle()

    own = await owner.get(f"{NAMESPACES}/oil-production")
    other = await owner.get(f"{NAMESPACES}/gas-production")
    missing = await owner.get(f"{NAMESPACES}/never-was")

    assert (own.status, own.body["metadata"]["name"]) == (200, "oil-production")
    # That one is there the caller could learn by creating it, and whoever applies it needs to know that it is not.
    assert (other.status, missing.status) == (403, 404)


async def test_a_filtered_path_answers_only_the_verbs_it_is_made_for(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    for method in ("PUT", "PATCH", "DELETE"):
        target = f"{NAMESPACES}/oil-production"
        found = await owner.request(method, target, json={"metadata": {"name": "oil-production"}})
        assert found.status in {403, 415}, (method, found)
    assert (await owner.request("HEAD", NAMESPACES)).status in {403, 405}
    assert (await owner.request("DELETE", NAMESPACES)).status == 403
    assert (await owner.get(f"{NAMESPACES}/oil-production/status")).status == 403
    assert world.api.store.get(world.api.store.resource("", "namespaces"), "", "oil-production") is not None  # type: ignore[arg-type]  # it is served


async def test_what_is_inside_a_namespace_is_decided_by_its_own_rights(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    body = {
        "metadata": {"name": "reader"},
        "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "gitops-reconciler", "namespace": "oil-system"}],
    }
    await world.admin.create("/apis/rbac.authorization.k8s.io/v1/namespaces/oil-production/rolebindings", body)

    allowed = await owner.get(f"{NAMESPACES}/oil-production/configmaps")
    refused = await owner.get(f"{NAMESPACES}/oil-development/configmaps")

    assert allowed.status == 200
    assert refused.status == 403  # a right in one namespace is none in the tenant's others


# Grants are followed.


async def test_a_withdrawn_grant_counts_at_once(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    assert (await owner.get(NAMESPACES)).names == ["oil-production"]

    await world.withdraw(key("subject", "ServiceAccount", "system:serviceaccount:oil-system:gitops-reconciler"))
    await world.settle()

    assert (await owner.get(NAMESPACES)).names == []
    assert (await owner.get(f"{NAMESPACES}/oil-production")).status == 403


async def test_a_list_too_long_for_a_selector_is_filtered_item_by_item(world: World) -> None:
    names = [f"oil-{'x' * 40}-{number:03}" for number in range(150)]
    owner = await world.owner("oil", *names)
    await world.admin.merge_patch(f"{NAMESPACES}/{names[7]}", {"metadata": {"labels": {"app": "web"}}})

    plain = await owner.get(f"{NAMESPACES}?limit=10")
    table = await owner.get(NAMESPACES, headers={"Accept": TABLE})
    chosen = await owner.get(f"{NAMESPACES}?labelSelector={quote('app=web')}")

    assert plain.names == names
    assert "kind" not in plain.body["items"][0]
    assert table.body["kind"] == "Table"
    assert table.names == names
    assert chosen.names == [names[7]]


async def _gone(world: World, name: str) -> None:
    """Wait until a Namespace that is being deleted is gone from the store."""
    resource = world.api.store.resource("", "namespaces")
    assert resource is not None
    changes = world.api.store.changes()
    if world.api.store.get(resource, "", name) is not None:
        async for change in changes:
            if change.type == "DELETED" and change.resource == resource and change.obj["metadata"]["name"] == name:
                break
    await world.settle()
