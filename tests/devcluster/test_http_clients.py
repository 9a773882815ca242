"""kubernetes_asyncio against the embedded API: its typed client, its watch, its dynamic client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes_asyncio import client as k8s
from kubernetes_asyncio import config, watch
from kubernetes_asyncio.dynamic import DynamicClient

if TYPE_CHECKING:
    from tether.devcluster.api import EmbeddedApi


@pytest.fixture
async def api_client(api: EmbeddedApi) -> AsyncIterator[Any]:
    async with await config.new_client_from_config_dict(yaml.safe_load(api.admin_kubeconfig())) as made:
        yield made


async def test_the_typed_client_reads_and_writes(api_client: Any) -> None:
    # given
    core: Any = k8s.CoreV1Api(api_client)
    # when
    await core.create_namespaced_config_map(
        "default", k8s.V1ConfigMap(metadata=k8s.V1ObjectMeta(name="a"), data={"k": "1"})
    )
    await core.patch_namespaced_config_map("a", "default", {"data": {"k": "2"}})
    read = await core.read_namespaced_config_map("a", "default")
    listed = await core.list_namespace(limit=2)
    removed = await core.delete_namespaced_config_map("a", "default")
    # then
    assert read.data == {"k": "2"}
    assert len(listed.items) == 2
    assert listed.metadata.to_dict()["_continue"]
    assert removed.status == "Success"
    with pytest.raises(k8s.ApiException) as caught:
        await core.read_namespaced_config_map("a", "default")
    assert caught.value.status == 404


async def test_the_watch_of_the_client_is_understood(api_client: Any) -> None:
    # given
    core: Any = k8s.CoreV1Api(api_client)
    start = (await core.list_namespaced_config_map("default")).metadata.resource_version
    await core.create_namespaced_config_map("default", {"metadata": {"name": "a", "labels": {"x": "y"}}})
    # when
    async with watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=start, label_selector="x=y", timeout_seconds=20
    ) as events:
        event = await anext(events)
    # then
    assert (event["type"], event["object"].metadata.name) == ("ADDED", "a")


async def test_a_token_is_requested_for_an_account(api_client: Any) -> None:
    # given
    core: Any = k8s.CoreV1Api(api_client)
    await core.create_namespaced_service_account("default", {"metadata": {"name": "robot"}})
    request = k8s.AuthenticationV1TokenRequest(spec=k8s.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    # when
    made = await core.create_namespaced_service_account_token("robot", "default", request)
    # then
    assert made.status.token.count(".") == 2
    assert made.status.expiration_timestamp is not None


async def test_custom_objects_are_applied_and_found_by_the_dynamic_client(api_client: Any) -> None:
    # given
    custom: Any = k8s.CustomObjectsApi(api_client)
    tenant = {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": "oil"},
        "spec": {"owners": [{"kind": "User", "name": "jane"}]},
    }
    # when
    for _ in range(2):
        await custom.patch_cluster_custom_object(
            "capsule.clastix.io",
            "v1beta2",
            "tenants",
            "oil",
            tenant,
            field_manager="test",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    dynamic = await DynamicClient(api_client)
    kind = await dynamic.resources.get(api_version="capsule.clastix.io/v1beta2", kind="Tenant")
    found = await kind.get(name="oil")
    # then
    assert found.metadata.generation == 1
    assert found.spec.owners[0].name == "jane"
