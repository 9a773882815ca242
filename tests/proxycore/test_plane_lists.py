"""Lists that are rendered once for many: never an old one after a change."""

from __future__ import annotations

import msgspec

from eventcore.clock import now
from eventcore.keys import ObjectKey
from eventcore.objects import Namespace
from eventcore.views import ObjectRecord
from proxycore.rendered import LARGEST, LARGEST_LINE, MOST, RenderedEvents, RenderedLists


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
    lists, render, large = RenderedLists(), Renderer(), Renderer(b"x" * (LARGEST + 1))

    for number in range(3 * MOST):
        lists.body(number, [], render)
    lists.body("large", [], large)
    lists.body("large", [], large)

    assert (render.times, large.times) == (3 * MOST, 2)
    assert len(lists) <= MOST


def test_an_event_is_rendered_once_for_the_same_state_and_anew_for_another() -> None:
    events, render, one = RenderedEvents(), Renderer(), record("a")

    for asked, state in (("ADDED", one), ("ADDED", one), ("DELETED", one), ("ADDED", record("a"))):
        assert events.line(asked, state, render) == b"list"

    assert render.times == 3


def test_events_that_are_kept_are_bounded() -> None:
    events, render, large = RenderedEvents(), Renderer(), Renderer(b"x" * (LARGEST_LINE + 1))

    for number in range(3 * MOST):
        events.line(number, record("a"), render)
    for _ in range(2):
        events.line("large", record("a"), large)

    assert large.times == 2
    assert len(events) <= MOST
