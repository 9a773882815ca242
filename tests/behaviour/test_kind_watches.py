"""Watches of classes: whatever a client knows, it hears what became of its tenant's objects, and of no others."""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.kube import api_path

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
CLASSES = api_path("storage.k8s.io", "v1", "storageclasses")


def named(event: dict[str, Any]) -> tuple[str, str]:
    """Return type and name of an event of an object, or of a Table."""
    found = event["object"]
    return event["type"], found["rows"][0]["cells"][0] if found["kind"] == "Table" else found["metadata"]["name"]


async def test_a_watch_from_a_list_tells_what_came_since_as_objects_and_as_tables(tenancy: Tenancy, until: Any) -> None:
    # given a tenant that sees the classes with its label
    await tenancy.make()
    stays, leaves, dies, comes, foreign = (f"{tenancy.name}-{word}" for word in ("a", "b", "c", "d", "e"))
    mine, others = {"for": tenancy.name}, {"for": "others"}

    async def put(name: str, labels: dict[str, str]) -> None:
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "example.com/none"}
        await tenancy.admin.create(CLASSES, body | {"metadata": {"name": name, "labels": labels}})

    async def label(name: str, labels: dict[str, str]) -> None:
        await tenancy.admin.merge_patch(f"{CLASSES}/{name}", {"metadata": {"labels": labels}})

    for name in (stays, leaves, dies):
        await put(name, mine)
    tenant = tenancy.tenant(tenancy.user)
    tenant["spec"]["storageClasses"] = {"matchLabels": mine}
    tenant["spec"]["owners"][0]["proxySettings"] = [{"kind": "StorageClasses", "operations": ["List"]}]
    await tenancy.apply(tenant)

    async with tenancy.flux() as client:

        async def listed() -> str:
            found = await client.get(CLASSES)
            seen = [one["metadata"]["name"] for one in found.body.get("items", ())]
            return str(found.body["metadata"]["resourceVersion"]) if seen == [stays, leaves, dies] else ""

        # when it lists them, and the cluster goes on
        version = await until(listed)
        await put(comes, mine)
        await put(foreign, others)
        await label(leaves, others)
        await tenancy.admin.delete(f"{CLASSES}/{dies}")

        # then a watch from the list tells the difference, and what comes
        async with (
            client.watch(CLASSES, resourceVersion=version) as objects,
            client.watch(CLASSES, accept=TABLE, resourceVersion=version) as tables,
        ):
            for events in (objects, tables):
                found = sorted([named(await events.next()) for _ in range(3)])
                assert found == [("ADDED", comes), ("DELETED", leaves), ("DELETED", dies)]
            await label(stays, {"seen": "yes"})
            for events in (objects, tables):
                assert named(await events.next()) == ("MODIFIED", stays)

        # and one without a version begins with what is there
        for accept in ("application/json", TABLE):
            async with client.watch(CLASSES, accept=accept) as events:
                assert [named(await events.next()) for _ in range(2)] == [("ADDED", stays), ("ADDED", comes)]
