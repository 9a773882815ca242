"""What a Tenant's fields become in the grants: what is not written allows nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.grants import Choice, SelectorTerm
from eventcore.objects import Tenant
from workers.choices import choices, operations
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

    assert operations(found, Owner("User", "dana")) == {"Nodes": ("List", "Update", "Delete")}
    assert operations(found, Owner("User", "erin")) == {"IngressClasses": ("List",)}
    assert operations(found, Owner("User", "frank")) == {}
