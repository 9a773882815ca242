"""Ready is: loaded once, listening, not leaving. How old memory is decides about each request, and about that alone."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore import logs, topology
from eventcore.clock import now
from eventcore.events import Mark, encode_body, object_event
from eventcore.grants import AccountGrant, BoundSecret, CapsuleUserRef, ConfigGrant, SubjectGrant, TenantGrant
from eventcore.keys import ObjectKey, key, mark_subject
from tests.proxycore.test_measures import until

if TYPE_CHECKING:
    from eventcore.grants import Grant
    from tests.proxycore.conftest import Reply, Tenant, World

NAMESPACES = "/api/v1/namespaces"
OWNER = "system:serviceaccount:oil-system:gitops-reconciler"
MINE = f"{NAMESPACES}/oil-production"
SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


def gauge(world: World, name: str) -> float:
    return world.role.metrics.registry.get_sample_value(name) or 0.0


async def publish(world: World, kind: str, name: str, **fields: Any) -> None:
    """Publish an object as a watcher does."""
    target = ObjectKey(kind, "", name)
    body = msgspec.json.encode({"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "5"}, **fields})
    event = object_event("test", target, uid=f"uid-{name}", resource_version="5")
    await world.bus.publish(target.subject(), body, event)


async def mark(world: World, *kinds: str) -> None:
    for kind in kinds:
        await world.bus.publish(mark_subject(kind), encode_body(Mark(kind=kind, resource_version="5", time=now())))


async def lose_everything(world: World) -> None:
    """Take the streams away and make them anew, as after a loss of NATS' disks and `tether topology apply`."""
    for name in (topology.OBJECTS, topology.ACCESS):
        await world.bus.js.delete_stream(name)
    for stream in topology.streams(world.settings):
        if stream.name in {topology.OBJECTS, topology.ACCESS}:
            await world.bus.js.add_stream(stream)


def waits_for(world: World, grant: Grant) -> bool:
    return grant.key().token() in dict(world.role.readiness.failing()).get("grants", "")


async def forwarded(client: Tenant) -> Reply:
    return await client.request("POST", SELF, json=REVIEW)


async def test_while_nats_is_away_it_stays_ready_forwards_and_refuses_what_it_would_filter(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    owner = await world.owner("oil", "oil-production")
    logs.configure("info", "json", "proxy")

    async def said(line: str) -> None:
        found = ""
        async with asyncio.timeout(15):
            while line not in found:
                await asyncio.sleep(0.02)  # what is written tells nobody
                found += capfd.readouterr().err
        assert found.count(line) == 1

    async with world.proxy(max_view_age=1.0, mark_interval=0.5) as service:
        client = world.client(owner.token)
        client.url = f"https://127.0.0.1:{service.port}"
        await until(lambda: world.role.readiness.ready)
        assert (await client.get(NAMESPACES)).names == ["oil-production"]

        # when NATS is away for longer than the limit
        await world.nats.stop()
        await until(lambda: gauge(world, "tether_proxy_stale") == 1)
        await said("memory is too old, filtered answers are refused")

        # then only what stands on the grants is refused, and the process stays in its Service
        listed, read, passed = await client.get(NAMESPACES), await client.get(MINE), await forwarded(client)
        assert world.role.readiness.ready
        assert (listed.status, read.status, passed.status) == (503, 503, 201)
        assert {listed.headers["Retry-After"], read.headers["Retry-After"]} == {"5"}

        # and when it is back, all goes on
        await world.nats.start()
        await until(lambda: gauge(world, "tether_proxy_stale") == 0)
        assert (await client.get(NAMESPACES)).names == ["oil-production"]
        await said("memory is current again")


async def test_old_marks_do_not_hold_up_the_first_readiness(world: World) -> None:
    await world.settle()
    await world.stop_vouching()
    async with world.proxy(max_view_age=1.0, mark_interval=0.1):
        await until(lambda: world.role.readiness.ready)
        await until(lambda: gauge(world, "tether_proxy_stale") == 1)
        assert world.role.readiness.ready


async def test_before_a_watcher_has_vouched_for_anything_it_is_not_ready_and_says_why(world: World) -> None:
    await world.stop_vouching()
    await world.bus.js.purge_stream(topology.OBJECTS)
    async with world.proxy() as service:
        await until(lambda: "no watcher" in dict(world.role.readiness.failing()).get("namespaces", ""))
        assert dict(world.role.readiness.failing())["namespaces"].endswith("Namespace, Tenant, CapsuleConfiguration")
        await mark(world, "Namespace", "Tenant")
        await asyncio.sleep(0)
        assert not service.objects.ready
        await mark(world, "CapsuleConfiguration")
        await until(lambda: world.role.readiness.ready)


async def test_the_first_readiness_waits_for_the_grants(world: World) -> None:
    # given a cluster whose grants are not compiled yet
    _, token = await world.account("oil-system", "gitops-reconciler")
    await world.namespace("oil-production")
    await world.settle()
    await publish(world, "CapsuleConfiguration", "default", spec={"userGroups": ["system:serviceaccounts"]})
    await publish(world, "Tenant", "oil", spec={"owners": [{"kind": "ServiceAccount", "name": OWNER}]})
    steps = (
        ConfigGrant(users=(CapsuleUserRef(kind="Group", name="system:serviceaccounts"),)),
        TenantGrant(name="oil", uid="uid-oil", namespaces=("oil-production",)),
        SubjectGrant(subject_kind="ServiceAccount", name=OWNER, tenants=("oil",)),
    )

    # when a proxy starts, and one grant after the other is written
    async with world.proxy() as service:
        client = world.client(token)
        client.url = f"https://127.0.0.1:{service.port}"
        await until(lambda: service.objects.ready)
        for grant in steps:
            await until(partial(waits_for, world, grant))
            for target in (NAMESPACES, MINE, "/api/v1/nodes"):
                found = await client.get(target)
                assert (found.status, found.headers["Retry-After"]) == (503, "1")
            await world.grant(grant)

        # then it is ready with the last one, and nobody was ever told 401 or 403
        await until(lambda: world.role.readiness.ready)
        assert await service.feed.settled(15)
        assert (await client.get(NAMESPACES)).names == ["oil-production"]
        assert (await client.get(MINE)).status == 200


async def test_when_nats_lost_everything_a_good_token_is_never_refused(world: World) -> None:
    # given an owner whose token is bound to a Secret that its grant names
    owner = await world.owner("oil", "oil-production")
    account = AccountGrant(
        namespace="oil-system",
        name="gitops-reconciler",
        uid="u",
        secrets=(BoundSecret(name="s", uid="secret-uid", generation=1),),
    )
    await world.grant(account)
    await world.settle()
    await until(lambda: world.role.readiness.ready)
    await world.stop_vouching()
    codes: list[int] = []
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            codes.extend([(await owner.get(target)).status for target in (NAMESPACES, MINE)])

    asking = asyncio.ensure_future(ask())

    # when everything is lost, listed again, and the grants are written again one by one
    await lose_everything(world)
    await until(lambda: not world.service.access.ready and not world.service.objects.ready)
    await publish(world, "CapsuleConfiguration", "default")
    await publish(world, "Tenant", "oil", spec={"owners": [{"kind": "ServiceAccount", "name": OWNER}]})
    await publish(world, "Namespace", "oil-production")
    await mark(world, "Namespace", "Tenant", "CapsuleConfiguration")
    await until(lambda: world.service.objects.ready)
    world.vouching = True
    for grant in (
        ConfigGrant(users=(CapsuleUserRef(kind="Group", name="system:serviceaccounts"),)),
        TenantGrant(name="oil", uid="uid-oil", namespaces=("oil-production",)),
        SubjectGrant(subject_kind="ServiceAccount", name=OWNER, tenants=("oil",)),
    ):
        assert not world.service.access.ready
        assert world.service.access.view.get(key("account", "oil-system", "gitops-reconciler")) == account
        await world.grant(grant)
    await world.grant(account)
    await until(lambda: world.service.access.ready)
    over.set()
    await asking

    # then the caller was answered all the time, from what was known before or told to come again
    assert set(codes) <= {200, 503}
    assert world.service.access.created != ""
    assert world.role.readiness.ready
    assert (await owner.get(NAMESPACES)).names == ["oil-production"]
