"""Publishing one object: never back, never lost, never twice, whoever else publishes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from eventcore.events import OBJECT_DELETED, AuditRecord, decode_body, object_event
from eventcore.keys import ObjectKey
from eventcore.objects import LAST_APPLIED
from watchers.answers import Answer, read

if TYPE_CHECKING:
    from eventcore.bus import BusMessage
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
OIL = ObjectKey("Namespace", "", "oil")


def answer(world: World, obj: dict[str, Any], *, deleted: bool = False) -> Answer:
    return read(world.row("Namespace"), msgspec.json.encode(obj), deleted=deleted)


def namespace(version: int, uid: str = "uid-a", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "oil", "uid": uid, "resourceVersion": str(version), **metadata}}


async def put(world: World, version: int, uid: str = "uid-a", *, expect: int = 0) -> int:
    """Publish a version as another watcher would."""
    event = object_event("default", OIL, uid=uid, resource_version=str(version))
    body = msgspec.json.encode(namespace(version, uid))
    return (await world.bus.publish(OIL.subject(), body, event, msg_id=event.id, expect_last=expect)).sequence


def versions(messages: list[BusMessage]) -> list[tuple[str, str]]:
    return [(message.headers["ce-uid"], message.headers["ce-resourceversion"]) for message in messages]


async def test_a_newer_version_overtakes_what_another_watcher_published_meanwhile(world: World) -> None:
    # Given a publisher whose view is empty, and another watcher that was first
    async with world.publisher("Namespace") as publisher:
        await world.objects.until(lambda: True)
        offered = answer(world, namespace(7))
        await put(world, 5)

        await publisher.offer(offered)
        await publisher.flush()

    assert versions(await world.objects.until_many(OIL, 2)) == [("uid-a", "5"), ("uid-a", "7")]


async def test_an_older_version_is_dropped_when_another_watcher_was_first(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        sequence = await put(world, 9)

        await publisher.offer(answer(world, namespace(7)))
        await publisher.flush()

        last = await world.bus.last("OBJECTS", OIL.subject())
    assert last is not None
    assert last.sequence == sequence


async def test_many_versions_offered_at_once_arrive_in_order(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        for version in range(1, 9):
            await publisher.offer(answer(world, namespace(version)))
        await publisher.flush()

        messages = await world.objects.until_many(OIL, 8)

    assert versions(messages) == [("uid-a", str(version)) for version in range(1, 9)]


async def test_of_two_uids_the_api_server_says_which_one_lives(world: World) -> None:
    # Given OBJECTS holds another object of the name, and the API server serves uid-b
    await world.api.put(NAMESPACES, "oil", uid="uid-b")
    living = world.api.served[NAMESPACES]["", "oil"]
    await put(world, 50, "uid-a")

    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, living))
        await publisher.flush()
        # When a late watcher offers the dead one again
        await publisher.offer(answer(world, namespace(51, "uid-a")))
        await publisher.flush()

    messages = await world.objects.until_many(OIL, 2)
    assert versions(messages) == [("uid-a", "50"), ("uid-b", "101")]
    assert world.api.asked("GET", f"{NAMESPACES}/oil") == 2


async def test_a_late_delete_does_not_bury_an_object_that_lives_again(world: World) -> None:
    await world.api.put(NAMESPACES, "oil", uid="uid-b")
    await put(world, 101, "uid-b")

    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(50, "uid-a"), deleted=True))
        await publisher.flush()

    last = await world.bus.last("OBJECTS", OIL.subject())
    assert last is not None
    assert last.headers["ce-uid"] == "uid-b"
    assert last.headers["ce-type"] != OBJECT_DELETED


async def test_a_version_of_a_dead_object_is_not_published_over_its_tombstone(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(5)))
        await publisher.offer(answer(world, namespace(6), deleted=True))
        await publisher.flush()

        await publisher.offer(answer(world, namespace(5)))
        await publisher.flush()

        last = await world.bus.last("OBJECTS", OIL.subject())
    assert last is not None
    assert last.headers["ce-type"] == OBJECT_DELETED


async def test_a_tombstone_carries_the_last_metadata_alone_and_replaces_the_history(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        told = namespace(5, annotations={LAST_APPLIED: "{}", "team": "oil"}, managedFields=[{"manager": "x"}])
        await publisher.offer(answer(world, told | {"spec": {"finalizers": ["kubernetes"]}}))
        await publisher.offer(answer(world, told | {"spec": {"finalizers": ["kubernetes"]}}, deleted=True))
        await publisher.flush()

    tombstone = await world.bus.last("OBJECTS", OIL.subject())
    assert tombstone is not None
    assert tombstone.headers["Nats-Rollup"] == "sub"
    assert tombstone.headers["Nats-TTL"] == str(7 * 24 * 3600)
    assert tombstone.headers["ce-id"] == "default:uid-a:gone"
    assert msgspec.json.decode(tombstone.data) == {
        "metadata": {"name": "oil", "uid": "uid-a", "resourceVersion": "5", "annotations": {"team": "oil"}}
    }
    info = await world.bus.js.stream_info("OBJECTS", subjects_filter=OIL.subject())
    assert info.state.subjects == {OIL.subject(): 1}


async def test_an_expired_tombstone_leaves_nothing_for_a_fresh_view(world: World) -> None:
    # Given an object with history that was deleted, with a tombstone of one second
    async with world.publisher("Namespace", tombstone_ttl=1.0) as publisher:
        for version in (1, 2, 3):
            await publisher.offer(answer(world, namespace(version)))
        await publisher.offer(answer(world, namespace(4), deleted=True))
        await publisher.flush()
        async with world.reader() as before:
            dead = before.view.last(OIL)
            assert dead is not None
            assert dead.deleted

        # When the server lets go of it
        async with asyncio.timeout(15):
            while await world.bus.last("OBJECTS", OIL.subject()) is not None:
                # A server says nothing when a message expires.
                await asyncio.sleep(0.05)

        # Then a view made now has never heard of it, and the name can be born again
        async with world.reader() as after:
            assert after.view.last(OIL) is None
        await publisher.offer(answer(world, namespace(9, "uid-b")))
        await world.api.put(NAMESPACES, "oil", uid="uid-b", metadata={"resourceVersion": "9"})
        await publisher.flush()
        last = await world.bus.last("OBJECTS", OIL.subject())
        assert last is not None
        assert last.headers["ce-uid"] == "uid-b"


async def test_a_version_that_the_duplicate_window_would_swallow_is_said_again(world: World) -> None:
    # Given version 5 and then 6 were published a moment ago, and the API server went back to 5 (from a backup)
    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(5)))
        await publisher.offer(answer(world, namespace(6)))
        await publisher.flush()
        world.api.served[NAMESPACES]["", "oil"] = namespace(5)

        await publisher.offer(answer(world, namespace(5)), listed=True)
        await publisher.flush()

        messages = await world.objects.until_many(OIL, 3)
    assert versions(messages) == [("uid-a", "5"), ("uid-a", "6"), ("uid-a", "5")]


async def test_our_own_object_that_lost_its_label_and_got_it_back_lives_again(world: World) -> None:
    row, secrets = world.row("Secret"), "/api/v1/secrets"
    key = ObjectKey("Secret", "oil-system", "gitops-token")
    labels = {"capsule-tether.io/component": "token"}
    for step, labelled in enumerate([labels, {}, labels], start=1):
        obj = await world.api.put(
            secrets, "gitops-token", namespace="oil-system", uid="uid-s", metadata={"labels": labelled}
        )
        async with world.publisher("Secret") as publisher:
            await publisher.offer(read(row, msgspec.json.encode(obj), deleted=not labelled))
            await publisher.flush()
        await world.objects.until_many(key, step)

    async with world.reader() as reader:
        record = reader.view.get("Secret", "oil-system", "gitops-token")
    assert record is not None
    assert record.resource_version == "103"


async def test_an_object_without_the_label_is_not_taken_for_ours_by_a_get(world: World) -> None:
    row, key = world.row("Secret"), ObjectKey("Secret", "oil-system", "gitops-token")
    obj = await world.api.put(
        "/api/v1/secrets",
        "gitops-token",
        namespace="oil-system",
        metadata={"labels": {"capsule-tether.io/component": "token"}},
    )
    async with world.publisher("Secret") as publisher:
        await publisher.offer(read(row, msgspec.json.encode(obj)))
        await publisher.flush()
        await world.api.put("/api/v1/secrets", "gitops-token", namespace="oil-system")

        await publisher.ask(key)
        await publisher.flush()

    last = await world.bus.last("OBJECTS", key.subject())
    assert last is not None
    assert last.headers["ce-type"] == OBJECT_DELETED


async def test_in_place_of_an_object_over_max_payload_goes_a_mark_that_grants_nothing(world: World) -> None:
    # given an object is on the bus
    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(4, labels={"capsule.clastix.io/tenant": "oil"})))

        # when it grows over what the server takes, and is listed again
        big = namespace(5, annotations={"text": "x" * (world.bus.max_payload + 1)})
        await publisher.offer(answer(world, big))
        await publisher.flush()
        await publisher.offer(answer(world, big), listed=True)
        small = {"metadata": {"name": "gas", "uid": "uid-g", "resourceVersion": "6"}}
        await publisher.offer(answer(world, small))
        await publisher.flush()

        # then what it was is gone, once, others go on, and it is told
        await world.objects.until_many(ObjectKey("Namespace", "", "gas"), 1)
        [before, mark] = world.objects.of(OIL)
        assert before.headers.get("ce-withheld") is None
        assert mark.headers["ce-withheld"] == "oversized"
        assert mark.headers["ce-resourceversion"] == "5"
        async with world.reader() as reader:
            record = reader.view.get("Namespace", "", "oil")
        assert record is not None
        assert record.withheld == "oversized"
        assert record.metadata.deletion_timestamp is not None
        assert record.metadata.labels == {}
        await world.audit.until(lambda: len(world.audit.messages) >= 1)

        # and when it fits again it is as it was
        await publisher.offer(answer(world, namespace(7, labels={"capsule.clastix.io/tenant": "oil"})))
        await publisher.flush()
        await world.objects.until_many(OIL, 3)
        assert "ce-withheld" not in world.objects.of(OIL)[-1].headers
    await world.audit.until(lambda: len(world.audit.messages) >= 2)
    told, mended = (decode_body(AuditRecord, message.data) for message in world.audit.messages)
    assert (told.component, told.action, told.outcome) == ("watcher", "refused", "failed")
    assert (mended.action, mended.outcome, mended.object) == ("restored", "done", "Namespace/oil")
    assert told.object == "Namespace/oil"
    assert told.message.startswith("oversized: ")


async def test_an_object_that_the_server_takes_by_now_is_published_by_the_next_list(world: World) -> None:
    # given a server that took too little
    big = namespace(5, annotations={"text": "x" * 100_000})
    async with world.publisher("Namespace") as publisher:
        world.bus.nc._max_payload = 50_000  # noqa: SLF001 -- as its INFO sets it
        await publisher.offer(answer(world, big))
        await publisher.flush()
        await world.objects.until_many(OIL, 1)

        # when it takes more, and the same version is listed
        world.bus.nc._max_payload = 1_000_000  # noqa: SLF001 -- the same
        await publisher.offer(answer(world, big), listed=True)
        await publisher.flush()

        await world.objects.until_many(OIL, 2)
    assert [one.headers.get("ce-withheld") for one in world.objects.of(OIL)] == ["oversized", None]


async def test_a_tombstone_is_buried_however_large_the_object_was(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(5)))
        await publisher.flush()
        big = msgspec.json.encode(namespace(6, labels={f"label-{n}": "x" * 63 for n in range(18_000)}))  # as etcd takes
        await publisher.offer(read(world.row("Namespace"), big, deleted=True))
        await publisher.flush()
    await world.objects.until_many(OIL, 1)
    await world.objects.until(lambda: world.objects.of(OIL)[-1].headers["ce-type"] == OBJECT_DELETED)


async def test_a_restart_of_nats_between_offer_and_acknowledgement_loses_nothing(world: World) -> None:
    async with world.publisher("Namespace") as publisher:
        await publisher.offer(answer(world, namespace(1)))
        await publisher.flush()
        await world.nats.stop()

        for version in (2, 3):
            await publisher.offer(answer(world, namespace(version)))
        await world.nats.start()
        await publisher.flush()

        last = await world.bus.last("OBJECTS", OIL.subject())
    assert last is not None
    assert last.headers["ce-resourceversion"] == "3"
    async with world.reader() as reader:
        assert reader.view.get("Namespace", "", "oil") is not None
