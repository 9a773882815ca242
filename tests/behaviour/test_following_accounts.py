"""Changes of an account are followed while all runs: switched on and off, made again, promoted, one of several."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from tests.behaviour.states import Whole, accepts

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
COMPONENT = "capsule-tether.io/component"
PROMOTE = "owner.projectcapsule.dev/promote"
CONFIGURATION = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")


def service_account(home: str, name: str = ACCOUNT) -> str:
    return api_path("", "v1", "serviceaccounts", namespace=home, name=name)


def tenant_path(name: str) -> str:
    return api_path("capsule.clastix.io", "v1beta2", "tenants", name=name)


async def annotate(tenancy: Tenancy, annotations: dict[str, str | None], name: str = ACCOUNT) -> None:
    await tenancy.admin.merge_patch(service_account(tenancy.home, name), {"metadata": {"annotations": annotations}})


async def test_an_account_is_enabled_by_exactly_true_and_by_nothing_else(tenancy: Tenancy, converging: Any) -> None:
    # Given the account of an owner that nobody enabled
    await tenancy.make(enabled=False)
    account = Whole(tenancy)

    # When the annotation is added, then it has everything
    with converging("annotation added"):
        await annotate(tenancy, {ENABLED: "true"})
        await account.has()
    (name,) = await tenancy.make_namespaces("production")
    first = await account.has(name)

    # When it is set to another value, then it has nothing, and the token is dead
    with converging("annotation set to another value"):
        await annotate(tenancy, {ENABLED: "True"})
        await account.has_nothing(first, owner=True)

    # When it is set again, then it has everything again, with another token
    with converging("annotation set again"):
        await annotate(tenancy, {ENABLED: "true"})
        second = await account.has(name)
    assert second != first

    # When it is taken off, then it has nothing again
    with converging("annotation removed"):
        await annotate(tenancy, {ENABLED: None})
        await account.has_nothing(first, second, owner=True)


async def test_an_account_that_is_deleted_loses_everything_and_its_namesake_starts_anew(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account with everything
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    account = Whole(tenancy)
    first = await account.has(name)

    # When it is deleted, then nothing is left
    with converging("account deleted"):
        await tenancy.admin.delete(service_account(tenancy.home))
        await account.has_nothing(first, owner=True)

    # When it is made again, then it has everything, and the token of the one before stays dead
    with converging("account made again"):
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}))
        second = await account.has(name)
    assert not await accepts(tenancy.cluster, first)

    # When it is replaced at once by one of the same name, then the new one has what the old one had
    with converging("account replaced by its namesake"):
        await tenancy.admin.delete(service_account(tenancy.home))
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}))
        uid = (await tenancy.must("ServiceAccount", tenancy.home, ACCOUNT))["metadata"]["uid"]

        async def new() -> bool:
            secret = await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token")
            return bool(secret and secret["metadata"]["annotations"]["capsule-tether.io/account-uid"] == uid)

        await until(new)
        third = await account.has(name)
    assert third not in {first, second}
    assert not await accepts(tenancy.cluster, second)


async def test_of_several_accounts_that_own_a_tenant_each_has_its_own_and_loses_its_own(
    tenancy: Tenancy, converging: Any
) -> None:
    # Given two accounts of one home that own a tenant
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    first, second = Whole(tenancy), Whole(tenancy, "second")
    body = tenancy.account(**{ENABLED: "true"})
    body["metadata"]["name"] = "second"
    with converging("a second account of the tenant"):
        await tenancy.apply(body, tenancy.tenant(first.user, second.user))
        kept = await first.has(name)
        other = await second.has(name)
    assert other != kept
    before = await versions(tenancy, first)

    # When one of them is no longer an owner, then it loses everything, and what the other one has is not touched
    with converging("one of two owners removed"):
        await tenancy.apply(tenancy.tenant(first.user))
        await second.has_nothing(other)
    assert await first.has(name) == kept
    assert await versions(tenancy, first) == before


async def versions(tenancy: Tenancy, account: Whole) -> dict[str, str]:
    """Return the resourceVersions of an account's objects."""
    found = {}
    for one in await account.objects():
        kind, namespace, name = one.split("/")
        found[one] = (await tenancy.must(kind, namespace, name))["metadata"]["resourceVersion"]
    return found


@asynccontextmanager
async def promoting(tenancy: Tenancy) -> AsyncIterator[None]:
    """Let accounts be promoted in this cluster for a while."""
    body = msgspec.json.decode(await tenancy.admin.get(CONFIGURATION), type=Object)
    before = body["spec"].get("allowServiceAccountPromotion", False)
    await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"allowServiceAccountPromotion": True}})
    try:
        yield
    finally:
        await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"allowServiceAccountPromotion": before}})


async def test_a_promoted_account_is_an_owner_while_it_is_promoted_and_the_configuration_allows_it(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account in a namespace of a tenant that allows promotion, which is enabled and owns nothing
    await tenancy.make()
    permissions = {"permissions": {"allowOwnerPromotion": True}}
    await tenancy.admin.merge_patch(tenant_path(tenancy.name), {"spec": permissions})
    name = await tenancy.make_usable("production")
    account = Whole(tenancy, "deployer", name)
    await tenancy.make_users(f"system:serviceaccounts:{name}")
    await tenancy.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "deployer", "namespace": name, "annotations": {ENABLED: "true"}},
        }
    )

    async def promote(value: str | None) -> None:
        # Promotion is the owner's, and Capsule's webhook asks the status of the Tenant whether it is one.
        async with tenancy.flux() as client:

            async def done() -> bool:
                patch = {"metadata": {"labels": {PROMOTE: value}}}
                return bool((await client.patch(service_account(name, "deployer"), patch)).status == 200)

            await until(done)

    async with promoting(tenancy):
        # When the tenant's owner promotes it, then it has what an owner has
        with converging("account promoted"):
            await promote("true")
            first = await account.has(name)

        # When that ends, then it has nothing
        with converging("account no longer promoted"):
            await promote(None)
            await account.has_nothing(first)

        # When it is promoted again, and the configuration allows it no more, then it has nothing either
        await promote("true")
        second = await account.has(name)
    with converging("promotion switched off in the CapsuleConfiguration"):
        await account.has_nothing(first, second)
    await Whole(tenancy).has(name)


async def test_an_owner_with_the_role_admin_gets_no_more_by_an_account_that_it_makes_and_promotes(
    tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant that may promote, whose owner is bound to admin in its namespaces and to nothing more
    await tenancy.make()
    spec = {"permissions": {"allowOwnerPromotion": True}, "additionalRoleBindings": []}
    await tenancy.admin.merge_patch(tenant_path(tenancy.name), {"spec": spec})
    name = await tenancy.make_usable("production")
    await tenancy.make_users(f"system:serviceaccounts:{name}")
    quotas = api_path("", "v1", "resourcequotas", namespace=name)
    body = {"metadata": {"name": "mine"}, "spec": {"hard": {"pods": "1"}}}
    async with promoting(tenancy), tenancy.flux() as owner:
        assert (await owner.post(quotas, body)).status == 403

        # When it makes an account there, enables it and promotes it
        async def made() -> bool:
            metadata = {"name": ACCOUNT, "annotations": {ENABLED: "true"}, "labels": {PROMOTE: "true"}}
            path = service_account(name)
            return bool((await owner.post(path.rpartition("/")[0], {"metadata": metadata})).status == 201)

        await until(made)

        # Then that has a token and a kubeconfig, and no role but those of Capsule's owners
        account = Whole(tenancy, ACCOUNT, name)
        token = await account.has(name)
        async with tenancy.cluster.wire(token) as client, tenancy.cluster.wire(token, direct=True) as direct:
            for door in (client, direct):
                assert (await door.post(quotas, body)).status == 403

        # And a role of before, with or without our marks, is taken back
        marks = {COMPONENT: "rbac"}, {"capsule-tether.io/account": f"{name}/{ACCOUNT}"}
        before = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": ACCOUNT, "namespace": name, "labels": marks[0], "annotations": marks[1]},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [account.subject],
        }
        await tenancy.apply(before)
        await tenancy.gone("RoleBinding", name, ACCOUNT)
        await account.has(name)


async def test_an_account_with_a_url_of_its_own_gets_it_in_every_kubeconfig_until_it_is_taken_off(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account with a namespace
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    token = await Whole(tenancy).has(name)

    async def everywhere(url: str) -> None:
        async def moved() -> bool:
            contents = [await tenancy.secret(one, f"{ACCOUNT}-kubeconfig", "value") for one in (tenancy.home, name)]
            return {msgspec.yaml.decode(one)["clusters"][0]["cluster"]["server"] for one in contents} == {url}

        await until(moved)

    # When the account asks for another URL, then its kubeconfigs point there, and back again afterwards
    url = f"https://{tenancy.name}.example:9001"
    with converging("proxy URL of an account changed"):
        await annotate(tenancy, {"capsule-tether.io/proxy-url": url})
        await everywhere(url)
    with converging("proxy URL of an account taken off"):
        await annotate(tenancy, {"capsule-tether.io/proxy-url": None})
        await everywhere(tenancy.cluster.environ["TETHER_PROXY_URL"])
    assert await Whole(tenancy).has(name) == token
