"""Changes of who owns a Tenant are followed while all runs: owners come and go, in every way that Capsule knows."""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.kube import api_path
from tests.behaviour.states import Whole, accepts, refuses

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
ROTATE = "capsule-tether.io/rotate"


def tenant_path(name: str) -> str:
    return api_path("capsule.clastix.io", "v1beta2", "tenants", name=name)


def of_account(tenancy: Tenancy, name: str, **annotations: str) -> Object:
    metadata = {"name": name, "namespace": tenancy.home, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


async def test_an_owner_is_added_after_its_account_existed_exchanged_and_removed(
    tenancy: Tenancy, converging: Any
) -> None:
    # Given a Tenant without owners, and two enabled accounts
    await tenancy.make(owner=False)
    await tenancy.apply(of_account(tenancy, "second", **{ENABLED: "true"}))
    first, second = Whole(tenancy), Whole(tenancy, "second")

    # When one of them becomes an owner, then it has everything, and the other one nothing
    with converging("owner added to a Tenant after the account existed"):
        await tenancy.apply(tenancy.tenant(first.user))
        await first.has()
    (name,) = await tenancy.make_namespaces("production")
    token = await first.has(name)
    assert await second.objects() == []

    # When the owner is exchanged, then the other one has everything, and the first one's token is dead
    with converging("owner of a Tenant changed"):
        await tenancy.apply(tenancy.tenant(second.user))
        other = await second.has(name)
        await first.has_nothing(token)

    # When there is no owner any more, then nobody has anything
    with converging("owner removed from a Tenant"):
        await tenancy.apply(tenancy.tenant())
        await second.has_nothing(token, other)


async def test_an_account_that_owns_two_tenants_is_in_both_and_leaves_one_with_another_token(
    tenancy: Tenancy, other: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account that owns a tenant with a namespace
    await tenancy.make()
    (mine,) = await tenancy.make_namespaces("production")
    account, theirs = Whole(tenancy), Whole(other)
    await account.has(mine)

    # When it becomes an owner of a second tenant, which has an owner already, then it is in both
    await other.make()
    (shared,) = await other.make_namespaces("production")
    kept = await theirs.has(shared)
    with converging("account made an owner of a second Tenant"):
        await other.apply(other.tenant(theirs.user, account.user))
        await account.has(mine, shared)

    # When the first Tenant is owned by somebody else, then it is in the second alone, with another token
    old = await account.token()

    async def rotated() -> bool:
        return await account.token() not in {"", old}

    with converging("account of two Tenants leaves one"):
        await tenancy.apply(tenancy.tenant())
        await until(rotated)
        token = await account.has(shared)

    # When it leaves the second too, then it has nothing, and the other owner has what it had
    with converging("account leaves its last Tenant"):
        await other.apply(other.tenant(theirs.user))
        await account.has_nothing(token)
    await refuses(tenancy.cluster, old)
    assert await theirs.has(shared) == kept


@pytest.mark.parametrize("kind", ["Group", "TenantOwner"])
async def test_an_account_that_owns_by_a_group_or_a_tenantowner_follows_it(
    tenancy: Tenancy, converging: Any, kind: str
) -> None:
    # Given an enabled account that owns nothing
    await tenancy.make(owner=False)
    account = Whole(tenancy)
    body = tenancy.tenant()
    if kind == "TenantOwner":
        body["spec"]["permissions"] = {"matchOwners": [{"matchLabels": {"team": tenancy.name}}]}
    await tenancy.apply(body)

    async def give(*, gives: bool) -> None:
        if kind == "Group":
            group = {"kind": "Group", "name": f"system:serviceaccounts:{tenancy.home}"}
            body["spec"]["owners"] = [group] if gives else []
            await tenancy.apply(body)
        elif gives:
            spec = {"kind": "ServiceAccount", "name": account.user, "aggregate": True}
            metadata = {"name": tenancy.name, "labels": {"team": tenancy.name}}
            owner = {"apiVersion": body["apiVersion"], "kind": kind, "metadata": metadata, "spec": spec}
            await tenancy.apply(owner)
        else:
            await tenancy.admin.delete(api_path("capsule.clastix.io", "v1beta2", "tenantowners", name=tenancy.name))

    # When its group, or a TenantOwner, makes it an owner, then it has everything
    with converging(f"owner by a {kind}"):
        await give(gives=True)
        await account.has()
    (name,) = await tenancy.make_namespaces("production")
    token = await account.has(name)

    # When that ends, then it has nothing
    with converging(f"no longer an owner by a {kind}"):
        await give(gives=False)
        await account.has_nothing(token)


async def test_a_tenant_that_was_deleted_gives_nothing_and_its_namesake_everything_anew(
    tenancy: Tenancy, converging: Any
) -> None:
    # Given a tenant with a namespace
    await tenancy.make()
    account = Whole(tenancy)
    (name,) = await tenancy.make_namespaces("before")
    first = await account.has(name)

    # When it is deleted, then its account has nothing
    with converging("Tenant deleted"):
        await tenancy.admin.delete(tenant_path(tenancy.name))
        await account.has_nothing(first)
    await tenancy.gone("Namespace", "", name)
    await tenancy.gone("Tenant", "", tenancy.name)

    # When it is made again, then its account has everything in what is the new one's
    with converging("Tenant made again"):
        await tenancy.apply(tenancy.tenant(account.user))
        await account.has()
    (name,) = await tenancy.make_namespaces("after")
    second = await account.has(name)
    assert second != first
    assert not await accepts(tenancy.cluster, first)


async def test_a_cordon_stops_the_tenant_and_neither_rotation_nor_repair_nor_revocation(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given a tenant at work in its namespace
    await tenancy.make()
    name = await tenancy.make_usable("production")
    account = Whole(tenancy)
    before = await account.has(name)
    app = api_path("", "v1", "configmaps", namespace=name, name="app")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}}

    async def answered(*statuses: int) -> None:
        async def check() -> bool:
            async with tenancy.flux(name) as client:
                return bool((await client.apply(app, body, "flux", force="true")).status in statuses)

        await until(check)

    await answered(200, 201)

    # When it is cordoned, then its Flux may change nothing, and what it holds stays as it was
    await tenancy.admin.merge_patch(tenant_path(tenancy.name), {"spec": {"cordoned": True}})
    await answered(403)
    assert await account.has(name) == before

    # And its token is rotated, and a kubeconfig that somebody deletes comes back
    token = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    generation = token["metadata"]["annotations"]["capsule-tether.io/generation"]
    with converging("token rotated and kubeconfig deleted in a cordoned Tenant"):
        path = api_path("", "v1", "secrets", namespace=tenancy.home, name=f"{ACCOUNT}-token")
        await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ROTATE: generation}}})
        await tenancy.admin.delete(api_path("", "v1", "secrets", namespace=name, name=f"{ACCOUNT}-kubeconfig"))

        async def rotated() -> bool:
            return await account.token() not in {"", before}

        await until(rotated)
        after = await account.has(name)

    # And when it owns the Tenant no more, then it has nothing, cordon or not
    with converging("owner removed from a cordoned Tenant"):
        cordoned = tenancy.tenant()
        cordoned["spec"]["cordoned"] = True
        await tenancy.apply(cordoned)
        await account.has_nothing(after)


async def test_a_status_that_capsule_has_not_brought_up_to_date_takes_nothing_and_gives_nothing(
    tenancy: Tenancy, other: Tenancy, audit: Any
) -> None:
    # Given a tenant at work, whose spec was changed once, and an enabled account that owns nothing
    await tenancy.make()
    account, stranger = Whole(tenancy), Whole(tenancy, "stranger")
    (name,) = await tenancy.make_namespaces("production")
    await tenancy.apply(of_account(tenancy, "stranger", **{ENABLED: "true"}))
    token = await account.has(name)
    await tenancy.admin.merge_patch(tenant_path(tenancy.name), {"spec": {"forceTenantPrefix": True}})
    before = await tenancy.must("Secret", name, f"{ACCOUNT}-kubeconfig")

    # When its status says again and again what was never true: of the first spec, not ready, with another owner alone
    owner = {"kind": "ServiceAccount", "name": stranger.user, "clusterRoles": ["admin"]}
    ready = {"type": "Ready", "status": "Unknown", "reason": "Reconciling", "message": ""}
    condition = {**ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"observedGeneration": 1, "size": 0, "owners": [owner], "namespaces": [], "conditions": [condition]}
    for _ in range(5):
        await tenancy.admin.merge_patch(f"{tenant_path(tenancy.name)}/status", {"status": status})

    # Then the account has what it had, untouched
    await other.make()
    await Whole(other).has()  # what came before has been worked on by then
    assert await account.has(name) == token
    after = await tenancy.must("Secret", name, f"{ACCOUNT}-kubeconfig")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

    # And the other one never got a right or a token
    assert await stranger.objects() == []
    records = [record for record in await audit() if record.account == f"{tenancy.home}/stranger"]
    assert [r for r in records if r.component != "access" and r.action != "revoked"] == []
