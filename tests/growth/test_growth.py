"""Every parser of foreign text is linear: ten times the text is at most some twelve times the work.

Found in the source, not by memory: whatever reads text is measured here, or stands in a list with its reason.
"""

from __future__ import annotations

import gc
import time
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from eventcore.keys import ObjectKey
from eventcore.objects import ANNOTATION_ACCOUNT, LABEL_COMPONENT, KubeObject, Meta, PartialObject, ProxySetting, Tenant
from eventcore.views import Change, ObjectRecord
from tests.growth.parsers import EXEMPT, PARSERS, Case
from tests.growth.scanning import covered, readers
from workers.relations import Relations
from workers.routing import route

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: float = 12.0 * 1.5
"""Twelve times, and what a processor loses when its caches, which others use too, are too small for ten times the text.
What is quadratic takes a hundred times."""
TIMES = 10
REPEATS = 5
TRIES = 10
LEAST = 20e-6
"""Seconds: what takes less for the whole text is not worth a comparison."""
LONGEST = 0.05
"""Seconds of CPU that one text may hold the event loop."""


def work(read: Callable[[object], object], text: object) -> float:
    """Return the CPU seconds of this thread for one reading."""
    begun = time.thread_time()
    read(text)
    return time.thread_time() - begun


def growth(case: Case) -> tuple[float, float]:
    """Return by how much the work grows for ten times the text, and the seconds for the longest."""
    small, large = case.text(case.most // TIMES), case.text(case.most)
    gc.disable()
    try:
        # In turn, so that what else the machine does makes both slow.
        measured = [(work(case.read, small), work(case.read, large)) for _ in range(REPEATS)]
    finally:
        gc.enable()
    before, after = (min(seconds) for seconds in zip(*measured, strict=True))
    return after / max(before, LEAST), after


CASES = [
    pytest.param(case, id=f"{name.rpartition('.')[2]}-{number}")
    for name, cases in PARSERS.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize("case", CASES)
def test_ten_times_the_text_is_at_most_twelve_times_the_work(case: Case) -> None:
    # A machine that does something else meanwhile makes one measurement worse, never all of them better.
    ratio, seconds = growth(case)
    for _ in range(TRIES):
        if ratio <= MOST and seconds <= LONGEST:
            return
        again, took = growth(case)
        ratio, seconds = min(ratio, again), min(seconds, took)
    assert ratio <= MOST, f"ten times the text took {ratio:.0f} times as long"
    assert seconds <= LONGEST, f"one text of {case.most} characters held the loop for {seconds * 1000:.0f} ms"


def own_secrets(number: int) -> list[Change[ObjectRecord]]:
    """Return as many Secrets that say to be kubeconfigs of one account in one namespace, and the end of them."""
    changes = []
    for at in range(number):
        key = ObjectKey("Secret", "oil-system", f"deployer-{at}")
        found = Meta(
            name=key.name,
            namespace=key.namespace,
            uid=str(at),
            labels={LABEL_COMPONENT: "kubeconfig"},
            annotations={ANNOTATION_ACCOUNT: "oil-system/deployer"},
        )
        changes.append(Change(old=None, new=record(key, at + 1, PartialObject(found)), sequence=at + 1))
    return changes + [Change(old=change.new, new=None, sequence=change.sequence + number) for change in changes]


def many_owners(number: int) -> list[Change[ObjectRecord]]:
    """Return a Tenant that gets as many owners, each of which may list nodes, and loses them."""
    key = ObjectKey("Tenant", "", "oil")
    nodes = {"kind": "Nodes", "operations": ["List"]}
    owners = [{"kind": "User", "name": f"user-{at}", "proxySettings": [nodes]} for at in range(number)]
    changes: list[Change[ObjectRecord]] = []
    for at, wanted in enumerate(([], owners, []), 1):
        found = msgspec.convert({"metadata": {"name": "oil", "uid": "uid"}, "spec": {"owners": wanted}}, Tenant)
        changes.append(Change(old=changes[-1].new if changes else None, new=record(key, at, found), sequence=at))
    return changes


def many_settings(number: int) -> list[Change[ObjectRecord]]:
    """Return as many ProxySettings of one namespace, each of which names a user, the last of them first."""
    changes: list[Change[ObjectRecord]] = []
    for at in range(number):
        key = ObjectKey("ProxySetting", "oil-production", f"setting-{number - at:05}")
        body = {"metadata": {"name": key.name}, "spec": {"subjects": [{"kind": "User", "name": f"user-{at}"}]}}
        found = record(key, at + 1, msgspec.convert(body, ProxySetting))
        changes.append(Change(old=None, new=found, sequence=at + 1))
    return changes


def record(key: ObjectKey, at: int, found: KubeObject) -> ObjectRecord:
    return ObjectRecord(
        key=key,
        sequence=at,
        id=str(at),
        uid=found.metadata.uid,
        resource_version=str(at),
        deleted=False,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        body=b"",
        obj=found,
    )


def route_all(changes: object) -> None:
    relations = Relations()
    for change in cast("list[Change[ObjectRecord]]", changes):
        route(change, relations)


@pytest.mark.parametrize(("what", "most"), [(own_secrets, 3000), (many_owners, 1000), (many_settings, 4000)])
def test_ten_times_the_objects_or_owners_are_at_most_twelve_times_the_work(
    what: Callable[[int], list[Change[ObjectRecord]]], most: int
) -> None:
    case = Case(read=route_all, text=what, most=most)

    assert any(growth(case)[0] <= MOST for _ in range(3))


def test_whatever_is_quadratic_is_found() -> None:
    def slow(text: object) -> object:
        assert isinstance(text, str)
        return [text.count("b") for _ in range(len(text) // 20)]

    ratio, _ = growth(Case(read=slow, text=lambda length: "a" * length, most=20_000))

    assert ratio > MOST


def test_every_parser_is_there() -> None:
    for name in PARSERS:
        module, _, path = name.partition(":")
        found = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found), name


def test_whatever_reads_text_is_measured_or_says_why_not() -> None:
    found = readers()
    measured = covered(set(PARSERS))

    unread = {name: sorted(by) for name, by in found.items() if name not in measured}
    unknown = {name: by for name, by in unread.items() if not EXEMPT.keys() & {name, name.partition(":")[0]}}
    assert not unknown, "measure it in tests/growth/parsers.py, or say there why its text is nobody's"
    gone = EXEMPT.keys() - {part for name in unread for part in (name, name.partition(":")[0])}
    assert not gone, "these read nothing any more, or are measured: take them out of EXEMPT"
