"""A view is the last of every subject, follows live, and is never deaf nor a mixture of two streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore import topology
from eventcore.bus import Bus, BusMessage
from eventcore.clock import now
from eventcore.events import Mark, encode_body, object_event
from eventcore.grants import TenantGrant, encode_grant
from eventcore.keys import ObjectKey, key, mark_subject
from eventcore.publishable import tombstone
from eventcore.reading import Reader
from eventcore.views import Change, ObjectRecord, ObjectsView

if TYPE_CHECKING:
    from eventcore.metrics import Metrics
    from eventcore.settings import Settings
    from tether.devcluster.nats import NatsServer

Background = Callable[[Awaitable[object]], None]


def body(name: str, **labels: str) -> bytes:
    inner = ",".join(f'"{label}":"{value}"' for label, value in labels.items())
    return f'{{"kind":"Namespace","metadata":{{"name":"{name}","uid":"u-{name}","labels":{{{inner}}}}}}}'.encode()


async def put(bus: Bus, name: str, version: int, **labels: str) -> int:
    target = ObjectKey("Namespace", "", name)
    event = object_event("test", target, uid=f"u-{name}", resource_version=str(version))
    return (await bus.publish(target.subject(), body(name, **labels), event, msg_id=event.id)).sequence


async def bury(bus: Bus, name: str, ttl: float) -> int:
    target = ObjectKey("Namespace", "", name)
    event = object_event("test", target, uid=f"u-{name}", resource_version="9", deleted=True)
    data = tombstone("Namespace", body(name))
    return (await bus.publish(target.subject(), data, event, msg_id=event.id, rollup=True, ttl=ttl)).sequence


@pytest.fixture
async def reader(bus: Bus, stopping: asyncio.Event, background: Background) -> Reader[ObjectsView, ObjectRecord]:
    made = Reader.objects(bus)
    background(made.run(stopping))
    return made


def names(reader: Reader[ObjectsView, ObjectRecord]) -> list[str]:
    return sorted(record.key.name for record in reader.view.all("Namespace"))


async def test_a_reader_starts_with_the_last_of_each_subject_and_follows(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], stopping: asyncio.Event, background: Background
) -> None:
    # Given a stream with several versions of two objects, and one deleted
    await put(bus, "a", 1, color="red")
    await put(bus, "a", 2, color="blue")
    await put(bus, "b", 3)
    await put(bus, "c", 4)
    await bury(bus, "c", 3600)

    # When a reader starts now
    late = Reader.objects(bus)
    changes: list[Change[ObjectRecord]] = []
    late.listen(changes.append)
    background(late.run(stopping))
    await late.barrier(10)

    # Then it has the last of each, and the listeners heard each once
    assert names(late) == ["a", "b"]
    blue = late.view.get("Namespace", "", "a")
    assert blue is not None
    assert blue.metadata.labels == {"color": "blue"}
    assert [(c.old, c.new.key.name if c.new else "") for c in changes] == [(None, "a"), (None, "b"), (None, "c")]
    grave = late.view.last(ObjectKey("Namespace", "", "c"))
    assert grave is not None
    assert grave.deleted

    # And what comes later reaches it and the reader that was there before
    sequence = await put(bus, "b", 5, color="green")
    await late.wait_for(sequence, 10)
    await reader.wait_for(sequence, 10)
    assert changes[-1].old is not None
    assert changes[-1].old.resource_version == "3"
    assert names(reader) == names(late)


async def test_after_a_tombstone_has_expired_a_fresh_view_finds_no_object(
    bus: Bus, stopping: asyncio.Event, background: Background
) -> None:
    # Given an object with three versions, and a tombstone that lives for one second
    for version in (1, 2, 3):
        await put(bus, "a", version)
    await bury(bus, "a", ttl=1)

    # When it has expired (an advisory tells nobody, so the stream is asked until it is empty)
    async with asyncio.timeout(30):
        while (await bus.stream_state("OBJECTS")).messages:
            await asyncio.sleep(0.05)

    # Then no older version has come back, and a view that starts now is complete and empty
    late = Reader.objects(bus)
    background(late.run(stopping))
    await late.barrier(10)
    assert list(late.view.records()) == []


async def test_without_rollup_the_version_before_a_tombstone_would_come_back(bus: Bus) -> None:
    # The reason for the rollup: shown on the server itself, so that the rule falls with its cause.
    await put(bus, "a", 1)
    target = ObjectKey("Namespace", "", "a")
    event = object_event("test", target, uid="u-a", resource_version="9", deleted=True)
    gone = await bus.publish(target.subject(), tombstone("Namespace", body("a")), event, ttl=1)
    async with asyncio.timeout(30):
        while True:
            last = await bus.last("OBJECTS", target.subject())
            if last is None or last.sequence != gone.sequence:
                break
            await asyncio.sleep(0.05)
    assert last is not None
    assert last.data == body("a")


async def test_after_a_restart_of_the_server_a_reader_hears_what_was_published_meanwhile(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], nats_server: NatsServer
) -> None:
    await put(bus, "a", 1)
    await reader.barrier(10)
    heard: list[str] = []
    reader.listen(lambda change: heard.append(change.new.key.name if change.new else "gone"))

    await nats_server.kill()
    await nats_server.start()
    sequence = await put(bus, "b", 2)
    await reader.wait_for(sequence, 20)

    # Only the difference is told: "a" did not change.
    assert names(reader) == ["a", "b"]
    assert heard == ["b"]


async def test_a_stream_that_was_made_anew_is_read_anew(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], settings: Settings
) -> None:
    # Given a view of a stream with two objects
    await put(bus, "a", 1)
    await put(bus, "b", 2)
    await reader.barrier(10)
    heard: list[tuple[bool, bool]] = []
    reader.listen(lambda change: heard.append((change.old is not None, change.new is not None)))

    # When the stream is lost and made anew, its sequences start again
    await bus.js.delete_stream("OBJECTS")
    await topology.apply(bus, settings)
    sequence = await put(bus, "c", 3)
    assert sequence == 1
    async with asyncio.timeout(20):
        while reader.view.get("Namespace", "", "c") is None:
            await asyncio.sleep(0.02)

    # Then the view holds what the new stream holds, and the listeners heard what went and what came
    assert names(reader) == ["c"]
    assert sorted(heard) == [(False, True), (True, False), (True, False)]


async def test_a_message_that_cannot_be_read_stops_nothing(bus: Bus, reader: Reader[ObjectsView, ObjectRecord]) -> None:
    await bus.publish(
        "objects.Namespace._.broken",
        b"{",
        object_event("t", ObjectKey("Namespace", "", "broken"), uid="u", resource_version="1"),
    )
    await bus.publish("objects.Namespace._.headless", body("headless"))
    await bus.publish(
        "objects.Unknown._.x", b"{}", object_event("t", ObjectKey("Unknown", "", "x"), uid="u", resource_version="1")
    )
    sequence = await put(bus, "a", 1)
    await reader.wait_for(sequence, 10)
    assert names(reader) == ["a"]


async def test_sequence_size_and_ages_of_a_view_are_measured(
    bus: Bus, metrics: Metrics, stopping: asyncio.Event, background: Background
) -> None:
    measured = Reader.objects(bus, metrics)
    background(measured.run(stopping))
    await put(bus, "a", 1)
    await bus.publish(mark_subject("Namespace"), encode_body(Mark(kind="Namespace", resource_version="1", time=now())))
    async with asyncio.timeout(20):
        while 'tether_view_applied_sequence{view="OBJECTS"} 2.0' not in metrics.render().decode():
            await asyncio.sleep(0.05)
    text = metrics.render().decode()
    assert 'tether_view_objects{view="OBJECTS"} 1.0' in text
    assert 'tether_view_age_seconds{kind="Namespace"}' in text


async def test_the_age_of_a_kind_is_that_of_its_mark(bus: Bus, reader: Reader[ObjectsView, ObjectRecord]) -> None:
    assert reader.view.age("Namespace") == float("inf")
    time = now()
    mark = Mark(kind="Namespace", resource_version="7", time=time)
    sequence = (await bus.publish(mark_subject("Namespace"), encode_body(mark))).sequence
    await reader.wait_for(sequence, 10)
    assert reader.view.age("Namespace", time + timedelta(seconds=4)) == 4
    assert reader.view.mark("Namespace") == mark


async def test_a_mark_that_speaks_of_another_objects_says_nothing(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord]
) -> None:
    stale = Mark(kind="Namespace", resource_version="7", time=now(), stream="2020-01-01T00:00:00Z")
    await bus.publish(mark_subject("Namespace"), encode_body(stale))
    await reader.barrier(10)
    assert reader.view.mark("Namespace") is None
    assert reader.view.age("Namespace") == float("inf")

    await bus.publish(mark_subject("Namespace"), encode_body(msgspec.structs.replace(stale, stream=reader.created)))
    await reader.barrier(10)
    assert reader.view.age("Namespace") < float("inf")


async def test_the_barrier_waits_for_all_that_the_stream_holds(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord]
) -> None:
    for version in range(1, 200):
        await put(bus, "a", version)
        assert await reader.barrier(10) == version
        record = reader.view.get("Namespace", "", "a")
        assert record is not None
        assert record.resource_version == str(version)


async def test_a_grant_that_is_deleted_or_replaced_by_nonsense_is_gone_from_the_view(
    bus: Bus, stopping: asyncio.Event, background: Background
) -> None:
    reader = Reader.access(bus)
    background(reader.run(stopping))
    oil, gas = TenantGrant(name="oil", uid="1"), TenantGrant(name="gas", uid="2")
    first = await bus.kv_put(oil.key(), encode_grant(oil), revision=0)
    second = await bus.kv_put(gas.key(), encode_grant(gas), revision=0)
    await reader.barrier(10)
    assert reader.view.get(key("tenant", "oil")) == oil

    await bus.kv_delete(oil.key(), revision=first)
    await bus.kv_put(gas.key(), encode_grant(oil), revision=second)
    await reader.barrier(10)
    assert reader.view.get(key("tenant", "oil")) is None
    assert reader.view.get(key("tenant", "gas")) is None
    assert list(reader.view.all()) == []


async def test_what_was_purged_by_hand_is_gone_from_a_running_view(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], stopping: asyncio.Event, background: Background
) -> None:
    # Given running views of an object, a tombstone, and a grant
    access = Reader.access(bus)
    background(access.run(stopping))
    await put(bus, "a", 1)
    await put(bus, "b", 2)
    await bury(bus, "b", 3600)
    oil = TenantGrant(name="oil", uid="1")
    await bus.kv_put(oil.key(), encode_grant(oil), revision=0)
    await reader.barrier(10)
    await access.barrier(10)

    # When both streams are purged, which changes no last sequence and which the server tells nobody
    await bus.js.purge_stream("OBJECTS", subject="objects.Namespace._.a")
    await bus.js.purge_stream("KV_access")

    # Then the views find out
    async with asyncio.timeout(20):
        while names(reader) or access.view.get(oil.key()):
            await asyncio.sleep(0.02)


def test_a_view_takes_the_same_messages_in_any_number_of_parts() -> None:
    # A reader that was rebuilt and one that was not must agree: the view depends on the last message alone.
    def message(sequence: int, name: str) -> Any:
        from eventcore.bus import BusMessage  # noqa: PLC0415 -- used here alone

        target = ObjectKey("Namespace", "", name)
        event = object_event("t", target, uid=f"u-{name}", resource_version=str(sequence), time=now())
        return BusMessage(
            subject=target.subject(), sequence=sequence, time=now(), headers=event.headers(), data=body(name)
        )

    whole, last = ObjectsView(), ObjectsView()
    messages = [message(1, "a"), message(2, "b"), message(3, "a")]
    for one in messages:
        whole.apply(one)
    for one in messages[1:]:
        last.apply(one)
    assert whole.records() == last.records()


@pytest.mark.holds_the_loop("135 MB of the view before go back to the system at once")
async def test_a_reader_takes_more_than_the_server_lets_wait_for_anybody(
    bus: Bus, settings: Settings, stopping: asyncio.Event, background: Background
) -> None:
    # given more on OBJECTS than nats-server sends to anybody at once, in large messages
    for number in range(90):
        await put(bus, f"large-{number:02}", number + 1, text="x" * 1_500_000)
    other = await Bus.connect(settings, "test")
    cut = asyncio.Event()
    other.on_reconnect.append(cut.set)

    # when a reader starts that has never seen any
    late = Reader.objects(other)
    background(late.run(stopping))
    await late.barrier(30)

    # then it has them all, though it may have been cut off once; and it reads them again without
    assert names(late) == [f"large-{number:02}" for number in range(90)]
    cut.clear()
    late.rebuild()
    sequence = await put(bus, "last", 91)
    await late.wait_for(sequence, 30)
    async with asyncio.timeout(30):
        while late.rebuilds == 0:
            await asyncio.sleep(0.05)
    assert len(names(late)) == 91
    assert not cut.is_set()
    stopping.set()
    await other.close()


GARBAGE: list[tuple[str, dict[str, str], bytes]] = [
    ("objects.Namespace._.a", {}, b"{}"),
    ("objects.Namespace._.a", {"ce-type": "io.capsule-tether.object.changed.v1"}, b'{"metadata":{"name":"a"}}'),
    ("objects.Namespace._.=zz", {}, b"{}"),
    ("objects.Namespace._.===", {}, b"{}"),
    ("objects.Unheard._.a", {}, b"{}"),
    ("marks.Namespace", {}, b"nonsense"),
    ("marks.Namespace", {}, b'{"kind":"Namespace","resource_version":"1","time":"2026-01-01T00:00:00"}'),
    ("marks.=zz", {}, b"\xff"),
]


@pytest.mark.parametrize("type_", ["object.changed.v1", "object.deleted.v1", "object.changed.v2", "work.v1", "x"])
@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"{}", b'{"metadata":{"name":7}}', b"null"])
async def test_an_event_that_cannot_be_read_changes_nothing(type_: str, data: bytes) -> None:
    view = ObjectsView()
    target = ObjectKey("Namespace", "", "a")
    headers = object_event("test", target, uid="u", resource_version="1").headers()
    good = BusMessage(subject=target.subject(), sequence=1, time=now(), headers=headers, data=body("a"))
    assert view.apply(good) is not None
    bad = {**headers, "ce-type": f"io.capsule-tether.{type_}", "Nats-TTL": "9" * 5000}

    assert view.apply(BusMessage(subject=target.subject(), sequence=2, time=now(), headers=bad, data=data)) is None

    assert view.get("Namespace", "", "a") is not None
    assert view.sequence == 2


async def test_an_event_of_a_later_type_is_no_live_object() -> None:
    target = ObjectKey("Namespace", "", "a")
    headers = object_event("test", target, uid="u", resource_version="1").headers()
    later = headers | {"ce-type": "io.capsule-tether.object.renamed.v1"}
    view = ObjectsView()

    assert (
        view.apply(BusMessage(subject=target.subject(), sequence=1, time=now(), headers=later, data=body("a"))) is None
    )

    assert view.get("Namespace", "", "a") is None


async def test_what_is_no_message_of_ours_stops_no_reader(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], stopping: asyncio.Event, background: Background
) -> None:
    # given one reader follows while garbage comes, and one begins after it
    await put(bus, "good", 1)
    for subject, headers, data in GARBAGE:
        await bus.publish(subject, data, headers=headers)
    sequence = await put(bus, "better", 2)
    late = Reader.objects(bus)
    background(late.run(stopping))

    # then both have what is good, and go on
    for one in (reader, late):
        await one.wait_for(sequence, 10)
        assert names(one) == ["better", "good"]
        assert one.ready
