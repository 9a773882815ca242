"""Marks say how fresh OBJECTS is, and never more than is true."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.clock import now
from eventcore.events import MARK, Mark, decode_body, object_event
from eventcore.keys import ObjectKey
from watchers.marks import Freshness, version_to_claim

if TYPE_CHECKING:
    from eventcore.bus import BusMessage
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
SUBJECT = "marks.Namespace"


def marks(world: World) -> list[tuple[int, Mark]]:
    """Return the marks of namespaces with their sequences."""
    return [
        (message.sequence, decode_body(Mark, message.data))
        for message in world.objects.messages
        if message.subject == SUBJECT
    ]


def is_mark(message: BusMessage, version: str) -> bool:
    return message.subject == SUBJECT and decode_body(Mark, message.data).resource_version == version


def test_nothing_is_claimed_before_anything_was_seen_after_a_break_or_when_it_is_long_ago() -> None:
    freshness = Freshness(inactivity=10)
    assert freshness.claim(0) is None

    freshness.seen("7", at=100)
    assert freshness.claim(110) == "7"
    assert freshness.claim(110.1) is None

    freshness.seen("8", at=120)
    epoch = freshness.epoch
    freshness.broken()
    assert freshness.claim(120) is None
    assert freshness.epoch != epoch

    freshness.seen("9", at=121)
    assert freshness.claim(121) == "9"


@pytest.mark.parametrize(
    ("ours", "last", "regressed", "claimed"),
    [
        ("7", "", False, "7"),
        ("7", "5", False, "7"),
        ("7", "10", False, "10"),
        ("7", "10", True, "7"),
        ("x", "10", False, "x"),
    ],
)
def test_a_mark_goes_back_only_with_the_api_server(ours: str, last: str, claimed: str, *, regressed: bool) -> None:
    assert version_to_claim(ours, last, regressed=regressed) == claimed


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 50)), max_size=40))
def test_marks_of_several_watchers_never_go_back(seen: list[tuple[int, int]]) -> None:
    ours, last, claims = [0, 0], "", []
    for watcher, step in seen:
        ours[watcher] += step
        last = version_to_claim(str(ours[watcher]), last, regressed=False)
        claims.append(int(last))

    assert claims == sorted(claims)


async def test_marks_follow_lists_and_bookmarks_and_time(world: World) -> None:
    async with world.watcher():
        await world.objects.until(lambda: any(is_mark(m, "100") for m in world.objects.messages))
        version = await world.api.bookmark(NAMESPACES)
        await world.objects.until(lambda: any(is_mark(m, version) for m in world.objects.messages))
        await world.objects.until(lambda: sum(is_mark(m, version) for m in world.objects.messages) >= 4)

    found = marks(world)
    versions = [int(mark.resource_version) for _, mark in found]
    assert versions == sorted(versions)
    times = [mark.time for _, mark in found]
    assert times == sorted(times)
    assert timedelta(0) <= now() - times[-1] < timedelta(seconds=30)
    message = next(message for message in world.objects.messages if message.subject == SUBJECT)
    assert message.headers["ce-type"] == MARK


async def test_a_mark_comes_after_everything_that_it_claims(world: World) -> None:
    # Given a namespace about which the API server must be asked, since OBJECTS holds another uid, and does not answer
    oil = ObjectKey("Namespace", "", "oil")
    event = object_event("default", oil, uid="uid-a", resource_version="50")
    body = b'{"metadata":{"name":"oil","uid":"uid-a","resourceVersion":"50"}}'
    await world.bus.publish(oil.subject(), body, event, expect_last=0)
    await world.api.put(NAMESPACES, "oil", uid="uid-b")
    answer = world.api.gates["GET", f"{NAMESPACES}/oil"] = asyncio.Event()

    async with world.watcher():
        # When other kinds are marked again and again
        await world.api.until_asked("GET", f"{NAMESPACES}/oil")
        await world.objects.until(lambda: sum(m.subject == "marks.Secret" for m in world.objects.messages) >= 3)
        early = marks(world)
        answer.set()
        await world.objects.until(lambda: bool(marks(world)))

        # And a live change needs the same, with a bookmark right behind it
        answer.clear()
        await world.api.put(NAMESPACES, "oil", uid="uid-c")
        bookmark = await world.api.bookmark(NAMESPACES)
        await world.api.until_asked("GET", f"{NAMESPACES}/oil", 2)
        count = sum(m.subject == "marks.Secret" for m in world.objects.messages)
        await world.objects.until(lambda: sum(m.subject == "marks.Secret" for m in world.objects.messages) > count + 3)
        unanswered = [mark for _, mark in marks(world) if mark.resource_version == bookmark]
        answer.set()
        await world.objects.until(lambda: any(is_mark(m, bookmark) for m in world.objects.messages))

    # Then no mark claimed it before it was on the bus
    assert early == []
    assert unanswered == []
    published = {message.headers["ce-uid"]: message.sequence for message in world.objects.of(oil)}
    claims = [sequence for sequence, mark in marks(world) if mark.resource_version == bookmark]
    assert published["uid-b"] < marks(world)[0][0]
    assert published["uid-c"] < min(claims)


async def test_no_mark_comes_while_the_watch_is_broken_and_views_grow_old(world: World) -> None:
    async with world.watcher() as role:
        await world.objects.until(lambda: bool(marks(world)))

        # When the API server is gone
        await world.api.stop()
        restarts = role.metrics.watch_restarts.labels("Namespace", "broken")
        async with asyncio.timeout(10):
            while not restarts._value.get():  # noqa: SLF001 - the library shows a counter only in its text form
                await asyncio.sleep(0.02)  # nothing tells of a refused connection
        count = len(marks(world))
        async with world.reader() as reader:
            age = reader.view.age("Namespace")
            await asyncio.sleep(0.5)  # five times the interval of marks: their absence has no event
            assert reader.view.age("Namespace") > age

        assert len(marks(world)) <= count + 1  # one may have been on its way

        # And when it is back, they go on
        count = len(marks(world))
        await world.api.start(world.api.port)
        await world.objects.until(lambda: len(marks(world)) > count + 1)
