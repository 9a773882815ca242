"""The time of the cluster: what a server says of it bounds what is believed of the clock here."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore import clock
from eventcore.clock import TOLERANCE, ServerClock, apart
from eventcore.metrics import Metrics

seconds = st.floats(-1e6, 1e6)
delays = st.floats(0.0, 10.0)


def wall(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """Let the clock of this machine be so many seconds ahead of what it is."""
    monkeypatch.setattr(clock, "wall", lambda: time.time() + ahead)


@given(seconds, delays, delays, st.floats(0.0, 1.0))
def test_what_is_believed_is_never_further_off_than_the_answer_was_slow(
    server: float, there: float, back: float, fraction: float
) -> None:
    # given a server whose clock is `server` seconds from the monotonic one, which leaves out a fraction of a second
    found, sent = ServerClock("x"), 1000.0
    said = sent + there + server - fraction

    found.hear(said, sent=sent, received=sent + there + back, precision=1.0)

    assert abs(found.offset - server) <= there + back + 1.0 + 1e-6


@given(seconds, st.lists(st.tuples(delays, delays, st.floats(0.0, 1.0)), min_size=1, max_size=20))
def test_each_answer_makes_it_better_and_none_makes_it_worse(
    server: float, answers: list[tuple[float, float, float]]
) -> None:
    found, sent, before = ServerClock("x"), 1000.0, float("inf")
    for there, back, fraction in answers:
        found.hear(sent + there + server - fraction, sent=sent, received=sent + there + back, precision=1.0)
        error = abs(found.offset - server)
        assert error <= before + 1e-3
        before, sent = error, sent + 60.0


def test_until_a_server_answers_its_clock_is_taken_to_be_the_one_here() -> None:
    found = ServerClock("x")

    assert found.skew == pytest.approx(0.0, abs=1e-3)
    assert abs(found.time() - time.time()) < 1.0


@pytest.mark.parametrize("ahead", [7200.0, -7200.0, 6.0, -6.0])
def test_a_wrong_clock_here_is_corrected_and_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ahead: float
) -> None:
    wall(monkeypatch, ahead)
    found = ServerClock("x")

    for _ in range(3):
        date = format_datetime(datetime.now(UTC), usegmt=True)
        found.hear_date(date, sent=time.monotonic(), received=time.monotonic())

    assert abs(found.time() - time.time()) <= 2.0
    assert found.skew == pytest.approx(ahead, abs=2.0)
    assert capsys.readouterr().out.count("set it by NTP") == 1

    # when somebody sets the clock
    wall(monkeypatch, 0.0)
    found.hear_date(date, sent=time.monotonic(), received=time.monotonic())

    assert abs(found.skew) < TOLERANCE
    assert "right again" in capsys.readouterr().out


def test_a_clock_that_goes_with_the_servers_is_believed_to_the_fraction_of_a_second() -> None:
    found = ServerClock("x")

    found.hear_date(format_datetime(datetime.now(UTC), usegmt=True), sent=time.monotonic(), received=time.monotonic())

    assert found.skew == pytest.approx(0.0, abs=0.05)


def test_another_server_with_another_clock_takes_the_place_of_the_first() -> None:
    found = ServerClock("x")
    found.hear(5000.0, sent=100.0, received=100.5)
    found.hear(9000.0, sent=101.0, received=101.5)

    assert 9000.0 - 101.5 <= found.offset <= 9000.0 - 101.0


@pytest.mark.parametrize("header", [None, "", "yesterday", "Thu, 99 Nov 2026 00:00:00 GMT"])
def test_a_date_that_cannot_be_read_says_nothing(header: str | None) -> None:
    found = ServerClock("x")
    found.hear_date(header, sent=0.0, received=0.0)

    assert found.skew == pytest.approx(0.0, abs=1e-3)


def test_a_skew_is_told_as_people_say_it() -> None:
    assert apart(12.4) == "12 s ahead of"
    assert apart(-12.4) == "12 s behind"


def test_the_skew_of_both_servers_is_a_metric() -> None:
    text = Metrics().render().decode()

    assert 'tether_clock_skew_seconds{server="kube-apiserver"}' in text
    assert 'tether_clock_skew_seconds{server="nats-server"}' in text


def test_now_is_the_api_servers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "KUBE", ServerClock("kube-apiserver"))
    clock.KUBE.hear(time.time() + 3600.0, sent=time.monotonic(), received=time.monotonic())

    assert timedelta(minutes=59) < clock.now() - datetime.now(UTC) < timedelta(minutes=61)
