"""The sweep in virtual time: each key once in an interval, spread, the same in every replica, and none lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.keys import key
from workers.sweeping import TICKS, Turn, due_between, turns

if TYPE_CHECKING:
    from workers.routing import Route

HOUR = 3600.0
START = 1_790_000_000.0
ROUTES: list[Route] = [("rbac", key("home", str(number))) for number in range(600)]


async def sweep(routes: list[Route], *, begins: float, ends: float) -> list[list[Turn]]:
    """Run a sweep by the hour in virtual time, between two times after START; return what each look found."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    origin = START + begins - loop.time()
    loop.call_later(ends - begins, stopping.set)
    return [due async for due in turns(lambda: routes, HOUR, stopping, lambda: origin + loop.time())]


@pytest.mark.looptime
async def test_in_an_hour_every_key_has_its_turn_once_and_at_any_moment_it_is_the_turn_of_few() -> None:
    looks = await sweep(ROUTES, begins=0, ends=HOUR)

    assert sorted((turn.worker, turn.key) for due in looks for turn in due) == sorted(ROUTES)
    assert len(looks) >= TICKS
    assert max(len(due) for due in looks) < 3 * len(ROUTES) / TICKS


@pytest.mark.looptime
async def test_replicas_that_began_at_different_times_ask_under_the_same_ids() -> None:
    one = await sweep(ROUTES, begins=0, ends=3 * HOUR)
    other = await sweep(ROUTES, begins=-1234.5, ends=3 * HOUR)

    first, second = ({turn.msg_id for due in looks for turn in due} for looks in (one, other))
    assert first <= second
    # Each key's turn in each hour has one id; only what came before the first began is the other's alone.
    assert len(first) == 3 * len(ROUTES)


@given(st.integers(1, 2_000_000_000), st.lists(st.floats(0.01, 400), min_size=1, max_size=20), st.integers(1, 1000))
def test_each_key_has_its_turn_once_in_an_interval_however_irregular_the_looks(
    start: int, waits: list[float], interval: int
) -> None:
    routes = ROUTES[:5]
    moments = [float(start)]
    for wait in waits:
        moments.append(moments[-1] + wait)
    moments.append(moments[-1] + interval)  # a whole interval at the end
    found = [due_between(routes, last, moment, interval) for last, moment in pairwise(moments)]

    assert sorted((turn.worker, turn.key) for turn in found[-1]) == sorted(routes)
    assert max(Counter(turn.msg_id for due in found for turn in due).values()) == 1


@given(st.floats(0, 10 * HOUR), st.floats(HOUR, 50 * HOUR))
def test_after_a_process_that_slept_no_key_is_left_out_or_asked_for_twice(last: float, slept: float) -> None:
    due = due_between(ROUTES[:20], START + last, START + last + slept, HOUR)

    assert sorted((turn.worker, turn.key) for turn in due) == sorted(ROUTES[:20])
