"""Cluster-scoped kinds through the proxy: a tenant sees and touches what its settings say, and nothing else."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest

from eventcore.grants import Choice, SelectorTerm, SubjectGrant, TenantGrant
from tests.proxycore.conftest import TABLE, Reply, Tenant, Watching, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "StorageClasses": ("/apis/storage.k8s.io/v1/storageclasses", {"provisioner": "x"}),
    "IngressClasses": ("/apis/networking.k8s.io/v1/ingressclasses", {}),
    "PriorityClasses": ("/apis/scheduling.k8s.io/v1/priorityclasses", {"value": 1}),
    "RuntimeClasses": ("/apis/node.k8s.io/v1/runtimeclasses", {"handler": "x"}),
}
STORAGE = CLASSES["StorageClasses"][0]
NODES = "/api/v1/nodes"
VOLUMES = "/api/v1/persistentvolumes"
TENANTS = "/apis/capsule.clastix.io/v1beta2/tenants"
METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
LIST: tuple[str, ...] = ("List",)
ALL: tuple[str, ...] = ("List", "Update", "Delete")
PROXY = "system:serviceaccount:capsule-system:tether-proxy"
GROUPS = ["", "storage.k8s.io", "networking.k8s.io", "scheduling.k8s.io", "node.k8s.io", "capsule.clastix.io"]
GROUPS += ["metrics.k8s.io", "gateway.networking.k8s.io", "resource.k8s.io"]
RESOURCES = ["nodes", "persistentvolumes", "storageclasses", "ingressclasses", "priorityclasses", "runtimeclasses"]
RESOURCES += ["tenants", "gatewayclasses", "deviceclasses"]


def chosen(*names: str, pattern: str = "", **labels: str) -> Choice:
    terms = tuple(SelectorTerm(key=key, operator="In", values=(value,)) for key, value in labels.items())
    return Choice(names=names, pattern=pattern, selectors=(terms,) if terms else ())


@pytest.fixture
async def kinds(world: World) -> World:
    """A world whose proxy may read what it filters, and write it as the opt-in ClusterRole lets it."""
    verbs = ["get", "list", "watch", "update", "patch", "delete"]
    rule = {"apiGroups": GROUPS, "resources": RESOURCES, "verbs": verbs}
    await world.allow("tether-proxy-kinds", PROXY, [rule])
    return world


async def put(world: World, path: str, name: str, labels: dict[str, str] | None = None, **body: Any) -> None:
    await world.admin.create(path, {"metadata": {"name": name, "labels": labels or {}}, **body})


async def owner_of(
    world: World,
    tenant: str = "oil",
    *,
    account: str = "gitops-reconciler",
    choices: dict[str, Choice] | None = None,
    operations: dict[str, tuple[str, ...]] | None = None,
    namespaces: tuple[str, ...] = (),
) -> Tenant:
    """Return a client of an account that owns a tenant with these settings."""
    user, token = await world.account(f"{tenant}-system", account)
    await world.capsule_users(("Group", "system:serviceaccounts"))
    await world.grant(TenantGrant(name=tenant, uid=tenant, namespaces=namespaces, choices=choices or {}))
    may = {tenant: operations} if operations else {}
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=user, tenants=(tenant,), operations=may))
    await world.settle()
    await world.move_on()
    return world.client(token)


async def serve(world: World, group: str, version: str, plural: str, kind: str) -> None:
    """Make the API serve a cluster-scoped kind that somebody else brings to a real one."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Cluster",
        "names": {"plural": plural, "kind": kind, "singular": kind.lower()},
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    approved = {"api-approved.kubernetes.io": "unapproved, a stand-in"}
    await world.admin.create(CRDS, {"metadata": {"name": f"{plural}.{group}", "annotations": approved}, "spec": spec})


async def names(client: Tenant, path: str, **options: Any) -> list[str]:
    reply = await client.get(path, **options)
    assert reply.status == 200, reply.body
    return sorted(reply.names)


@asynccontextmanager
async def watching(client: Tenant, target: str, accept: str = "application/json") -> AsyncIterator[Watching]:
    headers = {"Authorization": f"Bearer {client.token}", "Accept": accept}
    async with client.session.get(client.url + target, headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Watching(response)


@pytest.mark.parametrize("setting", CLASSES)
async def test_classes_are_listed_by_name_by_expression_and_by_label_together(kinds: World, setting: str) -> None:
    path, body = CLASSES[setting]
    for name, labels in (("fast", {}), ("oil-1", {}), ("gas-1", {}), ("shared", {"for": "oil"})):
        await put(kinds, path, name, labels, **body)
    everything = chosen("fast", "missing", pattern="^oil-[0-9]+$", **{"for": "oil"})
    owner = await owner_of(kinds, choices={setting: everything}, operations={setting: LIST})

    assert await names(owner, path) == ["fast", "oil-1", "shared"]
    for name, code in (("fast", 200), ("oil-1", 200), ("shared", 200), ("gas-1", 403), ("missing", 403)):
        assert (await owner.get(f"{path}/{name}")).status == code, name


@pytest.mark.parametrize(
    ("setting", "group", "kind"),
    [
        ("GatewayClasses", "gateway.networking.k8s.io", "GatewayClass"),
        ("DeviceClasses", "resource.k8s.io", "DeviceClass"),
    ],
)
async def test_classes_that_others_bring_are_listed_alike(kinds: World, setting: str, group: str, kind: str) -> None:
    await serve(kinds, group, "v1", setting.lower(), kind)
    path = f"/apis/{group}/v1/{setting.lower()}"
    for name in ("mine", "theirs"):
        await put(kinds, path, name, apiVersion=f"{group}/v1", kind=kind)
    owner = await owner_of(kinds, choices={setting: chosen("mine")}, operations={setting: LIST})

    assert await names(owner, path) == ["mine"]
    assert (await owner.get(f"{path}/theirs")).status == 403


async def test_without_the_operation_list_rbac_alone_answers(kinds: World) -> None:
    await put(kinds, STORAGE, "fast", provisioner="x")
    owner = await owner_of(
        kinds, choices={"StorageClasses": chosen("fast")}, operations={"StorageClasses": ("Update", "Delete")}
    )

    assert (await owner.get(STORAGE)).status == 403
    assert (await owner.get(f"{STORAGE}/fast")).status == 403
    assert (await owner.request("DELETE", f"{STORAGE}/fast")).status == 403


async def test_the_tenants_of_all_groups_are_a_union(kinds: World) -> None:
    for name in ("oil-fast", "gas-fast", "coal-fast"):
        await put(kinds, STORAGE, name, provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("oil-fast")}, operations={"StorageClasses": LIST})
    for tenant, operations in (("gas", {"gas": {"StorageClasses": LIST}}), ("coal", {"coal": {"Nodes": LIST}})):
        choice = {"StorageClasses": chosen(f"{tenant}-fast")}
        await kinds.grant(TenantGrant(name=tenant, uid=tenant, choices=choice))
        group = "system:serviceaccounts:oil-system" if tenant == "gas" else "system:authenticated"
        await kinds.grant(SubjectGrant(subject_kind="Group", name=group, tenants=(tenant,), operations=operations))
    await kinds.settle()

    assert await names(owner, STORAGE) == ["gas-fast", "oil-fast"]


@pytest.mark.parametrize(("selector", "wanted"), [({}, ["n1", "n2"]), ({"pool": "oil"}, ["n1"])])
async def test_nodes_are_those_of_the_node_selector(kinds: World, selector: dict[str, str], wanted: list[str]) -> None:
    await put(kinds, NODES, "n1", {"pool": "oil"})
    await put(kinds, NODES, "n2", {"pool": "gas"})
    terms = tuple(SelectorTerm(key=key, operator="In", values=(value,)) for key, value in selector.items())
    choice = Choice(selectors=(terms,))
    owner = await owner_of(kinds, choices={"Nodes": choice}, operations={"Nodes": LIST})

    assert await names(owner, NODES) == wanted
    assert await names(owner, NODES, headers={"Accept": TABLE}) == wanted
    assert await names(owner, NODES, headers={"Accept": METADATA}) == wanted
    assert (await owner.get(f"{NODES}/n2")).status == (200 if "n2" in wanted else 403)


async def test_metrics_of_nodes_follow_the_nodes(kinds: World) -> None:
    await serve(kinds, "metrics.k8s.io", "v1beta1", "nodes", "NodeMetrics")
    for name, pool in (("n1", "oil"), ("n2", "gas")):
        await put(kinds, NODES, name, {"pool": pool})
        await put(kinds, METRICS, name, {"pool": "oil"}, apiVersion="metrics.k8s.io/v1beta1", kind="NodeMetrics")
    owner = await owner_of(kinds, choices={"Nodes": chosen(pool="oil")}, operations={"Nodes": LIST})

    assert await names(owner, METRICS) == ["n1"]
    assert (await owner.get(f"{METRICS}/n1")).status == 200
    assert (await owner.get(f"{METRICS}/n2")).status == 403
    assert (await owner.request("DELETE", f"{METRICS}/n1")).status == 403


async def test_volumes_are_those_whose_claim_is_in_the_tenants_namespaces(kinds: World) -> None:
    volumes = {
        "mine": ({}, "oil-1"),
        "mine-labelled": ({"capsule.clastix.io/tenant": "oil"}, "oil-1"),
        "released": ({"capsule.clastix.io/tenant": "oil"}, ""),
        "theirs": ({}, "gas-1"),
        "stale-label": ({"capsule.clastix.io/tenant": "oil"}, "gas-1"),
        "stale-claim": ({"capsule.clastix.io/tenant": "gas"}, "oil-1"),
        "nobodys": ({}, ""),
    }
    for name, (labels, claim) in volumes.items():
        spec = {"claimRef": {"namespace": claim, "name": "data"}} if claim else {}
        await put(kinds, VOLUMES, name, labels, spec=spec)
    owner = await owner_of(kinds, operations={"PersistentVolumes": LIST}, namespaces=("oil-1",))

    wanted = ["mine", "mine-labelled", "released"]
    for accept in ("application/json", TABLE, METADATA):
        assert await names(owner, VOLUMES, headers={"Accept": accept}) == wanted
    for name in volumes:
        assert ((await owner.get(f"{VOLUMES}/{name}")).status == 200) == (name in wanted), name
    metadata_only = await owner.get(VOLUMES, headers={"Accept": METADATA})
    assert all(set(item) == {"kind", "apiVersion", "metadata"} for item in metadata_only.body["items"])


async def test_an_owner_sees_its_own_tenants_without_any_setting(kinds: World) -> None:
    if kinds.api.store.resource("capsule.clastix.io", "tenants") is None:
        await serve(kinds, "capsule.clastix.io", "v1beta2", "tenants", "Tenant")
    for name in ("oil", "gas", "global"):
        await put(kinds, TENANTS, name, apiVersion="capsule.clastix.io/v1beta2", kind="Tenant", spec={"owners": []})
    owner = await owner_of(kinds)

    assert await names(owner, TENANTS) == ["oil"]
    assert (await owner.get(f"{TENANTS}/oil")).status == 200
    assert (await owner.get(f"{TENANTS}/gas")).status == 403
    assert (await owner.request("DELETE", f"{TENANTS}/oil")).status == 403
    patch = await owner.request(
        "PATCH", f"{TENANTS}/oil", data=b"{}", headers={"Content-Type": "application/merge-patch+json"}
    )
    assert patch.status == 403


async def test_who_is_no_user_of_capsule_gets_rbacs_answer(kinds: World) -> None:
    await put(kinds, STORAGE, "fast", provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("fast")}, operations={"StorageClasses": LIST})
    await kinds.capsule_users(("User", "somebody else"))
    await kinds.settle()

    assert (await owner.get(STORAGE)).status == 403
    assert (await owner.get(TENANTS)).status == 403


async def records(world: World) -> list[dict[str, Any]]:
    """Return what the audit stream says of writes under the proxy's account, oldest first."""
    state = (await world.bus.js.stream_info("AUDIT")).state
    found = []
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await world.bus.js.get_msg("AUDIT", sequence)
        record = msgspec.json.decode(message.data or b"{}")
        if record.get("action") == "written":
            found.append(record)
    return found


async def merge(client: Tenant, target: str, body: Any) -> Reply:
    headers = {"Content-Type": "application/merge-patch+json"}
    return await client.request("PATCH", target, data=msgspec.json.encode(body), headers=headers)


async def test_updates_and_deletes_need_their_operation_and_an_object_of_the_callers(kinds: World) -> None:
    for name in ("fast", "slow", "other"):
        await put(kinds, STORAGE, name, provisioner="x")
    choices = {"StorageClasses": chosen("fast", "slow", "absent")}
    reader = await owner_of(kinds, account="reader", choices=choices, operations={"StorageClasses": LIST})
    change = {"metadata": {"labels": {"touched": "yes"}}}
    assert (await merge(reader, f"{STORAGE}/fast", change)).status == 403
    assert (await reader.request("DELETE", f"{STORAGE}/fast")).status == 403

    owner = await owner_of(kinds, choices=choices, operations={"StorageClasses": ALL})
    patched = await merge(owner, f"{STORAGE}/fast", change)
    stored = (await owner.get(f"{STORAGE}/fast")).body
    replaced = await owner.request(
        "PUT", f"{STORAGE}/fast", json={**stored, "metadata": {**stored["metadata"], "labels": {"put": "yes"}}}
    )

    assert patched.status == 200
    async with asyncio.timeout(15):
        while not (written := await records(kinds)):
            await asyncio.sleep(0.05)
    assert (written[0]["account"], written[0]["object"]) == ("oil-system/gitops-reconciler", "storageclasses//fast")
    assert (written[0]["outcome"], written[0]["component"]) == ("done", "proxy")
    assert patched.body["metadata"]["labels"] == {"touched": "yes"}
    assert replaced.status == 200
    assert (await owner.request("DELETE", f"{STORAGE}/slow")).status == 200
    assert await names(owner, STORAGE) == ["fast"]
    # Neither a foreign one, nor one that is not there yet, nor all at once, nor a new one.
    assert (await merge(owner, f"{STORAGE}/other", change)).status == 403
    assert (await merge(owner, f"{STORAGE}/absent", change)).status in {403, 404}
    assert (await owner.request("DELETE", STORAGE)).status == 403
    assert (await owner.request("POST", STORAGE, json={"metadata": {"name": "absent"}})).status == 403
    applied = await owner.request(
        "PATCH",
        f"{STORAGE}/absent?fieldManager=x",
        data=b'{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","metadata":{"name":"absent"}}',
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    assert applied.status == 403


async def test_a_list_tells_nothing_of_what_it_leaves_out(kinds: World) -> None:
    for name in ("a-theirs", "b-mine", "c-theirs", "d-theirs"):
        await put(kinds, STORAGE, name, {"team": name}, provisioner="secret-of-" + name)
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("b-mine")}, operations={"StorageClasses": LIST})

    for accept in ("application/json", TABLE, METADATA):
        for query in ("", "?limit=1", "?limit=1&resourceVersion=0", "?includeObject=Object", "?includeObject=None"):
            reply = await owner.get(STORAGE + query, headers={"Accept": accept})
            text = msgspec.json.encode(reply.body)
            assert reply.names == ["b-mine"], (accept, query)
            assert b"theirs" not in text
            assert set(reply.body["metadata"]) <= {"resourceVersion"}


async def test_the_clients_own_selectors_narrow_further_and_cannot_widen(kinds: World) -> None:
    for name, team in (("mine-a", "a"), ("mine-b", "b"), ("theirs", "a")):
        await put(kinds, STORAGE, name, {"team": team}, provisioner="x")
    owner = await owner_of(
        kinds, choices={"StorageClasses": chosen(pattern="^mine")}, operations={"StorageClasses": LIST}
    )

    assert await names(owner, f"{STORAGE}?labelSelector=team%3Da") == ["mine-a"]
    assert await names(owner, f"{STORAGE}?fieldSelector={quote('metadata.name=mine-b')}") == ["mine-b"]
    assert await names(owner, f"{STORAGE}?fieldSelector={quote('metadata.name=theirs')}") == []
    assert (await owner.get(f"{STORAGE}?labelSelector=a&labelSelector=b")).status == 400
    assert (await owner.get(f"{STORAGE}?labelSelector={quote('a in (')}")).status == 400


async def test_a_table_has_the_rows_of_the_caller_and_the_objects_it_asked_for(kinds: World) -> None:
    await put(kinds, STORAGE, "mine", provisioner="x")
    await put(kinds, STORAGE, "theirs", provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("mine")}, operations={"StorageClasses": LIST})

    async def rows(target: str) -> list[Any]:
        found: list[Any] = (await owner.get(target, headers={"Accept": TABLE})).body["rows"]
        return found

    assert [row["cells"][0] for row in await rows(f"{STORAGE}/mine")] == ["mine"]
    assert (await rows(STORAGE))[0]["object"]["kind"] == "PartialObjectMetadata"
    assert (await rows(f"{STORAGE}?includeObject=Object"))[0]["object"]["provisioner"] == "x"
    assert set((await rows(f"{STORAGE}?includeObject=None"))[0]) == {"cells"}


async def test_a_watch_of_names_shows_the_callers_objects_and_no_other(kinds: World) -> None:
    await put(kinds, STORAGE, "mine-1", provisioner="x")
    owner = await owner_of(
        kinds, choices={"StorageClasses": chosen(pattern="^mine-")}, operations={"StorageClasses": LIST}
    )
    version = (await owner.get(STORAGE)).version

    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}") as events:
        await put(kinds, STORAGE, "theirs", provisioner="x")
        await put(kinds, STORAGE, "mine-2", provisioner="x")
        await kinds.admin.delete(f"{STORAGE}/theirs")
        await kinds.admin.delete(f"{STORAGE}/mine-1")

        assert await events.named() == ("ADDED", "mine-2")
        assert await events.named() == ("DELETED", "mine-1")


@pytest.mark.parametrize("named", [("named",), ()], ids=["judged here", "selected upstream"])
@pytest.mark.parametrize("accept", ["application/json", TABLE], ids=["json", "table"])
async def test_an_object_that_leaves_the_selector_is_deleted_for_the_watch_without_its_content(
    kinds: World, accept: str, named: tuple[str, ...]
) -> None:
    await put(kinds, STORAGE, "walks", {"for": "oil"}, provisioner="x")
    await put(kinds, STORAGE, "named", provisioner="x")
    both = chosen(*named, **{"for": "oil"})
    owner = await owner_of(kinds, choices={"StorageClasses": both}, operations={"StorageClasses": LIST})
    version = (await owner.get(STORAGE)).version

    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}", accept) as events:
        await kinds.admin.merge_patch(f"{STORAGE}/walks", {"metadata": {"labels": {"for": "gas", "secret": "gas"}}})
        left_type, left = await events.event()
        await kinds.admin.merge_patch(f"{STORAGE}/walks", {"metadata": {"labels": {"for": "gas", "secret": "more"}}})
        await kinds.admin.merge_patch(f"{STORAGE}/walks", {"metadata": {"labels": {"for": "oil", "secret": None}}})
        back_type, back = await events.event()

    assert (left_type, back_type) == ("DELETED", "ADDED")
    assert b"walks" in msgspec.json.encode(left)
    assert b"gas" not in msgspec.json.encode(left)
    assert b"walks" in msgspec.json.encode(back)


async def test_a_watch_without_a_version_begins_with_what_is_there(kinds: World) -> None:
    for name in ("mine", "theirs"):
        await put(kinds, STORAGE, name, provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("mine")}, operations={"StorageClasses": LIST})

    async with watching(owner, f"{STORAGE}?watch=true") as events:
        assert await events.named() == ("ADDED", "mine")
        await put(kinds, STORAGE, "other", provisioner="x")
        await kinds.admin.merge_patch(f"{STORAGE}/mine", {"metadata": {"labels": {"a": "b"}}})
        assert await events.named() == ("MODIFIED", "mine")


async def test_a_change_of_the_rights_ends_the_watch_so_that_the_client_lists_again(kinds: World) -> None:
    await put(kinds, STORAGE, "mine", provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("mine")}, operations={"StorageClasses": LIST})
    version = (await owner.get(STORAGE)).version

    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}") as events:
        await kinds.grant(TenantGrant(name="oil", uid="oil", choices={"StorageClasses": chosen("other")}))
        type_, error = await events.event()
        assert (type_, error["code"], error["reason"]) == ("ERROR", 410, "Expired")
        assert await events.end() == b""
    await put(kinds, STORAGE, "mine-too", provisioner="x")
    await kinds.settle()

    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}") as events:
        assert (await events.event())[1]["code"] == 410


async def test_a_kind_that_is_not_served_is_not_found(kinds: World) -> None:
    owner = await owner_of(kinds, choices={"GatewayClasses": chosen("x")}, operations={"GatewayClasses": LIST})

    assert (await owner.get("/apis/gateway.networking.k8s.io/v1/gatewayclasses")).status == 404


async def test_a_proxy_without_the_right_to_read_a_kind_says_so(world: World) -> None:
    await put(world, STORAGE, "mine", provisioner="x")
    owner = await owner_of(world, choices={"StorageClasses": chosen("mine")}, operations={"StorageClasses": LIST})

    found = await owner.get(STORAGE)

    assert found.status == 503
    assert "tell the administrator" in found.body["message"]


async def test_old_grants_are_not_used(kinds: World) -> None:
    await put(kinds, STORAGE, "mine", provisioner="x")
    owner = await owner_of(kinds, choices={"StorageClasses": chosen("mine")}, operations={"StorageClasses": LIST})
    kinds.vouching = False
    async with kinds.proxy(max_view_age=1.0) as service:
        tenant = Tenant(kinds.session, f"https://127.0.0.1:{service.port}", owner.token)
        async with asyncio.timeout(15):
            while (found := await tenant.get(STORAGE)).status != 503:
                await asyncio.sleep(0.05)

    assert int(found.headers["Retry-After"]) > 0


async def test_where_nats_is_away_a_write_is_refused_before_it_is_sent(kinds: World) -> None:
    await put(kinds, STORAGE, "fast", provisioner="x")
    owner = await owner_of(
        kinds, choices={"StorageClasses": chosen("fast")}, operations={"StorageClasses": (*LIST, "Update")}
    )
    change = {"metadata": {"labels": {"touched": "yes"}}}
    storage = kinds.api.store.resource("storage.k8s.io", "storageclasses")
    assert storage is not None
    assert await names(owner, STORAGE) == ["fast"]
    await kinds.nats.stop()
    try:
        async with asyncio.timeout(15):
            while kinds.service.access.bus.connected:
                await asyncio.sleep(0.01)  # the connection tells nobody here
        refused = await merge(owner, f"{STORAGE}/fast", change)
    finally:
        await kinds.nats.start()

    assert (refused.status, refused.headers.get("Retry-After")) == (503, "5")
    assert "recorded" in refused.body["message"]
    assert not (kinds.api.store.get(storage, "", "fast") or {})["metadata"].get("labels")
    async with asyncio.timeout(15):
        while not kinds.service.access.ready:
            await asyncio.sleep(0.01)  # as above
    assert (await merge(owner, f"{STORAGE}/fast", change)).status == 200
