"""Server-side apply: owners, conflicts, what goes when it is no longer applied, and lists merged by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.contracts import Object
from tether.devcluster.fieldsets import (
    BuiltInShape,
    SchemaShape,
    flatten,
    from_fields,
    merge,
    remove,
    to_fields,
    written,
)

if TYPE_CHECKING:
    from tests.kubeapi import Client
    from tether.devcluster.api import EmbeddedApi

CM = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


def _config_map(labels: dict[str, str] | None = None, **data: str) -> Object:
    meta: Object = {"name": "a"} | ({"labels": labels} if labels else {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def _owners(obj: Object) -> dict[tuple[str, str], Object]:
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


async def test_apply_creates_what_is_not_there(client: Client) -> None:
    # when
    made = await client.apply(f"{CM}/a", _config_map(k="1"), "one")
    # then
    assert made.status == 201
    assert _owners(made.body) == {("one", "Apply"): {"f:data": {"f:k": {}}}}
    entry = made.body["metadata"]["managedFields"][0]
    assert (entry["apiVersion"], entry["fieldsType"]) == ("v1", "FieldsV1")


async def test_the_same_apply_again_changes_nothing(client: Client) -> None:
    # given
    first = (await client.apply(f"{CM}/a", _config_map(k="1"), "one")).body
    # when
    again = await client.apply(f"{CM}/a", _config_map(k="1"), "one")
    # then
    assert (again.status, again.body) == (200, first)


async def test_another_manager_conflicts_over_a_value_and_may_force(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1", other="x"), "one")
    # when
    refused = await client.apply(f"{CM}/a", _config_map(k="2"), "two")
    # then
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")
    assert refused.body["message"] == 'Apply failed with 1 conflict: conflict with "one": .data.k'
    assert refused.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.k"}
    ]
    # when
    forced = await client.apply(f"{CM}/a", _config_map(k="2"), "two", force="true")
    # then
    assert forced.body["data"] == {"k": "2", "other": "x"}
    assert _owners(forced.body) == {
        ("one", "Apply"): {"f:data": {"f:other": {}}},
        ("two", "Apply"): {"f:data": {"f:k": {}}},
    }


async def test_every_conflict_is_told(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1", l="1"), "one")
    await client.patch(f"{CM}/a", {"data": {"m": "1"}}, fieldManager="editor")
    # when
    refused = await client.apply(f"{CM}/a", _config_map(k="2", l="2", m="2"), "two")
    # then
    assert refused.body["message"] == (
        'Apply failed with 3 conflicts: conflicts with "editor" using v1:\n- .data.m\n'
        'conflicts with "one":\n- .data.k\n- .data.l'
    )


async def test_managers_share_a_field_of_the_same_value(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1"), "one")
    # when
    shared = await client.apply(f"{CM}/a", _config_map(k="1"), "two")
    left = await client.apply(f"{CM}/a", _config_map(), "one")
    gone = await client.apply(f"{CM}/a", _config_map(), "two")
    # then
    assert shared.status == 200
    assert left.body["data"] == {"k": "1"}
    assert "k" not in gone.body.get("data", {})


async def test_what_is_no_longer_applied_goes_and_what_others_wrote_stays(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map({"mine": "1"}, k="1", l="1"), "one")
    await client.patch(f"{CM}/a", {"metadata": {"labels": {"theirs": "1"}}}, fieldManager="editor")
    # when
    applied = (await client.apply(f"{CM}/a", _config_map(k="1"), "one")).body
    # then
    assert applied["data"] == {"k": "1"}
    assert applied["metadata"]["labels"] == {"theirs": "1"}


async def test_an_update_takes_ownership_of_what_it_changes(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1", l="1"), "one")
    # when
    patched = (await client.patch(f"{CM}/a", {"data": {"k": "2"}}, fieldManager="editor")).body
    # then
    assert _owners(patched) == {
        ("one", "Apply"): {"f:data": {"f:l": {}}},
        ("editor", "Update"): {"f:data": {"f:k": {}}},
    }


async def test_a_field_that_an_update_removes_has_no_owner(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1", l="1"), "one")
    # when
    patched = (await client.patch(f"{CM}/a", {"data": {"k": None}}, fieldManager="editor")).body
    # then
    assert _owners(patched) == {("one", "Apply"): {"f:data": {"f:l": {}}}}


async def test_the_user_agent_names_a_manager_that_is_not_given(client: Client) -> None:
    # when
    made = await client.post(CM, _config_map(k="1"), headers={"User-Agent": "kubectl/v1.32 (linux)"})
    # then
    assert list(_owners(made.body)) == [("kubectl", "Update")]


async def test_an_object_without_owners_conflicts_as_a_whole(client: Client, api: EmbeddedApi) -> None:
    # given -- made beside the API, as controllers do
    kind = api.store.resource("", "configmaps")
    assert kind is not None
    api.store.create(kind, {"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "1"}})
    # when
    refused = await client.apply(f"{CM}/a", _config_map(k="2"), "one")
    # then
    assert refused.status == 409
    assert '"before-first-apply" using v1: .data.k' in refused.body["message"]


@pytest.mark.parametrize(
    ("body", "params", "code", "words"),
    [
        (_config_map(), {"fieldManager": ""}, 422, "fieldManager: Required value: is required for apply patch"),
        ({"metadata": {"name": "a"}}, {}, 400, "must state apiVersion and kind"),
        (_config_map() | {"metadata": {"name": "a", "managedFields": [{}]}}, {}, 400, "managedFields must be nil"),
        (_config_map() | {"metadata": {"name": "a", "uid": "x"}}, {}, 409, "uid mismatch"),
        (_config_map() | {"metadata": {"name": "b"}}, {}, 400, "does not match the name on the URL"),
        ([], {}, 400, "must be an object"),
    ],
)
async def test_an_apply_that_makes_no_sense_is_refused(
    client: Client, body: Any, params: dict[str, str], code: int, words: str
) -> None:
    # when
    refused = await client.patch(f"{CM}/a", body, "apply-patch+yaml", **({"fieldManager": "one"} | params))
    # then
    assert refused.status == code
    assert words in refused.body["message"]


async def test_an_apply_with_the_uid_of_another_object_is_refused(client: Client) -> None:
    # given
    await client.apply(f"{CM}/a", _config_map(k="1"), "one")
    # when
    body = _config_map(k="2") | {"metadata": {"name": "a", "uid": "other"}}
    refused = await client.apply(f"{CM}/a", body, "one")
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert "metadata.uid" in refused.body["message"]


async def test_an_apply_that_would_create_needs_the_right_to_create(client: Client) -> None:
    # given -- jane may patch and get, and not create
    base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    rule = {"verbs": ["get", "patch"], "apiGroups": [""], "resources": ["configmaps"]}
    await client.post(f"{base}/roles", {"metadata": {"name": "r"}, "rules": [rule]})
    binding = {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "jane"}]}
    await client.post(f"{base}/rolebindings", {"metadata": {"name": "r"}} | binding)
    headers = {"Impersonate-User": "jane", "Content-Type": "application/apply-patch+yaml"}
    # when
    refused = await client.request(
        "PATCH", f"{CM}/a", json=_config_map(k="1"), params={"fieldManager": "one"}, headers=headers
    )
    # then
    assert refused.status == 403
    assert 'cannot create resource "configmaps"' in refused.body["message"]


async def test_containers_are_owned_one_by_one(client: Client) -> None:
    # given
    def pod(*containers: Object) -> Object:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": list(containers)}}

    await client.apply(f"{PODS}/a", pod({"name": "x", "image": "1"}), "one")
    # when
    both = (await client.apply(f"{PODS}/a", pod({"name": "y", "image": "1"}), "two")).body
    refused = await client.apply(f"{PODS}/a", pod({"name": "x", "image": "2"}), "two")
    gone = (await client.apply(f"{PODS}/a", pod(), "one")).body
    # then
    assert [container["name"] for container in both["spec"]["containers"]] == ["x", "y"]
    assert '.spec.containers[name="x"].image' in refused.body["message"]
    assert [container["name"] for container in gone["spec"]["containers"]] == ["y"]


async def test_an_item_that_somebody_else_changed_keeps_its_name(client: Client) -> None:
    # given
    whole: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    await client.apply(f"{PODS}/a", whole | {"spec": {"containers": [{"name": "x", "image": "1", "tty": True}]}}, "one")
    edit = {"spec": {"containers": [{"name": "x", "image": "2"}]}}
    await client.patch(f"{PODS}/a", edit, "strategic-merge-patch+json", fieldManager="editor")
    # when
    left = (await client.apply(f"{PODS}/a", whole | {"spec": {"containers": []}}, "one")).body
    # then
    assert left["spec"]["containers"] == [{"name": "x", "image": "2"}]


async def test_finalizers_and_owners_are_owned_one_by_one(client: Client) -> None:
    # given
    def held(finalizer: str) -> Object:
        return _config_map() | {"metadata": {"name": "a", "finalizers": [f"example.org/{finalizer}"]}}

    await client.apply(f"{CM}/a", held("one"), "one")
    # when
    both = (await client.apply(f"{CM}/a", held("two"), "two")).body
    left = (await client.apply(f"{CM}/a", _config_map(), "one")).body
    # then
    assert both["metadata"]["finalizers"] == ["example.org/one", "example.org/two"]
    assert left["metadata"]["finalizers"] == ["example.org/two"]


async def test_a_dry_run_of_an_apply_shows_and_stores_nothing(client: Client) -> None:
    # given
    first = (await client.apply(f"{CM}/a", _config_map(k="1"), "one")).body
    # when
    tried = await client.apply(f"{CM}/a", _config_map(k="2"), "one", dryRun="All")
    # then
    assert tried.body["data"] == {"k": "2"}
    assert (await client.get(f"{CM}/a")).body == first


_FIELDS = st.recursive(
    st.integers(0, 2) | st.text(max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.sampled_from("abcd"), _FIELDS, max_size=4)
_FREE = SchemaShape({})


@given(_OBJECTS)
def test_a_set_of_fields_is_read_as_it_was_written(obj: Object) -> None:
    # given
    paths = set(flatten(_FREE, obj)) - {()}
    # then
    assert from_fields(to_fields(paths)) == paths


@given(_OBJECTS, _OBJECTS)
def test_a_merge_holds_all_that_was_applied(live: Object, applied: Object) -> None:
    # when
    merged = merge(_FREE, live, applied)
    # then
    values = flatten(_FREE, merged)
    for path, value in flatten(_FREE, applied).items():
        assert value == {} or values[path] == value
    assert merge(_FREE, merged, applied) == merged


@given(_OBJECTS)
def test_removing_every_field_leaves_nothing(obj: Object) -> None:
    # when
    left: Any = obj
    for path in set(flatten(_FREE, obj)) - {()}:
        left = remove(_FREE, left, path)
    # then
    assert not left


def test_ports_are_known_by_number_and_protocol() -> None:
    # given
    obj = {"ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]}
    # when
    paths = set(flatten(BuiltInShape(), obj))
    # then
    assert ("f:ports", 'k:{"containerPort":80,"protocol":"TCP"}') in paths
    assert ("f:ports", 'k:{"containerPort":80,"protocol":"UDP"}', "f:protocol") in paths


def test_a_list_with_repeated_keys_is_one_value() -> None:
    # when
    paths = set(flatten(BuiltInShape(), {"containers": [{"name": "a"}, {"name": "a"}]}))
    # then
    assert paths == {("f:containers",)}


def test_a_schema_says_how_its_lists_merge() -> None:
    # given
    items: Object = {"type": "object"}
    by_key: Object = {"type": "array", "items": items, "x-kubernetes-list-type": "map"}
    schema: Object = {
        "properties": {
            "byKey": by_key | {"x-kubernetes-list-map-keys": ["id"]},
            "values": {"type": "array", "x-kubernetes-list-type": "set"},
            "whole": {"type": "array", "items": items},
        }
    }
    shape = SchemaShape(schema)
    live: Object = {"byKey": [{"id": 1, "a": 1}], "values": ["x"], "whole": [1, 2]}
    # when
    merged = merge(shape, live, {"byKey": [{"id": 1, "b": 2}, {"id": 2}], "values": ["y"], "whole": [3]})
    # then
    assert merged == {"byKey": [{"id": 1, "a": 1, "b": 2}, {"id": 2}], "values": ["x", "y"], "whole": [3]}


def test_a_path_is_written_as_conflicts_name_it() -> None:
    assert written(("f:spec", "f:containers", 'k:{"name":"a"}', "f:image")) == '.spec.containers[name="a"].image'
    assert written(("f:metadata", "f:finalizers", 'v:"x"')) == '.metadata.finalizers[="x"]'
