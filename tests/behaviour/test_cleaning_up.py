"""When an account has no right to anything any more, nothing of ours remains anywhere, whatever holds up the rest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from tests.behaviour.states import PREFIX, Whole, accepts, everything, grants

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
HOLD = "example.com/hold"
FLUX = "finalizers.fluxcd.io/test"


def tenant_path(name: str) -> str:
    return api_path("capsule.clastix.io", "v1beta2", "tenants", name=name)


async def end(tenancy: Tenancy, how: str) -> None:
    """Take its right to everything from the tenant's account."""
    account = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    match how:
        case "disabled":
            await tenancy.apply(tenancy.account())
        case "account deleted":
            await tenancy.admin.delete(account)
        case "no owner":
            await tenancy.apply(tenancy.tenant())
        case "Tenant deleted":
            await tenancy.admin.delete(tenant_path(tenancy.name))
        case _:
            await tenancy.admin.delete(api_path("", "v1", "namespaces", name=tenancy.home))


async def remains(tenancy: Tenancy) -> list[str]:
    """Return what of any kind in the cluster is ours and the tenant's: by label, annotation, name or author.

    The tests themselves make namespaces with our client, so of those the author says nothing.
    """
    found = []
    for one in await everything(tenancy.cluster):
        metadata = one["metadata"]
        name, namespace = metadata["name"], metadata.get("namespace", "")
        if not any(text.startswith(tenancy.name) for text in (name, namespace)):
            continue
        marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
        authors = {entry.get("manager") for entry in metadata.get("managedFields") or []}
        named = name.startswith((tenancy.impersonator, "tether:")) or (
            one["kind"] != "ServiceAccount" and name.startswith(ACCOUNT)
        )
        ours = "tether" in authors and one["kind"] != "Namespace"
        if named or ours or any(mark.startswith(PREFIX) for mark in marks):
            found.append(f"{one['kind']}/{namespace}/{name}")
    return found


@pytest.mark.parametrize("how", ["disabled", "account deleted", "no owner", "Tenant deleted", "home deleted"])
async def test_nothing_of_ours_remains_anywhere(tenancy: Tenancy, converging: Any, how: str) -> None:
    # Given an account with everything, of which a search through all kinds finds every object
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    account = Whole(tenancy)
    token = await account.has(name)
    own = {one for one in await account.objects() if not one.startswith("ServiceAccount")}
    assert len(own) == 7
    assert own <= set(await remains(tenancy))

    # When it has no right to it any more
    with converging(f"everything removed: {how}"):
        await end(tenancy, how)
        await account.has_nothing(token, owner=how in {"disabled", "account deleted", "home deleted"})

    # Then nothing is left in the cluster or for the proxy, and the Tenant was never written
    assert await remains(tenancy) == []
    kept = {str(one) for one in await grants(tenancy.cluster) if tenancy.name in str(one)}
    tenant = await tenancy.get("Tenant", "", tenancy.name)
    if how == "Tenant deleted":
        assert kept == set()
    else:
        assert kept - {f"subject/ServiceAccount/{tenancy.user}"} == {f"tenant/{tenancy.name}"}
        assert "tether" not in {entry["manager"] for entry in tenant["metadata"]["managedFields"]}


async def test_it_waits_neither_for_flux_nor_for_the_tenant_to_go(tenancy: Tenancy, converging: Any) -> None:
    # Given a tenant that somebody holds, with a namespace in which an object is held, as Flux holds its own
    await tenancy.make()
    name = await tenancy.make_usable("production")
    account = Whole(tenancy)
    token = await account.has(name)
    metadata: Object = {"name": "apps", "namespace": name, "finalizers": [FLUX]}
    await tenancy.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    add = [{"op": "add", "path": "/metadata/finalizers/-", "value": HOLD}]
    await tenancy.admin.json_patch(tenant_path(tenancy.name), add)

    # When the Tenant is deleted, then nothing of ours is left while it is still there
    with converging("everything removed while the Tenant is being deleted"):
        await tenancy.admin.delete(tenant_path(tenancy.name))
        await account.has_nothing(token)
    tenant = await tenancy.must("Tenant", "", tenancy.name)
    assert tenant["metadata"]["deletionTimestamp"]
    assert not await accepts(tenancy.cluster, token)

    # And when both let go, the rest goes too
    held = await tenancy.get("ConfigMap", name, "apps")
    if held is not None:  # Capsule may take the finalizer off by itself
        await tenancy.admin.merge_patch(
            api_path("", "v1", "configmaps", namespace=name, name="apps"), {"metadata": {"finalizers": None}}
        )
    await tenancy.gone("Namespace", "", name)
    finalizers = [one for one in (await finalizers_of(tenancy)) if one != HOLD]
    await tenancy.admin.merge_patch(tenant_path(tenancy.name), {"metadata": {"finalizers": finalizers}})
    await tenancy.gone("Tenant", "", tenancy.name)


async def finalizers_of(tenancy: Tenancy) -> list[str]:
    tenant = msgspec.json.decode(await tenancy.admin.get(tenant_path(tenancy.name)), type=Object)
    return list(tenant["metadata"].get("finalizers") or [])
