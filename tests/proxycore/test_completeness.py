"""Which grants a bucket that fills again must hold before it is taken, and how long it waits for what never comes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from eventcore.bus import KV_PREFIX, BusMessage
from eventcore.events import Mark, encode_body, object_event
from eventcore.grants import AccountGrant, ConfigGrant, Grant, SubjectGrant, TenantGrant, encode_grant
from eventcore.keys import ObjectKey, mark_subject
from eventcore.views import AccessView, ObjectsView
from proxycore.completeness import MOST_SECONDS, QUIET_SECONDS, Completeness, missing

if TYPE_CHECKING:
    from eventcore.reading import Reader

TIME = datetime(2026, 1, 1, tzinfo=UTC)
OIL = TenantGrant(name="oil", uid="u")
ALICE = SubjectGrant(subject_kind="User", name="alice", tenants=("oil",))
ACCOUNT = AccountGrant(namespace="a", name="b", uid="u")
CONFIG = ConfigGrant()


def message(subject: str, data: bytes, headers: dict[str, str] | None = None, sequence: int = 1) -> BusMessage:
    return BusMessage(subject=subject, sequence=sequence, time=TIME, headers=headers or {}, data=data)


def bucket(*grants: Grant, gone: tuple[Grant, ...] = ()) -> AccessView:
    view = AccessView()
    for number, grant in enumerate((*grants, *gone), 1):
        headers = {"KV-Operation": "DEL"} if grant in gone else {}
        data = b"" if grant in gone else encode_grant(grant)
        view.apply(message(KV_PREFIX + grant.key().token(), data, headers, number))
    return view


def objects(*, marks: tuple[str, ...] = ("Namespace", "Tenant", "CapsuleConfiguration"), **tenants: Any) -> ObjectsView:
    view = ObjectsView()
    view.created = "now"
    for kind, name, body in (
        ("CapsuleConfiguration", "default", {}),
        *(("Tenant", name, fields) for name, fields in tenants.items()),
    ):
        target = ObjectKey(kind, "", name)
        meta = {"name": name, "uid": "u", "resourceVersion": "1", **body.get("metadata", {})}
        event = object_event("test", target, uid="u", resource_version="1")
        view.apply(message(target.subject(), msgspec.json.encode({**body, "metadata": meta}), event.headers()))
    for kind in marks:
        data = encode_body(Mark(kind=kind, resource_version="1", time=TIME, stream="now"))
        view.apply(message(mark_subject(kind), data))
    return view


def owned(*owners: tuple[str, str]) -> dict[str, Any]:
    return {"spec": {"owners": [{"kind": kind, "name": name} for kind, name in owners]}}


class Held:
    """What stands for a reader: its view, and whether that is current."""

    def __init__(self, view: object) -> None:
        self.view = view
        self.ready = True
        self.asked = 0

    def take_when(self, _: object) -> None:
        pass

    def look_again(self) -> None:
        self.asked += 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def completeness(view: ObjectsView, before: AccessView, clock: Clock) -> tuple[Completeness, Held]:
    held = Held(view)
    made = Completeness(
        cast("Reader[Any, Any]", held),
        cast("Reader[Any, Any]", Held(before)),
        kinds=("Namespace", "Tenant"),
        configuration="default",
        clock=clock,
    )
    return made, held


@pytest.mark.parametrize(
    ("view", "before", "table", "wanted"),
    [
        (objects(), bucket(), bucket(), [CONFIG]),
        (objects(), bucket(), bucket(CONFIG), []),
        (objects(oil=owned(("User", "alice"))), bucket(), bucket(CONFIG), [OIL, ALICE]),
        (objects(oil=owned(("User", "alice"))), bucket(), bucket(CONFIG, OIL, ALICE), []),
        (objects(oil=owned(("User", ""), ("Robot", "x"), ("ServiceAccount", "x"))), bucket(), bucket(CONFIG, OIL), []),
        (objects(oil={"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), bucket(), bucket(CONFIG), []),
        (objects(), bucket(CONFIG, ACCOUNT), bucket(CONFIG), [ACCOUNT]),
        (objects(), bucket(CONFIG, ACCOUNT), bucket(CONFIG, gone=(ACCOUNT,)), []),
        (objects(), bucket(CONFIG, gone=(ACCOUNT,)), bucket(CONFIG), []),
        (objects(oil={}), bucket(), bucket(CONFIG, gone=(OIL,)), [OIL]),
    ],
    ids=[
        "no users yet",
        "nothing to expect",
        "a tenant and its owner",
        "both are there",
        "owners that are nobody",
        "a tenant that goes",
        "an account of before",
        "an account that was taken back since",
        "an account that was taken back before",
        "a tenant that came again",
    ],
)
def test_what_a_bucket_lacks(view: ObjectsView, before: AccessView, table: AccessView, wanted: list[Grant]) -> None:
    assert list(missing(view, before, table, "default")) == [KV_PREFIX + grant.key().token() for grant in wanted]


async def test_objects_are_taken_once_every_kind_that_decides_was_listed_and_the_grants_are_asked_again() -> None:
    made, _ = completeness(objects(), bucket(), Clock())

    assert not made.listed(objects(marks=("Namespace", "Tenant")))
    assert made.listed(objects())


def test_a_mark_of_another_stream_vouches_for_nothing() -> None:
    made, _ = completeness(objects(), bucket(), Clock())
    other = objects()
    other.created = "later"

    assert not made.listed(other)


def test_grants_are_not_judged_before_objects_are_read() -> None:
    made, held = completeness(objects(), bucket(), Clock())
    held.ready = False

    assert not made.compiled(bucket(CONFIG))
    held.ready = True
    assert made.compiled(bucket(CONFIG))
    assert made.lacking == ""


def test_a_grant_that_never_comes_is_waited_for_until_the_bucket_is_quiet() -> None:
    clock = Clock()
    made, _ = completeness(objects(oil={}), bucket(), clock)
    table = bucket(CONFIG)

    assert not made.compiled(table)
    clock.now += QUIET_SECONDS - 0.1
    assert not made.compiled(table)
    table.sequence += 1  # something else came
    assert not made.compiled(table)
    clock.now += QUIET_SECONDS - 0.1
    assert not made.compiled(table)
    clock.now += 0.2
    assert made.compiled(table)


def test_a_bucket_that_is_never_quiet_is_taken_in_the_end() -> None:
    clock = Clock()
    made, _ = completeness(objects(oil={}), bucket(), clock)
    table = bucket(CONFIG)
    begun = clock.now

    while not made.compiled(table):
        table.sequence += 1
        clock.now += 1.0
        assert clock.now - begun <= MOST_SECONDS

    assert clock.now - begun == MOST_SECONDS


def test_without_the_users_of_capsule_no_bucket_is_taken_however_long_it_is_quiet() -> None:
    clock = Clock()
    made, _ = completeness(objects(), bucket(), clock)
    table = bucket()

    for _ in range(3):
        assert not made.compiled(table)
        clock.now += MOST_SECONDS
    table.apply(message(KV_PREFIX + CONFIG.key().token(), encode_grant(CONFIG), sequence=9))
    assert made.compiled(table)
