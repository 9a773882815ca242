"""What no event tells is healed by the sweep, which looks at every key again in each interval, without a restart."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from eventcore.bus import Bus
from eventcore.events import WorkRequest, decode_body
from eventcore.grants import BUCKET
from eventcore.keys import Key, key, parse_work_subject
from eventcore.kube import api_path
from eventcore.topology import WORK
from tests.behaviour.conftest import eventually
from tests.behaviour.states import Whole

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow, pytest.mark.timeout(240)]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
ENABLED = "capsule.addon.fluxcd/enabled"
INTERVAL = "15s"  # a cluster that many tests shared has some thousand keys, all of them asked for in each


async def is_granted(cluster: Any, grant: Key) -> bool:
    """Tell whether a grant is in ``access``: what was taken out of there unseen, the proxy goes on showing."""
    async with cluster.bus() as bus:
        return await bus.kv_get(grant) is not None


async def is_stored(bus: Bus, subject: str) -> bool:
    """Tell whether WORK holds a request."""
    try:
        await bus.js.get_last_msg(WORK, subject)
    except NotFoundError:
        return False
    return True


@pytest.fixture
async def sweeping(cluster: Any) -> AsyncIterator[None]:
    """Run the router with a short interval for as long as a test lasts."""
    await cluster.restart("router", TETHER_SWEEP_INTERVAL=INTERVAL)
    yield
    await cluster.restart("router")


async def test_lost_requests_lost_grants_and_a_place_that_became_free_are_healed_by_the_sweep(
    tenancy: Tenancy, other: Tenancy, audit: Any, converging: Any, sweeping: None
) -> None:
    # Given two tenants with everything, and a Secret of somebody else where a kubeconfig of the first belongs
    await tenancy.make(**{"capsule.addon.fluxcd/kubeconfig-global": "false"})
    await other.make()
    (name,) = await tenancy.make_namespaces("production")
    account, lost = Whole(tenancy), Whole(other)
    await account.has(name, copies=set())
    metadata = {"name": KUBECONFIG, "namespace": name}
    foreign = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "data": {"a": base64.b64encode(b"b").decode()},
    }
    await tenancy.apply(foreign)
    path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    annotations = {"capsule.addon.fluxcd/kubeconfig-global": None}
    await tenancy.admin.merge_patch(path, {"metadata": {"annotations": annotations}})
    token = await lost.has()

    # When the second is switched off, and all that was asked for because of that is lost before anybody did it
    async with tenancy.cluster.bus() as bus:
        await tenancy.cluster.stop("worker")
        requested = await bus.nc.subscribe("work.token.>")
        path = api_path("", "v1", "serviceaccounts", namespace=other.home, name=ACCOUNT)
        await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}})
        async with asyncio.timeout(20):
            async for message in requested.messages:
                target, request = parse_work_subject(message.subject)[2], decode_body(WorkRequest, message.data)
                if (target, request.reason) == (key(other.home, ACCOUNT), "event"):
                    break
        # A subscriber may have a message before the stream has it, and that would outlive the purge.
        await eventually(partial(is_stored, bus, message.subject))
        await bus.js.purge_stream(WORK)

        # And the grants of the first are removed, and the place of its kubeconfig becomes free, which nobody watches
        granted = [key("tenant", tenancy.name), key("subject", "ServiceAccount", tenancy.user)]
        for one in granted:
            await bus.js.purge_stream(f"KV_{BUCKET}", subject=f"$KV.{BUCKET}.{one.token()}")
        await tenancy.admin.delete(api_path("", "v1", "secrets", namespace=name, name=KUBECONFIG))
        await tenancy.cluster.start()

    # Then the sweep brings all of it about
    with converging(f"healed by a sweep of {INTERVAL}"):
        await lost.has_nothing(token, owner=True)
        await account.has(name)
        for one in granted:
            await eventually(partial(is_granted, tenancy.cluster, one))

    # And it was the sweep
    swept = {(record.component, record.account or record.tenant) for record in await audit() if record.cause == "sweep"}
    assert swept >= {
        ("token", f"{other.home}/{ACCOUNT}"),
        ("kubeconfig", f"{tenancy.home}/{ACCOUNT}"),
        ("access", tenancy.name),
    }
