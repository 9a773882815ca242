"""Who owned a Tenant and is still there is named, with what is left at its home."""

from __future__ import annotations

import shlex
from typing import Any, cast

import msgspec
import pytest

from eventcore.objects import Meta, ServiceAccount, Tenant, TenantSpec, TenantSpecOwner
from tether.cluster_relations import Tenancy
from tether.doctor_snapshot import FormerOwner
from tether.former_owners import former_findings, former_owners, look
from workers.ownership import Account

OIL, GAS, GONE = (Account(f"{name}-system", "deployer") for name in ("oil", "gas", "gone"))


def tenancy() -> Tenancy:
    """Two accounts, of which one owns a Tenant."""
    accounts = tuple(ServiceAccount(metadata=Meta(name=one.name, namespace=one.namespace)) for one in (OIL, GAS))
    owner = TenantSpecOwner(kind="ServiceAccount", name=GAS.username)
    return Tenancy(accounts=accounts, tenants=(Tenant(metadata=Meta(name="gas"), spec=TenantSpec(owners=[owner])),))


def binding(name: str, role: str, *subjects: dict[str, str], kind: str = "ClusterRole") -> dict[str, Any]:
    return {"metadata": {"name": name}, "roleRef": {"kind": kind, "name": role}, "subjects": list(subjects)}


class Api:
    """An API server that lists the RoleBindings of a home."""

    def __init__(self, *bindings: dict[str, Any]) -> None:
        self.bindings = bindings

    async def get_as(self, kind: type[Any], path: str, **_: Any) -> Any:
        assert "/namespaces/oil-system/rolebindings" in path
        return msgspec.json.decode(msgspec.json.encode({"items": list(self.bindings), "metadata": {}}), type=kind)


def test_who_owned_owns_nothing_and_is_there_is_a_former_owner() -> None:
    relations = tenancy().relations("default", "")

    assert former_owners(relations, [OIL, GAS, GONE]) == [OIL]


async def test_what_gives_accounts_of_the_home_all_rights_is_named() -> None:
    there = {"kind": "ServiceAccount", "namespace": OIL.namespace, "name": "other"}
    api = Api(
        binding("mighty", "cluster-admin", there),
        binding("home", "home-role", {**there, "name": OIL.name}),
        binding("of a role", "cluster-admin", there, kind="Role"),
        binding("of a view", "view", there),
        binding("of a person", "cluster-admin", {"kind": "User", "name": "dana"}),
        binding("of another home", "cluster-admin", {**there, "namespace": "gas-system"}),
    )
    relations = tenancy().relations("default", "")

    found = await look(cast("Any", api), relations, [OIL, GAS], "home-role")

    assert found == (FormerOwner(account=OIL, bindings=("home", "mighty")),)


@pytest.mark.parametrize("bindings", [(), ("mighty",), ("a", "b", "c", "d")])
def test_a_former_owner_is_a_warning_and_its_rights_are_an_error(bindings: tuple[str, ...]) -> None:
    found = list(former_findings([FormerOwner(account=OIL, bindings=bindings)]))

    assert [one.severity for one in found] == ["warning", "error"][: 1 + bool(bindings)]
    assert "kubectl delete serviceaccount -n oil-system deployer" in found[0].remedy
    assert all(name in found[1].message for name in bindings[:3])


def test_what_is_to_be_pasted_runs_nothing_that_a_tenant_chose() -> None:
    name = "$(touch here); rm x"
    for one in former_findings([FormerOwner(account=OIL, bindings=(name,))]):
        words = shlex.split(one.remedy)
        assert words[-1] == name
