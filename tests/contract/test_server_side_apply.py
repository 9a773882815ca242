"""Server-side apply: who owns which field, conflicts, force, removal, creation."""

from __future__ import annotations

import pytest

from tests.kubeapi import Client, Object, Reply

pytestmark = pytest.mark.xdist_group("contract")


@pytest.fixture
def config_map(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/a"


def _body(**data: str) -> Object:
    body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    return body | ({"data": data} if data else {})


def _owned(reply: Reply) -> dict[tuple[str, str], list[str]]:
    """Return the fields of ``data`` that each manager owns, by manager and operation."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in reply.body["metadata"]["managedFields"]:
        assert entry["fieldsType"] == "FieldsV1"
        fields = entry["fieldsV1"].get("f:data", {})
        found[entry["manager"], entry["operation"]] = sorted(key for key in fields if key != ".")
    return found


async def test_an_apply_makes_what_is_not_there_and_again_changes_nothing(admin: Client, config_map: str) -> None:
    # when
    made = await admin.apply(config_map, _body(k="1"), "one")
    again = await admin.apply(config_map, _body(k="1"), "one")
    # then
    assert (made.status, again.status) == (201, 200)
    assert again.body["metadata"]["resourceVersion"] == made.body["metadata"]["resourceVersion"]
    assert _owned(again) == {("one", "Apply"): ["f:k"]}


async def test_another_manager_meets_a_conflict_that_names_field_and_owner(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1", l="1"), "one")
    # when
    refused = await admin.apply(config_map, _body(k="2", l="2"), "two")
    # then
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")
    causes = refused.body["details"]["causes"]
    assert [(cause["reason"], cause["field"]) for cause in causes] == [
        ("FieldManagerConflict", ".data.k"),
        ("FieldManagerConflict", ".data.l"),
    ]
    assert all('conflict with "one"' in cause["message"] for cause in causes)


async def test_force_takes_the_field_from_its_owner(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1", l="1"), "one")
    # when
    forced = await admin.apply(config_map, _body(k="2"), "two", force="true")
    # then
    assert (forced.status, forced.body["data"]) == (200, {"k": "2", "l": "1"})
    assert _owned(forced) == {("one", "Apply"): ["f:l"], ("two", "Apply"): ["f:k"]}


async def test_a_value_that_is_agreed_on_is_owned_by_both(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1"), "one")
    # when
    shared = await admin.apply(config_map, _body(k="1"), "two")
    released = await admin.apply(config_map, _body(), "one")
    # then
    assert _owned(shared) == {("one", "Apply"): ["f:k"], ("two", "Apply"): ["f:k"]}
    assert released.body["data"] == {"k": "1"}


async def test_a_field_that_is_no_longer_applied_goes_and_others_stay(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1", l="1"), "one")
    await admin.patch(config_map, {"data": {"m": "1"}}, fieldManager="person")
    # when
    applied = await admin.apply(config_map, _body(k="1"), "one")
    # then
    assert applied.body["data"] == {"k": "1", "m": "1"}
    assert _owned(applied) == {("one", "Apply"): ["f:k"], ("person", "Update"): ["f:m"]}


async def test_an_update_takes_the_field_that_it_changes(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1", l="1"), "one")
    # when
    updated = await admin.patch(config_map, {"data": {"k": "2"}}, fieldManager="person")
    refused = await admin.apply(config_map, _body(k="1", l="1"), "one")
    # then
    assert _owned(updated) == {("one", "Apply"): ["f:l"], ("person", "Update"): ["f:k"]}
    assert refused.status == 409
    assert 'conflict with "person"' in refused.body["message"]


async def test_an_apply_needs_a_manager(admin: Client, config_map: str) -> None:
    # when
    refused = await admin.patch(config_map, _body(k="1"), "apply-patch+yaml")
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert refused.body["details"]["causes"][0]["field"] == "fieldManager"


async def test_a_write_with_the_uid_of_another_object_is_refused(admin: Client, config_map: str) -> None:
    # given
    body = _body(k="1")
    body["metadata"]["uid"] = "5a9ac3a6-6d94-4b2e-8a3c-1fb8a3a1a001"
    # when
    absent = await admin.apply(config_map, body, "one", force="true")
    await admin.apply(config_map, _body(k="1"), "one")
    other = await admin.apply(config_map, body, "one", force="true")
    patched = await admin.patch(config_map, body)
    put = await admin.put(config_map, body)
    # then
    replies = [(reply.status, reply.body["reason"]) for reply in (absent, other, patched, put)]
    assert replies == [(409, "Conflict"), (422, "Invalid"), (422, "Invalid"), (409, "Conflict")]
    assert {cause["field"] for cause in other.body["details"]["causes"]} == {"metadata.uid"}


async def test_an_apply_that_carries_managed_fields_is_a_bad_request(admin: Client, config_map: str) -> None:
    # given
    live = (await admin.apply(config_map, _body(k="1"), "one")).body
    # when
    refused = await admin.apply(config_map, _body(k="1") | {"metadata": live["metadata"]}, "one")
    # then
    assert (refused.status, refused.body["reason"]) == (400, "BadRequest")
    assert "managedFields must be nil" in refused.body["message"]


async def test_a_dry_run_shows_what_would_be(admin: Client, config_map: str) -> None:
    # given
    await admin.apply(config_map, _body(k="1"), "one")
    # when
    shown = await admin.apply(config_map, _body(k="2"), "one", dryRun="All")
    # then
    assert shown.body["data"] == {"k": "2"}
    assert (await admin.get(config_map)).body["data"] == {"k": "1"}


async def test_owner_references_and_finalizers_are_owned_one_by_one(admin: Client, config_map: str) -> None:
    # given
    one, two = _body(), _body()
    one["metadata"]["finalizers"] = ["example.org/one"]
    two["metadata"]["finalizers"] = ["example.org/two"]
    # when
    await admin.apply(config_map, one, "one")
    both = await admin.apply(config_map, two, "two")
    rest = await admin.apply(config_map, _body(), "one")
    # then
    assert sorted(both.body["metadata"]["finalizers"]) == ["example.org/one", "example.org/two"]
    assert rest.body["metadata"]["finalizers"] == ["example.org/two"]
    await admin.patch(config_map, {"metadata": {"finalizers": None}})


async def test_labels_are_shared_between_managers(admin: Client, config_map: str) -> None:
    # given
    one, two = _body(), _body()
    one["metadata"]["labels"] = {"a": "1"}
    two["metadata"]["labels"] = {"b": "2"}
    # when
    await admin.apply(config_map, one, "one")
    await admin.apply(config_map, two, "two")
    rest = await admin.apply(config_map, _body(), "one")
    # then
    assert rest.body["metadata"]["labels"] == {"b": "2"}


async def test_rules_and_subjects_are_one_value(admin: Client, namespace: str) -> None:
    # given
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/r"

    def body(*verbs: str) -> Object:
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]} for verb in verbs]
        api_version = "rbac.authorization.k8s.io/v1"
        return {"apiVersion": api_version, "kind": "Role", "metadata": {"name": "r"}, "rules": rules}

    await admin.apply(path, body("get"), "one")
    # when
    refused = await admin.apply(path, body("get", "list"), "two")
    # then
    assert refused.status == 409
    assert [cause["field"] for cause in refused.body["details"]["causes"]] == [".rules"]


async def test_a_custom_object_is_applied_by_its_schema(admin: Client, name: str) -> None:
    # given
    path = f"/apis/capsule.clastix.io/v1beta2/tenants/{name}"
    body = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "metadata": {"name": name}}
    owner = {"kind": "User", "name": f"{name}-owner"}
    # when
    made = await admin.apply(path, body | {"spec": {"owners": [owner]}}, "one")
    refused = await admin.apply(path, body | {"spec": {"owners": [owner | {"name": "other"}]}}, "two")
    # then
    assert made.status == 201
    assert made.body["spec"]["owners"][0]["clusterRoles"] == ["admin", "capsule-namespace-deleter"]
    assert refused.status == 409
    assert [cause["field"] for cause in refused.body["details"]["causes"]] == [".spec.owners"]
    await admin.delete(path)
