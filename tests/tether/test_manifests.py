"""The manifests that ship: they are what the guide shows, and an API server takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventcore.errors import StartError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import manifests
from tether.devcluster.api import EmbeddedApi
from tether.manifests import Applier

ROLES = ("watcher", "router", "worker", "proxy")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[KubeClient]:
    """A client of an embedded API, as cluster-admin."""
    api = EmbeddedApi()
    await api.start()
    (tmp_path / "kubeconfig").write_text(api.admin_kubeconfig())
    connected = await KubeClient.connect(Settings(kubeconfig=str(tmp_path / "kubeconfig")))
    yield connected
    await connected.close()
    await api.stop()


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    objects = manifests.read(manifests.shipped("examples"))
    return {obj["metadata"]["name"]: obj for obj in objects if obj["kind"] == kind}


@pytest.mark.parametrize("tenant", ["oil", "gas"])
def test_the_example_is_that_of_the_guide(tenant: str) -> None:
    user = f"system:serviceaccount:{tenant}-system:gitops-reconciler"
    spec = of_kind("Tenant")[tenant]["spec"]
    accounts = [obj for obj in manifests.read(manifests.shipped("examples")) if obj["kind"] == "ServiceAccount"]

    assert f"{tenant}-system" in of_kind("Namespace")
    assert spec["owners"] == [{"kind": "ServiceAccount", "name": user}]
    assert spec["additionalRoleBindings"][0]["clusterRoleName"] == "cluster-admin"
    assert f"system:serviceaccounts:{tenant}-system" in of_kind("CapsuleConfiguration")["default"]["spec"]["userGroups"]
    assert all(one["metadata"]["annotations"] == {"capsule.addon.fluxcd/enabled": "true"} for one in accounts)


async def test_applying_the_example_twice_changes_nothing(client: KubeClient) -> None:
    objects = manifests.read(manifests.shipped("examples"))
    objects.sort(key=lambda obj: bool(obj["kind"] != "Namespace"))
    tenant = api_path("capsule.clastix.io", "v1beta2", "tenants", name="oil")

    await Applier(client, "test").apply(objects)
    first = msgspec.json.decode(await client.get(tenant))
    await Applier(client, "test").apply(objects)
    second = msgspec.json.decode(await client.get(tenant))

    assert first["metadata"]["generation"] == second["metadata"]["generation"]
    assert first["spec"]["owners"][0]["name"] == "system:serviceaccount:oil-system:gitops-reconciler"


async def test_rights_are_applied_for_every_role(client: KubeClient) -> None:
    await Applier(client, "test").apply(manifests.read(manifests.shipped("deploy/rbac")))

    for role in ROLES:
        await client.get(api_path("", "v1", "serviceaccounts", namespace="capsule-system", name=f"tether-{role}"))


def test_no_role_may_do_everything_and_only_the_worker_may_write() -> None:
    for role in ROLES:
        objects = manifests.read(manifests.shipped("deploy/rbac") / f"{role}.yaml")
        rules = [rule for obj in objects if obj["kind"] == "ClusterRole" for rule in obj["rules"]]
        words = {word for rule in rules for field in ("verbs", "resources", "apiGroups") for word in rule[field]}
        assert "*" not in words
        if role != "worker":
            reviews = {"tokenreviews", "subjectaccessreviews"}
            writable = {word for rule in rules if "create" in rule["verbs"] for word in rule["resources"]}
            assert writable <= reviews
            assert not words & {"patch", "update", "delete", "bind", "escalate", "impersonate"}


async def test_a_kind_that_is_not_served_is_said_in_one_line(client: KubeClient) -> None:
    unknown = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}

    with pytest.raises(StartError, match=r"Widget w cannot be applied: .* install its CustomResourceDefinition"):
        await Applier(client, "test").apply([unknown])


def test_broken_yaml_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")

    with pytest.raises(StartError, match=r"a\.yaml cannot be read as YAML") as caught:
        manifests.read(tmp_path)

    assert "\n" not in str(caught.value)
