"""Whoever can read Secrets beside a copy holds the tenant's owner: `tether doctor` names who is not one of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eventcore.objects import Meta, Subject, Tenant, TenantSpec, TenantSpecOwner
from tests.tether.test_doctor_findings import ACCOUNT, healthy, state, tenancy
from tether.doctor_findings import findings
from tether.doctor_readers import SHOWN, Binding, PolicyRule, Role, RoleRef, copies, readers
from tether.doctor_snapshot import Finding, Snapshot

NAMESPACE = "oil-production"
DEVELOPER = Subject(kind="User", name="alice")


def role(name: str, *rules: PolicyRule, namespace: str = "") -> Role:
    return Role(metadata=Meta(name=name, namespace=namespace), rules=list(rules))


def rule(verbs: str = "get", resources: str = "secrets", groups: str = "", names: str = "") -> PolicyRule:
    return PolicyRule(
        api_groups=groups.split(","),
        resources=resources.split(","),
        verbs=verbs.split(","),
        resource_names=names.split(",") if names else None,
    )


def binding(name: str, *subjects: Subject, kind: str = "ClusterRole", namespace: str = NAMESPACE) -> Binding:
    return Binding(
        metadata=Meta(name="b", namespace=namespace), role_ref=RoleRef(kind=kind, name=name), subjects=list(subjects)
    )


def read(bindings: list[Binding], roles: list[Role]) -> Snapshot:
    return healthy(readers=readers(copies(healthy().accounts), bindings, roles))


def told(snapshot: Snapshot) -> list[Finding]:
    return [finding for finding in findings(snapshot) if finding.check == "readers"]


def test_a_developer_with_edit_is_named_with_the_tenant() -> None:
    (finding,) = told(read([binding("edit", DEVELOPER)], [role("edit", rule("get,list,watch"))]))
    assert (finding.severity, finding.object) == ("warning", f"Namespace/{NAMESPACE}")
    assert finding.message == "User alice can read Secrets here, and so the kubeconfig of the owner of Tenant oil"
    assert finding.remedy


@pytest.mark.parametrize(
    ("given", "reads"),
    [
        (rule("get"), True),
        (rule("list"), True),
        (rule("watch"), True),
        (rule("*"), True),
        (rule("create,update,patch,delete"), False),
        (rule(resources="configmaps"), False),
        (rule(resources="*"), True),
        (rule(resources="secrets/status"), False),
        (rule(groups="*"), True),
        (rule(groups="apps"), False),
        (rule(groups="apps,"), True),
        (rule(names="other"), False),
        (rule(names="other,gitops-reconciler-kubeconfig"), True),
        (PolicyRule(), False),
    ],
)
def test_a_role_reads_a_copy_or_does_not(given: PolicyRule, *, reads: bool) -> None:
    assert bool(told(read([binding("r", DEVELOPER)], [role("r", given)]))) == reads


def test_a_role_of_the_namespace_is_not_one_of_the_cluster_or_of_another_namespace() -> None:
    own = [binding("r", DEVELOPER, kind="Role")]
    assert told(read(own, [role("r", rule(), namespace=NAMESPACE)]))
    assert not told(read(own, [role("r", rule())]))
    assert not told(read(own, [role("r", rule(), namespace="elsewhere")]))
    assert not told(read([binding("missing", DEVELOPER)], []))


def test_a_namespace_without_a_copy_is_nobodys_business() -> None:
    bindings = [binding("edit", DEVELOPER, namespace="elsewhere")]
    assert not told(read(bindings, [role("edit", rule())]))


@pytest.mark.parametrize(
    "owner",
    [
        Subject(kind="ServiceAccount", name=ACCOUNT.name, namespace=ACCOUNT.namespace),
        Subject(kind="User", name=ACCOUNT.username),
        Subject(kind="Group", name="system:masters"),
    ],
    ids=["the account", "the account as a user", "administrators"],
)
def test_owners_and_administrators_are_no_others(owner: Subject) -> None:
    assert not told(read([binding("admin", owner)], [role("admin", rule())]))


def test_who_owns_only_some_of_the_accounts_tenants_is_another() -> None:
    account = TenantSpecOwner(kind="ServiceAccount", name=ACCOUNT.username)
    oil, gas = (
        Tenant(metadata=Meta(name=name, uid=uid), spec=TenantSpec(owners=[account, *more]))
        for name, uid, more in (("oil", "1", [TenantSpecOwner(kind="User", name="alice")]), ("gas", "2", []))
    )
    snapshot = read([binding("edit", DEVELOPER)], [role("edit", rule())])
    of_one = msgspec.structs.replace(snapshot, tenancy=tenancy(tenants=(oil,)))
    of_both = msgspec.structs.replace(snapshot, tenancy=tenancy(tenants=(oil, gas)))
    assert not told(of_one)
    (finding,) = told(of_both)
    assert finding.message.endswith("Tenant gas, oil")


def test_the_account_that_tether_binds_for_flux_is_no_other_in_its_own_namespace() -> None:
    here, elsewhere = (Subject(kind="ServiceAccount", name="flux", namespace=name) for name in (NAMESPACE, "x"))
    snapshot = read([binding("edit", here, elsewhere)], [role("edit", rule())])
    (finding,) = told(msgspec.structs.replace(snapshot, flux_account="flux"))
    assert finding.message.startswith("ServiceAccount x/flux can read")


def test_a_finding_is_bounded_however_many_there_are() -> None:
    many = [Subject(kind="User", name=f"{number:04}" + "a" * 5000) for number in range(1000)]
    (finding,) = told(read([binding("edit", *many)], [role("edit", rule())]))
    assert f"and {1000 - SHOWN} more" in finding.message
    assert len(finding.message) < 1000


def test_only_kubeconfigs_with_a_token_that_tether_made_are_copies() -> None:
    def held(**changes: Any) -> object:
        configs = tuple(msgspec.structs.replace(one, **changes) for one in state().configs)
        return copies([state(configs=configs)])

    assert held()
    assert not held(ours=False)
    assert not held(token="")
