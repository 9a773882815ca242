"""One example for each rule about accounts and the owners of Tenants that nothing else says out loud."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from eventcore.keys import Key, key
from eventcore.objects import LabelSelector, Namespace, ServiceAccount, Tenant, TenantOwner
from workers.ownership import (
    Account,
    Owner,
    OwnerState,
    chosen_namespaces,
    findings,
    is_enabled,
    is_global,
    is_live,
    is_promoted,
    matched_owners,
    namespace_claims,
    namespace_tenant,
    owner_set,
    promotion_allowed,
    provable_tenant,
    selector_matches,
    stale_until,
    status_is_current,
    well_formed,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER = "system:serviceaccount:oil-system:sa"
SA = Account("oil-system", "sa")
DANA, OPS = Owner("User", "dana"), Owner("Group", "ops")


def account(**metadata: Any) -> ServiceAccount:
    return msgspec.convert({"metadata": {"name": "sa", "namespace": "oil-system"} | metadata}, ServiceAccount)


def tenant(name: str = "oil", *, spec: Any = None, status: Any = None, **metadata: Any) -> Tenant:
    about = {"name": name, "uid": f"uid-{name}", "generation": 3} | metadata
    return msgspec.convert({"metadata": about, "spec": spec or {}, "status": status or {}}, Tenant)


def namespace(label: str | None, *references: dict[str, str]) -> Namespace:
    labels = {} if label is None else {"capsule.clastix.io/tenant": label}
    return msgspec.convert({"metadata": {"name": "n", "labels": labels, "ownerReferences": references}}, Namespace)


def reference(name: str = "oil", kind: str = "Tenant", group: str = "capsule.clastix.io") -> dict[str, str]:
    return {"apiVersion": f"{group}/v1beta2", "kind": kind, "name": name, "uid": f"uid-{name}"}


def test_an_account_is_written_in_each_of_its_ways() -> None:
    assert (str(SA), SA.username, SA.key()) == ("oil-system/sa", USER, key("oil-system", "sa"))
    assert SA.groups == ("system:serviceaccounts", "system:serviceaccounts:oil-system", "system:authenticated")
    assert Account.of(account()) == SA
    assert Account.of_username(USER) == SA
    assert Account.of_text("oil-system/sa") == SA
    assert Account.of_key(Key(("oil-system", "sa"))) == Account.of_key(Key(("oil-system", "sa", "oil-1"))) == SA


@pytest.mark.parametrize("text", ["", "/", "sa", "oil-system/", "/sa", "oil-system/sa/more", "Oil/sa", "oil-system/S"])
def test_other_texts_name_no_account(text: str) -> None:
    assert Account.of_text(text) is None


@pytest.mark.parametrize(
    "text", ["user:serviceaccount:oil-system:sa", "system:user:oil-system:sa", f"{USER}:more", f"{USER}/more", "a:b"]
)
def test_other_user_names_name_no_account(text: str) -> None:
    assert Account.of_username(text) is None


def test_stale_owners_are_owners_beside_the_certain_ones() -> None:
    assert OwnerState(frozenset({DANA}), frozenset({OPS}), NOW).all == {DANA, OPS}
    assert OwnerState().all == frozenset()
    assert OwnerState().since is None


def test_stale_owners_count_until_their_time_is_over() -> None:
    zone = timezone(timedelta(hours=9))
    state = OwnerState(stale=frozenset({DANA}), since=NOW.astimezone(zone))

    for seconds, until in ((0, 30), (29.9, 30), (30, None), (31, None)):
        found = stale_until(state, NOW + timedelta(seconds=seconds), 30)
        assert found == (None if until is None else NOW + timedelta(seconds=until))
    first = stale_until(state, NOW, 30)
    assert first is not None
    assert first.utcoffset() == timedelta(hours=9)
    assert stale_until(OwnerState(), NOW, 30) is None


@pytest.mark.parametrize(
    ("value", "enabled"), [("true", True), ("false", False), ("TRUE", False), ("", False), ("1", False)]
)
def test_an_account_is_enabled_by_true_alone(value: str, *, enabled: bool) -> None:
    said = {"capsule.addon.fluxcd/enabled": value}

    assert is_enabled(account(annotations=said)) is enabled
    assert not is_enabled(account(annotations=said, deletionTimestamp=NOW))
    assert not is_enabled(account())


def test_the_kubeconfig_goes_everywhere_unless_false_is_said() -> None:
    assert is_global(account())
    assert is_global(account(annotations={"capsule.addon.fluxcd/kubeconfig-global": "true"}))
    assert not is_global(account(annotations={"capsule.addon.fluxcd/kubeconfig-global": "false"}))


def test_an_account_chooses_namespaces_by_a_selector_and_none_by_a_malformed_one() -> None:
    chosen = chosen_namespaces(account(annotations={"capsule-tether.io/kubeconfig-namespaces": "team=a"}))

    assert chosen is not None
    assert (selector_matches(chosen, {"team": "a"}), selector_matches(chosen, {"team": "b"})) == (True, False)
    assert chosen_namespaces(account(annotations={"capsule-tether.io/kubeconfig-namespaces": "a in ("})) is None
    assert chosen_namespaces(account()) == LabelSelector()


@pytest.mark.parametrize(
    ("operator", "values", "holds"),
    [
        ("In", ["1"], {"1": True, "2": False, None: False}),
        ("NotIn", ["1"], {"1": False, "2": True, None: True}),
        ("Exists", [], {"1": True, "": True, None: False}),
        ("DoesNotExist", [], {"1": False, "": False, None: True}),
        ("in", ["1"], {"1": False, None: False}),
    ],
)
def test_an_operator_holds_as_in_kubernetes(operator: str, values: list[str], holds: dict[str | None, bool]) -> None:
    selector = msgspec.convert(
        {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}, LabelSelector
    )

    assert {value: selector_matches(selector, {} if value is None else {"a": value}) for value in holds} == holds


def test_every_requirement_of_a_selector_must_hold() -> None:
    there, gone = {"key": "b", "operator": "Exists"}, {"key": "c", "operator": "DoesNotExist"}
    raw = {"matchLabels": {"a": "1", "d": "4"}, "matchExpressions": [there, gone]}
    selector = msgspec.convert(raw, LabelSelector)
    whole = {"a": "1", "d": "4", "b": ""}

    assert selector_matches(selector, whole)
    for change in ({"a": "2"}, {"d": "2"}, {"c": ""}):
        assert not selector_matches(selector, whole | change)
    assert not selector_matches(selector, {"a": "1", "d": "4"})


@pytest.mark.parametrize(
    ("kind", "name", "good"),
    [
        ("User", "dana", True),
        ("Group", "ops", True),
        ("ServiceAccount", USER, True),
        ("ServiceAccount", "dana", False),
        ("User", "", False),
        ("Group", "", False),
        ("Robot", "dana", False),
        ("user", "dana", False),
        ("User", "a" * 6000, False),
        ("Group", "ä" * 2000, False),
    ],
)
def test_an_owner_is_somebody_whom_a_grant_can_name(kind: str, name: str, *, good: bool) -> None:
    spec = {"owners": [{"kind": kind, "name": name}]}

    assert well_formed(kind, name) is good
    assert owner_set(tenant(spec=spec).spec.owners) == (frozenset({Owner(kind, name)}) if good else frozenset())


@pytest.mark.parametrize("kind", ["User", "Group"])
def test_an_owner_may_have_the_longest_name_that_a_grant_can_have_and_no_longer(kind: str) -> None:
    longest = max(size for size in range(6000) if key("subject", kind, "a" * size).fits)

    assert well_formed(kind, "a" * longest)
    assert not well_formed(kind, "a" * (longest + 1))


def tenant_owner(name: str, labels: dict[str, str], kind: str = "User", **metadata: Any) -> TenantOwner:
    about = {"name": name or "none", "labels": labels} | metadata
    return msgspec.convert({"metadata": about, "spec": {"kind": kind, "name": name}}, TenantOwner)


def test_a_tenantowner_counts_where_one_of_several_selectors_or_the_label_names_it() -> None:
    selecting = tenant(spec={"permissions": {"matchOwners": [{"matchLabels": {"team": t}} for t in ("oil", "all")]}})
    owners = [
        tenant_owner("first", {"team": "oil"}),
        tenant_owner("second", {"team": "all"}),
        tenant_owner("third", {"team": "gas"}),
        tenant_owner("fourth", {"projectcapsule.dev/tenant": "oil"}, kind="Group"),
        tenant_owner("fifth", {"team": "oil"}, kind="Robot"),
        tenant_owner("", {"team": "oil"}),
        tenant_owner("sixth", {"team": "oil"}, deletionTimestamp=NOW),
        tenant_owner("seventh", {"projectcapsule.dev/tenant": "oil"}, deletionTimestamp=NOW),
    ]

    assert matched_owners(selecting, owners) == {
        Owner("User", "first"),
        Owner("User", "second"),
        Owner("Group", "fourth"),
    }


def test_an_account_is_promoted_by_true_alone_and_while_it_lives() -> None:
    labels = {"owner.projectcapsule.dev/promote": "true"}

    assert is_promoted(account(labels=labels))
    assert not is_promoted(account(labels={"owner.projectcapsule.dev/promote": "yes"}))
    assert not is_promoted(account(labels=labels, deletionTimestamp=NOW))
    assert not is_promoted(account())
    assert not promotion_allowed(tenant(), None)


def test_a_status_is_believed_that_speaks_of_this_generation_or_of_none() -> None:
    believed = [status_is_current(tenant(status={"observedGeneration": one})) for one in (0, 1, 2, 3, 4)]

    assert believed == [True, False, False, True, False]


def test_a_tenant_lives_until_it_is_being_deleted() -> None:
    assert is_live(tenant())
    assert not is_live(tenant(deletionTimestamp=NOW))


def test_a_namespace_claims_tenants_of_capsule_alone_and_only_such_as_may_exist() -> None:
    others = (reference("gas", kind="ConfigMap"), reference("coal", group="example.org"), reference("Not/A/Name"))

    assert namespace_claims(namespace("wind", reference("oil"), *others)) == {"wind", "oil"}
    assert namespace_claims(namespace(None, *others)) == frozenset()
    assert namespace_claims(namespace(None, reference() | {"apiVersion": "capsule.clastix.io"})) == {"oil"}
    assert namespace_claims(namespace("")) == frozenset()


@pytest.mark.parametrize(
    ("label", "references", "name"),
    [
        ("oil", [reference()], "oil"),
        ("oil", [reference(), reference("x", kind="ConfigMap"), reference("x", group="example.org")], "oil"),
        ("gas", [reference()], ""),
        (None, [reference()], ""),
        ("oil", [], ""),
        ("oil", [reference(), reference()], ""),
        ("oil", [reference(kind="ConfigMap")], ""),
        ("oil", [reference(group="example.org")], ""),
    ],
)
def test_a_namespace_is_of_the_tenant_that_its_only_reference_and_its_label_name(
    label: str | None, references: list[dict[str, str]], name: str
) -> None:
    found = namespace_tenant(namespace(label, *references), {"oil": tenant(), "gas": tenant("gas")})

    assert provable_tenant(namespace(label, *references)) == name
    assert (found.metadata.name if found else "") == name


@pytest.mark.parametrize("changes", [{"uid": "uid-before"}, {"uid": ""}, {"deletionTimestamp": NOW}])
def test_a_namespace_of_a_tenant_before_this_one_is_nobodys(changes: dict[str, Any]) -> None:
    claimed = namespace("oil", reference() | ({"uid": ""} if changes.get("uid") == "" else {}))

    assert provable_tenant(claimed) == "oil"
    assert namespace_tenant(claimed, {"oil": tenant(**changes)}) is None
    assert namespace_tenant(claimed, {}) is None


def test_each_owner_who_owns_nothing_is_named_with_what_to_do() -> None:
    long = {"kind": "Group", "name": "g" * 6000}
    wrong = {"kind": "ServiceAccount", "name": "sa"}
    spec = {"owners": [wrong, long, {"kind": "User", "name": "dana"}, {"kind": "User", "name": ""}]}

    first, second = findings(tenant(spec=spec), frozenset({DANA}))

    assert first.startswith("owner 'sa' of kind ServiceAccount is not system:serviceaccount:<namespace>:<name>")
    assert second.startswith("owner 'ggg")
    assert "too long" in second


def test_a_live_tenant_that_nobody_owns_is_found() -> None:
    robots = {"owners": [{"kind": "Robot", "name": "r"}]}

    (line,) = findings(tenant(), frozenset())
    assert "has no owners" in line
    assert findings(tenant(), frozenset({DANA})) == ()
    assert findings(tenant(spec=robots), frozenset()) == ()
    assert findings(tenant(deletionTimestamp=NOW), frozenset()) == ()
