"""What waits in a router: who is served when, and that nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from eventcore.events import WorkRequest
from eventcore.keys import key
from workers.outbox import BULK, URGENT, USUAL, Outbox, Outgoing

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def asked(
    name: str, *, cause: int = 1, urgency: int = USUAL, source: str = "oil", since: int | None = None
) -> Outgoing:
    """Return a request that one change of a source led to; ``since`` in seconds after noon."""
    moment = None if since is None else NOON + timedelta(seconds=since)
    request = WorkRequest(reason="event" if cause else "start", cause=cause, since=moment)
    return Outgoing("access", key(name), request, f"{cause}", urgency, source)


def names(requests: list[Outgoing]) -> list[str]:
    return [str(one.key) for one in requests]


def test_what_is_urgent_goes_before_thousands_that_a_tenant_asked_for() -> None:
    outbox = Outbox()
    for number in range(5000):
        outbox.put(asked(f"flood-{number}"))
    outbox.put(asked("everything", cause=0, urgency=BULK))
    outbox.put(asked("victim", urgency=URGENT, source="gas"))

    assert names(outbox.take(2)) == ["victim", "flood-0"]
    assert "everything" in names(outbox.take(5000))


def test_each_source_has_its_turn_however_much_another_asks_for() -> None:
    outbox = Outbox()
    for number in range(1000):
        outbox.put(asked(f"flood-{number}"))
    outbox.put(asked("mine", source="gas"))
    outbox.put(asked("mine-too", source="gas"))

    assert names(outbox.take(5)) == ["flood-0", "mine", "flood-1", "mine-too", "flood-2"]


def test_a_key_that_waits_is_asked_for_once_for_the_last_cause_since_the_first_and_as_the_more_urgent() -> None:
    outbox = Outbox()
    outbox.put(asked("a", cause=5, since=1))
    outbox.put(asked("a", cause=9, since=2, urgency=URGENT, source="gas"))
    outbox.put(asked("a", cause=0, urgency=BULK))

    [one] = outbox.take(10)

    assert (one.request.cause, one.request.since, one.urgency) == (9, NOON + timedelta(seconds=1), URGENT)
    assert not outbox


def test_what_could_not_be_published_is_first_again_unless_it_was_asked_for_since() -> None:
    outbox = Outbox()
    for name in ("a", "b", "c"):
        outbox.put(asked(name))
    taken = outbox.take(2)
    outbox.put(asked("a", cause=7))

    outbox.put_back(reversed(taken))

    again = outbox.take(10)
    assert names(again) == ["a", "b", "c"]
    assert again[0].request.cause == 7


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 9), st.sampled_from([URGENT, USUAL, BULK]), st.integers(0, 3)),
        max_size=60,
    ),
    st.integers(1, 7),
)
def test_every_key_comes_once_with_its_last_cause(puts: list[tuple[int, int, int, int]], most: int) -> None:
    outbox = Outbox()
    wanted: dict[str, int] = {}
    for number, cause, urgency, source in puts:
        outbox.put(asked(f"k{number}", cause=cause, urgency=urgency, source=f"s{source}"))
        before = wanted.get(f"k{number}", 0)
        wanted[f"k{number}"] = cause or before

    found: list[Outgoing] = []
    while outbox:
        batch = outbox.take(most)
        assert batch
        assert [one.urgency for one in batch] == sorted(one.urgency for one in batch)
        found += batch

    assert {str(one.key): one.request.cause for one in found} == wanted
    assert len(found) == len(wanted)
