"""How things end: finalizers, owners that go, namespaces with what is in them, definitions with their objects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import Until
from tests.kubeapi import Client, Object

pytestmark = pytest.mark.xdist_group("contract")


@pytest.fixture
def config_maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


async def _make(admin: Client, path: str, name: str, **metadata: Any) -> Object:
    made = await admin.post(path, {"metadata": {"name": name, **metadata}})
    assert made.status == 201, made
    body: Object = made.body
    return body


def _owned_by(owner: Object, **more: Any) -> list[Object]:
    meta = owner["metadata"]
    return [{"apiVersion": "v1", "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"], **more}]


async def _gone(admin: Client, path: str) -> bool:
    return (await admin.get(path)).status == 404


async def test_an_object_waits_for_its_finalizers(admin: Client, config_maps: str) -> None:
    # given
    await _make(admin, config_maps, "a", finalizers=["example.org/hold"])
    # when
    deleted = await admin.delete(f"{config_maps}/a")
    held = await admin.get(f"{config_maps}/a")
    added = await admin.patch(f"{config_maps}/a", {"metadata": {"finalizers": ["example.org/hold", "example.org/new"]}})
    released = await admin.patch(f"{config_maps}/a", {"metadata": {"finalizers": None}})
    # then
    assert (deleted.status, deleted.body["kind"]) == (200, "ConfigMap")
    assert {"deletionTimestamp", "deletionGracePeriodSeconds"} <= set(held.body["metadata"])
    assert (added.status, added.body["details"]["causes"][0]["field"]) == (422, "metadata.finalizers")
    assert released.status == 200
    assert (await admin.get(f"{config_maps}/a")).status == 404


async def test_dependents_go_with_their_owner(admin: Client, config_maps: str, until: Until[bool]) -> None:
    # given
    owner = await _make(admin, config_maps, "owner")
    child = await _make(admin, config_maps, "child", ownerReferences=_owned_by(owner))
    await _make(admin, config_maps, "grandchild", ownerReferences=_owned_by(child))
    # when
    await admin.delete(f"{config_maps}/owner")
    # then
    await until(lambda: _gone(admin, f"{config_maps}/grandchild"))
    assert await _gone(admin, f"{config_maps}/child")


async def test_a_dependent_stays_while_one_owner_lives(admin: Client, config_maps: str, until: Until[bool]) -> None:
    # given
    owners = [await _make(admin, config_maps, name) for name in ("one", "two")]
    references = [reference for owner in owners for reference in _owned_by(owner)]
    await _make(admin, config_maps, "child", ownerReferences=references)
    # when
    await admin.delete(f"{config_maps}/one")

    async def forgotten() -> bool:
        child = (await admin.get(f"{config_maps}/child")).body
        return [one["name"] for one in child["metadata"]["ownerReferences"]] == ["two"]

    # then
    await until(forgotten)


async def test_an_owner_of_another_uid_is_no_owner(admin: Client, config_maps: str, until: Until[bool]) -> None:
    # given
    owner = await _make(admin, config_maps, "owner")
    await admin.delete(f"{config_maps}/owner")
    await _make(admin, config_maps, "owner")
    # when
    await _make(admin, config_maps, "child", ownerReferences=_owned_by(owner))
    # then
    await until(lambda: _gone(admin, f"{config_maps}/child"))


async def test_orphaned_dependents_stay_without_their_owner(
    admin: Client, config_maps: str, until: Until[bool]
) -> None:
    # given
    owner = await _make(admin, config_maps, "owner")
    await _make(admin, config_maps, "child", ownerReferences=_owned_by(owner))
    # when
    await admin.delete(f"{config_maps}/owner", params={"propagationPolicy": "Orphan"})
    await until(lambda: _gone(admin, f"{config_maps}/owner"))
    # then
    child = (await admin.get(f"{config_maps}/child")).body
    assert not child["metadata"].get("ownerReferences")


async def test_in_foreground_the_owner_goes_after_its_dependents(
    admin: Client, config_maps: str, until: Until[bool]
) -> None:
    # given
    owner = await _make(admin, config_maps, "owner")
    child = _owned_by(owner, blockOwnerDeletion=True)
    await _make(admin, config_maps, "child", ownerReferences=child, finalizers=["example.org/hold"])

    async def seen() -> bool:
        # The garbage collector learns of objects by its own watch, and an owner without known dependents goes at once.
        return "deletionTimestamp" in (await admin.get(f"{config_maps}/child")).body["metadata"]

    # when
    await admin.delete(f"{config_maps}/owner", params={"propagationPolicy": "Foreground"})
    await until(seen)
    waiting = (await admin.get(f"{config_maps}/owner")).body["metadata"]
    await admin.patch(f"{config_maps}/child", {"metadata": {"finalizers": None}})
    # then
    assert waiting["finalizers"] == ["foregroundDeletion"]
    await until(lambda: _gone(admin, f"{config_maps}/owner"))


async def test_a_namespace_goes_with_all_that_is_in_it(
    admin: Client, namespace: str, config_maps: str, until: Until[bool]
) -> None:
    # given
    await _make(admin, config_maps, "a", finalizers=["example.org/hold"])
    path = f"/api/v1/namespaces/{namespace}"
    # when
    await admin.delete(path)

    async def marked() -> bool:
        return "deletionTimestamp" in (await admin.get(f"{config_maps}/a")).body["metadata"]

    await until(marked)
    refused = await admin.post(config_maps, {"metadata": {"name": "late"}})
    there = await admin.get(path)
    await admin.patch(f"{config_maps}/a", {"metadata": {"finalizers": None}})
    await until(lambda: _gone(admin, path))
    # then
    assert (refused.status, refused.body["reason"]) == (403, "Forbidden")
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    assert there.body["status"]["phase"] == "Terminating"
    assert there.body["spec"]["finalizers"] == ["kubernetes"]
    assert await _gone(admin, f"{config_maps}/a")


async def test_the_namespaces_of_the_cluster_itself_stay(admin: Client) -> None:
    for name in ("default", "kube-system", "kube-public"):
        # when
        refused = await admin.delete(f"/api/v1/namespaces/{name}")
        # then
        assert (refused.status, refused.body["reason"]) == (403, "Forbidden")


async def test_a_definition_takes_its_objects_along(admin: Client, name: str, until: Until[bool]) -> None:
    # given
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    spec = {
        "group": "example.org",
        "scope": "Cluster",
        "names": {"plural": f"{name}s", "kind": name.capitalize()},
        "versions": [version],
    }
    await admin.post(definitions, {"metadata": {"name": f"{name}s.example.org"}, "spec": spec})
    things = f"/apis/example.org/v1/{name}s"

    async def served() -> bool:
        return (await admin.get(things)).status == 200

    await until(served)
    body = {"apiVersion": "example.org/v1", "kind": name.capitalize(), "metadata": {"name": "a"}}
    assert (await admin.post(things, body)).status == 201
    established = (await admin.get(f"{definitions}/{name}s.example.org")).body["status"]["conditions"]
    # when
    await admin.delete(f"{definitions}/{name}s.example.org")
    # then
    assert {one["type"]: one["status"] for one in established}["Established"] == "True"
    await until(lambda: _gone(admin, f"{definitions}/{name}s.example.org"))
    await until(lambda: _gone(admin, things))
