"""The judgement of ``make attack`` can fail: what is wrong is judged wrong, and what is usual is not."""

from __future__ import annotations

import pytest

from tests.attack.judging import (
    Baseline,
    Beat,
    Found,
    Process,
    of_answer,
    of_beats,
    of_list,
    of_onboarding,
    of_processes,
    of_revocation,
)
from tests.kubeapi import Reply

MIB = 2**20
PROXY = Process(pid=1, started=1, memory=60 * MIB)
USUAL = Baseline.of(
    [{"dead at the proxy": seconds, "copies gone": 0.1} for seconds in (1.0, 0.9, 1.1, 30.0, 0.8)], {"proxy-1": PROXY}
)


def test_a_revocation_is_late_beyond_three_times_the_median() -> None:
    # given a median of one second, which one slow cycle does not move
    assert USUAL.seconds["dead at the proxy"] == 1.0
    assert not of_revocation({"dead at the proxy": 2.9}, USUAL)

    (line,) = of_revocation({"dead at the proxy": 3.1}, USUAL).late
    assert line == "dead at the proxy: after 3.1 s, usual are 1.0 s"


def test_a_revocation_is_not_late_below_the_floor() -> None:
    assert not of_revocation({"copies gone": 1.9}, USUAL)
    assert of_revocation({"copies gone": 2.1}, USUAL).late


def test_who_waits_for_its_onboarding_is_stopped() -> None:
    assert of_onboarding({"copies gone": 10.1}, USUAL).slow
    assert not of_onboarding({"copies gone": 9.9}, USUAL)


@pytest.mark.parametrize(
    "beat",
    [
        Beat("list", 503, 0.1),
        Beat("list", 429, 0.1),
        Beat("list", 401, 0.1),
        Beat("list", 0, 10.0, "TimeoutError"),
        Beat("list", 200, 3.5),
    ],
)
def test_a_victim_that_is_refused_or_waits_is_stopped(beat: Beat) -> None:
    found = of_beats([Beat("list", 200, 0.1), beat])

    (line,) = found.lines()
    assert line.startswith("stopped: list: ")
    assert found.is_certain is (beat.status != 200)


def test_a_victim_that_is_served_is_not_stopped() -> None:
    assert not of_beats([Beat("list", 200, 0.5)] * 3)


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (None, "proxy-1 ended"),
        (Process(pid=2, started=1, memory=MIB), "proxy-1 ended"),
        (Process(pid=1, started=2, memory=MIB), "proxy-1 ended"),
        (Process(pid=1, started=1, memory=221 * MIB), "proxy-1 grew to 221 MiB from 60"),
        (Process(pid=1, started=1, memory=MIB, ill="no answer"), "proxy-1 is not well: no answer"),
    ],
)
def test_a_process_that_ends_grows_or_is_deaf_is_stopped(after: Process | None, line: str) -> None:
    assert of_processes({"proxy-1": PROXY}, {"proxy-1": after}, USUAL).stopped == [line]


def test_memory_that_earlier_cases_took_is_not_this_ones() -> None:
    large = Process(pid=1, started=1, memory=230 * MIB)

    assert not of_processes({"proxy-1": large}, {"proxy-1": Process(pid=1, started=1, memory=240 * MIB)}, USUAL)


def test_a_process_that_the_case_itself_restarts_must_be_there_again() -> None:
    again = Process(pid=2, started=9, memory=60 * MIB)

    assert not of_processes({"proxy-1": PROXY}, {"proxy-1": again}, USUAL, spared={"proxy"})
    assert of_processes({"proxy-1": PROXY}, {"proxy-1": again}, USUAL, spared={"nats"}).stopped
    assert of_processes({"proxy-1": PROXY}, {"proxy-1": None}, USUAL, spared={"proxy"}).stopped


def test_a_foreign_namespace_in_a_list_is_a_leak() -> None:
    assert not of_list({"a-web"}, {"a-web", "a-test"})
    assert of_list({"a-web", "b-web"}, {"a-web"}).leaked == ["foreign namespace in a list: b-web"]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, {"message": "no"}, ""),
        (200, {"items": []}, "leaked"),
        (201, "made", "leaked"),
        (500, {"message": "int() of a string"}, "stopped"),
        (403, {"message": "the value is s3cret"}, "leaked"),
    ],
)
def test_what_an_attacker_gets_is_judged_by_what_it_must_get(status: int, body: object, kind: str) -> None:
    found = of_answer("get", Reply(status, body, {}), {401, 403}, ["s3cret"])

    assert [line.partition(":")[0] for line in found.lines()] == ([kind] if kind else [])


def test_findings_are_told_once_each_with_their_kind() -> None:
    found = Found(stopped=["a", "a"], slow=["a"])
    found.add(Found(leaked=["b"], late=["c"]))

    assert found.lines() == ["stopped: a", "leaked: b", "late: c"]
