"""Which objects of a cluster-scoped kind somebody may touch: one quick example for each rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.grants import Choice, ClusterRule, Grant, SelectorTerm, SubjectGrant, TenantGrant
from eventcore.keys import Key, key
from eventcore.selectors import Requirement
from proxycore.identities import Identity
from proxycore.kinds import KINDS, NAMESPACE_KIND, NODE_LEASE, ProxiedKind
from proxycore.rules import (
    LONGEST_SELECTOR,
    Holder,
    Scope,
    Seen,
    is_named,
    rules_of,
    scope_of,
    selectors_of,
)
from proxycore.selectors import render

DANA = Identity(user="dana", groups=("devs",))
KIND = {kind.setting: kind for kind in reversed(KINDS)}
NODES, VOLUMES, CLASSES, TENANT = (KIND[one] for one in ("Nodes", "PersistentVolumes", "StorageClasses", "Tenant"))
ROLES = ProxiedKind(setting="", group="rbac.authorization.k8s.io", resource="clusterroles")
ALL = ("List", "Update", "Delete")
READS = ("get", "list", "watch")


class Memory:
    """Grants in a dict."""

    def __init__(self, *grants: Grant) -> None:
        self.grants: dict[Key, Grant] = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


def owner(name: str = "dana", kind: str = "User", **more: Any) -> SubjectGrant:
    return SubjectGrant(subject_kind=kind, name=name, **more)


def tenant(name: str = "oil", *namespaces: str, **choices: Choice) -> TenantGrant:
    return TenantGrant(name=name, uid="u", namespaces=namespaces, choices=choices)


def owning(setting: str, *operations: str, of: str = "oil") -> SubjectGrant:
    return owner(tenants=(of,), operations={of: {setting: operations}})


def term(key: str = "for", operator: str = "In", *values: str) -> SelectorTerm:
    return SelectorTerm(key=key, operator=operator, values=values)


FOR_OIL = term("for", "In", "oil")
IS_OIL = (Requirement("for", "in", ("oil",)),)


def rule(*selector: SelectorTerm, lists: bool = True, of: str = "", **more: Any) -> ClusterRule:
    about = {"groups": ("",), "resources": ("nodes",)} | more
    return ClusterRule(**about, selector=selector or (FOR_OIL,), lists=lists, tenant=of)


# What is in a scope.


def test_any_part_of_a_scope_lets_an_object_in() -> None:
    scope = Scope(
        names=frozenset({"a"}),
        patterns=frozenset({"^b.$", "("}),
        selectors=frozenset({IS_OIL}),
        holders=frozenset({Holder("oil", frozenset({"oil-1"}))}),
    )

    allowed = [
        scope.allows(one)
        for one in (
            Seen(name="a"),
            Seen(name="b1"),
            Seen(name="x", labels={"for": "oil"}),
            Seen(name="y", claim_namespace="oil-1"),
            Seen(name="b"),
            Seen(name="x", labels={"for": "gas"}),
            Seen(name="y", claim_namespace="gas-1"),
        )
    ]

    assert allowed == [True, True, True, True, False, False, False]


def test_an_object_in_a_namespace_is_in_no_scope() -> None:
    assert not Scope(names=frozenset({"a"})).allows(Seen(name="a", namespace="oil-1"))


def test_an_empty_scope_lets_nothing_in() -> None:
    assert not Scope().allows(Seen(name="a", labels={"for": "oil"}, claim_namespace="oil-1"))


@pytest.mark.parametrize(
    ("label", "claim", "holds"),
    [
        ("", "oil-1", True),
        ("oil", "oil-1", True),
        ("gas", "oil-1", False),
        ("oil", "", True),
        ("", "", False),
        ("gas", "", False),
        ("oil", "gas-1", False),
        ("", "gas-1", False),
    ],
)
def test_a_volume_is_the_tenants_by_claim_and_label_which_must_not_disagree(
    label: str, claim: str, *, holds: bool
) -> None:
    labels = {"capsule.clastix.io/tenant": label} if label else {}

    assert Holder("oil", frozenset({"oil-1"})).holds(Seen(name="v", labels=labels, claim_namespace=claim)) is holds


def test_a_volume_that_nobody_claims_is_the_labels() -> None:
    oil = Holder("oil", frozenset({"oil-1"}))

    assert oil.holds(Seen(name="v", labels={"capsule.clastix.io/tenant": "oil"}))
    assert not oil.holds(Seen(name="v"))


def test_only_what_goes_by_name_stays_as_it_is_while_it_lives() -> None:
    assert Scope(names=frozenset({"a"}), patterns=frozenset({"b"})).by_name_alone
    assert not Scope(selectors=frozenset({IS_OIL})).by_name_alone
    assert not Scope(holders=frozenset({Holder("oil", frozenset())})).by_name_alone


def test_one_selector_alone_goes_upstream_and_nothing_that_would_leave_objects_out() -> None:
    one, two = frozenset({IS_OIL}), frozenset({IS_OIL, (Requirement("x", "exists", ()),)})

    assert Scope(selectors=one).selector() == IS_OIL
    for scope in (
        Scope(),
        Scope(selectors=two),
        Scope(selectors=one, names=frozenset({"a"})),
        Scope(selectors=one, patterns=frozenset({"a"})),
        Scope(selectors=one, holders=frozenset({Holder("oil", frozenset())})),
    ):
        assert scope.selector() == ()


def test_a_selector_that_is_too_long_stays_here() -> None:
    around = len(render((Requirement("for", "in", ("",)),)))
    fits = (Requirement("for", "in", ("x" * (LONGEST_SELECTOR - around),)),)
    long = (Requirement("for", "in", ("x" * (LONGEST_SELECTOR - around + 1),)),)

    assert Scope(selectors=frozenset({fits})).selector() == fits
    assert Scope(selectors=frozenset({long})).selector() == ()


# What tenants and their settings give.


def test_namespaces_and_tenants_are_those_that_somebody_owns() -> None:
    memory = Memory(owner(tenants=("oil", "gone")), tenant("oil", "oil-1"), tenant("gas", "gas-1"))

    assert scope_of(DANA, memory, NAMESPACE_KIND, "list") == Scope(names=frozenset({"oil-1"}))
    assert scope_of(DANA, memory, TENANT, "list") == Scope(names=frozenset({"oil"}))
    assert scope_of(DANA, memory, ROLES, "list") is None


def test_a_kind_that_only_rules_speak_of_is_given_by_no_tenant() -> None:
    memory = Memory(owning("", *ALL), tenant("oil", **{"": CHOICE}))

    assert scope_of(DANA, memory, ROLES, "list") is None


CHOICE = Choice(names=("n1",), pattern="^n", selectors=((FOR_OIL,), (term("x", "Near"),)))
CHOSEN = Scope(names=frozenset({"n1"}), patterns=frozenset({"^n"}), selectors=frozenset({IS_OIL}))


def test_what_a_tenant_chose_is_given_with_the_operation_list() -> None:
    memory = Memory(owning("Nodes", "List"), tenant("oil", Nodes=CHOICE))

    for verb in READS:
        assert scope_of(DANA, memory, NODES, verb) == CHOSEN
    for verb in ("update", "patch", "delete"):
        assert scope_of(DANA, memory, NODES, verb) is None
    assert scope_of(DANA, memory, CLASSES, "list") is None


@pytest.mark.parametrize(
    ("operations", "verbs"),
    [
        (("Update",), ()),
        (("Delete",), ()),
        (("List", "Update"), ("get", "list", "update", "patch")),
        (("List", "Delete"), ("get", "list", "delete")),
        (ALL, ("get", "list", "update", "patch", "delete")),
        ((), ()),
    ],
)
def test_a_write_needs_its_operation_and_list(operations: tuple[str, ...], verbs: tuple[str, ...]) -> None:
    memory = Memory(owning("Nodes", *operations), tenant("oil", Nodes=CHOICE))

    given = [
        verb for verb in ("get", "list", "update", "patch", "delete") if scope_of(DANA, memory, NODES, verb) is not None
    ]

    assert given == list(verbs)


def test_a_tenant_that_chose_nothing_gives_nothing_and_says_so() -> None:
    assert scope_of(DANA, Memory(owning("Nodes", *ALL), tenant("oil")), NODES, "list") == Scope()
    assert scope_of(DANA, Memory(owning("Nodes", *ALL)), NODES, "list") is None


def test_a_choice_without_a_pattern_has_none() -> None:
    memory = Memory(owning("Nodes", *ALL), tenant("oil", Nodes=Choice(names=("n1",))))

    assert scope_of(DANA, memory, NODES, "list") == Scope(names=frozenset({"n1"}))


def test_several_tenants_give_the_union_each_by_its_own_operations() -> None:
    memory = Memory(
        owner(tenants=("oil", "gas"), operations={"oil": {"Nodes": ALL}, "gas": {"Nodes": ("List",)}}),
        tenant("oil", Nodes=Choice(names=("n1",))),
        tenant("gas", Nodes=Choice(names=("n2",))),
    )

    assert scope_of(DANA, memory, NODES, "list") == Scope(names=frozenset({"n1", "n2"}))
    assert scope_of(DANA, memory, NODES, "delete") == Scope(names=frozenset({"n1"}))


def test_volumes_are_those_of_the_tenants() -> None:
    memory = Memory(owning("PersistentVolumes", "List"), tenant("oil", "oil-1", "oil-2"))

    assert scope_of(DANA, memory, VOLUMES, "list") == Scope(
        holders=frozenset({Holder("oil", frozenset({"oil-1", "oil-2"}))})
    )
    assert scope_of(DANA, Memory(owner(tenants=("oil",)), tenant("oil")), VOLUMES, "list") is None


# What rules give.


def test_a_rule_gives_what_its_selector_chooses_for_reading() -> None:
    memory = Memory(owner(rules=(rule(),)))

    for verb in READS:
        assert selectors_of(DANA, memory, NODES, verb) == {IS_OIL}
        assert scope_of(DANA, memory, NODES, verb) == Scope(selectors=frozenset({IS_OIL}))
    for verb in ("update", "patch", "delete", "create", ""):
        assert selectors_of(DANA, memory, NODES, verb) == frozenset()
        assert scope_of(DANA, memory, NODES, verb) is None
    assert rules_of(DANA, memory) == [rule()]


def test_a_rule_is_added_to_what_the_tenants_give() -> None:
    memory = Memory(
        owner(tenants=("oil",), operations={"oil": {"Nodes": ALL}}, rules=(rule(),)),
        tenant("oil", Nodes=Choice(names=("n1",), selectors=((term("x", "Exists"),),))),
    )

    assert scope_of(DANA, memory, NODES, "list") == Scope(
        names=frozenset({"n1"}), selectors=frozenset({IS_OIL, (Requirement("x", "exists", ()),)})
    )


def test_a_rule_that_may_not_list_gives_single_objects_alone() -> None:
    memory = Memory(owner(rules=(rule(lists=False),)))

    assert selectors_of(DANA, memory, NODES, "get") == {IS_OIL}
    assert selectors_of(DANA, memory, NODES, "list") == selectors_of(DANA, memory, NODES, "watch") == frozenset()


def test_a_rule_of_another_kind_or_for_somebody_else_gives_nothing() -> None:
    for given in (
        owner(rules=(rule(resources=("pods",)),)),
        owner(rules=(rule(groups=("apps",)),)),
        owner("erin", rules=(rule(),)),
        owner("ops", "Group", rules=(rule(),)),
    ):
        assert selectors_of(DANA, Memory(given), NODES, "get") == frozenset()
    assert selectors_of(DANA, Memory(owner("devs", "Group", rules=(rule(),))), NODES, "get") == {IS_OIL}


def test_no_rule_speaks_of_what_lives_in_a_namespace() -> None:
    any_ = rule(groups=("*",), resources=("*",))

    assert selectors_of(DANA, Memory(owner(rules=(any_,))), NODE_LEASE, "get") == frozenset()


def test_a_rule_without_a_selector_gives_nothing() -> None:
    bare = msgspec.structs.replace(rule(), selector=())

    assert selectors_of(DANA, Memory(owner(rules=(bare, rule()))), NODES, "get") == {IS_OIL}
    assert selectors_of(DANA, Memory(owner(rules=(bare,))), NODES, "get") == frozenset()


def test_a_rule_of_a_tenant_counts_while_the_tenant_is_there_and_where_the_url_does_not_name_another() -> None:
    own = owner(rules=(rule(of="oil"),))
    odd = Memory(own)
    odd.grants[key("tenant", "oil")] = own
    there = Memory(own, tenant("oil"))
    everywhere = Memory(owner(rules=(rule(),)))

    assert selectors_of(DANA, there, NODES, "get") == {IS_OIL}
    assert selectors_of(DANA, Memory(own), NODES, "get") == selectors_of(DANA, odd, NODES, "get") == frozenset()
    for only, counts in (("oil", {IS_OIL}), ("gas", set())):
        narrowed = msgspec.structs.replace(DANA, only=only)
        assert selectors_of(narrowed, there, NODES, "get") == counts
        assert selectors_of(narrowed, everywhere, NODES, "get") == frozenset()


@pytest.mark.parametrize(
    ("terms", "wanted"),
    [
        ((term("a", "In", "1", "2"),), (Requirement("a", "in", ("1", "2")),)),
        ((term("a", "NotIn", "1"),), (Requirement("a", "notin", ("1",)),)),
        ((term("a", "Exists"),), (Requirement("a", "exists", ()),)),
        ((term("a", "DoesNotExist"),), (Requirement("a", "!exists", ()),)),
        ((FOR_OIL, term("a", "Exists")), (*IS_OIL, Requirement("a", "exists", ()))),
        ((term("a", "Near", "1"),), None),
        ((FOR_OIL, term("a", "Near", "1")), None),
        ((FOR_OIL, term("a", "In")), None),
        ((FOR_OIL, term("a", "NotIn")), None),
        ((FOR_OIL, term("a", "Exists", "1")), None),
        ((FOR_OIL, term("a", "DoesNotExist", "1")), None),
    ],
)
def test_a_selector_with_a_term_that_is_not_understood_chooses_nothing(terms: Any, wanted: Any) -> None:
    memory = Memory(owner(rules=(rule(*terms),)))

    assert selectors_of(DANA, memory, NODES, "get") == (frozenset() if wanted is None else {wanted})


def test_a_kind_is_named_by_its_resource_and_not_by_a_star() -> None:
    star = rule(resources=("*",))

    assert is_named(DANA, Memory(owner(rules=(star, rule()))), NODES)
    assert not is_named(DANA, Memory(owner(rules=(star,))), NODES)
    assert not is_named(DANA, Memory(owner(rules=(rule(groups=("apps",)),))), NODES)
    assert not is_named(DANA, Memory(), NODES)


def test_a_pattern_that_re2_does_not_know_finds_nothing_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for pattern in ("(?=a)", "(a)\\1", "(", "a{1001}"):
        assert not Scope(patterns=frozenset({pattern})).allows(Seen(name="a"))
    assert Scope(patterns=frozenset({"b"})).allows(Seen(name="abc"))
    assert capfd.readouterr().err == ""
