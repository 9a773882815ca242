"""Work in flight: bounded, side by side, in order for each key."""

from __future__ import annotations

import asyncio

import pytest

from watchers.inflight import InOrder


async def test_works_of_one_key_run_in_order_and_never_together() -> None:
    flights: InOrder[str] = InOrder(8)
    running, seen = 0, []

    async def work(number: int) -> None:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(number % 3):
            await asyncio.sleep(0)
        seen.append(number)
        running -= 1

    for number in range(20):
        await flights.add("key", lambda number=number: work(number))  # type: ignore[misc]  # mypy infers no default
    await flights.flush()

    assert seen == list(range(20))
    assert not flights.busy("key")


async def test_who_adds_more_than_fits_waits() -> None:
    flights: InOrder[int] = InOrder(2)
    free = asyncio.Event()

    async def work() -> None:
        await free.wait()

    await flights.add(1, work)
    await flights.add(2, work)
    third = asyncio.ensure_future(flights.add(3, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert not third.done()
    assert len(flights) == 2
    free.set()
    await third
    await flights.flush()
    assert len(flights) == 0


async def test_keys_run_side_by_side_and_flush_waits_for_all_of_them() -> None:
    flights: InOrder[int] = InOrder(8)
    meeting = asyncio.Barrier(2)
    met = []

    async def work(number: int) -> None:
        await meeting.wait()
        met.append(number)

    await flights.add(1, lambda: work(1))
    await flights.add(2, lambda: work(2))
    await flights.flush()

    assert sorted(met) == [1, 2]


async def test_an_error_is_raised_to_who_flushes_or_adds() -> None:
    flights: InOrder[int] = InOrder(8)

    async def broken() -> None:
        raise ValueError("a bug")

    await flights.add(1, broken)
    with pytest.raises(ValueError, match="a bug"):
        await flights.flush()
    with pytest.raises(ValueError, match="a bug"):
        await flights.add(2, broken)


async def test_close_gives_up_what_does_not_end_in_time_and_says_how_many() -> None:
    flights: InOrder[int] = InOrder(8)
    done = []

    async def quick() -> None:
        done.append(1)

    await flights.add(1, quick)
    await flights.add(2, asyncio.Event().wait)  # type: ignore[arg-type]  # never set: its result is never seen

    assert await flights.close(0.01) == 1
    assert done == [1]
    assert len(flights) == 0
