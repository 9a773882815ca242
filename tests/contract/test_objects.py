"""Objects: create, read, replace, patch, delete, and every refusal with its code, reason and causes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kubeapi import Client, Object, Reply

pytestmark = pytest.mark.xdist_group("contract")

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def config_maps(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps" + (f"/{name}" if name else "")


def failure(reply: Reply) -> tuple[int, str]:
    """Return code and reason of a ``metav1.Status`` of failure."""
    assert (reply.body["kind"], reply.body["status"]) == ("Status", "Failure")
    assert reply.body["code"] == reply.status
    return reply.status, reply.body.get("reason", "")


async def test_an_object_is_made_read_replaced_and_deleted(admin: Client, namespace: str) -> None:
    # when
    made = await admin.post(config_maps(namespace), {"metadata": {"name": "a"}, "data": {"k": "1"}})
    read = await admin.get(config_maps(namespace, "a"))
    replaced = await admin.put(config_maps(namespace, "a"), read.body | {"data": {"k": "2"}})
    deleted = await admin.delete(config_maps(namespace, "a"))
    after = await admin.get(config_maps(namespace, "a"))
    # then
    assert [reply.status for reply in (made, read, replaced, deleted)] == [201, 200, 200, 200]
    assert (made.body["kind"], made.body["apiVersion"]) == ("ConfigMap", "v1")
    assert {"uid", "resourceVersion", "creationTimestamp", "managedFields"} <= set(made.body["metadata"])
    assert int(replaced.body["metadata"]["resourceVersion"]) > int(made.body["metadata"]["resourceVersion"])
    assert (deleted.body["kind"], deleted.body["status"]) == ("Status", "Success")
    assert deleted.body["details"] == {"name": "a", "kind": "configmaps", "uid": made.body["metadata"]["uid"]}
    assert failure(after) == (404, "NotFound")
    assert after.body["message"] == 'configmaps "a" not found'
    assert after.body["details"] == {"name": "a", "kind": "configmaps"}


async def test_a_namespace_or_account_that_is_deleted_is_the_answer(admin: Client, namespace: str) -> None:
    # given
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    await admin.post(accounts, {"metadata": {"name": "a"}})
    # when
    account = await admin.delete(f"{accounts}/a")
    gone = await admin.delete(f"/api/v1/namespaces/{namespace}")
    # then
    assert (account.status, account.body["kind"]) == (200, "ServiceAccount")
    assert (gone.status, gone.body["kind"], gone.body["status"]["phase"]) == (200, "Namespace", "Terminating")


async def test_what_exists_already_is_a_conflict(admin: Client, namespace: str) -> None:
    # given
    await admin.post(config_maps(namespace), {"metadata": {"name": "a"}})
    # when
    again = await admin.post(config_maps(namespace), {"metadata": {"name": "a"}})
    # then
    assert failure(again) == (409, "AlreadyExists")
    assert again.body["message"] == 'configmaps "a" already exists'


async def test_a_stale_write_is_a_conflict(admin: Client, namespace: str) -> None:
    # given
    old = (await admin.post(config_maps(namespace), {"metadata": {"name": "a"}})).body
    await admin.patch(config_maps(namespace, "a"), {"data": {"k": "1"}})
    stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "data": {"k": "2"}}
    # when
    replies = [
        await admin.put(config_maps(namespace, "a"), old | {"data": {"k": "2"}}),
        await admin.patch(config_maps(namespace, "a"), stale),
    ]
    # then
    for reply in replies:
        assert failure(reply) == (409, "Conflict")
        assert "the object has been modified" in reply.body["message"]


async def test_a_json_patch_with_a_test_that_fails_changes_nothing(admin: Client, namespace: str) -> None:
    # given
    await admin.post(config_maps(namespace), {"metadata": {"name": "a"}, "data": {"k": "1"}})
    patch = [
        {"op": "test", "path": "/data/k", "value": "2"},
        {"op": "replace", "path": "/data/k", "value": "3"},
    ]
    # when
    refused = await admin.patch(config_maps(namespace, "a"), patch, "json-patch+json")
    # then
    assert failure(refused) == (422, "Invalid")
    assert (await admin.get(config_maps(namespace, "a"))).body["data"] == {"k": "1"}


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("merge-patch+json", {"data": {"k": None, "l": "2"}}),
        ("strategic-merge-patch+json", {"data": {"k": None, "l": "2"}}),
        ("json-patch+json", [{"op": "remove", "path": "/data/k"}, {"op": "add", "path": "/data/l", "value": "2"}]),
    ],
)
async def test_three_patches_do_the_same(admin: Client, namespace: str, kind: str, patch: Any) -> None:
    # given
    await admin.post(config_maps(namespace), {"metadata": {"name": "a"}, "data": {"k": "1"}})
    # when
    patched = await admin.patch(config_maps(namespace, "a"), patch, kind)
    # then
    assert (patched.status, patched.body["data"]) == (200, {"l": "2"})


async def test_a_patch_that_changes_nothing_keeps_the_version(admin: Client, namespace: str) -> None:
    # given
    made = (await admin.post(config_maps(namespace), {"metadata": {"name": "a"}, "data": {"k": "1"}})).body
    # when
    patched = (await admin.patch(config_maps(namespace, "a"), {"data": {"k": "1"}})).body
    # then
    assert patched["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_a_name_that_cannot_be_is_invalid_with_its_cause(admin: Client, namespace: str) -> None:
    # when
    refused = await admin.post(config_maps(namespace), {"metadata": {"name": "Not_A_Name"}})
    # then
    assert failure(refused) == (422, "Invalid")
    causes = refused.body["details"]["causes"]
    assert [(cause["reason"], cause["field"]) for cause in causes] == [("FieldValueInvalid", "metadata.name")]


async def test_every_cause_is_told_at_once(admin: Client, namespace: str) -> None:
    # given
    body = {"metadata": {"name": "b", "labels": {"a b": "x"}}, "data": {"bad key": "1"}}
    # when
    refused = await admin.post(config_maps(namespace), body)
    # then
    assert failure(refused) == (422, "Invalid")
    fields = {cause["field"] for cause in refused.body["details"]["causes"]}
    assert fields == {"metadata.labels", "data[bad key]"}


async def test_a_role_reference_and_an_immutable_secret_cannot_change(admin: Client, namespace: str) -> None:
    # given
    bindings = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    await admin.post(bindings, {"metadata": {"name": "b"}, "roleRef": reference})
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    await admin.post(secrets, {"metadata": {"name": "s"}, "immutable": True, "data": {"k": "MQ=="}})
    await admin.post(secrets, {"metadata": {"name": "t"}, "type": "Opaque"})
    # when
    refused = [
        await admin.patch(f"{bindings}/b", {"roleRef": {"name": "edit"}}),
        await admin.patch(f"{secrets}/s", {"data": {"k": "Mg=="}}),
        await admin.patch(f"{secrets}/t", {"type": "example.org/other"}),
    ]
    # then
    assert [failure(reply) for reply in refused] == [(422, "Invalid")] * 3
    fields = [reply.body["details"]["causes"][0]["field"] for reply in refused]
    assert fields == ["roleRef", "data", "type"]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}},
        {"metadata": {"name": "a", "namespace": "default"}},
        {"metadata": {"name": "a"}, "data": "not an object"},
    ],
)
async def test_a_body_that_does_not_fit_the_request_is_a_bad_request(
    admin: Client, namespace: str, body: Object
) -> None:
    assert failure(await admin.post(config_maps(namespace), body)) == (400, "BadRequest")


async def test_a_broken_body_or_selector_is_a_bad_request(admin: Client, namespace: str) -> None:
    # when
    headers = {"Content-Type": "application/json"}
    broken = await admin.request("POST", config_maps(namespace), data=b"{", headers=headers)
    selected = await admin.get(config_maps(namespace), params={"labelSelector": "a in ("})
    field = await admin.get(config_maps(namespace), params={"fieldSelector": "data.k=1"})
    # then
    assert [failure(reply) for reply in (broken, selected, field)] == [(400, "BadRequest")] * 3


async def test_a_method_or_media_type_that_is_not_known_is_refused(admin: Client, namespace: str) -> None:
    # when
    method = await admin.post(config_maps(namespace, "a"), {"metadata": {"name": "a"}})
    media = await admin.request("PATCH", config_maps(namespace, "a"), data=b"{}", headers={"Content-Type": "text/x"})
    # then
    assert failure(method) == (405, "MethodNotAllowed")
    assert failure(media) == (415, "UnsupportedMediaType")


async def test_nothing_is_made_in_a_namespace_that_is_not_there(admin: Client, name: str) -> None:
    # when
    refused = await admin.post(config_maps(name), {"metadata": {"name": "a"}})
    # then
    assert failure(refused) == (404, "NotFound")
    assert refused.body["message"] == f'namespaces "{name}" not found'


async def test_a_generated_name_is_new_each_time(admin: Client, namespace: str) -> None:
    # when
    made = [await admin.post(config_maps(namespace), {"metadata": {"generateName": "a-"}}) for _ in range(2)]
    # then
    names = {reply.body["metadata"]["name"] for reply in made}
    assert len(names) == 2
    assert all(name.startswith("a-") and len(name) == len("a-") + 5 for name in names)


async def test_a_dry_run_answers_and_keeps_nothing(admin: Client, namespace: str) -> None:
    # given
    dry = {"dryRun": "All"}
    await admin.post(config_maps(namespace), {"metadata": {"name": "there"}})
    # when
    made = await admin.post(config_maps(namespace), {"metadata": {"name": "a"}}, params=dry)
    changed = await admin.patch(config_maps(namespace, "there"), {"data": {"k": "1"}}, dryRun="All")
    deleted = await admin.delete(config_maps(namespace, "there"), params=dry)
    # then
    assert [made.status, changed.status, deleted.status] == [201, 200, 200]
    assert changed.body["data"] == {"k": "1"}
    assert (await admin.get(config_maps(namespace, "a"))).status == 404
    assert "data" not in (await admin.get(config_maps(namespace, "there"))).body


async def test_the_preconditions_of_a_delete_are_kept(admin: Client, namespace: str) -> None:
    # given
    made = (await admin.post(config_maps(namespace), {"metadata": {"name": "a"}})).body["metadata"]
    # when
    refused = [
        await admin.delete(config_maps(namespace, "a"), json={"preconditions": wanted})
        for wanted in ({"uid": "another"}, {"resourceVersion": "1"})
    ]
    deleted = await admin.delete(config_maps(namespace, "a"), json={"preconditions": {"uid": made["uid"]}})
    # then
    assert [failure(reply) for reply in refused] == [(409, "Conflict")] * 2
    assert deleted.status == 200


async def test_a_collection_is_deleted_by_selector(admin: Client, namespace: str) -> None:
    # given
    for name, tier in (("a", "x"), ("b", "x"), ("c", "y")):
        await admin.post(config_maps(namespace), {"metadata": {"name": name, "labels": {"tier": tier}}})
    # when
    await admin.delete(config_maps(namespace), params={"labelSelector": "tier=x"})
    # then
    assert await admin.names(config_maps(namespace), labelSelector="tier") == ["c"]


async def test_an_unknown_field_is_dropped_or_refused_as_asked(admin: Client, namespace: str) -> None:
    # given
    body = {"metadata": {"name": "a"}, "nosuchfield": 1}
    # when
    refused = await admin.post(config_maps(namespace), body, params={"fieldValidation": "Strict"})
    dropped = await admin.post(config_maps(namespace), body, params={"fieldValidation": "Ignore"})
    # then
    assert failure(refused) == (400, "BadRequest")
    assert "nosuchfield" in refused.body["message"]
    assert dropped.status == 201
    assert "nosuchfield" not in dropped.body


async def test_of_two_that_write_at_once_one_wins(admin: Client, namespace: str) -> None:
    # given
    old = (await admin.post(config_maps(namespace), {"metadata": {"name": "a"}})).body
    # when
    replies = await asyncio.gather(
        *(admin.put(config_maps(namespace, "a"), old | {"data": {"k": str(n)}}) for n in range(5))
    )
    # then
    assert sorted(reply.status for reply in replies) == [200, 409, 409, 409, 409]


async def test_stringdata_of_a_secret_becomes_data(admin: Client, namespace: str) -> None:
    # when
    made = await admin.post(
        f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "a"}, "stringData": {"k": "v"}}
    )
    # then
    assert (made.body["data"], made.body["type"]) == ({"k": "dg=="}, "Opaque")
    assert "stringData" not in made.body


async def test_status_is_written_by_its_own_path_alone(admin: Client, name: str, until: Any) -> None:
    # given
    path = f"{CRDS}/{name}s.example.org"
    await admin.post(CRDS, definition(name))
    things = f"/apis/example.org/v1/{name}s"

    async def served() -> bool:
        return (await admin.get(things)).status == 200

    await until(served)
    body = {"apiVersion": "example.org/v1", "kind": name.capitalize(), "metadata": {"name": "a"}}
    # when
    made = await admin.post(things, body | {"spec": {"size": 1, "free": 2}, "status": {"phase": "x"}})
    status = await admin.patch(f"{things}/a/status", {"spec": {"size": 9}, "status": {"phase": "y"}})
    changed = await admin.patch(f"{things}/a", {"spec": {"size": 2}})
    wrong = await admin.patch(f"{things}/a", {"spec": {"size": "big"}})
    strategic = await admin.patch(f"{things}/a", {}, "strategic-merge-patch+json")
    await admin.delete(path)
    # then
    assert made.status == 201, made
    assert "status" not in made.body
    assert made.body["spec"] == {"size": 1, "colour": "red"}  # pruned and defaulted
    assert (status.body["spec"]["size"], status.body["status"]) == (1, {"phase": "y"})
    assert [reply.body["metadata"]["generation"] for reply in (made, status, changed)] == [1, 1, 2]
    assert failure(wrong) == (422, "Invalid")
    assert strategic.status == 415


def definition(name: str) -> Object:
    """Return the definition of a cluster-scoped kind ``<Name>``."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer"}, "colour": {"type": "string", "default": "red"}},
            },
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "metadata": {"name": f"{name}s.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Cluster",
            "names": {"plural": f"{name}s", "kind": name.capitalize()},
            "versions": [version],
        },
    }
