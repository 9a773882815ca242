"""Reading streams for a picture takes nothing from them and leaves nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore.errors import StreamMissingError
from eventcore.events import AuditRecord, DeadLetter, Mark, WorkRequest, encode_body
from eventcore.keys import key, mark_subject
from eventcore.topology import AUDIT, DLQ, WORK, consumers_of
from tether.doctor_bus import look_at_bus
from tether.status import pictures
from tether.status_model import waiting_of
from tether.status_read import peek, read_all

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(tenant: str, message: str) -> AuditRecord:
    return AuditRecord(time=NOW, component="rbac", action="granted", outcome="done", tenant=tenant, message=message)


async def test_a_stream_is_read_to_its_end_in_order(bus: Bus) -> None:
    for number in range(600):  # more than one pull brings
        await bus.audit(record("oil", str(number)))
    found = [message async for message in read_all(bus, AUDIT, "audit.>")]
    assert [message.sequence for message in found] == list(range(1, 601))


async def test_the_last_of_each_subject_is_one_message(bus: Bus) -> None:
    for tenant, message in (("oil", "1"), ("gas", "2"), ("oil", "3")):
        await bus.audit(record(tenant, message))
    found = [message async for message in read_all(bus, AUDIT, "audit.>", last=True)]
    assert [message.sequence for message in found] == [2, 3]


async def test_an_empty_stream_and_one_that_is_missing(bus: Bus) -> None:
    assert [message async for message in read_all(bus, AUDIT, "audit.>")] == []
    with pytest.raises(StreamMissingError, match="topology apply"):
        _ = [message async for message in read_all(bus, "NONE", ">")]


async def test_a_reader_leaves_no_consumer_behind(bus: Bus) -> None:
    before = {info.name for info in await consumers_of(bus, AUDIT)}
    await bus.audit(record("oil", "1"))
    _ = [message async for message in read_all(bus, AUDIT, "audit.>")]
    assert {info.name for info in await consumers_of(bus, AUDIT)} == before


async def test_requests_are_seen_without_being_taken(bus: Bus) -> None:
    # Given a request and a timer
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    await bus.work("rbac", key("oil-system", "a"), WorkRequest(reason="event", cause=5))
    await bus.schedule("token", key("oil-system", "a"), due, WorkRequest(reason="retry", attempt=2))

    # When they are looked at, twice
    for _ in range(2):
        waiting = [waiting_of(message) async for message in peek(bus, WORK, ">")]

    # Then both are told as they are, and both are still there
    assert [(w.worker, w.key, w.reason, w.attempt, w.due) for w in waiting if w] == [
        ("rbac", "oil-system/a", "event", 0, None),
        ("token", "oil-system/a", "retry", 2, due),
    ]
    assert all(w is not None and abs((w.since - datetime.now(UTC)).total_seconds()) < 3600 for w in waiting)
    assert (await bus.stream_state(WORK)).messages == 2


async def test_the_doctor_sees_a_bus_on_which_nobody_works(bus: Bus, settings: Settings) -> None:
    await bus.dead_letter(DeadLetter(time=NOW, worker="rbac", key="a/b", reason="why", subject="s"))
    found = await look_at_bus(settings)
    assert not found.error
    assert found.differences == ()
    assert found.ages == {}
    assert found.idle == ("rbac", "token", "kubeconfig", "access")
    assert found.dead_letters == 1


async def test_the_doctor_sees_what_of_the_topology_is_missing(bus: Bus, settings: Settings) -> None:
    await bus.js.delete_stream(DLQ)
    found = await look_at_bus(settings)
    assert "stream DLQ is missing" in found.differences


async def test_the_doctor_tells_of_a_bus_that_is_not_there(settings: Settings) -> None:
    away = msgspec.structs.replace(settings, nats_url="nats://user:secret@127.0.0.1:1", nats_connect_timeout=1.0)
    found = await look_at_bus(away)
    assert "no NATS server answers" in found.error
    assert "secret" not in found.url
    assert "secret" not in found.error


async def test_a_picture_of_an_empty_bus_says_so(bus: Bus, settings: Settings) -> None:
    found = [picture async for picture in pictures(settings, "", watch=False)]
    assert len(found) == 1
    assert found[0].tenants == ()
    assert not any(worker.listening for worker in found[0].workers)


async def test_pictures_are_taken_until_the_caller_has_seen_enough(bus: Bus, settings: Settings) -> None:
    following = pictures(settings, "", watch=True)
    first = await anext(following)
    await bus.work("rbac", key("oil-system", "a"), WorkRequest(reason="event", cause=5))
    second = await anext(following)
    await following.aclose()
    assert first.waiting == ()
    assert [one.key for one in second.waiting] == ["oil-system/a"]
    assert second.time > first.time


async def test_a_mark_of_a_kind_that_is_switched_off_is_no_watcher_that_stopped(bus: Bus, settings: Settings) -> None:
    for kind in ("Namespace", "AnyRole"):
        await bus.publish(mark_subject(kind), encode_body(Mark(kind=kind, resource_version="1", time=NOW)))

    assert set((await look_at_bus(settings)).ages) == {"Namespace"}
    switched_on = msgspec.structs.replace(settings, proxy_all_namespaced=True)
    assert set((await look_at_bus(switched_on)).ages) == {"Namespace", "AnyRole"}
