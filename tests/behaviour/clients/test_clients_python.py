"""The Kubernetes clients of Python, with threads and with asyncio, through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import kubernetes.client
import kubernetes.config
import kubernetes.watch
import kubernetes_asyncio.client
import kubernetes_asyncio.config
import kubernetes_asyncio.watch
import pytest

from tests.behaviour.clients.conftest import SECONDS

pytestmark = [pytest.mark.xdist_group("cluster")]

Tenancy = Any
APPLY = "application/apply-patch+yaml"


def page(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": data}


async def test_the_python_client_reads_applies_and_watches(owner: Tenancy, namespace: str, foreign: str) -> None:
    kubeconfig = await owner.kubeconfig()
    api = await asyncio.to_thread(kubernetes.config.new_client_from_config, str(kubeconfig))
    with closing(api):
        core = kubernetes.client.CoreV1Api(api)

        def call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            return asyncio.wait_for(asyncio.to_thread(method, *arguments, **options), SECONDS)

        # what it lists and reads
        listed = await call(core.list_namespace)
        assert [item.metadata.name for item in listed.items] == [namespace]
        assert (await call(core.read_namespace, namespace)).status.phase == "Active"
        with pytest.raises(kubernetes.client.ApiException) as refused:
            await call(core.read_namespace, foreign)
        assert refused.value.status == 403

        # what it applies and patches
        applied = await call(
            core.patch_namespaced_config_map,
            "page",
            namespace,
            page(a="1"),
            field_manager="python",
            _content_type=APPLY,
        )
        patched = await call(core.patch_namespaced_config_map, "page", namespace, {"data": {"b": "2"}})
        assert applied.data == {"a": "1"}
        assert patched.data == {"a": "1", "b": "2"}

        # and what a watch shows: what there is, then what comes
        watch: Any = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # its types stop here
        events: Iterator[Any] = watch.stream(core.list_namespace, _request_timeout=SECONDS)
        first = await call(next, events)
        (joined,) = await owner.make_namespaces("joins")
        second = await call(next, events)
        assert [event["object"].metadata.name for event in (first, second)] == [namespace, joined]
        assert [event["type"] for event in (first, second)] == ["ADDED", "ADDED"]
        watch.stop()
        await call(events.close)  # type: ignore[attr-defined]  # it is a generator
        await call(core.delete_namespaced_config_map, "page", namespace)


async def test_kubernetes_asyncio_reads_applies_and_watches(owner: Tenancy, namespace: str, foreign: str) -> None:
    configuration = kubernetes_asyncio.client.Configuration()
    await kubernetes_asyncio.config.load_kube_config(
        config_file=str(await owner.kubeconfig()), client_configuration=configuration
    )
    async with asyncio.timeout(SECONDS), kubernetes_asyncio.client.ApiClient(configuration) as api:
        core: Any = kubernetes_asyncio.client.CoreV1Api(api)  # its types do not know _content_type

        # what it lists and reads
        listed = await core.list_namespace()
        assert [item.metadata.name for item in listed.items] == [namespace]
        with pytest.raises(kubernetes_asyncio.client.ApiException) as refused:
            await core.read_namespace(foreign)
        assert refused.value.status == 403

        # what it applies and patches
        applied = await core.patch_namespaced_config_map(
            "page", namespace, page(a="1"), field_manager="python", _content_type=APPLY
        )
        patched = await core.patch_namespaced_config_map("page", namespace, {"data": {"b": "2"}})
        assert applied.data == {"a": "1"}
        assert patched.data == {"a": "1", "b": "2"}

        # and what a watch shows: what there is, then what comes
        async with kubernetes_asyncio.watch.Watch() as watch:
            events = watch.stream(core.list_namespace)
            first = await anext(events)
            (joined,) = await owner.make_namespaces("joins")
            second = await anext(events)
            assert [event["object"].metadata.name for event in (first, second)] == [namespace, joined]
            assert [event["type"] for event in (first, second)] == ["ADDED", "ADDED"]
        await core.delete_namespaced_config_map("page", namespace)
