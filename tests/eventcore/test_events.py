"""CloudEvents in binary mode, and bodies whose old bytes stay readable."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore import events
from eventcore.errors import EventError
from eventcore.keys import ObjectKey

GOLDEN = Path(__file__).parent / "golden"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)

BODIES: dict[str, events.Mark | events.WorkRequest | events.AuditRecord | events.DeadLetter] = {
    "mark.v1": events.Mark(kind="Tenant", resource_version="42", time=WHEN, watcher="w-1"),
    "work.v1": events.WorkRequest(reason="event", cause=7, cause_id="default:uid:42", attempt=1),
    "audit.v1": events.AuditRecord(
        time=WHEN,
        component="token",
        action="minted",
        outcome="done",
        tenant="oil",
        account="oil-system/gitops-reconciler",
        object="Secret/oil-system/gitops-reconciler-token",
        cause="default:uid:42",
        message="generation 1",
    ),
    "deadletter.v1": events.DeadLetter(
        time=WHEN,
        worker="rbac",
        key="a/b",
        reason="why",
        subject="work.rbac.1.a.b",
        headers={"ce-id": "x"},
        data=b"\x00\xff",
        deliveries=3,
        sequence=9,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bytes_of_every_released_version_decode_to_the_same_body(name: str) -> None:
    body = BODIES[name]
    assert events.decode_body(type(body), (GOLDEN / f"{name}.json").read_bytes()) == body


@pytest.mark.parametrize("name", BODIES)
def test_the_present_version_writes_the_golden_bytes(name: str) -> None:
    assert events.encode_body(BODIES[name]) == (GOLDEN / f"{name}.json").read_bytes().strip()


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert events.decode_body(events.WorkRequest, b'{"reason":"sweep","added":{"later":1}}') == events.WorkRequest(
        reason="sweep"
    )


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"reason":"nonsense"}', b"\xff"])
def test_a_broken_body_is_refused_without_quoting_it(data: bytes) -> None:
    with pytest.raises(EventError, match="not a WorkRequest"):
        events.decode_body(events.WorkRequest, data)


@given(
    st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)),  # noqa: DTZ001 -- hypothesis wants naive bounds
    st.from_regex(r"[a-z0-9:-]{1,20}", fullmatch=True),
)
def test_an_event_comes_back_from_its_headers(time: datetime, uid: str) -> None:
    event = events.object_event("c", ObjectKey("Tenant", "", "oil"), uid=uid, resource_version="7", time=time)
    assert events.Event.of_headers(event.headers()) == event


def test_every_watcher_gives_a_tombstone_the_same_id() -> None:
    key = ObjectKey("Tenant", "", "oil")
    one = events.object_event("c", key, uid="u", resource_version="7", deleted=True)
    other = events.object_event("c", key, uid="u", resource_version="9", deleted=True)
    assert one.id == other.id == "c:u:gone"


@pytest.mark.parametrize(
    "headers", [None, {}, {"ce-id": "x"}, {"ce-id": "x", "ce-source": "s", "ce-type": "t", "ce-time": "?"}]
)
def test_headers_without_a_cloudevent_are_refused(headers: dict[str, str] | None) -> None:
    with pytest.raises(EventError, match="not a CloudEvent"):
        events.Event.of_headers(headers)
