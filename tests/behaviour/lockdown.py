"""The opt-in for Flux's default account (docs/lockdown.md), as an administrator switches it on and off."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from tests.behaviour.conftest import ACCOUNT, eventually, path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventcore.kube import KubeClient


@asynccontextmanager
async def opted_in(cluster: Any, admin: KubeClient) -> AsyncIterator[None]:
    """Run routers and workers with the opt-in for as long as the block lasts, and until nothing is left of it."""
    await cluster.restart("router", "worker", TETHER_FLUX_SERVICE_ACCOUNT=ACCOUNT)
    try:
        yield
    finally:
        await cluster.restart("router", "worker")

    async def nothing_left() -> bool:
        bindings = msgspec.json.decode(await admin.get(path("RoleBinding")))["items"]
        return not any(binding["metadata"]["name"].startswith("tether:lockdown:") for binding in bindings)

    await eventually(nothing_left)
