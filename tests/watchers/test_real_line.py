"""``tether watch`` against an API server that speaks TLS, selectors, paging and metadata-only answers itself."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.events import OBJECT_DELETED
from eventcore.keys import ObjectKey
from eventcore.kube import KubeClient
from eventcore.objects import ANNOTATION_ENABLED, LABEL_COMPONENT, LAST_APPLIED
from tether.devcluster.api import ApiOptions, EmbeddedApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.watchers.conftest import World

SECRETS = "/api/v1/namespaces/oil-system/secrets"
SENTINEL = "sentinel-that-must-never-leave-kubernetes"


@pytest.fixture
async def admin(world: World) -> AsyncIterator[KubeClient]:
    """An administrator of a real embedded API; the world's watchers follow that API."""
    api = EmbeddedApi(ApiOptions(bookmark_every=0.2))
    await api.start()
    kubeconfig = world.folder / "admin.kubeconfig"
    kubeconfig.write_text(api.admin_kubeconfig())
    world.settings = msgspec.structs.replace(world.settings, kubeconfig=str(kubeconfig))
    client = await KubeClient.connect(world.settings)
    yield client
    await client.close()
    await api.stop()


def obj(kind: str, name: str, *, version: str = "v1", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, **fields.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


async def test_objects_of_every_kind_reach_objects_and_their_deletes_too(world: World, admin: KubeClient) -> None:
    oil = ObjectKey("Namespace", "", "oil-system")
    account = ObjectKey("ServiceAccount", "oil-system", "gitops-reconciler")
    tenant = ObjectKey("Tenant", "", "oil")
    async with world.watcher() as role:
        await admin.create("/api/v1/namespaces", obj("Namespace", "oil-system"))
        await world.objects.until_many(oil, 1)
        await admin.create(
            "/api/v1/namespaces/oil-system/serviceaccounts",
            obj(
                "ServiceAccount",
                "gitops-reconciler",
                metadata={"annotations": {LAST_APPLIED: "{}", ANNOTATION_ENABLED: "true", "a": "b"}},
            ),
        )
        owner = {"kind": "ServiceAccount", "name": "system:serviceaccount:oil-system:gitops-reconciler"}
        await admin.create(
            "/apis/capsule.clastix.io/v1beta2/tenants",
            obj("Tenant", "oil", version="capsule.clastix.io/v1beta2", spec={"owners": [owner]}),
        )
        [told, *_] = await world.objects.until_many(account, 1)
        await world.objects.until_many(tenant, 1)
        assert role.readiness.failing() == []

        await admin.delete("/apis/capsule.clastix.io/v1beta2/tenants/oil")
        await admin.delete("/api/v1/namespaces/oil-system/serviceaccounts/gitops-reconciler")
        await world.objects.until(
            lambda: all(world.objects.of(key)[-1].headers["ce-type"] == OBJECT_DELETED for key in (tenant, account))
        )

    metadata = msgspec.json.decode(told.data)["metadata"]
    assert metadata["annotations"] == {ANNOTATION_ENABLED: "true"}
    assert "managedFields" not in metadata


async def test_no_data_of_any_secret_ever_reaches_the_bus(world: World, admin: KubeClient) -> None:
    # Given Secrets of ours, of others and of the proxy, with data and with annotations that hold it again
    data = {"token": base64.b64encode(SENTINEL.encode()).decode()}
    labels = {LABEL_COMPONENT: "token"}
    annotations = {LAST_APPLIED: SENTINEL, "other.example/copy": SENTINEL, "capsule-tether.io/account": "oil-system/g"}
    ours = ObjectKey("Secret", "oil-system", "g-token")
    ca = ObjectKey("CASecret", "capsule-system", "capsule-proxy")
    async with world.watcher():
        await admin.create("/api/v1/namespaces", obj("Namespace", "oil-system"))
        await admin.create(SECRETS, obj("Secret", "foreign", data=data, metadata={"annotations": annotations}))
        await admin.create(
            SECRETS, obj("Secret", "g-token", data=data, metadata={"labels": labels, "annotations": annotations})
        )
        await admin.create(
            "/api/v1/namespaces/capsule-system/secrets",
            obj("Secret", "capsule-proxy", data=data, metadata={"annotations": annotations}),
        )
        [told, *_] = await world.objects.until_many(ours, 1)
        await world.objects.until_many(ca, 1)
        await admin.delete(f"{SECRETS}/g-token")
        await world.objects.until(lambda: world.objects.of(ours)[-1].headers["ce-type"] == OBJECT_DELETED)

        # A Secret that loses our label leaves the bus, though it lives
        await admin.create(SECRETS, obj("Secret", "g-kubeconfig", data=data, metadata={"labels": labels}))
        left = ObjectKey("Secret", "oil-system", "g-kubeconfig")
        await world.objects.until_many(left, 1)
        await admin.merge_patch(f"{SECRETS}/g-kubeconfig", {"metadata": {"labels": {LABEL_COMPONENT: None}}})
        await world.objects.until(lambda: world.objects.of(left)[-1].headers["ce-type"] == OBJECT_DELETED)

    # Then our own metadata is there, and neither the stream nor a file of the server holds the data
    assert msgspec.json.decode(told.data)["metadata"]["annotations"] == {"capsule-tether.io/account": "oil-system/g"}
    assert not world.objects.of(ObjectKey("Secret", "oil-system", "foreign"))
    await world.nats.stop()
    stored = [path.read_bytes() for path in (world.folder / "nats").rglob("*") if path.is_file()]
    assert any(b"g-token" in content for content in stored)
    for text in (SENTINEL.encode(), data["token"].encode()):
        assert not any(text in content for content in stored)


async def test_a_kind_whose_definition_is_removed_and_comes_back_is_followed_again(
    world: World, admin: KubeClient
) -> None:
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    tenants = "/apis/capsule.clastix.io/v1beta2/tenants"
    old, new = ObjectKey("Tenant", "", "oil"), ObjectKey("Tenant", "", "gas")
    spec = {"owners": [{"kind": "User", "name": "dana"}]}
    async with world.watcher():
        await admin.create(tenants, obj("Tenant", "oil", version="capsule.clastix.io/v1beta2", spec=spec))
        await world.objects.until_many(old, 1)
        definition = msgspec.json.decode(await admin.get(f"{definitions}/tenants.capsule.clastix.io"))

        await admin.delete(f"{definitions}/tenants.capsule.clastix.io")
        await world.objects.until(lambda: world.objects.of(old)[-1].headers["ce-type"] == OBJECT_DELETED)
        definition["metadata"] = {"name": "tenants.capsule.clastix.io"}
        with contextlib.suppress(KeyError):
            del definition["status"]
        await admin.create(definitions, definition)
        await admin.create(tenants, obj("Tenant", "gas", version="capsule.clastix.io/v1beta2", spec=spec))

        await world.objects.until_many(new, 1)
