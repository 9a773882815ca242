"""Whose the RoleBinding at home is, is told by what no tenant writes: when it came, not what stands on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from eventcore import topology

if TYPE_CHECKING:
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
IMPERSONATOR = f"{HOME}-{NAME}-impersonator"
LEFT = "capsule-tether.io/left-binding"
ENABLED = "capsule.addon.fluxcd_enabled"
RBAC = "rbac.authorization.k8s.io"
SUBJECT = {"kind": "ServiceAccount", "name": NAME, "namespace": HOME}
Object = dict[str, Any]


def binding(role: str = "cluster-admin", *subjects: Object) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": NAME, "namespace": HOME},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [SUBJECT, *subjects],
    }


async def before_tether(line: Line) -> Object:
    """Make the example, with a RoleBinding at home that an administrator made; return that."""
    await line.apply_files("capsule-configuration.yaml", "oil.yaml")
    await line.apply(binding())
    return await line.must("RoleBinding", HOME, NAME)


async def switch(line: Line, value: str | None) -> None:
    await line.annotate(f"{HOME}/{NAME}", **{ENABLED: value})


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.02)  # a counter tells nobody


async def test_an_administrators_is_left_however_often_the_account_is_switched_on_and_off(line: Line) -> None:
    before = await before_tether(line)
    async with line.everything():
        for _ in range(2):
            await switch(line, "true")
            role = await line.until_there("ClusterRole", "", IMPERSONATOR)
            assert role["metadata"]["annotations"][LEFT] == before["metadata"]["uid"]
            await line.until_there("Secret", HOME, f"{NAME}-token")
            await switch(line, None)
            await line.until_gone("ClusterRole", "", IMPERSONATOR)
            await line.until_gone("Secret", HOME, f"{NAME}-token")
    assert await line.must("RoleBinding", HOME, NAME) == before


async def test_one_that_takes_the_place_of_an_administrators_is_tethers(line: Line) -> None:
    before = await before_tether(line)
    async with line.everything():
        await line.until_there("ClusterRoleBinding", "", IMPERSONATOR)

        # when the account puts one of its own into its place, with more subjects
        await line.delete("RoleBinding", HOME, NAME)
        await line.apply(binding("cluster-admin", {"kind": "User", "apiGroup": RBAC, "name": "mallory"}))

        # then it is marked and put right, and goes in the end
        async def ours() -> bool:
            found = await line.get("RoleBinding", HOME, NAME)
            marks = found["metadata"].get("annotations", {}) if found else {}
            return bool(found and marks.get("capsule-tether.io/account") and found["subjects"] == [SUBJECT])

        await line.until(ours, "a RoleBinding with our marks")
        assert (await line.must("RoleBinding", HOME, NAME))["metadata"]["uid"] != before["metadata"]["uid"]
        await switch(line, None)
        await line.until_gone("RoleBinding", HOME, NAME)


@pytest.mark.parametrize("impersonator_roles", [True, False])
async def test_one_without_marks_is_tethers_after_tether_made_one(line: Line, *, impersonator_roles: bool) -> None:
    # given Tether gave the account its rights, and the marks were taken off while nobody worked or watched
    async with line.everything(impersonator_roles=impersonator_roles):
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        await line.until_there("RoleBinding", HOME, NAME)
        await line.until_generations(HOME, 1)
    await line.patch("RoleBinding", HOME, NAME, {"metadata": {"labels": None, "annotations": None}})
    await switch(line, None)

    # when all are back, then it goes
    async with line.everything(impersonator_roles=impersonator_roles):
        await line.until_gone("RoleBinding", HOME, NAME)
        await line.until_gone("Secret", HOME, f"{NAME}-token")


async def test_the_clusterrole_alone_is_proof_when_the_bus_has_lost_everything(line: Line) -> None:
    # given what an account has, its marks off, and a bus that knows nothing of it any more
    async with line.everything():
        await line.settle()
    await line.patch("RoleBinding", HOME, NAME, {"metadata": {"labels": None, "annotations": None}})
    for stream in ("OBJECTS", "KV_access"):
        await line.bus.js.delete_stream(stream)
    await topology.apply(line.bus, line.settings)
    await switch(line, None)

    # when all are back, then it goes
    async with line.everything():
        await line.until_gone("RoleBinding", HOME, NAME)
        await line.until_gone("ClusterRole", "", IMPERSONATOR)


async def test_where_tether_never_gave_anything_nothing_is_touched(line: Line) -> None:
    # given an enabled account that owns nothing, with a RoleBinding of an administrator
    before = await before_tether(line)
    await line.delete("Tenant", "", "oil")
    async with line.watcher(), line.router(), line.workers("rbac") as role:
        # when its rights are looked at
        async def looked_at() -> bool:
            labels = {"controller": "rbac", "result": "success"}
            return bool(role.metrics.registry.get_sample_value("controller_runtime_reconcile_total", labels))

        await eventually(looked_at)

    # then that is as it was
    assert await line.must("RoleBinding", HOME, NAME) == before
