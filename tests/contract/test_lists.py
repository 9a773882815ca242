"""Lists: selectors, pages, metadata alone, tables."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.conftest import ApiServer
from tests.kubeapi import Client, Object

pytestmark = pytest.mark.xdist_group("contract")

PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
PARTIAL_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
MINE = {"labelSelector": "mine"}


@pytest.fixture
async def config_maps(admin: Client, namespace: str) -> str:
    """The path of the ConfigMaps a to e, ``mine`` of this test and of tier x (a, b) or y (c, d), e without a tier."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for name, tier in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "")):
        labels = {"mine": name} | ({"tier": tier} if tier else {})
        await admin.post(path, {"metadata": {"name": name, "labels": labels}, "data": {"k": name}})
    return path


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("tier=x", ["a", "b"]),
        ("tier==x,mine!=a", ["b"]),
        ("mine,tier!=x", ["c", "d", "e"]),
        ("mine in (a, e)", ["a", "e"]),
        ("mine,tier notin (x)", ["c", "d", "e"]),
        ("mine,!tier", ["e"]),
        ("tier", ["a", "b", "c", "d"]),
        ("tier=z", []),
    ],
)
async def test_labels_select(admin: Client, config_maps: str, selector: str, names: list[str]) -> None:
    assert await admin.names(config_maps, labelSelector=selector) == names


async def test_fields_select(admin: Client, config_maps: str, namespace: str) -> None:
    # when
    one = await admin.names(config_maps, fieldSelector="metadata.name=b")
    others = await admin.names(config_maps, fieldSelector="metadata.name!=b", **MINE)
    everywhere = await admin.names("/api/v1/configmaps", fieldSelector=f"metadata.namespace={namespace}", **MINE)
    accounts = await admin.names(
        f"/api/v1/namespaces/{namespace}/secrets", fieldSelector="type=kubernetes.io/service-account-token"
    )
    active = await admin.names("/api/v1/namespaces", fieldSelector=f"status.phase=Active,metadata.name={namespace}")
    # then
    assert (one, others, everywhere) == (["b"], ["a", "c", "d", "e"], ["a", "b", "c", "d", "e"])
    assert (accounts, active) == ([], [namespace])


async def test_pages_show_the_list_as_it_was_when_it_began(admin: Client, config_maps: str) -> None:
    # given
    first = (await admin.get(config_maps, params=MINE | {"limit": "2"})).body
    await admin.delete(f"{config_maps}/d")
    await admin.post(config_maps, {"metadata": {"name": "cc", "labels": {"mine": "new"}}})
    # when
    pages, token = [first], first["metadata"]["continue"]
    while token:
        page = (await admin.get(config_maps, params=MINE | {"limit": "2", "continue": token})).body
        pages.append(page)
        token = page["metadata"].get("continue", "")
    # then
    names = [[item["metadata"]["name"] for item in page["items"]] for page in pages]
    assert names == [["a", "b"], ["c", "d"], ["e"]]
    assert len({page["metadata"]["resourceVersion"] for page in pages}) == 1


async def test_a_page_tells_how_many_are_left(admin: Client, config_maps: str) -> None:
    # when
    page = (await admin.get(config_maps, params={"limit": "2"})).body
    # then: kube-root-ca.crt is there too, and with a selector nobody knows
    assert page["metadata"]["remainingItemCount"] == 4
    assert "remainingItemCount" not in (await admin.get(config_maps, params=MINE | {"limit": "2"})).body["metadata"]


async def test_a_broken_continue_token_is_refused(admin: Client, config_maps: str) -> None:
    # when
    refused = await admin.get(config_maps, params={"limit": "2", "continue": "nonsense"})
    # then
    assert (refused.status, refused.body["reason"]) == (400, "BadRequest")


async def test_a_list_from_the_future_is_asked_for_in_vain(admin: Client, config_maps: str) -> None:
    # when
    refused = await admin.get(config_maps, params={"resourceVersion": "999999999"})
    # then
    assert (refused.status, refused.body["reason"]) == (504, "Timeout")
    assert refused.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


async def test_a_list_at_any_version_holds_what_is_there(admin: Client, config_maps: str) -> None:
    # when
    any_version = await admin.get(config_maps, params=MINE | {"resourceVersion": "0"})
    # then
    assert [item["metadata"]["name"] for item in any_version.body["items"]] == ["a", "b", "c", "d", "e"]
    assert int(any_version.body["metadata"]["resourceVersion"]) > 0


async def test_metadata_alone_is_told_without_the_data(admin: Client, config_maps: str) -> None:
    # when
    one = (await admin.get(f"{config_maps}/a", headers={"Accept": PARTIAL})).body
    many = (await admin.get(config_maps, params=MINE, headers={"Accept": PARTIAL_LIST})).body
    # then
    assert (one["kind"], one["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert set(one) == {"kind", "apiVersion", "metadata"}
    assert one["metadata"]["labels"] == {"mine": "a", "tier": "x"}
    assert many["kind"] == "PartialObjectMetadataList"
    assert [set(item) - {"kind", "apiVersion"} for item in many["items"]] == [{"metadata"}] * 5
    assert int(many["metadata"]["resourceVersion"]) > 0


async def test_metadata_alone_is_watched(admin: Client, config_maps: str) -> None:
    # given
    version = (await admin.get(config_maps)).body["metadata"]["resourceVersion"]
    async with admin.watch(config_maps, PARTIAL, resourceVersion=version, **MINE) as events:
        # when
        await admin.patch(f"{config_maps}/a", {"data": {"k": "secret"}})
        event = await events.next()
    # then
    assert (event["type"], event["object"]["kind"]) == ("MODIFIED", "PartialObjectMetadata")
    assert set(event["object"]) == {"kind", "apiVersion", "metadata"}


async def test_a_table_has_columns_and_a_row_for_each_object(admin: Client, config_maps: str) -> None:
    # when
    table = (await admin.get(config_maps, params=MINE, headers={"Accept": TABLE})).body
    # then
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert [row["cells"][:2] for row in table["rows"]] == [[name, 1] for name in "abcde"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


async def test_a_tenant_s_table_has_capsule_s_columns(admin: Client) -> None:
    # when
    table = (await admin.get("/apis/capsule.clastix.io/v1beta2/tenants", headers={"Accept": TABLE})).body
    # then
    names = [column["name"] for column in table["columnDefinitions"]]
    assert names == ["Name", "State", "Namespace quota", "Namespace count", "Node selector", "Ready", "Status", "Age"]


async def test_the_name_in_a_list_s_field_selector_counts_for_rights(admin: Client, namespace: str) -> None:
    # given
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["get", "list", "watch"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    await admin.post(f"{rbac}/roles", {"metadata": {"name": "r"}, "rules": [rule]})
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": namespace}
    await admin.post(f"{rbac}/rolebindings", {"metadata": {"name": "b"}, "roleRef": role, "subjects": [subject]})
    user = admin.acting(namespace)
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    async with asyncio.timeout(20):  # an authorizer learns of bindings by its own watch
        while (await user.get(f"{path}/a")).status == 403:
            await asyncio.sleep(0.02)
    # when
    named = await user.get(path, params={"fieldSelector": "metadata.name=a"})
    other = await user.get(path, params={"fieldSelector": "metadata.name=b"})
    everything = await user.get(path)
    # then
    assert [named.status, other.status, everything.status] == [200, 403, 403]


async def test_items_of_built_in_lists_have_no_kind_and_custom_ones_do(admin: Client, apiserver: ApiServer) -> None:
    # when
    built_in = (await admin.get("/api/v1/namespaces", params={"limit": "1"})).body
    custom = (await admin.get("/apis/capsule.clastix.io/v1beta2/capsuleconfigurations")).body
    # then
    assert (built_in["kind"], custom["kind"]) == ("NamespaceList", "CapsuleConfigurationList")
    assert "kind" not in built_in["items"][0]
    items: list[Object] = custom["items"]
    assert all(item["kind"] == "CapsuleConfiguration" for item in items)
