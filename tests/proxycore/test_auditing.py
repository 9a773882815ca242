"""What a flood leaves in the audit: few records, none of writes lost, and nothing that grows without a bound."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from eventcore import logs
from eventcore.errors import PublishError
from eventcore.events import encode_body
from eventcore.metrics import Metrics
from proxycore import auditing
from proxycore.acting import ANONYMOUS_USER
from proxycore.auditing import OF_ALL_A_MINUTE, OF_ALL_AT_ONCE, OF_ONE_CALLER, SAME_AGAIN, Auditor
from proxycore.identities import Identity
from proxycore.measures import Measures
from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError
from proxycore.write_places import COMING, EACH, WRITES
from tests.proxycore.test_measures import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventcore.bus import Bus
    from eventcore.events import AuditRecord

DANA = Identity(user="dana", groups=("devs",))
PEER = "10.0.0.7"


class Stream:
    """AUDIT, as the auditor sees it: takes records unless it is ``away``."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.connected = True
        self.away = False
        self.tries = 0

    async def audit(self, record: AuditRecord) -> None:
        self.tries += 1
        if self.away:
            raise PublishError("no stream acknowledged it")
        self.records.append(record)

    @property
    def said(self) -> list[str]:
        return [record.message for record in self.records]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def auditor(stream: Stream, clock: Clock, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> Auditor:
    monkeypatch.setattr(auditing, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(auditing, "AGAIN_SECONDS", 0.01)
    return Auditor(cast("Bus", stream), Measures(metrics), clock=clock)


@asynccontextmanager
async def running(auditor: Auditor) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    task = asyncio.ensure_future(auditor.run(stopping))
    try:
        yield
    finally:
        stopping.set()
        async with asyncio.timeout(10):
            await task


def refuse(auditor: Auditor, path: str, identity: Identity | None = None, *, peer: str = PEER) -> None:
    auditor.refused(parse("GET", path), identity, code=403 if identity else 401, why="no", peer=peer)


def write(auditor: Auditor, name: str, code: int = 200, *, who: Identity = DANA) -> None:
    place = auditor.expect_write(who, whole=True)
    auditor.written(place, parse("DELETE", f"/api/v1/nodes/{name}"), who, code=code)


def account(number: int, namespace: str = "oil-dev") -> Identity:
    return Identity(user=f"system:serviceaccount:{namespace}:robot-{number}")


def dropped(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("tether_proxy_audit_dropped_total") or 0.0


@pytest.mark.parametrize("who", [None, Identity(user=ANONYMOUS_USER)], ids=["no credential", "anonymous"])
async def test_a_flood_of_nobody_is_two_records_with_numbers_and_no_path(
    auditor: Auditor, stream: Stream, clock: Clock, metrics: Metrics, who: Identity | None
) -> None:
    async with running(auditor):
        for number in range(20_000):
            refuse(auditor, f"/api/v1/secret-path-{number}", who, peer=f"10.0.0.{number % 4}")
        await until(lambda: len(stream.records) == 1)
        clock.now += SAME_AGAIN
        await until(lambda: len(stream.records) == 2)

    assert stream.said == [
        "refused requests of nobody known: 1, addresses: 1, from 10.0.0.0 alone: 1",
        "refused requests of nobody known: 19999, addresses: 4, from 10.0.0.1 alone: 5000",
    ]
    assert dropped(metrics) == 0


async def test_a_callers_refusals_are_so_many_records_a_minute_and_one_of_the_rest(
    auditor: Auditor, stream: Stream, clock: Clock, metrics: Metrics
) -> None:
    async with running(auditor):
        for number in range(100_000):
            refuse(auditor, f"/api/v1/nodes/{number}", DANA)
        await until(lambda: len(stream.records) == OF_ONE_CALLER)
        clock.now += SAME_AGAIN
        await until(lambda: len(stream.records) == OF_ONE_CALLER + 1)
        refuse(auditor, "/api/v1/nodes/another", DANA)
        await until(lambda: len(stream.records) == OF_ONE_CALLER + 2)

    assert stream.said[-2] == (
        f"refused further requests of dana: {100_000 - OF_ONE_CALLER}, "
        f"beyond the {OF_ONE_CALLER} that are recorded in a minute"
    )
    assert stream.said[-1] == "403 for dana: GET /api/v1/nodes/another: no"
    assert dropped(metrics) == 0


async def test_the_same_refusal_is_one_record_a_minute(auditor: Auditor, stream: Stream, clock: Clock) -> None:
    async with running(auditor):
        for _ in range(3):
            for _ in range(50):
                refuse(auditor, "/api/v1/nodes/a", DANA)
            clock.now += SAME_AGAIN
        await until(lambda: len(stream.records) == 3)

    assert set(stream.said) == {"403 for dana: GET /api/v1/nodes/a: no"}


async def test_what_one_caller_does_takes_no_record_from_another_and_none_from_a_write(
    auditor: Auditor, stream: Stream, metrics: Metrics
) -> None:
    for number in range(5000):
        refuse(auditor, f"/api/v1/nodes/{number}", DANA)
        refuse(auditor, f"/api/v1/nodes/{number}")
    refuse(auditor, "/api/v1/nodes/mine", Identity(user="erin"))
    write(auditor, "n1")
    async with running(auditor):
        await until(lambda: len(stream.records) == OF_ONE_CALLER + 3)

    assert stream.said[0].startswith("200 to dana: DELETE /api/v1/nodes/n1")  # first of all
    assert "403 for erin: GET /api/v1/nodes/mine: no" in stream.said
    assert dropped(metrics) == 0


async def test_the_accounts_of_a_namespace_are_one_caller_however_many_there_are(
    auditor: Auditor, stream: Stream, clock: Clock
) -> None:
    async with running(auditor):
        for number in range(1000):
            for path in range(20):
                refuse(auditor, f"/api/v1/nodes/{path}", account(number))
        await until(lambda: len(stream.records) == OF_ONE_CALLER)
        clock.now += SAME_AGAIN
        await until(lambda: len(stream.records) == OF_ONE_CALLER + 1)

    assert stream.said[-1] == (
        f"refused further requests of system:serviceaccounts:oil-dev: {20_000 - OF_ONE_CALLER}, "
        f"beyond the {OF_ONE_CALLER} that are recorded in a minute"
    )
    assert stream.records[-1].account == ""


async def test_refusals_of_all_callers_leave_weeks_of_room_in_the_audit(
    stream: Stream, auditor: Auditor, clock: Clock, metrics: Metrics
) -> None:
    # Given a tenant of 100 namespaces whose accounts are refused as often and at such length as they like
    minutes = 10
    for minute in range(minutes):
        for namespace in range(100):
            for number in range(OF_ONE_CALLER + 2):
                path = f"/api/v1/nodes/{minute}-{number}-{'x' * 2000}"
                refuse(auditor, path, account(number, f"oil-{namespace}"))
        clock.now += SAME_AGAIN
    async with running(auditor):
        await until(lambda: bool(stream.said) and stream.said[-1].startswith("refused requests beyond what is"))

    # Then what they leave is bounded, and what is beyond it is counted
    size = sum(len(encode_body(record)) for record in stream.records)
    assert size < OF_ALL_AT_ONCE + minutes * (OF_ALL_A_MINUTE + 1024)
    assert ", of 100 callers, " in stream.said[-1]
    assert dropped(metrics) == 0
    assert 2 * 21 * 24 * 60 * OF_ALL_A_MINUTE < 1024**3  # three weeks of two processes


async def test_callers_without_number_leave_a_bounded_memory(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "MAX_CALLERS", 10)
    for number in range(1000):
        refuse(auditor, "/api/v1/nodes/a", Identity(user=f"user-{number}"))

    assert len(auditor._callers) == 10  # noqa: SLF001 -- memory shows nowhere else


async def test_where_nats_is_away_nothing_is_written(auditor: Auditor, stream: Stream) -> None:
    stream.connected = False

    with pytest.raises(RefusedError) as caught:
        auditor.expect_write(DANA, whole=True)

    assert (caught.value.status.code, caught.value.status.retry_after) == (503, 5)
    assert "NATS takes no record" in caught.value.status.message


async def test_writes_of_one_share_take_no_place_from_anybody_else(auditor: Auditor, stream: Stream) -> None:
    # Given as many writes under way of the accounts of one namespace as these may have together
    places = [auditor.expect_write(account(number), whole=True) for number in range(EACH)]

    # Then another is told that it is their own that are too many, and who is somebody else writes
    with pytest.raises(RefusedError) as caught:
        auditor.expect_write(account(EACH), whole=True)
    assert (caught.value.status.code, caught.value.status.message) == (
        429,
        "too many of your writes are under way; try again",
    )
    write(auditor, "n1")

    # And once their records are published they have their places again
    async with running(auditor):
        for number, place in enumerate(places):
            auditor.written(place, parse("DELETE", "/api/v1/nodes/a"), account(number), code=200)
        await until(lambda: len(stream.records) == EACH + 1)
        for number in range(EACH):
            write(auditor, "n2", who=account(number))


async def test_writes_whose_body_does_not_come_leave_places_for_those_that_are_whole(auditor: Auditor) -> None:
    held = [auditor.expect_write(account(0, f"oil-{number // EACH}"), whole=False) for number in range(COMING)]

    with pytest.raises(RefusedError) as caught:
        auditor.expect_write(DANA, whole=False)
    assert (caught.value.status.code, "body has not come" in caught.value.status.message) == (503, True)
    write(auditor, "n1")
    auditor.written(held[0], parse("DELETE", "/api/v1/nodes/a"), account(0, "oil-0"), code=0)
    auditor.expect_write(DANA, whole=False)


async def test_the_record_of_a_write_is_kept_until_nats_takes_it(
    auditor: Auditor, stream: Stream, metrics: Metrics
) -> None:
    stream.away = True
    async with running(auditor):
        for number in range(WRITES):
            write(auditor, f"n{number}", who=Identity(user=f"user-{number % 10}"))
        with pytest.raises(RefusedError) as caught:  # no place for another
            auditor.expect_write(DANA, whole=True)
        assert (caught.value.status.code, "can be recorded" in caught.value.status.message) == (503, True)
        await until(lambda: stream.tries > 2)
        stream.away = False
        await until(lambda: len(stream.records) == WRITES)
        write(auditor, "last", code=0)
        await until(lambda: len(stream.records) == WRITES + 1)

    names = [record.object.rpartition("/")[2] for record in stream.records]
    assert names == [*(f"n{number}" for number in range(WRITES)), "last"]
    assert (stream.records[0].outcome, stream.records[-1].outcome) == ("done", "failed")
    assert stream.said[-1].startswith("no answer to dana")
    assert dropped(metrics) == 0


async def test_a_record_that_nats_did_not_take_before_the_end_is_in_the_log(
    auditor: Auditor, stream: Stream, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", "json", "proxy")
    stream.away = True
    async with running(auditor):
        write(auditor, "n1")

    assert "200 to dana: DELETE /api/v1/nodes/n1" in capfd.readouterr().err


async def test_refusals_that_wait_are_bounded_and_counted(
    auditor: Auditor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "WAITING", 10)
    for number in range(15):
        refuse(auditor, f"/api/v1/nodes/{number}", DANA)

    assert dropped(metrics) == 5


async def test_a_record_is_small_whatever_its_request_names(auditor: Auditor, stream: Stream) -> None:
    long = "x" * 100_000
    async with running(auditor):
        refuse(auditor, f"/api/v1/namespaces/{long}/pods/{long}", Identity(user=f"system:serviceaccount:{long}:{long}"))
        await until(lambda: len(stream.records) == 1)

    assert len(encode_body(stream.records[0])) < 4096
