"""The HTTPS side: create, read, update, delete, and every refusal with kube-apiserver's code, reason and words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tether.devcluster.contracts import Object
from tether.devcluster.resources import CONFIG_MAPS

if TYPE_CHECKING:
    from tests.kubeapi import Client
    from tether.devcluster.api import EmbeddedApi

NS = "/api/v1/namespaces"
CM = f"{NS}/default/configmaps"
SECRETS = f"{NS}/default/secrets"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"


def _config_map(name: str = "a", **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_an_object_is_created_read_replaced_and_deleted(client: Client) -> None:
    # when
    made = await client.post(CM, _config_map(k="1"))
    # then
    assert made.status == 201
    assert made.body["metadata"]["namespace"] == "default"
    # when
    replaced = await client.put(f"{CM}/a", made.body | {"data": {"k": "2"}})
    # then
    assert replaced.status == 200
    assert (await client.get(f"{CM}/a")).body == replaced.body
    # when
    deleted = await client.delete(f"{CM}/a")
    # then
    assert (deleted.status, deleted.body["kind"], deleted.body["status"]) == (200, "Status", "Success")
    assert deleted.body["details"]["uid"] == made.body["metadata"]["uid"]
    gone = await client.get(f"{CM}/a")
    assert gone.status == 404
    assert gone.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'configmaps "a" not found',
        "reason": "NotFound",
        "details": {"name": "a", "kind": "configmaps"},
        "code": 404,
    }


async def test_a_list_names_its_kind_and_its_built_in_items_do_not(client: Client) -> None:
    # given
    await client.post(CM, _config_map(k="1"))
    # when
    listed = await client.get(CM)
    # then
    assert (listed.body["kind"], listed.body["apiVersion"]) == ("ConfigMapList", "v1")
    assert listed.body["metadata"]["resourceVersion"].isdigit()
    assert all("kind" not in item for item in listed.body["items"])


async def test_an_old_resource_version_is_a_conflict(client: Client) -> None:
    # given
    made = (await client.post(CM, _config_map(k="1"))).body
    await client.put(f"{CM}/a", made | {"data": {"k": "2"}})
    # when
    late = await client.put(f"{CM}/a", made | {"data": {"k": "3"}})
    # then
    assert (late.status, late.body["reason"]) == (409, "Conflict")
    assert late.body["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to '
        "the latest version and try again"
    )


async def test_an_update_without_a_version_is_unconditional(client: Client) -> None:
    # given
    await client.post(CM, _config_map(k="1"))
    # when
    replaced = await client.put(f"{CM}/a", _config_map(k="2"))
    # then
    assert (replaced.status, replaced.body["data"]) == (200, {"k": "2"})


async def test_preconditions_of_a_delete_are_kept(client: Client) -> None:
    # given
    made = (await client.post(CM, _config_map())).body
    # when
    refused = await client.delete(f"{CM}/a", json={"preconditions": {"uid": "other"}})
    allowed = await client.delete(f"{CM}/a", json={"preconditions": {"uid": made["metadata"]["uid"]}})
    # then
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")
    assert "UID in precondition: other" in refused.body["message"]
    assert allowed.status == 200


async def test_a_dry_run_answers_and_stores_nothing(client: Client) -> None:
    # when
    made = await client.post(f"{CM}?dryRun=All", _config_map())
    # then
    assert made.status == 201
    assert made.body["metadata"]["uid"]
    assert (await client.get(f"{CM}/a")).status == 404


async def test_a_collection_is_deleted_by_selector(client: Client) -> None:
    # given
    for name, label in [("a", "x"), ("b", "x"), ("c", "y")]:
        body = _config_map(name)
        body["metadata"]["labels"] = {"l": label}
        await client.post(CM, body)
    # when
    deleted = await client.delete(CM, params={"labelSelector": "l=x"})
    # then
    assert deleted.status == 200
    left = await client.get(CM, params={"labelSelector": "l"})
    assert [item["metadata"]["name"] for item in left.body["items"]] == ["c"]


@pytest.mark.parametrize(("policy", "stays"), [("Orphan", True), ("Foreground", False), ("Background", False)])
async def test_dependents_go_or_stay_as_asked(client: Client, api: EmbeddedApi, policy: str, stays: bool) -> None:
    # given
    owner = (await client.post(CM, _config_map("owner"))).body
    child = _config_map("child")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    child["metadata"]["ownerReferences"] = [reference]
    await client.post(CM, child)
    # when
    changes = api.store.watch(CONFIG_MAPS, api.store.version)
    await client.delete(f"{CM}/owner", json={"propagationPolicy": policy})
    # then
    gone: list[str] = []
    async with asyncio.timeout(20):
        while gone != (["owner"] if stays else ["child", "owner"]):
            change = await anext(changes)
            if change.type == "DELETED":
                gone = sorted([*gone, change.obj["metadata"]["name"]])
    kept = await client.get(f"{CM}/child")
    assert kept.status == (200 if stays else 404)
    assert not kept.body["metadata"].get("ownerReferences")


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        (CM, {"metadata": {}}, 422, "metadata.name: Required value: name or generateName is required"),
        (CM, {"metadata": {"name": "A_b"}}, 422, 'metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain'),
        (NS, {"metadata": {"name": "a.b"}}, 422, "a lowercase RFC 1123 label"),
        (NS, {"metadata": {"name": "a" * 64}}, 422, "must be no more than 63 bytes"),
        (CM, {"metadata": {"name": "a", "labels": {"k": "v v"}}}, 422, "metadata.labels: Invalid value"),
        (CM, {"metadata": {"name": "a", "labels": {"k k": "v"}}}, 422, "metadata.labels: Invalid value"),
        (CM, {"metadata": {"name": "a", "finalizers": ["a b"]}}, 422, "metadata.finalizers: Invalid value"),
        (CM, {"metadata": {"name": "a", "ownerReferences": [{}]}}, 422, "uid must not be empty"),
        (CM, {"metadata": {"name": "a", "namespace": "other"}}, 400, "does not match the namespace"),
        (CM, {"kind": "Secret", "metadata": {"name": "a"}}, 400, "Kind=ConfigMap"),
        (CM, {"metadata": []}, 400, "cannot be handled as a ConfigMap"),
        (CM, {"metadata": {"name": "a", "labels": {"k": 1}}}, 400, "Expected `str`, got `int`"),
        (CM, {"metadata": {"name": "a"}, "data": {"k": 1}}, 400, "Expected `str`, got `int`"),
        (f"{NS}/nowhere/configmaps", {"metadata": {"name": "a"}}, 404, 'namespaces "nowhere" not found'),
        (SECRETS, {"metadata": {"name": "a"}, "data": {"k": "%"}}, 400, "base64"),
        (SECRETS, {"metadata": {"name": "a"}, "data": {"k/k": ""}}, 422, "a valid config key"),
        (
            SECRETS,
            {"metadata": {"name": "a"}, "type": "kubernetes.io/service-account-token"},
            422,
            "metadata.annotations[kubernetes.io/service-account.name]: Required value",
        ),
        (f"{ROLES}/roles", {"metadata": {"name": "a/b"}}, 422, "may not contain '/' or '%'"),
        (f"{ROLES}/roles", {"metadata": {"name": "a"}, "rules": [{}]}, 422, "rules[0].verbs: Required value"),
        (f"{ROLES}/rolebindings", {"metadata": {"name": "a"}}, 422, "roleRef.name: Required value"),
        (
            f"{ROLES}/rolebindings",
            {
                "metadata": {"name": "a"},
                "roleRef": {"kind": "Role", "name": "r"},
                "subjects": [{"kind": "X", "name": "x"}],
            },
            422,
            "subjects[0].kind: Unsupported value",
        ),
    ],
)
async def test_an_object_that_cannot_be_is_refused_in_words(
    client: Client, path: str, body: Object, code: int, words: str
) -> None:
    # when
    refused = await client.post(path, body)
    # then
    assert (refused.status, refused.body["kind"], refused.body["code"]) == (code, "Status", code)
    assert words in refused.body["message"]


async def test_every_cause_of_an_invalid_object_is_told(client: Client) -> None:
    # when
    refused = await client.post(CM, {"metadata": {"name": "A", "finalizers": ["a b"]}})
    # then
    fields = [cause["field"] for cause in refused.body["details"]["causes"]]
    assert fields == ["metadata.name", "metadata.finalizers"]
    assert refused.body["message"].startswith('ConfigMap "A" is invalid: [metadata.name')


@pytest.mark.parametrize(
    ("path", "kind", "first", "second", "words"),
    [
        (SECRETS, "Secret", {"type": "a"}, {"type": "b"}, "type: Invalid value"),
        (SECRETS, "Secret", {"immutable": True, "data": {}}, {"immutable": True, "data": {"k": ""}}, "data: Forbidden"),
        (CM, "ConfigMap", {"immutable": True}, {"immutable": False}, "immutable: Forbidden"),
        (
            f"{ROLES}/rolebindings",
            "RoleBinding",
            {"roleRef": {"kind": "ClusterRole", "name": "view"}},
            {"roleRef": {"kind": "ClusterRole", "name": "edit"}},
            "cannot change roleRef",
        ),
    ],
)
async def test_what_may_not_change_is_refused(
    client: Client, path: str, kind: str, first: Object, second: Object, words: str
) -> None:
    # given
    meta: Object = {"kind": kind, "metadata": {"name": "a"}}
    assert (await client.post(path, meta | first)).status == 201
    # when
    refused = await client.put(f"{path}/a", meta | second)
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert words in refused.body["message"]


async def test_a_deleting_object_takes_no_new_finalizer(client: Client) -> None:
    # given
    body = _config_map()
    body["metadata"]["finalizers"] = ["example.org/a"]
    await client.post(CM, body)
    await client.delete(f"{CM}/a")
    # when
    refused = await client.patch(f"{CM}/a", {"metadata": {"finalizers": ["example.org/a", "example.org/b"]}})
    freed = await client.patch(f"{CM}/a", {"metadata": {"finalizers": None}})
    # then
    assert refused.status == 422
    assert "no new finalizers can be added" in refused.body["message"]
    assert freed.status == 200
    assert (await client.get(f"{CM}/a")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "code", "reason"),
    [
        ("GET", "/apis/example.org/v1/widgets", 404, "NotFound"),
        ("GET", "/api/v1/widgets", 404, "NotFound"),
        ("GET", "/nope", 404, "NotFound"),
        ("GET", f"{CM}/a/status", 404, "NotFound"),
        ("POST", "/api/v1/configmaps", 405, "MethodNotAllowed"),
        ("PUT", CM, 405, "MethodNotAllowed"),
        ("POST", f"{CM}/a", 405, "MethodNotAllowed"),
        ("POST", "/version", 404, "NotFound"),
        ("GET", f"{CM}?limit=x", 400, "BadRequest"),
        ("GET", f"{CM}?watch=perhaps", 400, "BadRequest"),
        ("GET", f"{CM}?continue=x", 400, "BadRequest"),
        ("GET", f"{CM}?resourceVersion=x", 400, "BadRequest"),
        ("GET", f"{CM}?labelSelector=a%20b", 400, "BadRequest"),
        ("GET", f"{CM}?fieldSelector=data.x%3D1", 400, "BadRequest"),
        ("GET", f"{CM}?resourceVersion=999999", 504, "Timeout"),
        ("DELETE", f"{CM}/nope", 404, "NotFound"),
        ("DELETE", "/api/v1/namespaces/kube-system", 403, "Forbidden"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    client: Client, method: str, path: str, code: int, reason: str
) -> None:
    # when
    refused = await client.request(method, path)
    # then
    assert (refused.status, refused.body["kind"], refused.body["reason"]) == (code, "Status", reason)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("json", 415), ("strategic-merge-patch+json", 200), ("merge-patch+json", 200), ("json-patch+json", 400)],
)
async def test_a_patch_is_of_a_known_type(client: Client, kind: str, code: int) -> None:
    # given
    await client.post(CM, _config_map(k="1"))
    # when
    answer = await client.patch(f"{CM}/a", {"data": {"k": "2"}}, kind)
    # then
    assert answer.status == code


async def test_a_patch_with_a_test_that_fails_changes_nothing(client: Client) -> None:
    # given
    made = (await client.post(CM, _config_map(k="1"))).body
    version = made["metadata"]["resourceVersion"]
    change = {"op": "replace", "path": "/data/k", "value": "2"}
    # when
    patch: Any = [{"op": "test", "path": "/metadata/resourceVersion", "value": "1"}, change]
    refused = await client.patch(f"{CM}/a", patch, "json-patch+json")
    patch = [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, change]
    allowed = await client.patch(f"{CM}/a", patch, "json-patch+json")
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert (allowed.status, allowed.body["data"]) == (200, {"k": "2"})


async def test_a_merge_patch_with_an_old_version_conflicts(client: Client) -> None:
    # given
    await client.post(CM, _config_map(k="1"))
    # when
    refused = await client.patch(f"{CM}/a", {"metadata": {"resourceVersion": "1"}, "data": {"k": "2"}})
    # then
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")


async def test_credentials_that_are_wrong_are_401_and_none_are_403(stranger: Client) -> None:
    # when
    wrong = await stranger.get(CM, headers={"Authorization": "Bearer nonsense"})
    none = await stranger.get(CM)
    # then
    assert (wrong.status, wrong.body["reason"], wrong.body["message"]) == (401, "Unauthorized", "Unauthorized")
    assert (none.status, none.body["reason"]) == (403, "Forbidden")
    assert none.body["message"] == (
        'configmaps is forbidden: User "system:anonymous" cannot list resource "configmaps" in API group "" in the '
        'namespace "default"'
    )


async def test_a_name_in_the_field_selector_counts_for_resource_names(client: Client) -> None:
    # given
    role = {"metadata": {"name": "one"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]}
    role["rules"][0]["resourceNames"] = ["a"]  # type: ignore[index]  # a literal of mixed values
    await client.post(f"{ROLES}/roles", role)
    binding = {"roleRef": {"kind": "Role", "name": "one"}, "subjects": [{"kind": "User", "name": "jane"}]}
    await client.post(f"{ROLES}/rolebindings", {"metadata": {"name": "one"}} | binding)
    jane = {"Impersonate-User": "jane"}
    # when
    by_name = await client.get(CM, params={"fieldSelector": "metadata.name=a"}, headers=jane)
    of_all = await client.get(CM, headers=jane)
    # then
    assert (by_name.status, of_all.status) == (200, 403)


async def test_discovery_names_what_is_served(client: Client) -> None:
    # when
    groups = (await client.get("/apis")).body
    core = (await client.get("/api/v1")).body
    index = (await client.get("/openapi/v3")).body
    document = (await client.get(index["paths"]["apis/apps/v1"]["serverRelativeURL"])).body
    # then
    assert {"apps", "rbac.authorization.k8s.io"} <= {group["name"] for group in groups["groups"]}
    assert core["groupVersion"] == "v1"
    names = {row["name"]: row for row in core["resources"]}
    assert names["namespaces"]["shortNames"] == ["ns"]
    assert names["serviceaccounts/token"]["kind"] == "TokenRequest"
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert "fieldValidation" in {parameter["name"] for parameter in patch["parameters"]}


async def test_health_and_version_are_open_to_all(stranger: Client) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await stranger.get(path)).body == "ok"
    assert (await stranger.get("/version")).body["minor"] == "32"
