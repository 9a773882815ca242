"""The router asks for everything once at its start, for each change as it comes, and loses nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore import topology
from eventcore.clock import now
from eventcore.events import AuditRecord, Mark, WorkRequest, decode_body, encode_body, object_event
from eventcore.grants import TenantGrant, encode_grant
from eventcore.keys import ObjectKey, key, mark_subject, parse_work_subject, work_subject
from eventcore.objects import ANNOTATION_ACCOUNT, LABEL_COMPONENT
from eventcore.publishable import tombstone
from eventcore.reading import Reader
from workers.reflection import MOST_SUBJECTS
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

SET_ASIDE = "tether_router_set_aside_total"
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


TOO_LONG = "a" * 6000


@pytest.mark.parametrize(
    "account", [f"x/{TOO_LONG}", f"{TOO_LONG}/x", "x/" + "a." * 5000, "X/y", "x/y z", "x/\n", "x/y/z", "../x", "x/-"]
)
async def test_a_secret_that_names_no_account_asks_for_nothing_and_holds_up_nobody(
    bus: Bus, settings: Settings, metrics: Metrics, account: str
) -> None:
    # given a developer's Secret that says to be ours, before a router starts
    await put_example(bus)
    hostile = {"labels": {LABEL_COMPONENT: "token"}, "annotations": {ANNOTATION_ACCOUNT: account}}
    await put(bus, ObjectKey("Secret", "dev", "hostile"), 3, metadata=dict(hostile))

    # when it starts, the Secret changes, and a Tenant goes
    async with routing(bus, settings, metrics):
        await put(bus, ObjectKey("Secret", "dev", "hostile"), 4, metadata=dict(hostile))
        sequence = await bury(bus, ObjectKey("Tenant", "", "oil"), 5)

    # then all that the others need is asked for, nothing for the Secret, and the connection was never lost
    found = await requests(bus)
    assert {(worker, target) for worker, target, _ in found} == ALL_KEYS
    assert {(w, t) for w, t, r in found if r.cause == sequence} == ALL_KEYS - {("access", "config")}
    assert bus.connected


async def test_whom_no_key_can_name_is_set_aside_told_once_and_holds_up_nobody(
    bus: Bus, settings: Settings, metrics: Metrics
) -> None:
    # given a RoleBinding in a tenant's namespace that names somebody with too long a name, and a TenantOwner that does
    await put_example(bus)
    binding = ObjectKey("AnyRoleBinding", "oil-production", "hostile")
    subjects = [{"kind": "User", "name": "\x1b[2J" + TOO_LONG}, {"kind": "User", "name": "dana"}]
    await put(bus, binding, 3, subjects=subjects)
    await put(bus, ObjectKey("TenantOwner", "", "hostile"), 4, spec={"kind": "Group", "name": TOO_LONG})

    # when a router starts, the objects change, and a Tenant goes
    async with routing(bus, settings, metrics) as router:
        await put(bus, binding, 5, subjects=[*subjects, {"kind": "User", "name": "erin"}])
        await put(bus, ObjectKey("TenantOwner", "", "hostile"), 6, spec={"kind": "Group", "name": TOO_LONG})
        sequence = await bury(bus, ObjectKey("Tenant", "", "oil"), 7)
        async with asyncio.timeout(10):
            while (await bus.stream_state(topology.AUDIT)).messages < 2:
                await asyncio.sleep(0.02)
        assert router.waiting == 0

    # then everybody else is asked for, and each of the two is counted each time, and named once
    found = await requests(bus)
    named = {("access", "subject/User/dana"), ("access", "subject/User/erin")}
    assert {(worker, target) for worker, target, _ in found} == ALL_KEYS | named
    assert {(w, t) for w, t, r in found if r.cause == sequence} == ALL_KEYS - {("access", "config")}
    assert metrics.registry.get_sample_value(SET_ASIDE, {"controller": "access", "why": "key"}) == 3
    records = [await bus.js.get_msg(topology.AUDIT, seq=number) for number in (1, 2)]
    bodies = [decode_body(AuditRecord, record.data or b"") for record in records]
    assert {(one.component, one.action, one.outcome) for one in bodies} == {("router", "refused", "failed")}
    assert all(one.object.isprintable() and one.message.isprintable() for one in bodies)
    assert {one.object.partition("aaa")[0] for one in bodies} == {
        "access/subject/Group/",
        "access/subject/User/\\u001b[2J",
    }
    assert (await bus.stream_state(topology.AUDIT)).messages == 2


async def test_what_nats_refuses_for_ever_is_not_tried_again(bus: Bus, settings: Settings, metrics: Metrics) -> None:
    # given a WORK that takes no long messages, and one object whose request is one
    work = next(one for one in topology.streams(settings) if one.name == topology.WORK)
    await bus.js.update_stream(work.evolve(max_msg_size=1500))
    await put_example(bus)
    subjects = [{"kind": "User", "name": "n" * 2000}]

    # when it comes while a router runs, and another object after it
    async with routing(bus, settings, metrics) as router:
        await put(bus, ObjectKey("AnyRoleBinding", "oil-production", "long"), 3, subjects=subjects)
        await bury(bus, ObjectKey("Tenant", "", "oil"), 4)
        async with asyncio.timeout(10):
            while router.waiting or not metrics.registry.get_sample_value(
                SET_ASIDE, {"controller": "access", "why": "refused"}
            ):
                await asyncio.sleep(0.02)

    # then that one is set aside, and the rest is asked for
    assert {(worker, target) for worker, target, _ in await requests(bus)} == ALL_KEYS


@pytest.mark.parametrize("reflects", [True, False])
async def test_a_namespace_whose_bindings_name_more_than_count_is_told_at_the_start_and_when_one_changes(
    make_bus: MakeBus, make_settings: MakeSettings, metrics: Metrics, *, reflects: bool
) -> None:
    settings, bus = make_settings(enable_reflector=reflects), await make_bus()
    await put_example(bus)
    subjects = [{"kind": "User", "name": f"user-{number}"} for number in range(MOST_SUBJECTS + 1)]
    binding = ObjectKey("AnyRoleBinding", "oil-production", "many")
    await put(bus, binding, 3, subjects=subjects)

    async with routing(bus, settings, metrics):
        await put(bus, binding, 4, subjects=[*subjects, {"kind": "User", "name": "dana"}])

    # once in the audit, each time in the series, and only where RoleBindings show anything
    told = metrics.registry.get_sample_value(SET_ASIDE, {"controller": "access", "why": "subjects"})
    assert told == (2 if reflects else None)
    assert (await bus.stream_state(topology.AUDIT)).messages == reflects


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
