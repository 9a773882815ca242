"""Capsule's promotion of accounts to owners: who may, where it is allowed, and when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.tenants import CONFIGURATION, NAMESPACES, TENANTS, Tenancy, may
from tests.kubeapi import Client

pytestmark = pytest.mark.xdist_group("contract")

PROMOTE = "owner.projectcapsule.dev/promote"
ALLOWED = {"allowOwnerPromotion": True}


@pytest.fixture
async def promoting(admin: Client, tenancy: Tenancy) -> AsyncIterator[None]:
    """Let accounts be promoted in this cluster for as long as a test lasts."""
    await tenancy.must(admin.patch(CONFIGURATION, {"spec": {"allowServiceAccountPromotion": True}}))
    yield
    await tenancy.must(admin.patch(CONFIGURATION, {"spec": {"allowServiceAccountPromotion": False}}))


async def make_account(tenancy: Tenancy) -> str:
    """Make an account in a namespace of the tenant, which RBAC lets its owner promote; return its path."""
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    await tenancy.until(lambda: may(tenancy.owner, "patch", "serviceaccounts", namespace=name))
    accounts = f"{NAMESPACES}/{name}/serviceaccounts"
    await tenancy.must(tenancy.admin.post(accounts, {"metadata": {"name": "app"}}))
    return f"{accounts}/app"


async def promoted(tenancy: Tenancy) -> bool:
    owners = (await tenancy.tenant()).get("status", {}).get("owners", [])
    return f"system:serviceaccount:{tenancy.name}-a:app" in [owner["name"] for owner in owners]


async def test_an_account_is_promoted_by_an_owner_where_the_tenant_says_so_and_until_it_does_not(
    tenancy: Tenancy, promoting: None
) -> None:
    # given
    await tenancy.make(permissions=ALLOWED)
    account = await make_account(tenancy)
    label = {"metadata": {"labels": {PROMOTE: "true"}}}

    async def done() -> bool:
        return (await tenancy.owner.patch(account, label)).status == 200

    async def ended() -> bool:
        return not await promoted(tenancy)

    # when
    by_admin = await tenancy.admin.patch(account, label)
    await tenancy.until(done)
    # then
    assert (by_admin.status, "not allowed to promote" in by_admin.body["message"]) == (403, True)
    await tenancy.until(lambda: promoted(tenancy))
    # and when the Tenant says so no more
    await tenancy.must(tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"permissions": None}}))
    await tenancy.until(ended)


async def test_a_tenant_that_says_nothing_of_promotion_allows_none(tenancy: Tenancy, promoting: None) -> None:
    # given
    await tenancy.make()
    account = await make_account(tenancy)
    # when
    refused = await tenancy.owner.patch(account, {"metadata": {"labels": {PROMOTE: "true"}}})
    # then
    assert refused.status == 403
    assert "promotion is disabled" in refused.body["message"]


async def test_where_the_configuration_allows_no_promotion_no_tenant_does(tenancy: Tenancy) -> None:
    # given
    await tenancy.make(permissions=ALLOWED)
    account = await make_account(tenancy)
    # when
    refused = await tenancy.owner.patch(account, {"metadata": {"labels": {PROMOTE: "true"}}})
    # then
    assert refused.status == 403
    assert "promotion is disabled" in refused.body["message"]
