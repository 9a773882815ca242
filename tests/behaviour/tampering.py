"""What an account may do to its own objects at home, with its own token at the API server itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from eventcore.errors import AlreadyExistsError
from eventcore.kube import api_path
from tests.behaviour.conftest import ACCOUNT, eventually
from tests.behaviour.states import MARK, RBAC, Whole

if TYPE_CHECKING:
    from eventcore.kube import KubeClient

Object = dict[str, Any]
Tamper = Callable[["KubeClient", Whole], Awaitable[None]]
TOKEN = f"{ACCOUNT}-token"
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


async def strip(client: KubeClient, account: Whole) -> None:
    """Take our marks off everything."""
    for place in places(account):
        await client.merge_patch(place, {"metadata": {"labels": None, "annotations": None}})


async def mark_for_another(client: KubeClient, account: Whole) -> None:
    """Let everything say that it was made for another account."""
    for place in places(account):
        await client.merge_patch(place, {"metadata": {"annotations": {MARK: "somebody/else"}}})


async def make_anew(client: KubeClient, account: Whole) -> None:
    """Put a RoleBinding of its own, without marks, in the place of ours, and others beside itself into it."""
    place = role_binding(account.home, ACCOUNT)
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}
    mallory = {"kind": "User", "apiGroup": RBAC, "name": "mallory"}
    # Bound by another name meanwhile, so that it may go on.
    for name, subjects in (("mine", [account.subject]), (ACCOUNT, [account.subject, mallory])):
        body = {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}

        async def made(name: str = name, body: Object = body) -> bool:
            if name == ACCOUNT:
                await client.delete(place)
            try:
                await client.create(role_binding(account.home), body)
            except AlreadyExistsError:
                return False  # ours was faster
            return True

        await eventually(made)
    await client.delete(role_binding(account.home, "mine"))
