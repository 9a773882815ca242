"""What an account does to its own objects at home, where it may write anything, neither holds up nor outlives its end.

Each of these is done with the account's own token at the API server itself; then the account is switched off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.kube import api_path
from tests.behaviour.states import MARK, RBAC, Whole

if TYPE_CHECKING:
    from eventcore.kube import KubeClient

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
Tamper = Callable[["KubeClient", Whole], Awaitable[None]]
ACCOUNT = "gitops-reconciler"
TOKEN = f"{ACCOUNT}-token"
ENABLED = "capsule.addon.fluxcd/enabled"
COMPONENT = "capsule-tether.io/component"
TENANT = "capsule-tether.io/tenant"
BINDING = "capsule-tether.io/binding"
HOLD = {"metadata": {"finalizers": ["example.com/hold"]}}
MANY = 130
"""Objects that look like ours: more than are deleted for an account in one go."""


def secret(home: str, name: str = "") -> str:
    return api_path("", "v1", "secrets", namespace=home, name=name)


def role_binding(home: str, name: str = "") -> str:
    return api_path(RBAC, "v1", "rolebindings", namespace=home, name=name)


def places(account: Whole) -> list[str]:
    """Return what of an account stands at home."""
    names = (TOKEN, f"{TOKEN}-1", f"{ACCOUNT}-kubeconfig")
    return [role_binding(account.home, ACCOUNT), *(secret(account.home, name) for name in names)]


async def name_no_tenant(client: KubeClient, account: Whole) -> None:
    """Let every object name a Tenant whose path is that of all Tenants."""
    for place in places(account):
        await client.merge_patch(place, {"metadata": {"annotations": {TENANT: ""}}})


async def name_another_object(client: KubeClient, account: Whole) -> None:
    """Let every object name Tenants and Secrets that are paths of their own."""
    for place in places(account):
        patch = {"metadata": {"annotations": {TENANT: "../../namespaces", BINDING: ".."}}}
        await client.merge_patch(place, patch)


async def hold(client: KubeClient, account: Whole) -> None:
    """Put a finalizer on every object, which nobody takes off."""
    for place in places(account):
        await client.merge_patch(place, HOLD)


async def hold_while_it_goes(client: KubeClient, account: Whole) -> None:
    """Put a finalizer on every object, and delete it: a RoleBinding that is being deleted still binds."""
    await hold(client, account)
    for place in places(account)[1:]:
        await client.delete(place)


async def freeze(client: KubeClient, account: Whole) -> None:
    """Make every Secret immutable."""
    for place in places(account)[1:]:
        await client.merge_patch(place, {"immutable": True})


async def flood(client: KubeClient, account: Whole) -> None:
    """Make many objects that look like ours and come first by their name."""
    marks: Object = {"labels": {COMPONENT: "rbac"}, "annotations": {MARK: f"{account.home}/{ACCOUNT}", TENANT: ""}}
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}
    limit = asyncio.Semaphore(16)

    async def make(number: int) -> None:
        body = {"metadata": {"name": f"a{number}", **marks}, "roleRef": reference, "subjects": [account.subject]}
        async with limit:
            await client.create(role_binding(account.home), body)

    await asyncio.gather(*(make(number) for number in range(MANY)))


@pytest.mark.parametrize("tamper", [name_no_tenant, name_another_object, hold, hold_while_it_goes, freeze, flood])
async def test_nothing_that_an_account_does_at_home_holds_up_or_outlives_its_end(
    tenancy: Tenancy, until: Any, tamper: Tamper
) -> None:
    # Given an account that has everything
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()

    # When it spoils what it can, and is switched off at that moment
    async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
        await tamper(client, account)
        path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
        await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}})

    # Then nothing is left of what it had, and its token is dead, at the API server too
    await account.has_nothing(token, owner=True)

    async def dead() -> bool:
        async with tenancy.cluster.wire(token, direct=True) as api:
            return bool((await api.get("/version")).status == 401)

    await until(dead)
