"""The property: whatever a developer writes, a victim's onboarding and revocation keep their usual time."""

from __future__ import annotations

import time
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from eventcore.errors import KubeError
from tests.hostile_objects import hostile_object
from tests.repeating import repeating
from tests.workers.test_line import ACCOUNT, ENABLED, HOME, NAME

if TYPE_CHECKING:
    from tests.workers.conftest import Line

ROUNDS = 3
TIMES, SLACK = 3.0, 5.0
"""How much longer it may take: so many times the median without, and so many seconds."""
KINDS = ("Secret", "ServiceAccount", "RoleBinding", "ProxySetting", "ConfigMap")
"""What who has ``edit`` in a namespace, or a tenant in its own, may write."""


def drawn(kind: str, count: int) -> list[dict[str, Any]]:
    """Return hostile objects of a kind, the same in every run."""
    found: list[dict[str, Any]] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow, HealthCheck.large_base_example],
    )
    @given(hostile_object(kind))
    def collect(obj: dict[str, Any]) -> None:
        found.append(obj)

    collect()
    return found


async def measured(line: Line) -> tuple[float, float]:
    """Return the seconds that an onboarding and a revocation of the victim take."""
    began = time.monotonic()
    await line.annotate(f"{HOME}/{NAME}", **{ENABLED: "true"})
    await line.until_there("Secret", "oil-production", f"{NAME}-kubeconfig")
    await line.until(lambda: line.grant("account", HOME, NAME), "the grant of the account")
    onboarded = time.monotonic()
    await line.annotate(f"{HOME}/{NAME}", **{ENABLED: None})
    await line.until_gone("RoleBinding", HOME, NAME)
    await line.until_gone("Secret", "oil-production", f"{NAME}-kubeconfig")
    return onboarded - began, time.monotonic() - onboarded


@pytest.mark.slow
async def test_a_victim_is_onboarded_and_revoked_in_its_usual_time_whatever_a_developer_writes(line: Line) -> None:
    assert f"{HOME}/{NAME}" == ACCOUNT
    objects = iter([obj for kind in KINDS for obj in drawn(kind, 60)])
    await line.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dev"}})
    made = 0

    async def attack() -> None:
        nonlocal made
        obj = next(objects, None)
        if obj is None:
            return
        obj["metadata"]["namespace"] = "dev"
        obj["metadata"].pop("ownerReferences", None)
        with suppress(KubeError):
            await line.client.create(line.path(obj["kind"], "dev"), obj)
            made += 1

    async with line.everything():
        await line.settle()
        # given how long it takes with nobody around
        alone = [await measured(line) for _ in range(ROUNDS)]

        # when hostile objects come all the while
        async with repeating(attack, 0.02):
            attacked = [await measured(line) for _ in range(ROUNDS)]

        # then it takes as long
        assert made > 0
        for usual, hostile in zip(zip(*alone, strict=True), zip(*attacked, strict=True), strict=True):
            assert median(hostile) <= TIMES * median(usual) + SLACK
        assert line.bus.connected
