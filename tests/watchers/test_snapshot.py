"""Which answer is newer, and what a complete list says about the view: pure rules."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchers.snapshot import (
    Verdict,
    Version,
    is_mass_delete,
    is_newer,
    is_newer_in_list,
    is_older,
    is_one_tenants,
    missing,
    settle,
)

V3: Final = Version("a", "3")
V5: Final = Version("a", "5")
GONE: Final = Version("a", "4", deleted=True)
OTHER: Final = Version("b", "1")


@pytest.mark.parametrize(
    ("ours", "last", "verdict"),
    [
        (V5, None, Verdict.PUBLISH),
        (GONE, None, Verdict.DROP),
        (V5, V3, Verdict.PUBLISH),
        (V3, V5, Verdict.DROP),
        (V5, V5, Verdict.DROP),
        (Version("a", "10"), Version("a", "9"), Verdict.PUBLISH),
        (GONE, V3, Verdict.PUBLISH),
        (Version("a", "3", deleted=True), V3, Verdict.PUBLISH),
        (GONE, V5, Verdict.ASK),
        (GONE, GONE, Verdict.DROP),
        (V5, GONE, Verdict.ASK),
        (OTHER, V5, Verdict.ASK),
        (V5, OTHER, Verdict.ASK),
        (GONE, OTHER, Verdict.ASK),
        (OTHER, GONE, Verdict.ASK),
        (Version("a", "x7"), V5, Verdict.ASK),
    ],
)
def test_a_watch_event_is_published_dropped_or_asked_about(
    ours: Version, last: Version | None, verdict: Verdict
) -> None:
    assert is_newer(ours, last) is verdict


@pytest.mark.parametrize(
    ("ours", "last", "verdict"),
    [
        (V5, None, Verdict.PUBLISH),
        (V5, V3, Verdict.PUBLISH),
        (V5, V5, Verdict.DROP),
        (V3, V5, Verdict.ASK),
        (V5, GONE, Verdict.ASK),
        (OTHER, V5, Verdict.ASK),
    ],
)
def test_a_list_that_shows_less_than_the_view_is_asked_about(
    ours: Version, last: Version | None, verdict: Verdict
) -> None:
    assert is_newer_in_list(ours, last) is verdict


@pytest.mark.parametrize(
    ("truth", "last", "verdict"),
    [
        (None, None, Verdict.DROP),
        (None, GONE, Verdict.DROP),
        (None, V3, Verdict.PUBLISH),
        (V3, V3, Verdict.DROP),
        (V3, V5, Verdict.PUBLISH),
        (V5, GONE, Verdict.PUBLISH),
        (OTHER, V5, Verdict.PUBLISH),
    ],
)
def test_the_api_server_asked_afterwards_decides(truth: Version | None, last: Version | None, verdict: Verdict) -> None:
    assert settle(truth, last) is verdict


OPERATIONS: Final = st.lists(st.sampled_from(["change", "delete", "hide"]), min_size=1, max_size=12)
STEPS: Final = st.lists(st.sampled_from(["api", "one", "two", "three"]), max_size=80)


def _history(operations: list[str]) -> list[Version]:
    """Return the events of one name: changes, deletes (then another uid), hides (a label goes and returns)."""
    history: list[Version] = [Version("uid-0", "1")]
    lives = 0
    for number, operation in enumerate(operations, start=2):
        last = history[-1]
        if last.deleted:
            history.append(Version(f"uid-{lives}", str(number)))
        elif operation == "change":
            history.append(Version(last.uid, str(number)))
        else:
            history.append(Version(last.uid, str(number), deleted=True))
            lives += operation == "delete"
    return history


@given(operations=OPERATIONS, steps=STEPS)
def test_watchers_at_any_speed_never_take_the_bus_back_and_agree_in_the_end(
    operations: list[str], steps: list[str]
) -> None:
    # Given one name's history, an API server somewhere in it, and three watchers that are somewhere behind
    history = _history(operations)
    at = {"api": 0, "one": 0, "two": 0, "three": 0}
    bus: list[tuple[int, Version]] = []

    def truth() -> tuple[int, Version | None]:
        version = history[at["api"]]
        return at["api"], None if version.deleted else version

    def deliver(index: int) -> None:
        last = bus[-1][1] if bus else None
        verdict = is_newer(history[index], last)
        if verdict is Verdict.PUBLISH:
            bus.append((index, history[index]))
        elif verdict is Verdict.ASK:
            now, version = truth()
            if settle(version, last) is Verdict.PUBLISH:
                assert last is not None
                bus.append((now, version or Version(last.uid, last.resource_version, deleted=True)))

    # When they go on in any order, and then all to the end
    for step in [*steps, *["api"] * len(history), *["one", "two", "three"] * len(history)]:
        if step == "api":
            at["api"] = min(at["api"] + 1, len(history) - 1)
        elif at[step] <= at["api"] and at[step] < len(history):
            deliver(at[step])
            at[step] += 1

    # Then the bus only went forward, and holds the truth
    order = [index for index, _ in bus]
    assert order == sorted(order)
    final = bus[-1][1]
    assert final.deleted == history[-1].deleted
    if not final.deleted:
        assert final == history[-1]


@given(st.dictionaries(st.integers(0, 20), st.integers(1, 99)), st.dictionaries(st.integers(0, 20), st.integers(1, 99)))
def test_only_what_was_in_the_view_before_the_list_and_is_not_in_it_is_buried(
    before: dict[int, int], after: dict[int, int]
) -> None:
    listed = {key for key in range(21) if key % 3 == 0}

    gone = missing(before, after, listed)

    for key in gone.bury:
        assert key not in listed
        assert before[key] == after[key]
    for key in gone.ask:
        assert key not in listed
        assert before.get(key) != after[key]
    assert set(gone.bury) | set(gone.ask) == set(after) - listed


@given(st.dictionaries(st.integers(), st.integers(1, 99)))
def test_a_list_of_everything_buries_nothing_and_an_empty_one_all(view: dict[int, int]) -> None:
    assert missing(view, view, view) == missing({}, {}, ())
    assert set(missing(view, view, ()).bury) == set(view)


@pytest.mark.parametrize(
    ("gone", "live", "stopped"),
    [(10, 10, False), (11, 11, True), (11, 22, False), (12, 22, True), (0, 0, False)],
)
def test_a_pass_may_bury_the_minimum_and_the_share_and_no_more(gone: int, live: int, *, stopped: bool) -> None:
    assert is_mass_delete(gone, live, share=0.5, minimum=10) is stopped


@given(st.integers(0, 10**6))
def test_share_one_buries_everything(live: int) -> None:
    assert not is_mass_delete(live, live, share=1.0, minimum=0)


@pytest.mark.parametrize(
    ("gone", "live", "one"),
    [
        (["oil"] * 90, ["oil"] * 90 + [""] * 10, True),
        (["oil"] * 90 + [""] * 5, ["oil"] * 95 + [""] * 10, True),  # and what goes anyway
        (["oil"] * 90 + [""] * 6, ["oil"] * 95 + [""] * 10, False),
        (["oil"] * 50 + ["gas"] * 50, ["oil"] * 50 + ["gas"] * 50 + [""] * 40, False),
        (["oil"] * 90, ["oil"] * 90, False),  # nothing else shows that the list is right
        ([""] * 90, [""] * 100, False),
        ([], [], False),
    ],
)
def test_a_tenant_may_delete_all_that_is_its_own(gone: list[str], live: list[str], *, one: bool) -> None:
    assert is_one_tenants(gone, live, share=0.5) is one


@given(st.lists(st.sampled_from(["", "oil", "gas"])))
def test_an_empty_list_is_never_one_tenants_doing(live: list[str]) -> None:
    assert not is_one_tenants(live, live, share=0.5)


def test_a_version_that_is_no_number_is_not_older() -> None:
    assert is_older("9", "10")
    assert not is_older("10", "9")
    assert not is_older("a", "10")


def test_a_version_of_thousands_of_digits_is_no_number() -> None:
    assert not is_older("1", "9" * 5000)
    assert not is_older("9" * 5000, "1")
    assert is_newer(Version("u", "9" * 5000), Version("u", "7")) is Verdict.ASK
    assert is_older("7", str(2**64 - 1))
