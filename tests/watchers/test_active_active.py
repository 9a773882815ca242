"""Any number of watchers at once: one order, nothing twice, nothing back."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from eventcore.events import OBJECT_DELETED
from eventcore.keys import ObjectKey

if TYPE_CHECKING:
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"


async def test_three_watchers_publish_each_version_once_and_in_order(world: World) -> None:
    # Given three watchers and a hundred changes of ten namespaces
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(world.watcher())
        await world.api.until_asked("WATCH", NAMESPACES, 3)
        for step in range(10):
            for number in range(10):
                await world.api.put(NAMESPACES, f"ns-{number}", metadata={"labels": {"step": str(step)}})
        await world.objects.until(lambda: sum(m.subject.startswith("objects.") for m in world.objects.messages) >= 100)

    versions: dict[str, list[int]] = defaultdict(list)
    for message in world.objects.messages:
        if message.subject.startswith("objects."):
            versions[message.subject].append(int(message.headers["ce-resourceversion"]))
    assert len(versions) == 10
    for seen in versions.values():
        assert len(seen) == 10
        assert seen == sorted(set(seen))


async def test_births_and_deaths_end_the_same_for_all_watchers(world: World) -> None:
    # Given two watchers, and names that are deleted and born again with another uid
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(world.watcher())
        await world.api.until_asked("WATCH", NAMESPACES, 2)
        for life in range(5):
            for number in range(5):
                await world.api.put(NAMESPACES, f"ns-{number}", uid=f"life-{life}-{number}")
            for number in range(5):
                if life < 4 or number < 2:
                    await world.api.delete(NAMESPACES, f"ns-{number}")
        last = await world.api.bookmark(NAMESPACES)
        await world.objects.until(
            lambda: any(m.subject == "marks.Namespace" and last.encode() in m.data for m in world.objects.messages)
        )

    # Then the last of each is the truth, and no uid came back after another
    async with world.reader() as reader:
        live = {record.key.name: record.uid for record in reader.view.all("Namespace")}
    assert live == {f"ns-{number}": f"life-4-{number}" for number in (2, 3, 4)}
    for number in range(5):
        lives = [
            int(message.headers["ce-uid"].split("-")[1])
            for message in world.objects.of(ObjectKey("Namespace", "", f"ns-{number}"))
        ]
        assert lives == sorted(lives)


async def test_a_watcher_that_comes_later_adds_nothing(world: World) -> None:
    async with world.watcher():
        for number in range(5):
            await world.api.put(NAMESPACES, f"ns-{number}")
        gone = ObjectKey("Namespace", "", "ns-0")
        await world.objects.until_many(gone, 1)
        await world.api.delete(NAMESPACES, "ns-0")
        await world.objects.until(
            lambda: bool(world.objects.of(gone)) and world.objects.of(gone)[-1].headers["ce-type"] == OBJECT_DELETED
        )
        before = (await world.bus.stream_state("OBJECTS")).last_sequence

        async with world.watcher():
            await world.api.until_asked("WATCH", NAMESPACES, 2)
            last = await world.api.bookmark(NAMESPACES)
            await world.objects.until(
                lambda: (
                    sum(m.subject == "marks.Namespace" and last.encode() in m.data for m in world.objects.messages) >= 2
                )
            )

    assert [m for m in world.objects.messages if m.sequence > before and m.subject.startswith("objects.")] == []
