"""What RBAC allows is asked once, believed for a while, and forgotten the moment a right changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventcore.clock import now
from eventcore.errors import KubeUnreachableError
from eventcore.keys import ObjectKey
from eventcore.objects import Meta, PartialObject
from eventcore.views import Change, ObjectRecord
from proxycore.access_reviews import AccessReviews
from proxycore.identities import Identity
from proxycore.rights import Question, Rights
from proxycore.statuses import RefusedError
from tests.proxycore.acrossmodel import Objects, Reviews

DANA = Identity(user="dana", groups=("devs",), extra={"scopes": ("a",)})
LIST = Question(verb="list", group="", version="v1", resource="pods")


class Stand:
    """Rights on a clock of its own."""

    def __init__(self, *allowed: str) -> None:
        self.objects = Objects()
        self.reviews = Reviews({("dana", name) for name in allowed})
        self.time = 0.0
        reader: Any = self.objects
        asked = AccessReviews(self.reviews, clock=lambda: self.time)
        self.rights = Rights(asked, reader, limit=30)

    def change(self, kind: str, namespace: str, version: str = "60", *, deleted: bool = False, old: str = "") -> None:
        """Let OBJECTS tell of a change."""
        new = _record(kind, namespace, version, deleted=deleted)
        before = _record(kind, namespace, old, deleted=False) if old else None
        for listener in self.objects.listeners:
            listener(Change(old=before, new=new, sequence=1))

    async def may(self, namespace: str = "a") -> bool:
        return await self.rights.allowed(DANA, LIST, namespace)


def _record(kind: str, namespace: str, version: str, *, deleted: bool) -> ObjectRecord:
    return ObjectRecord(
        key=ObjectKey(kind, namespace, "x"),
        sequence=1,
        id="",
        uid="u",
        resource_version=version,
        deleted=deleted,
        time=now(),
        body=b"",
        obj=PartialObject(Meta(name="x", namespace=namespace)),
    )


async def test_an_answer_is_believed_for_ten_seconds_and_a_refusal_for_two() -> None:
    stand = Stand("a")

    assert [await stand.may("a"), await stand.may("b"), await stand.may("a"), await stand.may("b")] == [1, 0, 1, 0]
    assert stand.reviews.count == 2
    stand.time = 3
    await stand.may("a")
    await stand.may("b")
    assert stand.reviews.count == 3
    stand.time = 11
    await stand.may("a")
    assert stand.reviews.count == 4


async def test_one_caller_is_never_answered_with_what_another_may() -> None:
    stand = Stand("a")
    await stand.may("a")

    for other in (
        Identity(user="dana", groups=("devs", "ops"), extra={"scopes": ("a",)}),
        Identity(user="dana", groups=("devs",)),
        Identity(user="erin", groups=("devs",), extra={"scopes": ("a",)}),
    ):
        before = stand.reviews.count
        await stand.rights.allowed(other, LIST, "a")
        assert stand.reviews.count == before + 1
    assert await stand.rights.allowed(DANA, Question(verb="watch", group="", version="v1", resource="pods"), "a")
    assert stand.reviews.count == 5


@pytest.mark.parametrize(
    ("kind", "namespace", "asked"),
    [
        ("AnyRoleBinding", "a", True),
        ("AnyRole", "a", True),
        ("AnyRoleBinding", "b", False),
        ("AnyClusterRole", "", True),
        ("AnyClusterRoleBinding", "", True),
        ("Namespace", "", False),
        ("RoleBinding", "a", False),
    ],
)
async def test_a_change_of_a_right_makes_what_it_may_concern_void(kind: str, namespace: str, *, asked: bool) -> None:
    stand = Stand("a")
    await stand.may("a")
    stand.reviews.allowed.clear()

    stand.change(kind, namespace)

    assert await stand.may("a") is not asked


async def test_an_answer_that_was_under_way_when_a_right_changed_is_not_remembered() -> None:
    stand, entered, go_on = Stand("a"), asyncio.Event(), asyncio.Event()
    create = stand.reviews.create

    async def slow(path: str, body: dict[str, Any], /) -> bytes:
        answer = await create(path, body)
        entered.set()
        await go_on.wait()
        return answer

    stand.reviews.create = slow  # type: ignore[method-assign]  # a review takes time
    first = asyncio.ensure_future(stand.may("a"))
    await entered.wait()
    stand.reviews.allowed.clear()
    stand.change("AnyRoleBinding", "a")
    second = asyncio.ensure_future(stand.may("a"))
    go_on.set()

    assert (await first, await second, await stand.may("a")) == (True, False, False)


async def test_the_same_is_asked_once_at_a_time() -> None:
    stand = Stand("a", "b")

    assert await stand.rights.among(DANA, LIST, ["a", "a", "b", "c"]) == {"a", "b"}
    assert stand.reviews.count == 3


async def test_while_nobody_vouches_for_the_rights_nothing_is_believed() -> None:
    stand = Stand("a")
    await stand.may("a")
    stand.objects.seconds = 31
    stand.reviews.allowed.clear()

    assert not await stand.may("a")
    stand.objects.seconds = 0
    stand.objects.ready = False
    stand.reviews.allowed.add(("dana", "a"))
    assert await stand.may("a")


async def test_when_nobody_can_tell_nothing_is_allowed_and_nothing_remembered() -> None:
    stand = Stand("a")
    create = stand.reviews.create

    async def away(path: str, body: dict[str, Any], /) -> bytes:
        raise KubeUnreachableError(f"{path}{len(body)}")

    stand.reviews.create = away  # type: ignore[method-assign]  # the API server is away
    with pytest.raises(RefusedError) as caught:
        await stand.may("a")
    assert caught.value.status.code == 503
    stand.reviews.create = create  # type: ignore[method-assign]  # it is back
    assert await stand.may("a")


async def test_the_version_of_the_last_change_is_known_also_of_what_was_buried_after_a_list() -> None:
    stand = Stand()
    assert stand.rights.changed(["a"]) == 0

    stand.change("AnyRole", "a", "7")
    stand.change("AnyClusterRole", "", "9")
    assert (stand.rights.changed(["a"]), stand.rights.changed(["b"]), stand.rights.changed([])) == (9, 9, 9)
    stand.change("AnyRoleBinding", "a", "12", deleted=True, old="11")
    assert (stand.rights.changed(["a"]), stand.rights.changed(["b"])) == (12, 9)
    stand.change("AnyRoleBinding", "b", "11", deleted=True, old="11")  # the watchers had seen all up to 50
    assert stand.rights.changed(["b"]) == 50


async def test_who_follows_hears_where_rights_changed() -> None:
    stand = Stand()
    changes = stand.rights.subscribe()

    stand.change("AnyRoleBinding", "a")
    stand.change("AnyRole", "b")
    assert changes.awake.is_set()
    assert changes.take() == ({"a", "b"}, False)
    assert not changes.awake.is_set()
    stand.change("AnyClusterRole", "")
    assert changes.take() == (set(), True)
    stand.rights.unsubscribe(changes)
    stand.change("AnyRole", "b")
    assert not changes.awake.is_set()
