"""Tokens that are rotated by age, every few seconds: who reads its Secret again is never refused, who does not is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from eventcore.kube import KubeClient
from tests.behaviour.conftest import may
from tests.behaviour.test_tokens import accepted, flux

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow, pytest.mark.timeout(240)]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
ACCOUNTS = "/api/v1/serviceaccounts"
ROTATIONS = 10


@pytest.fixture
async def quick(cluster: Any, admin: KubeClient) -> AsyncIterator[None]:
    """Rotate every three seconds. The tenants of tests that are over would be rotated too, and are switched off."""
    listed = msgspec.json.decode(await admin.get(ACCOUNTS))["items"]
    for meta in (one["metadata"] for one in listed):
        if ENABLED in meta.get("annotations", {}):
            path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{meta['name']}"
            # Capsule guards promoted accounts, and a namespace may be on its way out.
            await may(admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}}))
    await cluster.restart("worker", TETHER_TOKEN_TTL="10m", TETHER_TOKEN_ROTATE_AFTER="3s", TETHER_TOKEN_OVERLAP="12s")
    yield
    await cluster.restart("worker")


async def _used(seen: list[tuple[str, bool]], rotations: int) -> bool:
    return len({token for token, good in seen if good}) > rotations


async def test_ten_rotations_by_age_refuse_nobody_who_reads_again_and_in_the_end_everybody_who_does_not(
    tenancy: Tenancy, until: Any, quick: None
) -> None:
    # Given a tenant with a namespace, and a client there that reads its kubeconfig before each request
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")
    first = await tenancy.token()
    async with flux(tenancy, namespace) as seen:
        # When its token has been rotated ten times by nothing but its age
        for rotations in range(1, ROTATIONS + 1):
            await until(lambda count=rotations: _used(seen, count))

        # Then who kept the first token is refused, by the proxy and by the API server
        async def refused() -> bool:
            return not (await accepted(tenancy, first, direct=False) or await accepted(tenancy, first, direct=True))

        await until(refused)

    # And who read the Secret again never was
    assert [token for token, good in seen if not good] == []
