"""``--capsule-users``: an owner that nobody listed among the users of Capsule can work, and leaves no entry behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from tether import manifests

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
CONFIGURATION = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")


@pytest.fixture
async def switched_on(cluster: Any, admin: Any) -> AsyncIterator[None]:
    """Run routers and workers with the opt-in, and the right that it needs, for as long as a test lasts."""
    right = manifests.read(manifests.shipped("deploy/optional/worker-users.yaml"))
    await manifests.Applier(admin, "person").apply(right)
    await cluster.restart("router", "worker", TETHER_CAPSULE_USERS="true")
    yield
    # Switched off again, Tether takes its entries back, and needs the right for that.
    await cluster.restart("router", "worker")


def user(tenancy: Tenancy) -> dict[str, str]:
    return {"kind": "ServiceAccount", "name": tenancy.user}


async def listed(*of: Tenancy) -> list[dict[str, str]]:
    """Return the entries that concern these tenants; tenants of other tests come and go in the same list."""
    configuration = await of[0].must("CapsuleConfiguration", "", "default")
    users = configuration["spec"].get("users") or []
    return [user for user in users if any(one.name in user["name"] for one in of)]


async def list_by_hand(tenancy: Tenancy, *entries: dict[str, str]) -> None:
    """Append entries as an administrator does."""
    field = "/spec/users"
    if not (await tenancy.must("CapsuleConfiguration", "", "default"))["spec"].get("users"):
        await tenancy.admin.json_patch(CONFIGURATION, [{"op": "add", "path": field, "value": []}])
    await tenancy.admin.json_patch(
        CONFIGURATION, [{"op": "add", "path": f"{field}/-", "value": entry} for entry in entries]
    )


async def make_unlisted(tenancy: Tenancy) -> None:
    """Make an enabled owner whose home is in no list of Capsule's users."""
    await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenancy.home}})
    await tenancy.apply(tenancy.tenant(tenancy.user), tenancy.account(**{ENABLED: "true"}))


@pytest.mark.usefixtures("switched_on")
async def test_an_owner_that_nobody_listed_works_as_its_tenant_and_leaves_no_entry(
    tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    # Given entries of an administrator, one of them for an account that is made later
    by_hand = [{"kind": "User", "name": f"zoe-{tenancy.name}"}, user(other), {"kind": "Group", "name": tenancy.name}]
    await list_by_hand(tenancy, *by_hand)

    # When owners are made that are enabled
    await make_unlisted(tenancy)
    await make_unlisted(other)

    # Then each makes namespaces through its kubeconfig, which belong to its tenant
    for one in (tenancy, other):
        (namespace,) = await one.make_namespaces("production")
        made = await one.must("Namespace", "", namespace)
        assert made["metadata"]["labels"]["capsule.clastix.io/tenant"] == one.name
    # And only the one that was missing came to the list, at its end
    assert await listed(tenancy, other) == [*by_hand, user(tenancy)]

    # And the doctor finds both to be users
    done = await asyncio.to_thread(
        tenancy.cluster.tether, "doctor", "--json", "--kubeconfig", str(tenancy.cluster.folder / "admin.kubeconfig")
    )
    findings = [one for one in msgspec.json.decode(done.stdout)["findings"] if one["check"] == "capsule-users"]
    for one in (tenancy, other):
        told = [(f["severity"], f["message"]) for f in findings if f["object"] == f"{one.home}/{ACCOUNT}"]
        assert told == [("ok", "is a user of Capsule")]

    # When both are switched off
    for one in (tenancy, other):
        await one.apply(one.account(**{ENABLED: "false"}))
        await one.gone("Secret", one.home, f"{ACCOUNT}-token")

    # Then Tether's entry goes, and those by hand stay, also the one for the same account
    async def as_before() -> bool:
        return await listed(tenancy, other) == by_hand

    await until(as_before)
