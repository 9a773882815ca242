"""What clusterResources come to in the grants, and what their status says of those that come to nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.grants import CapsuleUserRef, ClusterRule, ConfigGrant, SelectorTerm
from eventcore.objects import ClusterResource, GlobalProxySettings, ProxySetting
from tests.naming import short
from workers.cluster_rules import MOST_NAMES, MOST_REQUIREMENTS, MOST_VALUES, rules_of, wrong
from workers.ownership import Owner
from workers.relations import Relations
from workers.setting_status import MOST, status_of

DANA = Owner("User", "dana")
EXISTS = {"key": "a", "operator": "Exists"}
IN_MANY = {"operator": "In", "values": ["b"] * (MOST_VALUES + 1)}
GOOD: dict[str, Any] = {
    "apiGroups": ["rbac.authorization.k8s.io"],
    "resources": ["clusterroles"],
    "selector": {"matchLabels": {"share": "yes"}},
}
USERS = ConfigGrant(users=(CapsuleUserRef(kind="Group", name="capsule"), CapsuleUserRef(kind="User", name="dana")))


def everywhere(*resources: dict[str, Any], **subject: str) -> GlobalProxySettings:
    subjects = [subject or {"kind": "User", "name": "dana"}]
    spec = {"rules": [{"subjects": subjects, "clusterResources": list(resources)}]}
    return msgspec.convert({"metadata": {"name": "g", "generation": 3}, "spec": spec}, GlobalProxySettings)


def ready(setting: GlobalProxySettings | ProxySetting, *, gate: bool = True) -> tuple[str, str, str]:
    status = status_of(setting, Relations(), USERS, gate=gate)
    (condition,) = status.conditions
    assert condition.type == "Ready"
    assert condition.observed_generation == status.observed_generation == setting.metadata.generation
    return condition.status, condition.reason, condition.message


def test_an_entry_becomes_a_rule_with_all_its_requirements() -> None:
    term = {"key": "tier", "operator": "In", "values": ["b", "a"]}
    selector = {"matchLabels": {"share": "yes"}, "matchExpressions": [term]}

    (rule,) = rules_of(everywhere(GOOD | {"selector": selector}), DANA)

    assert rule == ClusterRule(
        groups=("rbac.authorization.k8s.io",),
        resources=("clusterroles",),
        selector=(
            SelectorTerm(key="share", operator="In", values=("yes",)),
            SelectorTerm(key="tier", operator="In", values=("a", "b")),
        ),
        lists=True,
    )
    assert list(rules_of(everywhere(GOOD), Owner("User", "erin"))) == []


@pytest.mark.parametrize(
    ("operations", "lists"), [(None, True), ([], True), (["List"], True), (["Get"], False), (["Get", "List"], True)]
)
def test_operations_that_are_left_out_are_both_and_list_means_get(operations: list[str] | None, *, lists: bool) -> None:
    (rule,) = rules_of(everywhere(GOOD | {"operations": operations}), DANA)

    assert rule.lists is lists


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"selector": None}, "SelectorEmpty"),
        ({"selector": {}}, "SelectorEmpty"),
        ({"selector": {"matchLabels": {}}}, "SelectorEmpty"),
        ({"selector": {"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}}, "SelectorInvalid"),
        ({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "SelectorInvalid"),
        ({"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}, "SelectorInvalid"),
        ({"operations": ["Delete"]}, "OperationUnknown"),
        ({"apiGroups": []}, "GroupInvalid"),
        ({"apiGroups": ["a/b/c"]}, "GroupInvalid"),
        ({"resources": []}, "ResourceInvalid"),
        ({"resources": ["nodes/proxy"]}, "ResourceInvalid"),
        ({"resources": ["cluster*"]}, "ResourceInvalid"),
        ({"selector": {"matchLabels": {f"a{n}": "b" for n in range(MOST_REQUIREMENTS + 1)}}}, "SelectorInvalid"),
        ({"selector": {"matchExpressions": [EXISTS] * (MOST_REQUIREMENTS + 1)}}, "SelectorInvalid"),
        ({"selector": {"matchExpressions": [EXISTS | IN_MANY]}}, "SelectorInvalid"),
        ({"apiGroups": ["*"] * (MOST_NAMES + 1)}, "ResourceInvalid"),
        ({"resources": ["nodes"] * (MOST_NAMES + 1)}, "ResourceInvalid"),
    ],
    ids=short,
)
def test_an_entry_that_gives_nothing_is_no_rule_and_the_status_says_why(change: dict[str, Any], reason: str) -> None:
    setting = everywhere(GOOD | change, GOOD)

    assert len(list(rules_of(setting, DANA))) == 1
    status, found, message = ready(setting)
    assert (status, found) == ("False", reason)
    assert message.startswith("spec.rules[0].clusterResources[0]: ")


def test_what_counts_in_full_is_ready() -> None:
    assert wrong(msgspec.convert(GOOD, ClusterResource)) is None
    assert ready(everywhere(GOOD)) == ("True", "Succeeded", "reconciled")


@pytest.mark.parametrize(
    ("setting", "reason", "part"),
    [
        (everywhere(GOOD, kind="ServiceAccount", name="bob"), "SubjectInvalid", "by its user name"),
        (everywhere(GOOD, kind="ServiceAccount", name="system:serviceaccount:a:b"), "NoCapsuleUser", "no user"),
    ],
)
def test_a_subject_that_can_never_count_is_told(setting: GlobalProxySettings, reason: str, part: str) -> None:
    status, found, message = ready(setting)

    assert (status, found) == ("False", reason)
    assert part in message


def test_a_user_whose_groups_nobody_knows_here_is_ready_with_a_remark() -> None:
    status, _, message = ready(everywhere(GOOD, kind="User", name="erin"))

    assert status == "True"
    assert "User erin" in message


def test_without_the_gate_nothing_is_ready_and_the_flag_is_named() -> None:
    status, reason, message = ready(everywhere(GOOD), gate=False)

    assert (status, reason) == ("False", "GateOff")
    assert "--proxy-cluster-scoped" in message


def test_a_setting_outside_of_a_tenant_is_not_ready() -> None:
    spec = {"subjects": [{"kind": "User", "name": "dana"}]}
    setting = msgspec.convert(
        {"metadata": {"name": "s", "namespace": "elsewhere", "generation": 2}, "spec": spec}, ProxySetting
    )

    assert ready(setting)[:2] == ("False", "NotInTenant")


def test_a_status_that_stays_keeps_its_time_and_a_long_message_has_an_end() -> None:
    bad = GOOD | {"selector": {}}
    first = status_of(everywhere(*[bad] * 100), Relations(), USERS, gate=True)
    before = msgspec.structs.replace(first.conditions[0], last_transition_time="2020-01-01T00:00:00Z")
    known = msgspec.structs.replace(first, conditions=[before])
    setting = msgspec.structs.replace(everywhere(*[bad] * 100), status=known)

    assert status_of(setting, Relations(), USERS, gate=True) == known
    assert len(before.message) == MOST
    fixed = msgspec.structs.replace(everywhere(GOOD), status=known)
    assert status_of(fixed, Relations(), USERS, gate=True).conditions[0].last_transition_time > "2020-01-02"
