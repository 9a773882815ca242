"""What changes about namespaces is followed while all runs: a tenant's that come, go and change hands, and the home."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from tests.behaviour.states import Whole, accepts

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
LABEL = "capsule.clastix.io/tenant"
CONFIGURATION = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")
HOLD = "example.com/hold"


def namespace_path(name: str) -> str:
    return api_path("", "v1", "namespaces", name=name)


async def test_a_namespace_comes_ends_slowly_and_comes_again_and_the_token_stays(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given a tenant
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()

    # When namespaces are made, then they are the account's
    with converging("namespaces created"):
        kept, leaving = await tenancy.make_namespaces("kept", "leaving")
        assert await account.has(kept, leaving) == token

    # When one is deleted, and something in it holds it up, then the rest stays as it was
    metadata = {"name": "app", "namespace": leaving, "finalizers": [HOLD]}
    await tenancy.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    await tenancy.admin.delete(namespace_path(leaving))

    async def emptied() -> bool:
        return set(await account.copies()) == {tenancy.home, kept}

    await until(emptied)
    assert await account.token() == token

    # When it has gone, then nothing tells of it
    with converging("namespace deleted"):
        held = api_path("", "v1", "configmaps", namespace=leaving, name="app")
        if await tenancy.get("ConfigMap", leaving, "app"):  # Capsule may take the finalizer off by itself
            await tenancy.admin.merge_patch(held, {"metadata": {"finalizers": None}})
        await tenancy.gone("Namespace", "", leaving)
        assert await account.has(kept) == token

    # When it is made again, then it is the account's again
    with converging("namespace made again"):
        await tenancy.make_namespaces("leaving")
        assert await account.has(kept, leaving) == token


@asynccontextmanager
async def administrator(tenancy: Tenancy) -> AsyncIterator[None]:
    """Let the cluster-admin be an administrator of Capsule for a while: nobody else may move a namespace."""
    body = msgspec.json.decode(await tenancy.admin.get(CONFIGURATION), type=Object)
    before = body["spec"].get("administrators")
    user = {"kind": "User", "name": "kubernetes-admin"}
    await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"administrators": [*(before or []), user]}})
    try:
        yield
    finally:
        await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"administrators": before}})


async def move(namespace: str, target: Tenancy, until: Any) -> None:
    """Give a namespace to another tenant, as Capsule allows its administrators: label and owner reference at once."""
    tenant = await target.must("Tenant", "", target.name)
    reference = {"apiVersion": tenant["apiVersion"], "kind": "Tenant", "name": target.name}
    reference["uid"] = tenant["metadata"]["uid"]
    patch = {"metadata": {"labels": {LABEL: target.name}, "ownerReferences": [reference]}}

    async def moved() -> bool:
        async with target.cluster.wire(direct=True) as api:
            answer = await api.patch(namespace_path(namespace), patch)
        return bool(answer.status == 200 and answer.body["metadata"]["labels"][LABEL] == target.name)

    await until(moved)


async def test_a_namespace_that_moves_takes_no_credential_of_the_old_tenant_along(
    tenancy: Tenancy, other: Tenancy, until: Any, converging: Any
) -> None:
    # Given two tenants
    await tenancy.make()
    await other.make()
    kept, moving = await tenancy.make_namespaces("kept", "moving")
    giver, taker = Whole(tenancy), Whole(other)
    leaked = await giver.has(kept, moving)
    theirs = await taker.has()

    # When an administrator gives a namespace of the first to the second
    async with administrator(tenancy):
        with converging("namespace moved to another tenant"):
            await move(moving, other, until)

            # Then it holds the second one's kubeconfig alone
            assert await taker.has(moving) == theirs

            # And whoever read the first one's there has read a token that is replaced
            async def rotated() -> bool:
                return await giver.token() not in {"", leaked}

            await until(rotated)
            fresh = await giver.has(kept)
    assert fresh != leaked
    assert set(await giver.copies()) == {tenancy.home, kept}

    # And that token does not see the namespace any more, and ends when the kubeconfigs have had time to change: in 10
    # seconds, which may be over already
    async with tenancy.cluster.wire(leaked) as proxy:
        shown = await proxy.get(api_path("", "v1", "namespaces"))
        assert shown.status == 401 or [one["metadata"]["name"] for one in shown.body["items"]] == [kept]

        async def closed() -> bool:  # by Capsule, which takes back the owner's rights in it
            return (await proxy.get(namespace_path(moving))).status in {401, 403}

        await until(closed)
    before = await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token-1")
    if before is not None:
        ends = datetime.fromisoformat(before["metadata"]["annotations"]["capsule-tether.io/retire"])
        assert ends - datetime.now(UTC) < timedelta(seconds=10)


async def test_a_home_that_is_missing_is_waited_for_and_one_that_is_deleted_takes_everything_along(
    tenancy: Tenancy, converging: Any
) -> None:
    # Given a Tenant whose owner lives in a namespace that is not there
    await tenancy.apply(tenancy.tenant(tenancy.user))
    account = Whole(tenancy)
    assert await account.objects() == []

    # When its home and it come, then it has everything
    with converging("home namespace made at last"):
        await tenancy.make_home()
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}))
        await account.has()
    (name,) = await tenancy.make_namespaces("production")
    first = await account.has(name)

    # When its home is deleted, then nothing is left in the tenant's namespaces or in the cluster
    with converging("home namespace deleted"):
        await tenancy.admin.delete(namespace_path(tenancy.home))
        await account.has_nothing(first, owner=True)
    await tenancy.gone("Namespace", "", tenancy.home)

    # When home and account are made again, then it has everything again, with another token
    with converging("home namespace made again"):
        await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenancy.home}})
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}))
        second = await account.has(name)
    assert second != first
    assert not await accepts(tenancy.cluster, first)

    # And in all of it the home never became the tenant's
    home = await tenancy.must("Namespace", "", tenancy.home)
    assert not home["metadata"].get("ownerReferences")
    assert set(home["metadata"]["labels"]) == {"kubernetes.io/metadata.name"}
