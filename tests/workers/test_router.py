"""The router asks for everything once at its start, for each change as it comes, and loses nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from eventcore import topology
from eventcore.clock import now
from eventcore.events import Mark, WorkRequest, decode_body, encode_body, object_event
from eventcore.grants import TenantGrant, encode_grant
from eventcore.keys import ObjectKey, key, mark_subject, parse_work_subject, work_subject
from eventcore.publishable import tombstone
from eventcore.reading import Reader
from workers.replaying import PENDING, replay
from workers.router import Router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from nats.aio.msg import Msg

    from eventcore.bus import Bus
    from eventcore.metrics import Metrics
    from eventcore.settings import Settings
    from tests.conftest import MakeBus, MakeSettings
    from tether.devcluster.nats import NatsServer

USER = "system:serviceaccount:oil-system:gitops-reconciler"
ACCOUNT = key("oil-system", "gitops-reconciler")


async def put(bus: Bus, target: ObjectKey, version: int, **body: Any) -> int:
    """Publish a version of an object as a watcher does; return its sequence."""
    metadata = {"name": target.name, "namespace": target.namespace, "uid": f"uid-{target.name}"}
    metadata |= {"resourceVersion": str(version)} | body.pop("metadata", {})
    event = object_event("default", target, uid=metadata["uid"], resource_version=str(version))
    data = msgspec.json.encode({"metadata": metadata} | body)
    return (await bus.publish(target.subject(), data, event, msg_id=event.id)).sequence


async def bury(bus: Bus, target: ObjectKey, version: int) -> int:
    event = object_event("default", target, uid=f"uid-{target.name}", resource_version=str(version), deleted=True)
    metadata = {"name": target.name, "namespace": target.namespace, "uid": f"uid-{target.name}"}
    data = tombstone(target.kind, msgspec.json.encode({"metadata": metadata}))
    return (await bus.publish(target.subject(), data, event, rollup=True, ttl=3600)).sequence


async def put_example(bus: Bus) -> int:
    """Publish the guide's account and Tenant."""
    annotations = {"capsule.addon.fluxcd/enabled": "true"}
    for kind in ("ServiceAccount", "Namespace", "Tenant"):
        mark = Mark(kind=kind, resource_version="1", time=now())
        await bus.publish(mark_subject(kind), encode_body(mark))
    account = ObjectKey("ServiceAccount", "oil-system", "gitops-reconciler")
    await put(bus, account, 1, metadata={"annotations": annotations})
    owners = [{"kind": "ServiceAccount", "name": USER}]
    return await put(bus, ObjectKey("Tenant", "", "oil"), 2, spec={"owners": owners})


async def requests(bus: Bus) -> list[tuple[str, str, WorkRequest]]:
    """Return what WORK holds: worker, key and request, in order."""
    state = await bus.stream_state(topology.WORK)
    found = []
    for sequence in range(1, state.last_sequence + 1):
        raw = await bus.js.get_msg(topology.WORK, seq=sequence)
        worker, _, target = parse_work_subject(raw.subject or "")
        found.append((worker, str(target), decode_body(WorkRequest, raw.data or b"")))
    return found


async def until(bus: Bus, check: Callable[[list[tuple[str, str, WorkRequest]]], object]) -> None:
    """Wait until what WORK holds is such; looked at again with every request that passes."""
    heard = asyncio.Event()

    async def hear(_: Msg) -> None:
        heard.set()

    subscription = await bus.nc.subscribe("work.>", cb=hear)
    async with asyncio.timeout(20):
        while not check(await requests(bus)):
            await heard.wait()
            heard.clear()
    await subscription.unsubscribe()


@asynccontextmanager
async def routing(bus: Bus, settings: Settings, metrics: Metrics) -> AsyncIterator[Router]:
    """Run a router until the block ends; then everything that it had to say is on WORK."""
    objects, access = Reader.objects(bus), Reader.access(bus)
    router = Router(bus, objects, access, settings, metrics)
    stopping, reading_stops = asyncio.Event(), asyncio.Event()
    reading = [asyncio.ensure_future(reader.run(reading_stops)) for reader in (objects, access)]
    task = asyncio.ensure_future(router.run(stopping))
    try:
        await asyncio.wait_for(router.started.wait(), 10)
        yield router
        await objects.barrier(10)
    finally:
        stopping.set()
        await asyncio.wait_for(task, 10)
        reading_stops.set()
        await asyncio.gather(*reading)


ALL_KEYS = {
    ("access", "account/oil-system/gitops-reconciler"),
    ("access", "config"),
    ("access", f"subject/ServiceAccount/{USER}"),
    ("access", "tenant/oil"),
    ("kubeconfig", "oil-system/gitops-reconciler/oil-system"),
    ("rbac", "oil-system/gitops-reconciler"),
    ("token", "oil-system/gitops-reconciler"),
}


async def test_at_its_start_it_asks_for_every_key_once(bus: Bus, settings: Settings, metrics: Metrics) -> None:
    # given the cluster is on OBJECTS, and a grant is left of something that is gone
    await put_example(bus)
    await bus.kv_put(key("tenant", "gone"), encode_grant(TenantGrant(name="gone", uid="u")), revision=0)

    # when a router starts
    async with routing(bus, settings, metrics):
        pass

    # then each key is asked for once, and the grant that has lost its reason too
    found = await requests(bus)
    assert {(worker, target) for worker, target, _ in found} == ALL_KEYS | {("access", "tenant/gone")}
    assert len(found) == len(ALL_KEYS) + 1
    assert {request.reason for _, _, request in found} == {"start"}


async def test_a_change_asks_with_its_sequence_and_its_id(bus: Bus, settings: Settings, metrics: Metrics) -> None:
    await put_example(bus)
    async with routing(bus, settings, metrics):
        before = (await bus.stream_state(topology.OBJECTS)).last_sequence
        sequence = await bury(bus, ObjectKey("Tenant", "", "oil"), 3)
        assert sequence > before

    caused = [one for one in await requests(bus) if one[2].reason == "event"]
    assert {(worker, target) for worker, target, _ in caused} == ALL_KEYS - {("access", "config")}
    assert {(request.cause, request.cause_id) for _, _, request in caused} == {(sequence, "default:uid-oil:gone")}


async def test_replicas_ask_for_a_change_once_between_them(bus: Bus, settings: Settings, metrics: Metrics) -> None:
    await put_example(bus)
    async with routing(bus, settings, metrics), routing(bus, settings, metrics):
        await bury(bus, ObjectKey("Tenant", "", "oil"), 3)

    caused = [(worker, target) for worker, target, request in await requests(bus) if request.reason == "event"]
    assert sorted(caused) == sorted(ALL_KEYS - {("access", "config")})


async def test_what_changes_while_nats_is_away_for_publishing_is_asked_for_in_the_end(
    make_bus: MakeBus, make_settings: MakeSettings, nats_server: NatsServer, metrics: Metrics
) -> None:
    # given a router runs
    settings = make_settings()
    bus = await make_bus()
    await put_example(bus)
    async with routing(bus, settings, metrics):
        # when a change is on its way to it and the server goes away and comes back
        sequence = await bury(bus, ObjectKey("Tenant", "", "oil"), 3)
        await nats_server.stop()
        await nats_server.start()

        def caused(found: list[tuple[str, str, WorkRequest]]) -> set[tuple[str, str]]:
            return {(worker, target) for worker, target, request in found if request.cause == sequence}

        # then every key that it concerns is asked for
        await until(bus, lambda found: caused(found) == ALL_KEYS - {("access", "config")})


async def test_the_sweep_asks_for_every_key_in_each_interval(
    make_bus: MakeBus, make_settings: MakeSettings, metrics: Metrics
) -> None:
    settings = make_settings(sweep_interval="1s")
    bus = await make_bus()
    await put_example(bus)

    def swept(found: list[tuple[str, str, WorkRequest]]) -> set[tuple[str, str]]:
        return {(worker, target) for worker, target, request in found if request.reason == "sweep"}

    async with routing(bus, settings, metrics):
        await until(bus, lambda found: swept(found) == ALL_KEYS)


async def test_a_replay_asks_for_every_key_and_never_fills_a_lane(bus: Bus) -> None:
    # given more keys than a lane may hold, and a worker that takes some time for each
    await put_example(bus)
    for number in range(120):
        await put(
            bus, ObjectKey("Tenant", "", f"t{number}"), 10 + number, spec={"owners": [{"kind": "User", "name": "x"}]}
        )
    done: list[str] = []
    all_done = asyncio.Event()
    expected = 120 + len([one for one in ALL_KEYS if one[0] == "access"]) + 1  # and the subject dana
    most = 0

    async def take(lane: int) -> None:
        nonlocal most
        subscription = await bus.js.pull_subscribe_bind(f"access-{lane}", topology.WORK)
        while True:
            for message in await subscription.fetch(1, timeout=20):
                info = await subscription.consumer_info()
                most = max(most, info.num_pending or 0)
                done.append(message.subject)
                await message.ack_sync()
                if len(done) == expected:
                    all_done.set()

    takers = [asyncio.ensure_future(take(lane)) for lane in range(16)]
    try:
        # when all of one worker's keys are replayed
        seen: list[tuple[int, int]] = []
        async with asyncio.timeout(30):
            count = await replay(bus, workers=["access"], progress=lambda made, of: seen.append((made, of)))
            await all_done.wait()
    finally:
        for taker in takers:
            taker.cancel()
        await asyncio.gather(*takers, return_exceptions=True)

    # then each was asked for once, no lane ever held more than a few, and nothing else was asked for
    wanted = {work_subject("access", key("tenant", f"t{number}")) for number in range(120)}
    assert wanted < set(done)
    assert len(done) == len(set(done)) == count == expected
    assert most <= PENDING
    assert seen[-1] == (count, count)
