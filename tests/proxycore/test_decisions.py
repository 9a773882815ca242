"""Decisions that are remembered: the same as those that are not, after any change and at any age."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from eventcore.grants import CapsuleUserRef, ConfigGrant, Grant, SubjectGrant, TenantGrant
from proxycore.decisions import MOST, SHARE, Decisions
from proxycore.identities import Identity
from proxycore.policy import Forward, Freshness, ListMemory, Refuse
from proxycore.requestinfo import parse

if TYPE_CHECKING:
    from eventcore.keys import Key
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView
    from proxycore.freshness import Freshener

DANA, BOB = Identity(user="dana"), Identity(user="bob")
LIST = parse("GET", "/api/v1/namespaces?resourceVersion=0")


class View:
    def __init__(self, *grants: Grant) -> None:
        self.sequence = 0
        self.grants: dict[Key, Grant] = {}
        for grant in grants:
            self.take(grant)

    def take(self, grant: Grant) -> None:
        self.grants[grant.key()] = grant
        self.sequence += 1

    def get(self, target: Key) -> Grant | None:
        return self.grants.get(target)


class World:
    """Two readers and a clock, as the proxy has them."""

    def __init__(self) -> None:
        self.view = View(
            ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
            SubjectGrant(subject_kind="User", name="dana", tenants=("oil",)),
            TenantGrant(name="oil", uid="u", namespaces=("oil-1",)),
        )
        self.objects = type("Objects", (), {"view": View()})()
        self.freshness = Freshness(ready=True)
        self.decisions = Decisions(
            cast("Reader[AccessView, GrantRecord]", self),
            cast("Reader[ObjectsView, ObjectRecord]", self.objects),
            cast("Freshener", self),
        )

    def recent(self) -> Freshness:
        return self.freshness

    def names(self) -> frozenset[str]:
        decision = self.decisions.decide(LIST, DANA)
        assert isinstance(decision, ListMemory)
        return decision.names


def test_the_same_question_is_decided_once() -> None:
    world = World()

    assert world.decisions.decide(LIST, DANA) is world.decisions.decide(LIST, DANA)


def test_a_changed_grant_is_seen_by_the_next_request() -> None:
    world = World()
    assert world.names() == {"oil-1"}

    world.view.take(TenantGrant(name="oil", uid="u", namespaces=("oil-1", "oil-2")))
    assert world.names() == {"oil-1", "oil-2"}

    world.view.take(SubjectGrant(subject_kind="User", name="dana", tenants=()))
    assert world.names() == frozenset()


def test_a_view_that_was_built_anew_is_seen_even_at_the_same_sequence() -> None:
    world = World()
    assert world.names() == {"oil-1"}

    anew = View(*world.view.grants.values())
    anew.grants[TenantGrant(name="oil", uid="u", namespaces=()).key()] = TenantGrant(name="oil", uid="v", namespaces=())
    anew.sequence = world.view.sequence
    world.view = anew

    assert world.names() == frozenset()


def test_every_change_is_another_epoch() -> None:
    world = World()
    seen = []
    for _ in range(3):
        world.decisions.look()
        world.decisions.look()
        seen.append(world.decisions.epoch)
        world.objects.view.sequence += 1

    assert len(set(seen)) == 3


def test_what_is_remembered_is_not_used_once_memory_is_old() -> None:
    world = World()
    assert world.names() == {"oil-1"}

    world.freshness = Freshness(ready=True, age=31.0)
    assert isinstance(world.decisions.decide(LIST, DANA), Refuse)

    world.freshness = Freshness(ready=True)
    assert world.names() == {"oil-1"}


def test_two_callers_are_decided_apart_and_what_is_kept_is_bounded() -> None:
    world = World()
    for number in range(10_000):
        assert isinstance(world.decisions.decide(LIST, Identity(user=f"user-{number}")), Forward)

    assert world.names() == {"oil-1"}
    assert len(world.decisions) > 1000
    assert world.decisions.size <= MOST


def test_one_callers_decisions_with_long_selectors_take_no_more_than_its_share() -> None:
    world = World()
    selector = ",".join(f"a{number}" for number in range(100))
    kept = world.decisions.decide(LIST, BOB)

    for number in range(1000):
        info = parse("GET", f"/api/v1/namespaces?resourceVersion=0&labelSelector={selector},b{number}")
        assert isinstance(world.decisions.decide(info, DANA), ListMemory)
        assert world.decisions.size <= SHARE + 10_000

    assert world.decisions.decide(LIST, BOB) is kept
