"""Who owns what, and what owns nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import CapsuleConfiguration, LabelSelector, Namespace, ServiceAccount, Tenant, TenantOwner
from workers.ownership import (
    Account,
    Owner,
    findings,
    identities,
    is_enabled,
    is_promoted,
    matched_owners,
    namespace_claims,
    namespace_tenant,
    owner_set,
    promotion_allowed,
    selector_matches,
    status_is_current,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER = "system:serviceaccount:oil-system:gitops-reconciler"


def tenant(name: str = "oil", **fields: Any) -> Tenant:
    metadata = {"name": name, "uid": f"uid-{name}", "generation": 1} | fields.pop("metadata", {})
    return msgspec.convert({"metadata": metadata} | fields, Tenant)


def namespace(labels: dict[str, str], *references: tuple[str, str, str, str]) -> Namespace:
    found = [{"apiVersion": version, "kind": kind, "name": name, "uid": uid} for version, kind, name, uid in references]
    return msgspec.convert({"metadata": {"name": "n", "labels": labels, "ownerReferences": found}}, Namespace)


OIL = ("capsule.clastix.io/v1beta2", "Tenant", "oil", "uid-oil")
GAS = ("capsule.clastix.io/v1beta2", "Tenant", "gas", "uid-gas")
LABELS = {"capsule.clastix.io/tenant": "oil"}


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True),
    st.from_regex(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]+){0,3}", fullmatch=True).filter(lambda n: len(n) <= 253),
)
def test_a_username_names_its_account(home: str, name: str) -> None:
    account = Account(home, name)

    assert Account.of_username(account.username) == account


@pytest.mark.parametrize(
    "username",
    [
        "",
        "gitops-reconciler",
        "system:serviceaccount:oil-system",
        "system:serviceaccount:oil-system:",
        "system:serviceaccount::gitops-reconciler",
        "system:serviceaccount:oil-system:gitops:reconciler",
        "system:serviceaccounts:oil-system:gitops-reconciler",
        "System:serviceaccount:oil-system:gitops-reconciler",
        f"system:serviceaccount:oil-system:{'a' * 254}",
        f"system:serviceaccount:{'a' * 64}:gitops-reconciler",
        "system:serviceaccount:oil.system:gitops-reconciler",
        "system:serviceaccount:oil-system:Gitops",
        "system:serviceaccount:oil-system:a..b",
        "system:serviceaccount:oil-system:a\n",
    ],
)
def test_any_other_username_names_no_account(username: str) -> None:
    assert Account.of_username(username) is None


def test_an_account_acts_under_its_user_name_and_the_groups_of_accounts() -> None:
    found = set(identities(Account("oil-system", "gitops-reconciler")))

    assert found == {
        Owner("ServiceAccount", USER),
        Owner("User", USER),
        Owner("Group", "system:serviceaccounts"),
        Owner("Group", "system:serviceaccounts:oil-system"),
        Owner("Group", "system:authenticated"),
    }


@pytest.mark.parametrize(
    ("metadata", "enabled"),
    [
        ({"annotations": {"capsule.addon.fluxcd/enabled": "true"}}, True),
        ({"annotations": {"capsule.addon.fluxcd/enabled": "True"}}, False),
        ({"annotations": {"capsule.addon.fluxcd/enabled": "yes"}}, False),
        ({}, False),
        ({"annotations": {"capsule.addon.fluxcd/enabled": "true"}, "deletionTimestamp": NOW}, False),
    ],
)
def test_only_a_live_account_with_exactly_true_is_enabled(metadata: dict[str, Any], *, enabled: bool) -> None:
    account = msgspec.convert({"metadata": {"name": "a", "namespace": "n"} | metadata}, ServiceAccount)

    assert is_enabled(account) == enabled


def test_malformed_owners_are_left_out_and_found() -> None:
    bad = {"kind": "ServiceAccount", "name": "system:serviceaccount:oil-system"}
    owners = [
        bad,
        {"kind": "ServiceAccount", "name": USER},
        {"kind": "Robot", "name": "r"},
        {"kind": "User", "name": ""},
    ]
    found = tenant(spec={"owners": owners})

    assert owner_set(found.spec.owners) == {Owner("ServiceAccount", USER)}
    (line,) = findings(found, owner_set(found.spec.owners))
    assert "'system:serviceaccount:oil-system'" in line


def test_a_tenant_without_owners_is_found_unless_something_else_gives_it_one() -> None:
    assert len(findings(tenant(), frozenset())) == 1
    assert findings(tenant(), frozenset({Owner("User", "dana")})) == ()
    assert findings(tenant(metadata={"deletionTimestamp": NOW}), frozenset()) == ()


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({}, {"a": "1"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Near"}]}, {"a": ""}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, {"a": "1"}, False),
    ],
)
def test_selectors_match_as_in_kubernetes(selector: dict[str, Any], labels: dict[str, str], *, matches: bool) -> None:
    assert selector_matches(msgspec.convert(selector, LabelSelector), labels) == matches


def test_tenantowners_are_matched_by_selector_or_by_the_tenants_label() -> None:
    def owner(name: str, labels: dict[str, str], **metadata: Any) -> TenantOwner:
        spec = {"kind": "User", "name": name}
        return msgspec.convert({"metadata": {"name": name, "labels": labels} | metadata, "spec": spec}, TenantOwner)

    owners = [
        owner("selected", {"team": "oil"}),
        owner("labelled", {"projectcapsule.dev/tenant": "oil"}),
        owner("other", {"projectcapsule.dev/tenant": "gas"}),
        owner("deleted", {"team": "oil"}, deletionTimestamp=NOW),
    ]
    selecting = tenant(spec={"permissions": {"matchOwners": [{"matchLabels": {"team": "oil"}}]}})

    assert matched_owners(selecting, owners) == {Owner("User", "selected"), Owner("User", "labelled")}
    assert matched_owners(tenant(), owners) == {Owner("User", "labelled")}


def test_promotion_needs_the_label_and_both_switches() -> None:
    account = {"metadata": {"name": "a", "namespace": "n", "labels": {"owner.projectcapsule.dev/promote": "true"}}}
    on = msgspec.convert(
        {"metadata": {"name": "default"}, "spec": {"allowServiceAccountPromotion": True}}, CapsuleConfiguration
    )
    off = msgspec.convert({"metadata": {"name": "default"}}, CapsuleConfiguration)

    assert is_promoted(msgspec.convert(account, ServiceAccount))
    both = tenant(spec={"permissions": {"allowOwnerPromotion": True}}, status={"owners": []})
    assert promotion_allowed(both, on)
    assert not promotion_allowed(both, off)
    assert not promotion_allowed(both, None)
    assert not promotion_allowed(tenant(spec={"permissions": {"allowOwnerPromotion": False}}), on)


def test_a_tenant_that_says_nothing_of_promotion_allows_it_only_in_a_capsule_that_tells_no_owners_in_the_status() -> (
    None
):
    on = msgspec.convert(
        {"metadata": {"name": "default"}, "spec": {"allowServiceAccountPromotion": True}}, CapsuleConfiguration
    )

    assert promotion_allowed(tenant(), on)
    assert not promotion_allowed(tenant(status={"owners": []}), on)


def test_a_status_of_an_older_spec_is_not_current() -> None:
    assert status_is_current(tenant(metadata={"generation": 2}, status={"observedGeneration": 2}))
    assert status_is_current(tenant(metadata={"generation": 2}, status={}))
    assert not status_is_current(tenant(metadata={"generation": 2}, status={"observedGeneration": 1}))


def test_a_namespace_with_one_reference_to_the_live_tenant_and_its_label_is_the_tenants() -> None:
    found = namespace_tenant(namespace(LABELS, OIL), {"oil": tenant()})

    assert found is not None
    assert found.metadata.name == "oil"


@pytest.mark.parametrize(
    ("labels", "references", "tenants"),
    [
        ({}, [OIL], {"oil": tenant()}),
        ({"capsule.clastix.io/tenant": "gas"}, [OIL], {"oil": tenant(), "gas": tenant("gas")}),
        (LABELS, [], {"oil": tenant()}),
        (LABELS, [(*OIL[:3], "another-uid")], {"oil": tenant()}),
        (LABELS, [(*OIL[:3], "")], {"oil": tenant(metadata={"uid": ""})}),
        (
            LABELS,
            [OIL, ("capsule.clastix.io/v1beta2", "Tenant", "gas", "uid-gas")],
            {"oil": tenant(), "gas": tenant("gas")},
        ),
        (LABELS, [("example.org/v1", "Tenant", "oil", "uid-oil")], {"oil": tenant()}),
        (LABELS, [OIL], {}),
        (LABELS, [OIL], {"oil": tenant(metadata={"deletionTimestamp": NOW})}),
    ],
    ids=[
        "no label",
        "label of another",
        "no reference",
        "another uid",
        "no uid",
        "two tenants",
        "another group",
        "no tenant",
        "tenant being deleted",
    ],
)
def test_any_other_namespace_is_nobodys(
    labels: dict[str, str], references: list[tuple[str, str, str, str]], tenants: dict[str, Tenant]
) -> None:
    assert namespace_tenant(namespace(labels, *references), tenants) is None


def test_a_namespace_claims_every_tenant_that_it_mentions() -> None:
    assert namespace_claims(namespace({"capsule.clastix.io/tenant": "gas"}, OIL)) == {"oil", "gas"}
