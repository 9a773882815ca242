"""What a Tenant's fields become in the grants: what is not written allows nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.grants import Choice, SelectorTerm
from eventcore.objects import ProxySetting, Tenant
from workers.choices import above, ceiling, choices, operations, under
from workers.ownership import Owner

EVERY_NODE = {"Nodes": Choice(selectors=((),))}


def tenant(**spec: Any) -> Tenant:
    return msgspec.convert({"metadata": {"name": "oil"}, "spec": spec}, Tenant)


def test_names_default_pattern_and_selector_of_a_class_stand_together() -> None:
    allowed = {
        "allowed": ["fast", "big"],
        "default": "plain",
        "allowedRegex": "^oil-.*$",
        "matchLabels": {"for": "oil"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}],
    }
    wanted = Choice(
        names=("big", "fast", "plain"),
        pattern="^oil-.*$",
        selectors=(
            (
                SelectorTerm(key="for", operator="In", values=("oil",)),
                SelectorTerm(key="tier", operator="In", values=("a", "b")),
            ),
        ),
    )

    found = choices(
        tenant(
            storageClasses=allowed,
            priorityClasses=allowed,
            runtimeClasses=allowed,
            deviceClasses=allowed,
            ingressOptions={"allowedClasses": allowed},
            gatewayOptions={"allowedClasses": allowed},
        )
    )

    classes = ("Device", "Gateway", "Ingress", "Priority", "Runtime", "Storage")
    assert found == {f"{kind}Classes": wanted for kind in classes} | EVERY_NODE


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"storageClasses": None},
        {"storageClasses": {}},
        {"storageClasses": {"matchLabels": {}, "matchExpressions": [], "allowed": [], "default": ""}},
        {"ingressOptions": {}, "gatewayOptions": {"allowedClasses": None}},
    ],
)
def test_what_is_not_written_allows_no_class(spec: dict[str, Any]) -> None:
    assert choices(tenant(**spec)) == EVERY_NODE


def test_a_node_selector_chooses_the_nodes_that_have_all_its_labels() -> None:
    assert choices(tenant(nodeSelector={"pool": "oil", "disk": "ssd"}))["Nodes"] == Choice(
        selectors=(
            (
                SelectorTerm(key="disk", operator="In", values=("ssd",)),
                SelectorTerm(key="pool", operator="In", values=("oil",)),
            ),
        )
    )


def test_the_operations_of_an_owner_are_those_of_all_its_entries_and_of_nobody_elses() -> None:
    def owner(name: str, kind: str, *given: str) -> dict[str, Any]:
        return {"kind": "User", "name": name, "proxySettings": [{"kind": kind, "operations": list(given)}]}

    found = tenant(
        owners=[
            owner("dana", "Nodes", "Update", "List"),
            owner("dana", "Nodes", "Delete"),
            owner("dana", "StorageClasses", "Watch"),
            owner("erin", "IngressClasses", "List"),
            {"kind": "Group", "name": "dana", "proxySettings": [{"kind": "PriorityClasses", "operations": ["List"]}]},
            {"kind": "User", "name": "frank"},
        ]
    )

    assert operations(found) == {
        Owner("User", "dana"): {"Nodes": ("List", "Update", "Delete")},
        Owner("User", "erin"): {"IngressClasses": ("List",)},
        Owner("Group", "dana"): {"PriorityClasses": ("List",)},
    }


def owner(name: str, **kinds: list[str]) -> dict[str, Any]:
    return {
        "kind": "User",
        "name": name,
        "proxySettings": [{"kind": kind, "operations": given} for kind, given in kinds.items()],
    }


@pytest.mark.parametrize(
    ("owners", "effective", "wanted"),
    [
        ([], [], {}),
        ([owner("dana", Nodes=["List"])], [], {}),  # nobody owns it now
        ([owner("dana")], ["dana"], {}),
        ([owner("dana", Nodes=["List", "Delete"])], ["dana"], {"Nodes": {"List", "Delete"}}),
        (
            [owner("dana", Nodes=["List"], StorageClasses=["List"]), owner("dana", Nodes=["Update"])],
            ["dana"],
            {"Nodes": {"List", "Update"}, "StorageClasses": {"List"}},
        ),
        (
            [owner("dana", Nodes=["List", "Delete"], StorageClasses=["List"]), owner("erin", Nodes=["List"])],
            ["dana", "erin"],
            {"Nodes": {"List"}},
        ),
        ([owner("dana", Nodes=["List"])], ["dana", "erin"], {}),
    ],
)
def test_a_ceiling_is_what_every_single_owner_has(
    owners: list[dict[str, Any]], effective: list[str], wanted: dict[str, set[str]]
) -> None:
    assert ceiling(tenant(owners=owners), [Owner("User", name) for name in effective]) == wanted


def test_without_a_tenant_nothing_is_handed_on() -> None:
    assert ceiling(None, [Owner("User", "dana")]) == {}


def test_of_operations_those_under_a_ceiling_count_and_those_above_are_named() -> None:
    most = {"Nodes": frozenset({"List"})}
    given = [{"kind": "Nodes", "operations": ["Delete", "List"]}, {"kind": "StorageClasses", "operations": ["List"]}]
    subjects = [{"kind": "User", "name": "erin"}, {"kind": "User", "name": "dana", "proxySettings": given}]
    setting = msgspec.convert({"metadata": {"name": "s"}, "spec": {"subjects": subjects}}, ProxySetting)

    assert under({"Nodes": ("List", "Delete"), "StorageClasses": ("List",)}, most) == {"Nodes": ("List",)}
    assert list(above(setting, most)) == [
        ("spec.subjects[1].proxySettings[0]", "Nodes", ["Delete"]),
        ("spec.subjects[1].proxySettings[1]", "StorageClasses", ["List"]),
    ]
