"""Publishes end, schedules replace each other, and every refusal is one clear line."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from eventcore.bus import Bus, KvEntry
from eventcore.clock import now
from eventcore.errors import (
    BusUnreachableError,
    KeyTooLongError,
    NoJetStreamError,
    PublishError,
    RefusedError,
    StreamMissingError,
    WrongSequenceError,
)
from eventcore.events import AuditRecord, DeadLetter, WorkRequest, decode_body, object_event
from eventcore.keys import MAX_TOKEN, ObjectKey, key, lane_consumer, timer_subject, work_subject
from eventcore.metrics import Metrics
from eventcore.pulling import Pull, status_of
from eventcore.settings import Settings
from eventcore.settings_reading import load
from tether.devcluster.nats import NatsServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ACCOUNT = key("oil-system", "gitops-reconciler")


async def test_no_server_is_one_line_that_names_address_and_setting() -> None:
    settings = load({"TETHER_NATS_URL": "nats://127.0.0.1:1"}, {})
    with pytest.raises(BusUnreachableError, match=r"nats://127\.0\.0\.1:1 .*TETHER_NATS_URL"):
        await Bus.connect(settings, "test")


async def test_a_server_without_jetstream_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, jetstream=False)
    await server.start()
    try:
        with pytest.raises(NoJetStreamError, match="start it with -js"):
            await Bus.connect(load({"TETHER_NATS_URL": server.url}, {}), "test")
    finally:
        await server.stop()


async def test_a_publish_without_a_stream_ends_and_says_what_to_run(settings: Settings) -> None:
    bus = await Bus.connect(settings, "test")
    with pytest.raises(PublishError, match="tether topology apply"):
        await bus.publish("marks.Namespace", b"{}", timeout=0.3)
    with pytest.raises(StreamMissingError, match="tether topology apply"):
        await bus.stream_state("OBJECTS")
    await bus.close()


async def test_a_publish_survives_a_restart_of_the_server(bus: Bus, nats_server: NatsServer) -> None:
    # Given a server that was killed
    await nats_server.kill()

    # When something is published, and the server comes back
    publishing = asyncio.ensure_future(bus.publish("marks.Namespace", b"{}", msg_id="m-1"))
    await nats_server.start()

    # Then it is stored, once
    await publishing
    assert (await bus.stream_state("OBJECTS")).messages == 1


async def test_a_lost_connection_and_its_return_are_counted(settings: Settings, nats_server: NatsServer) -> None:
    metrics = Metrics()
    bus = await Bus.connect(settings, "test", metrics)
    back = asyncio.Event()
    bus.on_reconnect.append(back.set)
    assert "tether_bus_connected 1.0" in metrics.render().decode()
    await nats_server.restart()
    await asyncio.wait_for(back.wait(), 20)
    await bus.close()
    assert "tether_bus_reconnects_total 1.0" in metrics.render().decode()


async def test_the_same_id_is_stored_once(bus: Bus) -> None:
    first = await bus.publish("marks.Namespace", b"1", msg_id="m-1")
    second = await bus.publish("marks.Namespace", b"2", msg_id="m-1")
    assert (first.duplicate, second.duplicate) == (False, True)
    assert second.sequence == first.sequence


async def test_a_compare_and_set_publish_on_another_sequence_is_refused(bus: Bus) -> None:
    first = await bus.publish("marks.Namespace", b"1", expect_last=0)
    with pytest.raises(WrongSequenceError):
        await bus.publish("marks.Namespace", b"2", expect_last=0)
    await bus.publish("marks.Namespace", b"2", expect_last=first.sequence)


async def test_a_message_over_the_limit_is_refused_with_both_sizes(bus: Bus) -> None:
    with pytest.raises(PublishError, match=str(bus.max_payload)):
        await bus.publish("marks.Namespace", b"x" * (bus.max_payload + 1))


async def test_headers_count_as_the_body_does(bus: Bus) -> None:
    with pytest.raises(RefusedError):
        await bus.publish("marks.Namespace", b"x" * (bus.max_payload - 10), headers={"name": "long enough"})
    assert bus.connected


async def test_what_is_longer_than_the_servers_line_is_never_sent(bus: Bus) -> None:
    # given a connection whose loss would be known
    lost = asyncio.Event()
    bus.on_reconnect.append(lost.set)

    # when keys are used as long as they may be, and longer
    fits, too_long = key("subject", "User", "n" * MAX_TOKEN), key("subject", "User", "n" * (MAX_TOKEN + 1))
    await bus.work("kubeconfig", fits, WorkRequest(reason="start"), msg_id=f"id:{fits.token()}")
    await bus.schedule("kubeconfig", fits, now() + timedelta(hours=1), WorkRequest(reason="timer"))
    revision = await bus.kv_put(fits, b"1", revision=0)
    target = ObjectKey("AnyRoleBinding", "n" * 63, "n" * MAX_TOKEN)
    event = object_event("c", target, uid="u", resource_version="1")
    await bus.publish(target.subject(), b"{}", event, msg_id=event.id)
    config = ConsumerConfig(name="one", filter_subject=target.subject(), ack_policy=AckPolicy.NONE)
    await bus.js.add_consumer("OBJECTS", config)
    assert await bus.last("OBJECTS", target.subject()) is not None
    for attempt in (
        bus.work("kubeconfig", too_long, WorkRequest(reason="start")),
        bus.schedule("kubeconfig", too_long, now(), WorkRequest(reason="timer")),
        bus.kv_get(too_long),
        bus.kv_put(too_long, b"1", revision=0),
        bus.kv_delete(too_long, revision=1),
    ):
        with pytest.raises(KeyTooLongError):
            await attempt
    with pytest.raises(RefusedError):
        await bus.publish("marks." + "x" * 5000, b"{}")

    # then all that fits is stored, and the connection was never lost
    assert await bus.kv_get(fits) == KvEntry(revision, b"1")
    assert not lost.is_set()
    assert bus.connected


async def test_a_record_of_anything_is_stored(bus: Bus) -> None:
    endless = "\n\x1b\N{SNOWMAN}" * 400_000
    await bus.audit(
        AuditRecord(
            time=now(), component="rbac", action="refused", outcome="failed", tenant=endless, account=endless,
            object=endless, cause=endless, message=endless,
        )
    )  # fmt: skip
    await bus.dead_letter(
        DeadLetter(
            time=now(), worker="rbac", key=endless, reason=endless, subject=endless, sequence=5,
            headers={"a": endless, "b": endless}, data=b"x" * 4_000_000,
        )
    )  # fmt: skip
    assert (await bus.stream_state("AUDIT")).messages == 1
    assert (await bus.stream_state("DLQ")).messages == 1
    assert bus.connected


async def test_a_key_of_the_bucket_is_written_only_on_the_revision_that_was_read(bus: Bus) -> None:
    config = key("config")
    assert await bus.kv_get(config) is None
    revision = await bus.kv_put(config, b"1", revision=0)
    assert await bus.kv_get(config) == KvEntry(revision, b"1")
    with pytest.raises(WrongSequenceError):
        await bus.kv_put(config, b"2", revision=0)
    with pytest.raises(WrongSequenceError):
        await bus.kv_delete(config, revision=revision + 1)
    await bus.kv_delete(config, revision=revision)
    gone = await bus.kv_get(config)
    assert gone is not None
    assert gone.value == b""


async def _next(bus: Bus) -> WorkRequest:
    pull = Pull(bus, "WORK", lane_consumer("token", ACCOUNT.lane()))
    await pull.request(batch=1, expires=20)
    message = await pull.next(20)
    assert message is not None
    assert status_of(message) is None
    assert message.subject == work_subject("token", ACCOUNT)
    await message.ack_sync()
    await pull.close()
    return decode_body(WorkRequest, message.data)


async def test_a_timer_rests_outside_every_lane_and_fires_into_its_own(bus: Bus) -> None:
    # Given a timer in the far future
    await bus.schedule("token", ACCOUNT, now() + timedelta(hours=1), WorkRequest(reason="timer"))
    assert (await bus.js.consumer_info("WORK", lane_consumer("token", ACCOUNT.lane()))).num_pending == 0

    # When an earlier one is set, then a later one
    await bus.schedule("token", ACCOUNT, now() + timedelta(milliseconds=300), WorkRequest(reason="timer"))
    await bus.schedule("token", ACCOUNT, now() + timedelta(hours=2), WorkRequest(reason="retry", attempt=4))

    # Then there is one timer, the earliest time wins, and the last request is what fires
    assert await _next(bus) == WorkRequest(reason="retry", attempt=4)
    assert await bus.last("WORK", timer_subject("token", ACCOUNT)) is None


async def test_a_timer_whose_time_is_past_fires_at_once(bus: Bus) -> None:
    await bus.schedule("token", ACCOUNT, datetime(2020, 1, 1, tzinfo=UTC), WorkRequest(reason="timer"))
    assert await _next(bus) == WorkRequest(reason="timer")


async def test_a_timer_survives_a_kill_of_the_server(bus: Bus, nats_server: NatsServer) -> None:
    await bus.schedule("token", ACCOUNT, now() + timedelta(milliseconds=200), WorkRequest(reason="timer"))
    await nats_server.kill()
    await nats_server.start()
    assert await _next(bus) == WorkRequest(reason="timer")


async def test_audit_and_dead_letters_are_stored_as_they_were_given(bus: Bus) -> None:
    record = AuditRecord(time=now(), component="rbac", action="granted", outcome="done", tenant="oil", cause="x")
    await bus.audit(record)
    letter = DeadLetter(time=now(), worker="rbac", key="a/b", reason="why", subject="work.rbac.0.a", sequence=5)
    await bus.dead_letter(letter)
    await bus.dead_letter(letter)

    stored = await bus.last("AUDIT", "audit.rbac.oil.granted")
    assert stored is not None
    assert decode_body(AuditRecord, stored.data) == record
    assert (await bus.stream_state("DLQ")).messages == 1  # the same original is buried once


async def test_a_pull_is_woken_when_the_connection_comes_back(
    bus: Bus,
    nats_server: NatsServer,
    stopping: asyncio.Event,
    background: Callable[[Awaitable[object]], None],
) -> None:
    pull = Pull(bus, "WORK", "rbac-0")
    with pull.waking(stopping):
        await pull.request(batch=1, expires=60)
        await nats_server.kill()
        background(nats_server.start())
        assert await pull.next(30) is None
    await pull.close()
