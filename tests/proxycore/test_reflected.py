"""Namespaces that a RoleBinding shows to somebody who owns no tenant: listed, read and watched, while it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from eventcore.grants import SubjectGrant
from tests.proxycore.test_across_lists import can_i

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.proxycore.conftest import Tenant, World

NAMESPACES = "/api/v1/namespaces"
DANA = "system:serviceaccount:dana-system:dana"


@pytest.fixture
async def reflecting(world: World) -> AsyncIterator[World]:
    """A world whose proxy reflects, with oil's namespaces oil-1 and oil-2."""
    await world.follow_rights()
    async with world.proxy(enable_reflector=True) as service:
        world.service = service
        await world.owner("oil", "oil-1", "oil-2")
        yield world


async def dana(world: World, *namespaces: str) -> Tenant:
    """Return a client to whom these namespaces are shown."""
    _, token = await world.account("dana-system", "dana")
    await show(world, *namespaces)
    await world.settle()
    await world.move_on()
    return world.client(token)


async def show(world: World, *namespaces: str) -> None:
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=DANA, reflected=namespaces))


async def test_what_is_shown_is_listed_and_read_and_nothing_else_of_the_tenant(reflecting: World) -> None:
    client = await dana(reflecting, "oil-1")

    assert (await client.get(NAMESPACES)).names == ["oil-1"]
    assert (await client.get(f"{NAMESPACES}?resourceVersion=0")).names == ["oil-1"]
    assert (await client.get(f"{NAMESPACES}/oil-1")).status == 200
    assert (await client.get(f"{NAMESPACES}/oil-2")).status == 403
    assert (await client.get(f"{NAMESPACES}/oil-1/configmaps")).status == 403
    assert (await client.request("DELETE", f"{NAMESPACES}/oil-1")).status == 403
    assert await can_i(client, verb="get", resource="namespaces", name="oil-1")
    assert not await can_i(client, verb="get", resource="namespaces", name="oil-2")


async def test_it_is_not_the_tenants_other_kinds_that_are_shown(reflecting: World) -> None:
    client = await dana(reflecting, "oil-1")

    assert (await client.get("/apis/capsule.clastix.io/v1beta2/tenants/oil")).status == 403
    assert (await client.get("/api/v1/persistentvolumes")).status == 403


async def test_a_watch_follows_what_is_shown(reflecting: World) -> None:
    client = await dana(reflecting, "oil-1")
    version = (await client.get(NAMESPACES)).version

    async with client.watch(f"resourceVersion={version}") as watch:
        await show(reflecting, "oil-1", "oil-2")
        assert await watch.named() == ("ADDED", "oil-2")
        await show(reflecting, "oil-2")
        assert await watch.named() == ("DELETED", "oil-1")
        await reflecting.withdraw(SubjectGrant(subject_kind="ServiceAccount", name=DANA).key())
        assert await watch.named() == ("DELETED", "oil-2")

    assert (await client.get(NAMESPACES)).names == []


async def test_who_is_no_user_of_capsule_is_shown_nothing(reflecting: World) -> None:
    client = await dana(reflecting, "oil-1")
    await reflecting.capsule_users(("User", "somebody"))
    await reflecting.settle()

    assert (await client.get(NAMESPACES)).status == 403
    assert (await client.get(f"{NAMESPACES}/oil-1")).status == 403


async def test_switched_off_at_the_proxy_nothing_is_shown(world: World) -> None:
    await world.owner("oil", "oil-1")
    client = await dana(world, "oil-1")

    assert (await client.get(NAMESPACES)).names == []
    assert (await client.get(f"{NAMESPACES}/oil-1")).status == 403


async def test_without_a_watcher_of_role_bindings_nothing_is_believed(world: World) -> None:
    await world.owner("oil", "oil-1")
    client = await dana(world, "oil-1")
    async with world.proxy(enable_reflector=True) as service:
        world.service = service

        assert (await world.client(client.token).get(NAMESPACES)).status == 503
