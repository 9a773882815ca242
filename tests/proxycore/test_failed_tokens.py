"""Who may ask about how many tokens that turn out to be nobody's, in virtual time."""

from __future__ import annotations

import pytest

from proxycore.failed_tokens import FailedTokens


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_all_networks_together_have_a_budget_too(clock: Clock) -> None:
    failures = FailedTokens(1.0, clock=clock)

    taken = [not failures.take(f"10.0.{number // 250}.{number % 250}").wait for number in range(1000)]

    assert taken.count(True) == 200 + 100  # of all, and what is apart for those that seldom ask
    assert failures.take("10.9.9.9").wait > 0
    clock.now += 0.05
    assert failures.take("10.9.9.9").wait == 0.0


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_networks_that_flood_take_no_review_from_one_that_seldom_asks(clock: Clock, rate: float) -> None:
    # Given 25 networks, each of which sends four times what it may, so that the budget of all is spent
    failures = FailedTokens(rate, clock=clock)
    flood = honest = 0
    for number in range(4 * 1200):
        clock.now += 1 / (4 * rate)
        flood += sum(not failures.take(f"10.0.0.{network}").wait for network in range(25))

        # When another asks in a tenth of its own budget
        if number % 40 == 39:
            honest += not failures.take("10.9.9.9").wait

    # Then it is heard each time, and the flood has what is there for all and its tenths
    assert honest == 120
    assert flood <= (20 + 2.5) * (1200 + 10 * rate) + 25


def test_what_is_taken_apart_is_given_back_for_a_good_token(clock: Clock) -> None:
    failures = FailedTokens(1.0, clock=clock)
    for number in range(250):
        failures.take(f"10.0.0.{number}")
    for _ in range(100):
        taken = failures.take("10.9.9.9")
        assert taken.wait == 0.0
        failures.give_back(taken)

    assert failures.take("10.9.9.9").wait == 0.0
    assert failures.take("10.9.9.9").wait > 0


def test_an_address_that_stands_for_many_spends_from_the_common_budget_alone(clock: Clock) -> None:
    failures = FailedTokens(1.0, exempt=lambda peer: peer == "10.0.0.1", clock=clock)

    assert [failures.take("10.0.0.1").wait for _ in range(201)].count(0.0) == 200


def test_without_a_rate_there_is_no_limit() -> None:
    failures = FailedTokens(0.0)

    assert not any(failures.take("10.0.0.1").wait for _ in range(10_000))
    failures.give_back(failures.take("10.0.0.1"))
