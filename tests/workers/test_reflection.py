"""RoleBindings in a tenant's namespace show it to those whom they name: that namespace, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from eventcore.grants import SubjectGrant
from eventcore.kube import api_path
from tests.workers.test_routing import GRACE, NOW, Cluster, guide
from workers.access import subject_grant
from workers.ownership import Owner
from workers.reflection import LABEL_SHARED

if TYPE_CHECKING:
    from tests.workers.conftest import Line

DANA = Owner("User", "dana")
USER = "system:serviceaccount:oil-system:gitops-reconciler"
RBAC = "rbac.authorization.k8s.io"


def binding(*subjects: dict[str, str], shared: bool = False, **metadata: Any) -> dict[str, Any]:
    labels = {LABEL_SHARED: "true"} if shared else {}
    return {"metadata": {"labels": labels} | metadata, "subjects": list(subjects)}


def named(name: str = "dana", kind: str = "User") -> dict[str, str]:
    return {"kind": kind, "name": name, "apiGroup": RBAC}


def reflected(cluster: Cluster, owner: Owner = DANA, *, on: bool = True) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (reflected, shared) of a subject's grant."""
    grant = subject_grant(cluster.relations, owner, NOW, GRACE, reflects=on)[0]
    return (grant.reflected, grant.shared) if grant is not None else ((), ())


def test_a_binding_in_a_tenants_namespace_shows_that_namespace_alone() -> None:
    cluster = guide()
    cluster.put("Namespace", "", "oil-test", cluster_namespace())

    routes = cluster.put("AnyRoleBinding", "oil-production", "viewers", binding(named()))

    assert {("access", DANA_KEY)} == routes
    assert reflected(cluster) == (("oil-production",), ())
    assert reflected(cluster, on=False) == ((), ())


def test_a_label_shares_the_namespace_with_lists_across_namespaces() -> None:
    cluster = guide()
    cluster.put("AnyRoleBinding", "oil-production", "a", binding(named(), shared=True))
    cluster.put("AnyRoleBinding", "oil-production", "b", binding(named()))
    assert reflected(cluster) == (("oil-production",), ("oil-production",))

    cluster.put("AnyRoleBinding", "oil-production", "a", None)
    assert reflected(cluster) == (("oil-production",), ())


@pytest.mark.parametrize(
    ("subject", "owner"),
    [
        (named(), DANA),
        (named("devs", "Group"), Owner("Group", "devs")),
        (
            {"kind": "ServiceAccount", "name": "ci", "namespace": "ci"},
            Owner("ServiceAccount", "system:serviceaccount:ci:ci"),
        ),
        (named("system:serviceaccount:ci:ci"), Owner("ServiceAccount", "system:serviceaccount:ci:ci")),
    ],
)
def test_users_groups_and_accounts_are_shown_it(subject: dict[str, str], owner: Owner) -> None:
    cluster = guide()
    cluster.put("AnyRoleBinding", "oil-production", "a", binding(subject))

    assert reflected(cluster, owner) == (("oil-production",), ())


@pytest.mark.parametrize("group", ["system:authenticated", "system:unauthenticated", "system:serviceaccounts"])
def test_a_group_that_everybody_is_in_is_shown_nothing(group: str) -> None:
    cluster = guide()

    assert cluster.put("AnyRoleBinding", "oil-production", "a", binding(named(group, "Group"))) == set()
    assert reflected(cluster, Owner("Group", group)) == ((), ())


@pytest.mark.parametrize("namespace", ["kube-system", "oil-system", "elsewhere"])
def test_a_namespace_that_is_no_tenants_is_never_shown(namespace: str) -> None:
    cluster = guide()
    cluster.put("AnyRoleBinding", namespace, "a", binding(named(), shared=True))

    assert reflected(cluster) == ((), ())


def test_what_a_subject_owns_is_not_reflected_beside() -> None:
    cluster = guide()
    subject = {"kind": "ServiceAccount", "name": "gitops-reconciler", "namespace": "oil-system"}
    cluster.put("AnyRoleBinding", "oil-production", "a", binding(subject, shared=True))

    assert reflected(cluster, Owner("ServiceAccount", USER)) == ((), ())


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "body"),
    [
        ("AnyRoleBinding", "oil-production", "a", binding(named("erin"))),
        ("AnyRoleBinding", "oil-production", "a", binding(named(), deletionTimestamp=NOW)),
        ("AnyRoleBinding", "oil-production", "a", None),
        ("Namespace", "", "oil-production", {}),
        ("Namespace", "", "oil-production", None),
        ("Tenant", "", "oil", None),
    ],
)
def test_it_ends_with_the_subject_the_binding_the_namespace_and_the_tenant(
    kind: str, namespace: str, name: str, body: dict[str, Any] | None
) -> None:
    cluster = guide()
    cluster.put("AnyRoleBinding", "oil-production", "a", binding(named()))
    assert reflected(cluster) == (("oil-production",), ())

    routes = cluster.put(kind, namespace, name, body)

    assert ("access", DANA_KEY) in routes
    assert reflected(cluster) == ((), ())


def cluster_namespace() -> dict[str, Any]:
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "oil", "uid": "uid-oil"}
    return {"metadata": {"labels": {"capsule.clastix.io/tenant": "oil"}, "ownerReferences": [reference]}}


DANA_KEY = SubjectGrant(subject_kind="User", name="dana").key()


async def test_a_binding_reaches_the_grants_and_leaves_them_on_the_whole_line(make_line: Any) -> None:
    line: Line = await make_line(enable_reflector=True)
    async with line.everything():
        await line.settle()
        bindings = api_path(RBAC, "v1", "rolebindings", namespace="oil-production")
        role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}
        body = {"metadata": {"name": "viewers"}, "subjects": [named()], "roleRef": role}
        await line.client.create(bindings, body)

        async def shown() -> bool:
            found = await line.grant("subject", "User", "dana")
            return isinstance(found, SubjectGrant) and found.reflected == ("oil-production",) and not found.tenants

        await line.until(shown, "the namespace is reflected to dana")
        await line.client.delete(f"{bindings}/viewers")

        async def gone() -> bool:
            return await line.grant("subject", "User", "dana") is None

        await line.until(gone, "dana's grant is gone")
