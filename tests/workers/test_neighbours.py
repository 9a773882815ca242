"""Accounts beside one another: several tenants, several owners, names that meet, owners that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from workers.names import cluster_role_name, hashed_kubeconfig_name, with_hash
from workers.ownership import Account

if TYPE_CHECKING:
    from tests.workers.conftest import Line, MakeLine


def account(namespace: str, name: str) -> list[dict[str, Any]]:
    """Return a namespace and an enabled account in it."""
    metadata = {"name": name, "namespace": namespace, "annotations": {"capsule.addon.fluxcd/enabled": "true"}}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
    ]


def tenant(name: str, *owners: Account | str, **spec: Any) -> dict[str, Any]:
    names = [owner.username if isinstance(owner, Account) else owner for owner in owners]
    found = [{"kind": "ServiceAccount", "name": one} for one in names]
    return {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"owners": found} | spec,
    }


async def test_two_accounts_whose_names_join_to_the_same_get_a_clusterrole_each(line: Line) -> None:
    first, second = Account("a", "b-c"), Account("a-b", "c")
    assert cluster_role_name(first) == cluster_role_name(second)
    async with line.everything():
        # given one of them has the plain name
        await line.apply(*account("a-b", "c"), tenant("oil", first, second))
        role = await line.until_there("ClusterRole", "", "a-b-c-impersonator")
        assert role["rules"][0]["resourceNames"] == [second.username]

        # when the one that stands first in order comes
        await line.apply(*account("a", "b-c"))

        # then it takes the plain name, and the other moves
        async def settled() -> bool:
            plain = await line.get("ClusterRole", "", "a-b-c-impersonator")
            moved = await line.get("ClusterRole", "", with_hash("a-b-c-impersonator", second))
            wanted = [[first.username], [second.username]]
            return (
                bool(plain and moved)
                and [found["rules"][0]["resourceNames"] for found in (plain, moved) if found] == wanted
            )

        await line.until(settled, "a ClusterRole for each")
        for name, owner in (("a-b-c-impersonator", first), (with_hash("a-b-c-impersonator", second), second)):
            binding = await line.until_there("ClusterRoleBinding", "", name)
            assert (binding["subjects"][0]["namespace"], binding["subjects"][0]["name"]) == (
                owner.namespace,
                owner.name,
            )


async def test_same_named_accounts_of_two_homes_have_a_kubeconfig_each_in_a_shared_namespace(line: Line) -> None:
    first, second = Account("oil-system", "gitops-reconciler"), Account("oil-extra", "gitops-reconciler")
    async with line.everything():
        # given the kubeconfig of the first stands in the tenant's namespace
        await line.settle()
        before = await line.token("oil-production")

        # when a second account of that name owns the tenant too
        await line.apply(*account("oil-extra", "gitops-reconciler"), tenant("oil", first, second))

        # then its kubeconfig has a name with a hash, and the first one's stays
        name = hashed_kubeconfig_name(second)
        await line.until_there("Secret", "oil-production", name)
        await line.until_there("Secret", "oil-extra", "gitops-reconciler-kubeconfig")
        config = await line.kubeconfig("oil-production", name)
        assert config is not None
        assert config["users"][0]["user"]["token"] == await line.token("oil-extra")
        assert await line.token("oil-production") == before

        # and when the first goes, only its own goes with it
        await line.delete("ServiceAccount", "oil-system", "gitops-reconciler")
        await line.until_gone("Secret", "oil-production", "gitops-reconciler-kubeconfig")
        assert await line.get("Secret", "oil-production", name)


async def test_an_account_that_owns_by_its_group_gets_everything_and_loses_it_with_the_group(line: Line) -> None:
    owners = [{"kind": "Group", "name": "system:serviceaccounts:team"}]
    async with line.everything():
        await line.apply(*account("team", "deployer"), tenant("oil", owners=owners))
        await line.until_there("Secret", "team", "deployer-kubeconfig")

        await line.apply(tenant("oil", owners=[{"kind": "User", "name": "dana"}]))

        await line.until_gone("Secret", "team", "deployer-kubeconfig")
        await line.until_gone("RoleBinding", "team", "deployer")


async def test_a_tenantowner_makes_an_owner_and_its_end_ends_that(line: Line) -> None:
    async with line.everything():
        # given a Tenant without an account among its owners
        await line.apply(*account("team", "deployer"), tenant("oil", owners=[{"kind": "User", "name": "dana"}]))
        owner = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "TenantOwner",
            "metadata": {"name": "deployer", "labels": {"projectcapsule.dev/tenant": "oil"}},
            "spec": {"kind": "ServiceAccount", "name": "system:serviceaccount:team:deployer"},
        }
        # when a TenantOwner names the account; then it has everything
        await line.apply(owner)
        await line.until_there("Secret", "team", "deployer-kubeconfig")

        # when the TenantOwner goes; then so does everything
        await line.delete("TenantOwner", "", "deployer")
        await line.until_gone("Secret", "team", "deployer-kubeconfig")
        await line.until_gone("RoleBinding", "team", "deployer")


@pytest.mark.slow
async def test_an_owner_that_cannot_be_is_said_once_and_stops_nothing(make_line: MakeLine) -> None:
    line = await make_line(capsule_webhooks=False)
    good = Account("team", "deployer")
    async with line.everything():
        # given a Tenant with one good owner and one that is not four colon parts
        await line.apply(*account("team", "deployer"), tenant("oil", good, "system:serviceaccount:team"))

        # then the good one has everything, and an Event and a record say what is wrong with the other
        await line.until_there("Secret", "team", "deployer-kubeconfig")
        record = await line.until_recorded("access", "refused", "Tenant/oil")
        assert "system:serviceaccount:<namespace>:<name>" in record.message
        await line.until_there("Secret", "team", "deployer-kubeconfig")
        events = [event for event in await line.all("Event", "default") if event["reason"] == "OwnerIgnored"]
        assert [event["involvedObject"]["name"] for event in events] == ["oil"]

        # and a Tenant that nobody owns is said too
        await line.apply(tenant("gas"))

        async def told() -> bool:
            found = [event for event in await line.all("Event", "default") if event["reason"] == "OwnerIgnored"]
            return {event["involvedObject"]["name"] for event in found} == {"oil", "gas"}

        await line.until(told, "an Event on the Tenant without owners")

    # and it is not said again by workers that start anew
    said = len([record for record in line.audit if record.action == "refused"])
    async with line.everything():
        await line.apply(*account("other", "deployer"), tenant("water", Account("other", "deployer")))
        await line.until_there("Secret", "other", "deployer-kubeconfig")
    assert len([record for record in line.audit if record.action == "refused"]) == said
