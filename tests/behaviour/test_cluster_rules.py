"""Cluster-scoped kinds by rule, on a whole cluster: an administrator shows objects, a tenant cannot show itself any."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from tether import manifests

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
GROUP, VERSION = "capsule.clastix.io", "v1beta1"
ROLES = api_path("rbac.authorization.k8s.io", "v1", "clusterroles")
EVERYWHERE = api_path(GROUP, VERSION, "globalproxysettings")


@pytest.fixture(scope="module")
def switched_on(cluster: Any) -> Iterator[None]:
    """Bring the definitions and the right that ship, and run workers and proxies with the gate, for these tests."""
    asyncio.run(_switch_on(cluster))
    yield
    asyncio.run(cluster.restart("worker", "proxy"))


async def _switch_on(cluster: Any) -> None:
    async with cluster.client() as admin:
        applier = manifests.Applier(admin, "person")
        await applier.apply(manifests.read(manifests.shipped("deploy/crds")))
        await applier.apply(manifests.read(manifests.shipped("deploy/optional/proxy-cluster-scoped.yaml")))
    await cluster.restart("worker", "proxy", TETHER_PROXY_CLUSTER_SCOPED="true")


def by_label(tenancy: Tenancy, **subject: str) -> dict[str, Any]:
    """Return a GlobalProxySettings that shows ClusterRoles with the tenant's name as a label."""
    chosen = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"]}
    chosen |= {"selector": {"matchLabels": {"shared-with": tenancy.name}}}  # type: ignore[dict-item]  # of any shape
    rules = [{"subjects": [subject], "clusterResources": [chosen]}]
    metadata = {"name": tenancy.name}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "GlobalProxySettings",
        "metadata": metadata,
        "spec": {"rules": rules},
    }


async def condition(admin: Any, path: str) -> tuple[int, str, str]:
    """Return (observedGeneration, Ready, reason) of a setting."""
    status = msgspec.json.decode(await admin.get(path)).get("status") or {}
    found: dict[str, str] = next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), {})
    return status.get("observedGeneration", 0), found.get("status", ""), found.get("reason", "")


async def test_an_administrator_shows_a_tenant_objects_by_label(
    tenancy: Tenancy, admin: Any, until: Any, switched_on: None
) -> None:
    await tenancy.make()
    mine, other = f"{tenancy.name}-shared", f"{tenancy.name}-other"
    for name, labels in ((mine, {"shared-with": tenancy.name}), (other, {})):
        await admin.create(ROLES, {"metadata": {"name": name, "labels": labels}, "rules": []})
    path = f"{EVERYWHERE}/{tenancy.name}"

    # When a GlobalProxySettings names the account
    body = by_label(tenancy, kind="ServiceAccount", name=tenancy.user)
    await admin.create(EVERYWHERE, body)

    # Then its status says so, and the tenant sees exactly these, to read
    await until(lambda: _is(admin, path, (1, "True", "Succeeded")))
    async with tenancy.flux() as client:

        async def sees(*names: str) -> bool:
            listed = await client.get(ROLES)
            return listed.status == 200 and [one["metadata"]["name"] for one in listed.body["items"]] == list(names)

        await until(lambda: sees(mine))
        assert (await client.get(f"{ROLES}/{mine}")).status == 200
        assert (await client.get(f"{ROLES}/{other}")).status == 403
        assert (await client.delete(f"{ROLES}/{mine}")).status == 403

        # And a change of the labels, and of the object, is followed
        await admin.merge_patch(f"{ROLES}/{other}", {"metadata": {"labels": {"shared-with": tenancy.name}}})
        assert await sees(other, mine)
        empty = by_label(tenancy, kind="ServiceAccount", name=tenancy.user)["spec"]
        empty["rules"][0]["clusterResources"][0]["selector"] = {}
        await admin.merge_patch(path, {"spec": empty})
        await until(lambda: _is(admin, path, (2, "False", "SelectorEmpty")))

        async def refused() -> bool:
            return bool((await client.get(ROLES)).status == 403)

        await until(refused)
    await admin.delete(path)


async def test_a_tenant_cannot_show_itself_what_is_not_its_own(
    tenancy: Tenancy, admin: Any, until: Any, switched_on: None
) -> None:
    await tenancy.make()
    namespace = await tenancy.make_usable("production")
    await admin.create(ROLES, {"metadata": {"name": f"{tenancy.name}-secret", "labels": {"any": "thing"}}, "rules": []})
    settings = api_path(GROUP, VERSION, "proxysettings", namespace=namespace)
    anything = {"matchExpressions": [{"key": "no-such-label", "operator": "DoesNotExist"}]}
    chosen = {"apiGroups": ["*"], "resources": ["*"], "selector": anything}
    subject = {"kind": "ServiceAccount", "name": tenancy.user, "clusterResources": [chosen]}
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "ProxySetting", "metadata": {"name": "mine"}}

    # When a tenant writes a ProxySetting that names everything, as it may in its own namespace
    async with tenancy.flux() as client:

        async def written() -> bool:  # as soon as Capsule has given the tenant its rights in the namespace
            return bool((await client.post(settings, body | {"spec": {"subjects": [subject]}})).status == 201)

        await until(written)
        await until(lambda: _is(admin, f"{settings}/mine", (1, "False", "NotPermitted")))

        # Then it sees what it saw before, and may write no GlobalProxySettings
        assert (await client.get(ROLES)).status == 403

        async def listed() -> list[str]:
            return await client.names("/api/v1/namespaces")  # type: ignore[no-any-return]  # a list of names

        await until(listed)  # the tenant's own grant goes another way than the status
        assert await listed() == [namespace]
        assert await client.names(api_path(GROUP, "v1beta2", "tenants")) == [tenancy.name]
        made = await client.post(EVERYWHERE, by_label(tenancy, kind="ServiceAccount", name=tenancy.user))
        assert made.status == 403

        # And when the administrator permits it on the Tenant, it counts
        permitted = {"metadata": {"annotations": {"capsule-tether.io/cluster-resources": "true"}}}
        await admin.merge_patch(api_path(GROUP, "v1beta2", "tenants", name=tenancy.name), permitted)

        async def sees() -> bool:
            return bool((await client.get(f"{ROLES}/{tenancy.name}-secret")).status == 200)

        await until(sees)


async def _is(admin: Any, path: str, wanted: tuple[int, str, str]) -> bool:
    return await condition(admin, path) == wanted
