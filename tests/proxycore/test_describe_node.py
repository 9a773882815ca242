"""What `kubectl describe node` reads beside the node: its lease, for whom the node is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventcore.grants import Choice, SelectorTerm, SubjectGrant, TenantGrant
from tests.kubeapi import run_kubectl
from tests.proxycore.conftest import kubeconfig
from tether.manifests import Applier, read

if TYPE_CHECKING:
    from tests.proxycore.conftest import Tenant, World

NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
PROXY = "system:serviceaccount:capsule-system:tether-proxy"
SHIPPED = Path(__file__).parents[2] / "deploy" / "optional" / "proxy-describe-node.yaml"


@pytest.fixture
async def owner(world: World) -> Tenant:
    """Return the owner of a tenant with the nodes of a pool, beside nodes of others, all with leases."""
    await world.allow("nodes", PROXY, [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}])
    await world.namespace("kube-node-lease")
    for name, pool in (("n1", "oil"), ("n2", "gas")):
        await world.admin.create(NODES, {"metadata": {"name": name, "labels": {"pool": pool}}})
        await world.admin.create(LEASES, {"metadata": {"name": name}, "spec": {"holderIdentity": name}})
    term = SelectorTerm(key="pool", operator="In", values=("oil",))
    user, token = await world.account("oil-system", "gitops-reconciler")
    await world.capsule_users(("Group", "system:serviceaccounts"))
    await world.grant(TenantGrant(name="oil", uid="oil", choices={"Nodes": Choice(selectors=((term,),))}))
    operations: dict[str, dict[str, tuple[str, ...]]] = {"oil": {"Nodes": ("List", "Update", "Delete")}}
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=user, tenants=("oil",), operations=operations))
    await world.settle()
    return world.client(token)


async def permit(world: World) -> None:
    """Apply what ships for it."""
    await Applier(world.admin, "person").apply(read(SHIPPED))


async def test_the_lease_of_a_node_is_read_by_whom_the_node_is(world: World, owner: Tenant) -> None:
    await permit(world)

    found = await owner.get(f"{LEASES}/n1")

    assert (found.status, found.body["spec"]["holderIdentity"]) == (200, "n1")
    for target in (f"{LEASES}/n2", f"{LEASES}/absent", LEASES, f"{LEASES}?watch=true"):
        assert (await owner.get(target)).status == 403, target
    for method in ("DELETE", "PUT", "PATCH"):
        assert (await owner.request(method, f"{LEASES}/n1")).status == 403
    elsewhere = LEASES.replace("kube-node-lease", "default")
    assert (await owner.get(f"{elsewhere}/n1")).status == 403


async def test_without_the_operation_on_nodes_rbac_answers(world: World, owner: Tenant) -> None:
    await permit(world)
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=user, tenants=("oil",)))
    await world.settle()

    assert (await owner.get(f"{LEASES}/n1")).status == 403


async def test_without_the_optional_right_rbac_answers_as_before(world: World, owner: Tenant) -> None:
    assert (await owner.get(f"{LEASES}/n1")).status == 403
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]}
    await world.allow("own-right", user, [rule])

    assert (await owner.get(f"{LEASES}/n1")).status == 200


async def test_kubectl_describes_a_node_of_the_callers_and_no_other(
    world: World, owner: Tenant, tmp_path: Path
) -> None:
    await permit(world)
    authority = tmp_path / "ca.crt"
    authority.write_text(world.api.pki.ca_pem)
    file = tmp_path / "tenant.kubeconfig"
    file.write_text(kubeconfig(world.url, str(authority), owner.token))

    mine = await run_kubectl(file, tmp_path, "describe", "node", "n1")
    other = await run_kubectl(file, tmp_path, "describe", "node", "n2", expect=1)

    assert "Failed to get lease" not in mine.out
    assert "HolderIdentity:  n1" in mine.out
    assert "n2" not in mine.out
    assert "Forbidden" in other.err
