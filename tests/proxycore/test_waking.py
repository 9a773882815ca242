"""Many watches are woken a few at a time, and only those that an event concerns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from eventcore.kube_watch import WatchEvent
from proxycore.kind_memory import KindMemory
from proxycore.waking import AT_ONCE, Waking, awoken
from tests.proxycore.test_namespaces import NAMESPACES

if TYPE_CHECKING:
    from tests.proxycore.conftest import World


async def turn() -> None:
    """Let the event loop take one turn, which is what is counted here."""
    await asyncio.sleep(0)


async def test_in_each_turn_of_the_event_loop_a_few_are_woken_in_order() -> None:
    # given more watches than run in one turn
    events = [asyncio.Event() for _ in range(3 * AT_ONCE)]

    # when all of them are woken
    Waking().wake(events)

    # then each turn sets the next few, and what others have to do comes in between
    for woken in (AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE):
        assert [event.is_set() for event in events] == [number < woken for number in range(3 * AT_ONCE)]
        await turn()


class Counted(asyncio.Event):
    """Counts how often it is set."""

    count = 0

    def set(self) -> None:
        self.count += 1
        super().set()


async def test_who_is_woken_again_before_its_turn_is_woken_once() -> None:
    # given more than one turn can take
    events = [Counted() for _ in range(2 * AT_ONCE)]
    waking = Waking()

    # when three changes wake all of them
    for _ in range(3):
        waking.wake(events)
    for _ in range(3):
        await turn()

    # then the first, who were awake already, are woken for the others too, and who waited once for all
    assert [event.count for event in events] == [2] * AT_ONCE + [1] * AT_ONCE


async def test_waiting_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()

    await awoken(event, 0.001)
    asyncio.get_running_loop().call_soon(event.set)
    await awoken(event, 60)

    assert not event.is_set()


def test_a_change_of_an_object_wakes_whom_it_concerns() -> None:
    # given who wants to hear of one object, and who of another
    memory = KindMemory()
    mine, others = asyncio.Event(), asyncio.Event()
    subscriptions = [
        memory.subscribe(mine, lambda name: name == "a"),
        memory.subscribe(others, lambda name: name == "b"),
    ]

    # when the one changes
    body = msgspec.Raw(msgspec.json.encode({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}}))
    memory.take(WatchEvent("ADDED", body))

    # then the other sleeps on
    assert (mine.is_set(), others.is_set()) == (True, False)
    assert [subscription.take() for subscription in subscriptions] == [{"a"}, set()]


async def test_a_change_of_a_namespace_wakes_whom_it_concerns_and_one_of_grants_everybody(world: World) -> None:
    await world.owner("oil", "oil-1")
    await world.tenant("gas", "gas-1")
    await world.settle()
    feed = world.service.feed
    mine, grants = feed.subscribe(concerns=lambda name: name.startswith("oil")), feed.subscribe()
    try:
        for name in ("gas-1", "oil-1"):
            await world.admin.merge_patch(f"{NAMESPACES}/{name}", {"metadata": {"annotations": {"seen": "1"}}})
        async with asyncio.timeout(20):
            await mine.awake.wait()
        assert mine.take() == ({"oil-1"}, False)
        assert not grants.awake.is_set()

        await world.tenant("sun", "sun-1")
        await world.settle()
        async with asyncio.timeout(20):
            await asyncio.gather(mine.awake.wait(), grants.awake.wait())
        assert (mine.take(), grants.take()) == ((set(), True), (set(), True))
    finally:
        feed.unsubscribe(mine)
        feed.unsubscribe(grants)
