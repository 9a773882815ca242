"""Lists in protobuf, which only a real API server writes: cut down to the tenant's objects, as those in JSON are."""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.kube import api_path

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
PROTOBUF = "application/vnd.kubernetes.protobuf"
CLASSES = api_path("storage.k8s.io", "v1", "storageclasses")


async def test_a_client_that_takes_protobuf_alone_sees_the_tenants_classes_and_namespaces(
    tenancy: Tenancy, until: Any
) -> None:
    # given a tenant that may use one of two classes, and see it
    await tenancy.make()
    mine, other = f"{tenancy.name}-fast", f"{tenancy.name}-slow"
    for name in (mine, other):
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}}
        await tenancy.admin.create(CLASSES, body | {"provisioner": "example.com/none"})
    tenant = tenancy.tenant(tenancy.user)
    tenant["spec"]["storageClasses"] = {"allowed": [mine]}
    tenant["spec"]["owners"][0]["proxySettings"] = [{"kind": "StorageClasses", "operations": ["List"]}]
    await tenancy.apply(tenant)
    (namespace,) = await tenancy.make_namespaces("production")

    async with tenancy.flux() as client:

        async def listed() -> str:
            found = await client.get(CLASSES, headers={"Accept": PROTOBUF})
            return str(found.body) if found.status == 200 and mine in found.body else ""

        # when it lists them in protobuf
        classes = await until(listed)
        namespaces = await client.get("/api/v1/namespaces", headers={"Accept": PROTOBUF})
        one = await client.get(f"{CLASSES}/{mine}", headers={"Accept": PROTOBUF})
        foreign = await client.get(f"{CLASSES}/{other}", headers={"Accept": PROTOBUF})

    # then its own are there, and no byte of another
    assert classes.startswith("k8s\x00")
    assert other not in classes
    assert namespaces.body.startswith("k8s\x00")
    assert namespace in namespaces.body
    assert "kube-system" not in namespaces.body
    assert mine in one.body
    assert foreign.status == 403
