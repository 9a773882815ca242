"""Lists across namespaces: what the caller may list in each of its tenants' namespaces, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.grants import SubjectGrant
from eventcore.kube import api_path
from proxycore.merging import Place
from tests.proxycore.conftest import IMPERSONATION, RBAC, TABLE, Tenant, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIGMAPS = "/api/v1/configmaps"
METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
PROXY = "system:serviceaccount:capsule-system:tether-proxy"
USER = "system:serviceaccount:oil-system:gitops-reconciler"


@pytest.fixture
async def across(world: World) -> AsyncIterator[World]:
    """A world whose proxy lists across namespaces, with oil's namespaces oil-1 to oil-3 beside gas-1."""
    await world.follow_rights()
    async with world.proxy(proxy_all_namespaced=True) as service:
        world.service = service
        yield world


async def allow(world: World, namespace: str, user: str = USER, role: str = "edit") -> None:
    """Bind a ClusterRole for a user in one namespace."""
    body = {
        "metadata": {"name": f"{user.rsplit(':', 1)[-1]}-{role}"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
        "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": role},
    }
    await world.admin.create(f"{RBAC}/namespaces/{namespace}/rolebindings", body)


async def withdraw(world: World, namespace: str, user: str = USER, role: str = "edit") -> None:
    name = f"{user.rsplit(':', 1)[-1]}-{role}"
    await world.admin.delete(f"{RBAC}/namespaces/{namespace}/rolebindings/{name}")


async def put(world: World, namespace: str, *names: str, **labels: str) -> None:
    path = api_path("", "v1", "configmaps", namespace=namespace)
    for name in names:
        await world.admin.create(path, {"metadata": {"name": name, "labels": labels}, "data": {"of": namespace}})


async def oil(world: World, *namespaces: str) -> Tenant:
    """Return a client of the owner of a tenant with these namespaces, who may edit in all of them."""
    await world.namespace("gas-1")
    owner = await world.owner("oil", *namespaces)
    for namespace in namespaces:
        await allow(world, namespace)
    await world.settle()
    return owner


def found(reply: Any) -> list[str]:
    assert reply.status == 200, reply.body
    if reply.body["kind"] == "Table":
        metas = [row["object"]["metadata"] for row in reply.body["rows"]]
    else:
        metas = [item["metadata"] for item in reply.body["items"]]
    return [f"{meta['namespace']}/{meta['name']}" for meta in metas if meta["name"] != "kube-root-ca.crt"]


async def test_a_list_holds_the_tenants_namespaces_in_order_of_their_names(across: World) -> None:
    owner = await oil(across, "oil-2", "oil-1")
    for namespace in ("oil-1", "oil-2", "gas-1", "default"):
        await put(across, namespace, "b", "a")

    reply = await owner.get(CONFIGMAPS)

    assert found(reply) == ["oil-1/a", "oil-1/b", "oil-2/a", "oil-2/b"]
    assert (reply.body["kind"], reply.body["apiVersion"]) == ("ConfigMapList", "v1")
    assert reply.version == str(across.api.store.version)


async def test_a_table_has_its_columns_once_and_all_rows(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a")
    await put(across, "oil-2", "b")

    reply = await owner.get(CONFIGMAPS, headers={"Accept": TABLE})

    assert found(reply) == ["oil-1/a", "oil-2/b"]
    assert [column["name"] for column in reply.body["columnDefinitions"]][:1] == ["Name"]
    assert reply.version == str(across.api.store.version)


async def test_metadata_alone_can_be_asked_for(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a")

    reply = await owner.get(CONFIGMAPS, headers={"Accept": METADATA})

    assert found(reply) == ["oil-1/a"]
    assert reply.body["kind"] == "PartialObjectMetadataList"
    assert "data" not in reply.body["items"][0]


async def test_a_large_list_is_compressed_for_who_takes_that(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    for namespace in ("oil-1", "oil-2"):
        path = api_path("", "v1", "configmaps", namespace=namespace)
        await across.admin.create(path, {"metadata": {"name": "large"}, "data": {"of": "x" * 100_000}})

    packed = await owner.get(CONFIGMAPS, headers={"Accept-Encoding": "gzip"})
    plain = await owner.get(CONFIGMAPS, headers={"Accept-Encoding": "identity"})

    assert found(packed) == found(plain) == ["oil-1/large", "oil-2/large"]
    assert (packed.headers.get("Content-Encoding"), plain.headers.get("Content-Encoding")) == ("gzip", None)


async def test_selectors_of_the_client_narrow_the_list(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a", app="web")
    await put(across, "oil-2", "a", app="db")

    assert found(await owner.get(f"{CONFIGMAPS}?labelSelector=app%3Dweb")) == ["oil-1/a"]
    assert found(await owner.get(f"{CONFIGMAPS}?labelSelector=app+in+(web,db)")) == ["oil-1/a", "oil-2/a"]
    assert found(await owner.get(f"{CONFIGMAPS}?fieldSelector=metadata.namespace%3Doil-2,metadata.name%3Da")) == [
        "oil-2/a"
    ]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_are_of_one_snapshot_and_together_the_whole(across: World, limit: int) -> None:
    owner = await oil(across, "oil-1", "oil-2", "oil-3")
    await put(across, "oil-1", "a", "b", "c", of="us")
    await put(across, "oil-3", "a", "b", of="us")
    query = f"{CONFIGMAPS}?labelSelector=of%3Dus&limit={limit}"
    reply = await owner.get(query)
    version, pages = reply.version, [found(reply)]
    # meanwhile somebody writes
    await put(across, "oil-2", "late", of="us")
    await put(across, "oil-3", "late", of="us")

    while token := reply.body["metadata"].get("continue"):
        reply = await owner.get(f"{query}&continue={token}")
        pages.append(found(reply))
        assert reply.version == version

    assert [name for page in pages for name in page] == ["oil-1/a", "oil-1/b", "oil-1/c", "oil-3/a", "oil-3/b"]
    assert all(len(page) <= limit for page in pages)
    assert "remainingItemCount" not in reply.body["metadata"]


async def test_a_made_up_token_names_nothing_that_the_caller_may_not_list(across: World) -> None:
    owner = await oil(across, "oil-1")
    await put(across, "oil-1", "a")
    await put(across, "gas-1", "secret")
    version = str(across.api.store.version)
    upstream = (await owner.get("/api/v1/namespaces/oil-1/configmaps?limit=1")).body["metadata"]["continue"]

    for place in (Place("gas-1", version), Place("gas-1", version, upstream), Place("", version), Place("a", "")):
        reply = await owner.get(f"{CONFIGMAPS}?continue={place.encode()}")
        assert found(reply) == ["oil-1/a"], place
    assert found(await owner.get(f"{CONFIGMAPS}?continue={Place('oil-2', version).encode()}")) == []
    for token in ("x", "AAAA", Place("oil-1", "../x").encode(), upstream):
        assert (await owner.get(f"{CONFIGMAPS}?continue={token}")).status == 400, token
    wrong = await owner.get(f"{CONFIGMAPS}?continue={Place('oil-1', version, 'nonsense').encode()}")
    assert wrong.status == 400


async def test_a_page_of_a_lost_snapshot_is_gone(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a")
    first = await owner.get(f"{CONFIGMAPS}?limit=1")
    await put(across, "oil-1", "b")
    across.api.store.expire_history()

    reply = await owner.get(f"{CONFIGMAPS}?limit=1&continue={first.body['metadata']['continue']}")

    assert (reply.status, reply.body["reason"]) == (410, "Expired")
    assert "continue" not in reply.body["metadata"]


async def test_rights_are_those_of_each_namespace_and_a_change_counts_at_once(across: World) -> None:
    owner = await across.owner("oil", "oil-1", "oil-2")
    for namespace in ("oil-1", "oil-2"):
        await put(across, namespace, "a")
    assert found(await owner.get(CONFIGMAPS)) == []

    await allow(across, "oil-2")
    await across.settle()
    assert found(await owner.get(CONFIGMAPS)) == ["oil-2/a"]

    await allow(across, "oil-1", role="view")
    await across.settle()
    assert found(await owner.get(CONFIGMAPS)) == ["oil-1/a", "oil-2/a"]
    # view does not hold Secrets
    secrets = await owner.get("/api/v1/secrets")
    assert (secrets.status, {item["metadata"]["namespace"] for item in secrets.body["items"]}) == (200, set())

    await withdraw(across, "oil-2")
    await across.settle()
    assert found(await owner.get(CONFIGMAPS)) == ["oil-1/a"]


async def test_a_namespace_that_leaves_the_tenant_leaves_the_list_whatever_rbac_says(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-2", "a")
    assert found(await owner.get(CONFIGMAPS)) == ["oil-2/a"]

    await across.tenant("oil", "oil-1")
    await across.settle()

    assert found(await owner.get(CONFIGMAPS)) == []


async def test_a_right_outside_the_tenant_does_not_count(across: World) -> None:
    owner = await oil(across, "oil-1")
    await allow(across, "gas-1")
    await put(across, "gas-1", "a")
    await across.settle()

    assert (await owner.get("/api/v1/namespaces/gas-1/configmaps")).status == 200
    assert found(await owner.get(CONFIGMAPS)) == []


async def test_whoever_may_list_the_whole_cluster_lists_it(across: World) -> None:
    owner = await oil(across, "oil-1")
    await put(across, "gas-1", "a")
    await across.allow("all", USER, [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    await across.settle()

    assert "gas-1/a" in found(await owner.get(CONFIGMAPS))


async def test_without_a_tenant_rbac_alone_answers(across: World) -> None:
    await oil(across, "oil-1")
    _, token = await across.account("other-system", "viewer")
    stranger = across.client(token)
    assert (await stranger.get(CONFIGMAPS)).status == 403

    # and a tenant that is no user of Capsule is none to the proxy
    owner = across.client(
        (await across.admin.token_request("oil-system", "gitops-reconciler", expiration_seconds=600)).token
    )
    await across.capsule_users(("User", "somebody"))
    await across.settle()
    assert (await owner.get(CONFIGMAPS)).status == 403


async def test_switched_off_nothing_changes(world: World) -> None:
    owner = await oil(world, "oil-1")

    assert (await owner.get(CONFIGMAPS)).status == 403


@pytest.mark.parametrize(
    "target",
    [
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/api/v1/componentstatuses",
        "/api/v1/nothing",
        "/apis/none.example.com/v1/things",
        "/api/v1/configmaps/a",
        "/api/v2/configmaps",
    ],
)
async def test_what_is_no_list_of_a_namespaced_kind_goes_on_as_the_caller(across: World, target: str) -> None:
    owner = await oil(across, "oil-1")

    assert (await owner.get(target)).status in {403, 404}


async def test_a_new_kind_is_listed_without_a_restart_also_where_there_is_none(across: World) -> None:
    owner = await oil(across, "oil-1")
    widgets = "/apis/example.com/v1/widgets"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {"plural": "widgets", "kind": "Widget", "singular": "widget"}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    await across.admin.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        {"metadata": {"name": "widgets.example.com"}, "spec": spec},
    )
    empty = await owner.get(widgets)
    assert (empty.status, empty.body["kind"], empty.body["items"]) == (200, "WidgetList", [])

    rule = [{"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["list"]}]
    await across.admin.create(f"{RBAC}/clusterroles", {"metadata": {"name": "widgets"}, "rules": rule})
    await allow(across, "oil-1", role="widgets")
    await across.admin.create(
        "/apis/example.com/v1/namespaces/oil-1/widgets",
        {"metadata": {"name": "w"}, "kind": "Widget", "apiVersion": "example.com/v1"},
    )
    await across.settle()
    assert found(await owner.get(widgets)) == ["oil-1/w"]


@pytest.mark.parametrize("accept", ["application/json", TABLE, METADATA])
async def test_a_tenant_without_namespaces_gets_an_empty_list_of_the_kind(across: World, accept: str) -> None:
    owner = await across.owner("oil")

    reply = await owner.get(CONFIGMAPS, headers={"Accept": accept})

    assert found(reply) == []
    assert reply.body["kind"] in {"ConfigMapList", "Table", "PartialObjectMetadataList"}
    assert int(reply.version) > 0


async def test_who_acts_as_a_tenant_gets_what_the_tenant_gets(across: World) -> None:
    await oil(across, "oil-1")
    await put(across, "oil-1", "a")
    await across.allow("proxy-impersonates", PROXY, IMPERSONATION)
    user, token = await across.account("ops-system", "operator")
    rule = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [USER]}
    await across.allow("acts", user, [rule])
    await across.settle()

    acting = {"Impersonate-User": USER}
    assert found(await across.client(token).get(CONFIGMAPS, headers=acting)) == ["oil-1/a"]
    assert (await across.client(token).get(CONFIGMAPS)).status == 403


async def test_versions_are_those_of_the_api_server(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-2", "a")
    before = across.api.store.version
    await put(across, "oil-1", "b")
    now = across.api.store.version

    for query in (
        "resourceVersion=0",
        f"resourceVersion={now}",
        f"resourceVersion={before}",
        "resourceVersion=0&limit=5",
    ):
        reply = await owner.get(f"{CONFIGMAPS}?{query}")
        assert found(reply) == ["oil-1/b", "oil-2/a"], query
    exact = await owner.get(f"{CONFIGMAPS}?resourceVersion={before}&resourceVersionMatch=Exact")
    assert (found(exact), exact.version) == (["oil-2/a"], str(before))
    assert found(await owner.get(f"{CONFIGMAPS}?resourceVersion={before}&limit=5")) == ["oil-2/a"]
    newer = f"resourceVersion={before}&resourceVersionMatch=NotOlderThan&limit=5"
    assert found(await owner.get(f"{CONFIGMAPS}?{newer}")) == ["oil-1/b", "oil-2/a"]
    future = await owner.get(f"{CONFIGMAPS}?resourceVersion={now + 1000}")
    single = await owner.get(f"/api/v1/namespaces/oil-1/configmaps?resourceVersion={now + 1000}")
    assert (future.status, future.body["reason"]) == (single.status, single.body["reason"])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=x", 400),
        ("limit=1&limit=2", 400),
        ("resourceVersion=abc", 400),
        ("labelSelector=(", 400),
        ("continue=WyJhIiwiMSJd&resourceVersion=5", 400),
        ("sendInitialEvents=true", 400),
    ],
)
async def test_a_query_that_means_nothing_is_refused(across: World, query: str, code: int) -> None:
    owner = await oil(across, "oil-1")

    assert (await owner.get(f"{CONFIGMAPS}?{query}")).status == code


async def test_a_body_goes_to_nobody(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a")

    assert found(await owner.get(CONFIGMAPS, data=b"x" * 1000)) == ["oil-1/a"]
    assert found(await owner.get(CONFIGMAPS)) == ["oil-1/a"]


async def test_protobuf_alone_is_not_had(across: World) -> None:
    owner = await oil(across, "oil-1")

    reply = await owner.get(CONFIGMAPS, headers={"Accept": "application/vnd.kubernetes.protobuf"})

    assert (reply.status, reply.body["reason"]) == (406, "NotAcceptable")


async def test_an_old_view_is_not_believed(across: World) -> None:
    owner = await oil(across, "oil-1")
    async with across.proxy(proxy_all_namespaced=True, max_view_age=1.0) as service:
        across.service = service
        await across.settle()
        across.vouching = False
        async with asyncio.timeout(10):
            while (reply := await across.client(owner.token).get(CONFIGMAPS)).status == 200:
                await asyncio.sleep(0.1)

    assert (reply.status, "Retry-After" in reply.headers) == (503, True)


async def can_i(client: Tenant, **asked: str) -> bool:
    body = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
    reply = await client.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=body)
    assert reply.status == 201, reply.body
    return bool(reply.body["status"]["allowed"])


async def test_a_question_about_the_list_is_answered_as_the_list_is(across: World) -> None:
    owner = await oil(across, "oil-1")

    assert await can_i(owner, verb="list", resource="configmaps")
    assert await can_i(owner, verb="watch", resource="deployments", group="apps")
    assert await can_i(owner, verb="list", resource="deployments", group="apps", version="v1")
    for refused in (
        {"verb": "get", "resource": "configmaps"},
        {"verb": "delete", "resource": "configmaps"},
        {"verb": "list", "resource": "configmaps", "namespace": "gas-1"},
        {"verb": "list", "resource": "clusterroles", "group": "rbac.authorization.k8s.io"},
        {"verb": "list", "resource": "pods", "subresource": "log"},
        {"verb": "list", "resource": "things", "group": "none.example.com"},
    ):
        assert not await can_i(owner, **refused), refused


async def test_a_namespace_shared_by_a_binding_counts_where_reflection_is_on(across: World) -> None:
    await oil(across, "oil-1", "oil-2")
    user, token = await across.account("dana-system", "dana")
    for namespace in ("oil-1", "oil-2"):
        await put(across, namespace, "a")
        await allow(across, namespace, user, "view")
    await across.grant(
        SubjectGrant(subject_kind="ServiceAccount", name=user, reflected=("oil-1", "oil-2"), shared=("oil-2",))
    )
    await across.settle()
    # reflection is off here
    assert (await across.client(token).get(CONFIGMAPS)).status == 403

    async with across.proxy(proxy_all_namespaced=True, enable_reflector=True) as service:
        across.service = service
        await across.settle()
        dana = across.client(token)
        assert found(await dana.get(CONFIGMAPS)) == ["oil-2/a"]
        await withdraw(across, "oil-2", user, "view")
        await across.settle()
        assert found(await dana.get(CONFIGMAPS)) == []


async def test_a_request_about_one_tenant_holds_that_tenants_namespaces_alone(across: World) -> None:
    owner = await oil(across, "oil-1")
    await across.tenant("water", "water-1")
    await across.owns("ServiceAccount", USER, "oil", "water")
    await allow(across, "water-1")
    for namespace in ("oil-1", "water-1", "gas-1"):
        await put(across, namespace, "a")
    await across.settle()
    assert found(await owner.get(CONFIGMAPS)) == ["oil-1/a", "water-1/a"]
    assert found(await owner.get(f"/tenant/water{CONFIGMAPS}")) == ["water-1/a"]

    # also for one who may list the whole cluster
    await across.allow("all", USER, [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    await across.settle()
    assert found(await owner.get(f"/tenant/water{CONFIGMAPS}")) == ["water-1/a"]
    assert "gas-1/a" in found(await owner.get(CONFIGMAPS))


async def test_who_is_never_filtered_is_forwarded(across: World) -> None:
    owner = await oil(across, "oil-1")
    async with across.proxy(proxy_all_namespaced=True, ignored_username=USER) as service:
        across.service = service
        await across.settle()

        assert (await across.client(owner.token).get(CONFIGMAPS)).status == 403
