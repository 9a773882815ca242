"""Waits between tries: exponential, capped, with full jitter, and never below what the server asks for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from watchers.backoff import Backoff


def test_the_ceiling_doubles_up_to_the_cap_and_begins_again_after_a_success() -> None:
    backoff = Backoff(1.0, 10.0, draw=lambda _, ceiling: ceiling)

    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next() == 1


@given(st.integers(0, 200), st.floats(0, 1), st.floats(0, 60))
def test_a_wait_lies_between_what_the_server_asks_and_the_cap_above_it(tries: int, luck: float, asked: float) -> None:
    backoff = Backoff(0.25, 15.0, draw=lambda low, high: low + luck * (high - low))
    for _ in range(tries):
        backoff.next()

    assert asked <= backoff.next(asked) <= asked + 15.0


def test_a_fleet_spreads_over_the_whole_range() -> None:
    waits = [Backoff(8.0, 8.0).next() for _ in range(400)]

    assert min(waits) < 2
    assert max(waits) > 6
