"""The consumer loop: what a result becomes, coalescing, leases, dead letters, and a clean stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from eventcore import consumer, dead_letters, depth, topology
from eventcore.clock import now
from eventcore.consumer import Again, Done, Lease, Result, Retry, Run, Terminal, Worker, again, backoff
from eventcore.errors import KubeError, LeaseLostError
from eventcore.events import DeadLetter, WorkRequest, decode_body, object_event
from eventcore.keys import Key, ObjectKey, encode, key, lane_consumer, timer_subject
from eventcore.pulling import Pull, status_of
from eventcore.reading import Reader
from eventcore.views import ObjectRecord, ObjectsView

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.metrics import Metrics
    from eventcore.settings import Settings

Background = Callable[[Awaitable[object]], None]
MakeSettings = Callable[..., "Settings"]
ACCOUNT = key("oil-system", "gitops-reconciler")


class Recorder:
    """A reconciler that notes its runs and does what it is told; runs can be awaited."""

    def __init__(self, act: Callable[[Run], Awaitable[Result]] | None = None) -> None:
        self.runs: list[Run] = []
        self._act = act
        self._ran = asyncio.Condition()

    async def __call__(self, run: Run) -> Result:
        self.runs.append(run)
        async with self._ran:
            self._ran.notify_all()
        return await self._act(run) if self._act else Done()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30), self._ran:
            await self._ran.wait_for(lambda: len(self.runs) >= count)


@pytest.fixture
async def reader(bus: Bus, stopping: asyncio.Event, background: Background) -> Reader[ObjectsView, ObjectRecord]:
    made = Reader.objects(bus)
    background(made.run(stopping))
    return made


@pytest.fixture
def start(
    bus: Bus,
    reader: Reader[ObjectsView, ObjectRecord],
    settings: Settings,
    metrics: Metrics,
    stopping: asyncio.Event,
    background: Background,
) -> Callable[[Recorder], None]:
    def run(recorder: Recorder, *, settings: Settings = settings) -> None:
        background(Worker(bus, reader, "rbac", recorder, settings, metrics).run(stopping))

    return run


async def settled(bus: Bus, target: Key = ACCOUNT) -> None:
    """Wait until the lane has nothing pending and nothing in flight."""
    async with asyncio.timeout(30):
        while True:
            info = await bus.js.consumer_info("WORK", lane_consumer("rbac", target.lane()))
            if not info.num_pending and not info.num_ack_pending:
                return
            await asyncio.sleep(0.02)


async def caused(bus: Bus, cause: int) -> WorkRequest:
    """Return a request as the router makes it for a sequence of the present OBJECTS."""
    return WorkRequest(reason="event", cause=cause, stream=(await bus.stream_state("OBJECTS")).created)


async def change(bus: Bus, version: int) -> int:
    target = ObjectKey("Namespace", "", "a")
    event = object_event("test", target, uid="u", resource_version=str(version))
    return (await bus.publish(target.subject(), b'{"metadata":{"name":"a","uid":"u"}}', event)).sequence


async def test_a_request_reaches_the_reconciler_and_leaves_the_stream(
    bus: Bus, start: Callable[[Recorder], None]
) -> None:
    recorder = Recorder()
    start(recorder)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event", cause_id="c:u:1"))
    await recorder.until(1)
    await settled(bus)
    assert (recorder.runs[0].key, recorder.runs[0].cause) == (ACCOUNT, "c:u:1")
    assert (await bus.stream_state("WORK")).messages == 0


async def test_a_request_that_overtakes_its_cause_waits_until_the_view_holds_it(
    bus: Bus, settings: Settings, metrics: Metrics, stopping: asyncio.Event, background: Background
) -> None:
    # Given a worker whose view does not follow yet, and a request for an event that is stored already
    late = Reader.objects(bus)
    seen: list[int] = []

    async def look(_: Run) -> Result:
        record = late.view.get("Namespace", "", "a")
        seen.append(record.sequence if record else 0)
        return Done()

    recorder = Recorder(look)
    background(Worker(bus, late, "rbac", recorder, settings, metrics).run(stopping))
    cause = await change(bus, 1)
    await bus.work("rbac", ACCOUNT, await caused(bus, cause))
    lane = lane_consumer("rbac", ACCOUNT.lane())
    async with asyncio.timeout(30):
        while not (await bus.js.consumer_info("WORK", lane)).num_ack_pending:
            await asyncio.sleep(0.02)
    assert recorder.runs == []

    # When a later event comes, and the view begins to follow
    newer = await change(bus, 2)
    background(late.run(stopping))
    await recorder.until(1)

    # Then the reconciler saw the cause, and all that was stored when it began
    assert seen == [newer]


async def test_a_request_whose_cause_was_seen_costs_nothing_and_a_new_cause_runs(
    bus: Bus, start: Callable[[Recorder], None], metrics: Metrics
) -> None:
    # Given a key that is being reconciled on a view at sequence 5
    release = asyncio.Event()

    async def hold(run: Run) -> Result:
        await release.wait()
        return Done()

    for version in range(1, 6):
        await change(bus, version)
    recorder = Recorder(hold)
    start(recorder)
    await bus.work("rbac", ACCOUNT, await caused(bus, 1))
    await recorder.until(1)

    # When requests with older causes wait behind it, one with a newer, and a timer without any
    for cause in (2, 3, 4, 5):
        await bus.work("rbac", ACCOUNT, await caused(bus, cause))
    newer = await change(bus, 6)
    await bus.work("rbac", ACCOUNT, await caused(bus, newer))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="timer"))
    release.set()
    await settled(bus)

    # Then the older ones were acknowledged without work
    assert [run.request.cause for run in recorder.runs] == [1, newer, 0]
    assert metrics.coalesced.labels("rbac")._value.get() == 4  # noqa: SLF001 -- prometheus_client's way to read a value


async def test_a_request_of_an_objects_that_was_made_anew_is_never_taken_for_seen(
    bus: Bus, start: Callable[[Recorder], None], settings: Settings
) -> None:
    # Given a key that was reconciled at sequence 5
    for version in range(1, 6):
        sequence = await change(bus, version)
    recorder = Recorder()
    start(recorder)
    await bus.work("rbac", ACCOUNT, await caused(bus, sequence))
    await recorder.until(1)
    await settled(bus)

    # When OBJECTS is lost and made anew, and its first message leads to a request
    await bus.js.delete_stream("OBJECTS")
    await topology.apply(bus, settings)
    first = await change(bus, 6)
    assert first < sequence
    await bus.work("rbac", ACCOUNT, await caused(bus, first))

    # Then it runs
    await recorder.until(2)


async def test_a_failed_reconcile_does_not_count_as_having_seen_the_cause(
    bus: Bus, start: Callable[[Recorder], None]
) -> None:
    results: list[Result] = [Retry("not yet", after=0.0), Done(), Done()]

    async def act(run: Run) -> Result:
        return results.pop(0)

    sequence = await change(bus, 1)
    recorder = Recorder(act)
    start(recorder)
    await bus.work("rbac", ACCOUNT, await caused(bus, sequence))
    await recorder.until(1)
    await bus.work("rbac", ACCOUNT, await caused(bus, sequence))
    await recorder.until(2)


async def test_a_retry_does_not_block_its_lane(bus: Bus, start: Callable[[Recorder], None]) -> None:
    # Given two keys of one lane
    other = next(k for k in (key("a", str(n)) for n in range(200)) if k.lane() == ACCOUNT.lane())

    async def act(run: Run) -> Result:
        return Retry("not yet", after=3600) if run.key == ACCOUNT else Done()

    recorder = Recorder(act)
    start(recorder)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await bus.work("rbac", other, WorkRequest(reason="event"))
    await recorder.until(2)
    await settled(bus)

    # Then the second ran while the first waits for its timer, with one more attempt
    assert [run.key for run in recorder.runs] == [ACCOUNT, other]
    timer = await bus.last("WORK", timer_subject("rbac", ACCOUNT))
    assert timer is not None
    assert decode_body(WorkRequest, timer.data) == WorkRequest(reason="retry", attempt=1, cause_id="event")


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (WorkRequest(reason="event", cause_id="c:uid:7"), "c:uid:7"),
        (WorkRequest(reason="sweep"), "sweep"),
    ],
)
async def test_a_retry_knows_what_led_to_the_first_try(
    bus: Bus, start: Callable[[Recorder], None], first: WorkRequest, cause: str
) -> None:
    results: list[Result] = [Retry("not yet", after=0.05), Retry("not yet", after=0.05), Done()]

    async def act(run: Run) -> Result:
        return results.pop(0)

    recorder = Recorder(act)
    start(recorder)
    await bus.work("rbac", ACCOUNT, first)
    await recorder.until(3)

    assert [run.cause for run in recorder.runs] == [cause] * 3
    assert [run.request.attempt for run in recorder.runs] == [0, 1, 2]


async def test_again_at_a_time_runs_again(bus: Bus, start: Callable[[Recorder], None]) -> None:
    results: list[Result] = [Again(now() + timedelta(milliseconds=200)), Done()]

    async def act(run: Run) -> Result:
        return results.pop(0)

    recorder = Recorder(act)
    start(recorder)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await recorder.until(2)
    assert recorder.runs[1].request.reason == "timer"


async def _letter(bus: Bus, target: str) -> DeadLetter:
    async with asyncio.timeout(30):
        while (found := await bus.last("DLQ", f"dlq.rbac.{encode(target)}")) is None:
            await asyncio.sleep(0.02)
    return decode_body(DeadLetter, found.data)


async def test_what_cannot_be_handled_is_a_dead_letter_and_leaves_work(
    bus: Bus, start: Callable[[Recorder], None]
) -> None:
    async def act(run: Run) -> Result:
        return Terminal("the name is too long")

    start(Recorder(act))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event", cause_id="c:u:1"))
    letter = await _letter(bus, str(ACCOUNT))
    assert letter.reason == "the name is too long"
    assert decode_body(WorkRequest, letter.data).cause_id == "c:u:1"
    await settled(bus)
    assert (await bus.stream_state("WORK")).messages == 0


async def test_a_request_that_cannot_be_read_is_a_dead_letter_and_the_lane_goes_on(
    bus: Bus, start: Callable[[Recorder], None]
) -> None:
    recorder = Recorder()
    start(recorder)
    subject = f"work.rbac.{ACCOUNT.lane()}.{ACCOUNT.token()}"
    await bus.publish(subject, b"nonsense")
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await recorder.until(1)
    letter = await _letter(bus, subject)
    assert letter.data == b"nonsense"


async def test_a_refused_request_to_kubernetes_is_tried_again_and_says_why(
    bus: Bus, start: Callable[[Recorder], None]
) -> None:
    async def act(run: Run) -> Result:
        if run.request.attempt == 0:
            raise KubeError("the API server is busy")
        return Done()

    recorder = Recorder(act)
    start(recorder)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await recorder.until(2)
    assert recorder.runs[1].request == WorkRequest(reason="retry", attempt=1, cause_id="event")


async def test_a_bug_of_one_key_becomes_a_dead_letter_after_its_tries(
    bus: Bus, start: Callable[[Recorder], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "UNEXPECTED_ATTEMPTS", 1)

    async def act(run: Run) -> Result:
        raise ZeroDivisionError("a bug")

    start(Recorder(act))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    assert (await _letter(bus, str(ACCOUNT))).reason == "ZeroDivisionError: a bug"


async def test_a_request_delivered_too_often_is_moved_to_the_dead_letters(
    make_settings: MakeSettings,
    make_bus: Callable[..., Awaitable[Bus]],
    metrics: Metrics,
    stopping: asyncio.Event,
    background: Background,
) -> None:
    # Given a lane whose holders all die: the message is delivered and never answered
    settings = make_settings(max_deliver=5, ack_wait="1s", reconcile_timeout="200ms", pull_expiry="500ms")
    bus = await make_bus(settings=settings)
    background(dead_letters.move(bus, metrics, stopping))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event", cause_id="c:u:1"))
    pull = Pull(bus, "WORK", lane_consumer("rbac", ACCOUNT.lane()))
    delivered = 0
    async with asyncio.timeout(60):
        while delivered < 5:
            await pull.request(batch=1, expires=5)
            message = await pull.next(10)
            if message is not None and status_of(message) is None:
                delivered += 1
                await message.nak()
        # When it has been delivered so often, the server gives it up
        await pull.request(batch=1, expires=30)

    # Then it stands in DLQ with its original, and has left WORK
    letter = await _letter(bus, str(ACCOUNT))
    assert letter.deliveries == 5
    assert decode_body(WorkRequest, letter.data).cause_id == "c:u:1"
    async with asyncio.timeout(30):
        while (await bus.stream_state("WORK")).messages:
            await asyncio.sleep(0.02)
    await pull.close()


async def test_the_depth_of_each_worker_counts_what_waits_and_what_is_in_hand_but_no_timers(
    bus: Bus, metrics: Metrics, background: Background
) -> None:
    for number in range(3):
        await bus.work("rbac", key("a", str(number)), WorkRequest(reason="event"))
    await bus.work("token", ACCOUNT, WorkRequest(reason="event"))
    await bus.schedule("token", ACCOUNT, now() + timedelta(hours=1), WorkRequest(reason="timer"))

    measured = asyncio.Event()
    background(depth.measure(bus, metrics, measured, interval=0.05))
    async with asyncio.timeout(20):
        # One worker is measured after the other, so what is said of rbac is there when token's depth is.
        while metrics.queue_depth.labels("token")._value.get() != 1:  # noqa: SLF001 -- see above
            await asyncio.sleep(0.01)
    measured.set()
    assert metrics.queue_depth.labels("rbac")._value.get() == 3  # noqa: SLF001 -- see above
    assert metrics.queue_oldest.labels("rbac")._value.get() > 0  # noqa: SLF001 -- see above
    assert metrics.queue_oldest.labels("access")._value.get() == 0  # noqa: SLF001 -- see above
    assert metrics.queue_depth.labels("access")._value.get() == 0  # noqa: SLF001 -- see above


async def test_on_stop_what_is_in_hand_is_finished_and_the_rest_is_given_back_at_once(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], settings: Settings, metrics: Metrics
) -> None:
    # Given a worker that works on one of two requests in a lane
    release, stop = asyncio.Event(), asyncio.Event()

    async def hold(run: Run) -> Result:
        await release.wait()
        return Done()

    recorder = Recorder(hold)
    working = asyncio.ensure_future(Worker(bus, reader, "rbac", recorder, settings, metrics).run(stop))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="replay"))
    await recorder.until(1)

    # When it is told to stop, and finishes
    stop.set()
    release.set()
    await asyncio.wait_for(working, 20)

    # Then the second goes to the next worker at once, without waiting for ack_wait
    pull = Pull(bus, "WORK", lane_consumer("rbac", ACCOUNT.lane()))
    await pull.request(batch=1, expires=20)
    message = await pull.next(20)
    assert message is not None
    assert status_of(message) is None
    assert decode_body(WorkRequest, message.data).reason == "replay"
    await message.ack_sync()
    await pull.close()
    assert len(recorder.runs) == 1


async def test_a_stop_in_the_midst_of_a_storm_leaves_nothing_unanswered(
    bus: Bus, reader: Reader[ObjectsView, ObjectRecord], settings: Settings, metrics: Metrics
) -> None:
    # What is on its way to a worker when it stops would else wait for the whole of ack_wait.
    for round_ in range(6):
        stop = asyncio.Event()
        recorder = Recorder()
        working = asyncio.ensure_future(Worker(bus, reader, "rbac", recorder, settings, metrics).run(stop))
        storm = [
            asyncio.ensure_future(bus.work("rbac", key("a", str(n)), WorkRequest(reason="event"))) for n in range(100)
        ]
        await recorder.until(1 + round_)
        stop.set()
        await asyncio.wait_for(working, 20)
        await asyncio.gather(*storm)
        # What was given back counts as unanswered until another worker has it, and that gets it at once.
        next_stop = asyncio.Event()
        working = asyncio.ensure_future(Worker(bus, reader, "rbac", Recorder(), settings, metrics).run(next_stop))
        async with asyncio.timeout(settings.ack_wait / 3):
            while (await bus.stream_state("WORK")).messages:
                await asyncio.sleep(0.02)
        next_stop.set()
        await asyncio.wait_for(working, 20)


async def test_long_work_keeps_its_lane_by_signs_of_life(
    make_settings: MakeSettings,
    bus: Bus,
    start: Callable[..., None],
) -> None:
    # Given an ack_wait that is shorter than the work; the lane's own ack_wait is set to it too
    config = (await bus.js.consumer_info("WORK", lane_consumer("rbac", ACCOUNT.lane()))).config
    config.ack_wait = 1.0
    await bus.js.add_consumer("WORK", config)
    settings = make_settings(ack_wait="1s", pull_expiry="200ms", reconcile_timeout="700ms")

    async def act(run: Run) -> Result:
        async with asyncio.timeout(20):
            while run.lease.ends - first < 0.35:  # until a confirmed sign of life has moved the end
                await asyncio.sleep(0.01)
        run.check()
        return Done()

    recorder = Recorder(act)
    loop = asyncio.get_running_loop()
    first = loop.time() + 0.9
    start(recorder, settings=settings)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await recorder.until(1)
    await settled(bus)


async def test_after_its_time_a_holder_neither_writes_nor_acknowledges(
    make_settings: MakeSettings, bus: Bus, start: Callable[..., None], metrics: Metrics
) -> None:
    # Given a holder whose process stood still for longer than its lease
    settings = make_settings()
    wrote: list[str] = []

    async def act(run: Run) -> Result:
        if not wrote and run.lease.left > 0:
            run.lease.ends = 0.0  # what a pause beyond ack_wait does to the clock
            run.check()
            wrote.append("stale")
        wrote.append("fresh")
        return Done()

    recorder = Recorder(act)
    start(recorder, settings=settings)
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="event"))
    await recorder.until(1)
    async with asyncio.timeout(20):
        while not metrics.overruns.labels("rbac")._value.get():  # noqa: SLF001 -- see above
            await asyncio.sleep(0.01)

    # Then nothing was written, and the message is still the server's to deliver
    assert wrote == []
    info = await bus.js.consumer_info("WORK", lane_consumer("rbac", ACCOUNT.lane()))
    assert info.num_ack_pending == 1


def test_a_lease_is_counted_from_when_the_pull_was_sent_and_ends_before_the_servers() -> None:
    lease = Lease(sent=100.0, ack_wait=30.0)
    assert lease.ends == 127.0
    lease.extend(110.0)
    assert lease.ends == 137.0
    lease.extend(90.0)
    assert lease.ends == 137.0


def test_a_lease_that_has_ended_refuses() -> None:
    with pytest.raises(LeaseLostError):
        Lease(sent=-1e9, ack_wait=30.0).check()


@pytest.mark.parametrize("attempt", [0, 3, 8, 1000])
def test_back_off_doubles_up_to_its_limit_and_honours_retry_after(attempt: int) -> None:
    wait = backoff(attempt, 1.0, 300.0)
    nominal = min(300.0, 2.0 ** min(attempt, 30))
    assert 0.8 * nominal <= wait <= 1.2 * nominal
    assert backoff(attempt, 1.0, 300.0, after=1000.0) == 1000.0


def test_a_retry_keeps_when_the_change_happened_that_led_to_the_first_try() -> None:
    happened = datetime(2026, 1, 2, tzinfo=UTC)

    retried = again(again(WorkRequest(reason="event", cause_id="c:uid:7", since=happened)))

    assert (retried.since, retried.attempt, retried.cause_id) == (happened, 2, "c:uid:7")


async def test_a_retry_may_bound_its_back_off(bus: Bus, start: Callable[[Recorder], None]) -> None:
    async def act(run: Run) -> Result:
        return Retry("not yet", at_most=0.001)

    recorder = Recorder(act)
    start(recorder)

    # Given it has failed so often that the next try would be minutes away
    await bus.work("rbac", ACCOUNT, WorkRequest(reason="retry", attempt=20))

    # Then it is tried again at once, and again
    await recorder.until(3)
