"""Lists that are rendered once for many: never an old one after a change."""

from __future__ import annotations

import gc
import tracemalloc

import msgspec
import pytest

from eventcore.clock import now
from eventcore.keys import ObjectKey
from eventcore.objects import Namespace
from eventcore.views import ObjectRecord
from proxycore.listquery import parse_query
from proxycore.remembering import size_of
from proxycore.rendered import LARGEST, LARGEST_LINE, MOST, MOST_LINES, SHARE, RenderedEvents, RenderedLists


def record(name: str) -> ObjectRecord:
    body = b'{"metadata": {"name": "' + name.encode() + b'"}}'
    return ObjectRecord(
        key=ObjectKey("Namespace", "", name),
        sequence=1,
        id="u:1",
        uid="u",
        resource_version="1",
        deleted=False,
        time=now(),
        body=body,
        obj=msgspec.json.decode(body, type=Namespace),
    )


class Renderer:
    def __init__(self, body: bytes = b"list") -> None:
        self.body = body
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.body


def test_the_same_records_are_rendered_once() -> None:
    lists, render, records = RenderedLists(), Renderer(), [record("a"), record("b")]

    bodies = {lists.body("asked", list(records), render) for _ in range(5)}

    assert (bodies, render.times) == ({b"list"}, 1)


def test_a_changed_added_or_lost_record_or_another_question_is_rendered_anew() -> None:
    lists, render, one, two = RenderedLists(), Renderer(), record("a"), record("b")

    for asked, records in (
        ("asked", [one]),
        ("asked", [record("a")]),  # equal, but no longer the same state
        ("asked", [two]),
        ("asked", [two, one]),
        ("asked", [two]),
        ("asked", []),
        ("another", []),
    ):
        lists.body(asked, records, render)

    assert render.times == 7


def test_what_is_kept_is_bounded() -> None:
    lists, render, large = RenderedLists(), Renderer(b"x" * (LARGEST // 2)), Renderer(b"x" * (LARGEST + 1))

    for number in range(100):
        lists.body(number, [], render, holder="dana")
        assert lists.size <= SHARE
    for number in range(200):
        lists.body((number, "bob"), [], render, holder=f"bob {number}")
        assert lists.size <= MOST
    lists.body("large", [], large)
    lists.body("large", [], large)

    assert (render.times, large.times) == (300, 2)
    assert 1 < len(lists) <= MOST // len(render.body)


def test_what_one_caller_asks_for_leaves_to_the_others_what_is_kept_for_them() -> None:
    lists, render, hostile = RenderedLists(), Renderer(), Renderer(b"x" * LARGEST)
    lists.body("victim's", [], render, holder="victim")

    for number in range(1000):
        lists.body(number, [], hostile, holder="dana", size=1000)

    lists.body("victim's", [], render, holder="victim")
    assert render.times == 1


@pytest.mark.slow
def test_a_hundred_lists_by_long_selectors_of_one_caller_take_no_more_than_its_share() -> None:
    lists, render = RenderedLists(), Renderer()
    names = ",".join(f"a{number:025}" for number in range(2000))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(100):
        query = parse_query(f"labelSelector=a{number}%20in%20({names})")
        lists.body(("asked", query), [], render, holder="dana", size=size_of(query))
    del query
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # What it says to hold is what it holds, or more.
    assert 0 < held - before <= lists.size + 100_000
    assert lists.size <= SHARE


def test_an_event_is_rendered_once_for_the_same_state_and_anew_for_another() -> None:
    events, render, one = RenderedEvents(), Renderer(), record("a")

    for asked, state in (("ADDED", one), ("ADDED", one), ("DELETED", one), ("ADDED", record("a"))):
        assert events.line(asked, state, render) == b"list"

    assert render.times == 3


def test_events_that_are_kept_are_bounded() -> None:
    events, render, large = RenderedEvents(), Renderer(), Renderer(b"x" * (LARGEST_LINE + 1))

    for number in range(3 * MOST_LINES):
        events.line(number, record("a"), render)
    for _ in range(2):
        events.line("large", record("a"), large)

    assert large.times == 2
    assert len(events) <= MOST_LINES
