"""What of an object goes on the bus: one quick example for each rule, the whole answer compared."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eventcore.publishable import publishable, tombstone, withheld

OURS = {
    "capsule-tether.io/component": "token",
    "owner.projectcapsule.dev/promote": "true",
    "projectcapsule.dev/tenant": "oil",
    "reflection.proxy.projectcapsule.dev/x": "true",
    "reconcile.fluxcd.io/watch": "Enabled",
}
THEIRS = {"team": "a", "app.kubernetes.io/name": "b"}
SAID = {"capsule-tether.io/account": "a/b", "capsule.addon.fluxcd/enabled": "true"}
NOISE = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kubectl.kubernetes.io/restartedAt": "now"}
READ = {
    "name": "n",
    "namespace": "ns",
    "uid": "u",
    "resourceVersion": "7",
    "generation": 2,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-02T00:00:00Z",
}
UNREAD = {"managedFields": [{"manager": "kubectl"}], "finalizers": ["x"], "generateName": "g-"}


def given(**fields: Any) -> dict[str, Any]:
    about = READ | UNREAD | {"labels": OURS | THEIRS, "annotations": SAID | NOISE}
    return {"apiVersion": "v1", "kind": "K", "type": "Opaque", "metadata": about} | fields


def published(kind: str, value: dict[str, Any]) -> Any:
    return json.loads(publishable(kind, json.dumps(value).encode()))


WANTED = {
    "apiVersion": "v1",
    "kind": "K",
    "type": "Opaque",
    "metadata": READ | {"labels": OURS, "annotations": SAID},
}


@pytest.mark.parametrize("kind", ["Secret", "ServiceAccount"])
def test_of_what_is_read_as_metadata_nothing_else_is_published(kind: str) -> None:
    found = published(kind, given(data={"token": "c2VjcmV0"}, stringData={"a": "b"}, secrets=[{"name": "s"}]))

    assert found == WANTED


def test_of_a_tenant_only_what_decides_is_published() -> None:
    owners = [{"kind": "User", "name": "dana", "labels": {"a": "b"}}]
    spec = {"owners": owners, "networkPolicies": {"x": 1}, "resourceQuotas": {"items": [1]}}
    status = {"owners": owners, "observedGeneration": 2, "spaces": [{"name": "oil-1"}], "conditions": []}

    found = published("Tenant", given(spec=spec, status=status))

    assert found["metadata"] == WANTED["metadata"]
    assert set(found["spec"]["owners"][0]) >= {"kind", "name"}
    assert "labels" not in found["spec"]["owners"][0]
    assert not {"networkPolicies", "resourceQuotas"} & set(found["spec"])
    assert found["status"]["observedGeneration"] == 2
    assert not {"spaces", "conditions"} & set(found["status"])


def test_the_labels_of_a_tenantowner_are_everybodys_to_choose_by() -> None:
    found = published("TenantOwner", given(spec={"kind": "User", "name": "dana"}))

    assert found["metadata"]["labels"] == OURS | THEIRS
    assert found["metadata"]["annotations"] == SAID
    assert found["spec"] == {"kind": "User", "name": "dana"}


def test_a_namespace_goes_whole_but_for_who_managed_and_applied_it() -> None:
    value = given(spec={"finalizers": ["kubernetes"]}, status={"phase": "Active"})

    found = published("Namespace", value)

    wanted = {name: one for name, one in value["metadata"].items() if name != "managedFields"}
    wanted["annotations"] = SAID | {"kubectl.kubernetes.io/restartedAt": "now"}
    assert found == value | {"metadata": wanted}


@pytest.mark.parametrize("kind", ["Secret", "Namespace", "TenantOwner"])
def test_what_is_empty_is_not_published(kind: str) -> None:
    bare = {"metadata": {"name": "n"}}

    for metadata in (
        {"name": "n"},
        {"name": "n", "annotations": None},
        {"name": "n", "annotations": {}},
        {"name": "n", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
    ):
        assert published(kind, {"metadata": metadata}) == bare
    assert published(kind, {"metadata": None}) == published(kind, {}) == {"metadata": {}}


@pytest.mark.parametrize("kind", ["Secret", "TenantOwner"])
def test_labels_that_say_nothing_are_not_published(kind: str) -> None:
    nothing: tuple[Any, ...] = (None, {})
    for labels in nothing:
        assert published(kind, {"metadata": {"name": "n", "labels": labels}}) == {"metadata": {"name": "n"}}


def test_a_tombstone_is_the_last_metadata() -> None:
    value = given(spec={"finalizers": ["kubernetes"]})

    assert json.loads(tombstone("Secret", json.dumps(value).encode())) == {
        "apiVersion": "v1",
        "kind": "K",
        "metadata": WANTED["metadata"],
    }
    assert json.loads(tombstone("Secret", b"{}")) == {"metadata": {}}


def test_what_cannot_be_told_is_being_deleted() -> None:
    gone = {"deletionTimestamp": "1970-01-01T00:00:00Z"}

    assert json.loads(withheld("Tenant", "oil", "", "u", "7")) == {
        "kind": "Tenant",
        "metadata": {"name": "oil", "uid": "u", "resourceVersion": "7"} | gone,
    }
    assert json.loads(withheld("Secret", "s", "ns", "", "")) == {
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "ns"} | gone,
    }
