"""Capsule's admission: whose a new namespace is, and what nobody may change about it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.tenants import NAMESPACES, TENANT_LABEL, TENANT_OWNERS, TENANTS, Tenancy, may
from tests.kubeapi import Object, Reply

pytestmark = pytest.mark.xdist_group("contract")


def _denied(reply: Reply) -> str:
    """Return the words of Capsule's webhook that denied a request."""
    # Capsule answers without a reason where its handler fails (500) or is asked for a Tenant of somebody else (400).
    assert (reply.status, reply.body.get("reason")) in {(403, "Forbidden"), (400, None), (500, None)}, reply
    assert "admission webhook" in reply.body["message"]
    assert "denied the request" in reply.body["message"]
    message: str = reply.body["message"]
    return message


def _tenants_of(namespace: Object) -> list[Object]:
    return [one for one in namespace["metadata"].get("ownerReferences") or [] if one["kind"] == "Tenant"]


async def test_an_owner_s_namespace_gets_reference_and_label_of_its_tenant(tenancy: Tenancy) -> None:
    # given
    tenant = await tenancy.make()
    # when
    made = await tenancy.make_namespace(f"{tenancy.name}-production")
    # then
    (reference,) = _tenants_of(made)
    assert reference["apiVersion"] == "capsule.clastix.io/v1beta2"
    assert (reference["name"], reference["uid"]) == (tenancy.name, tenant["metadata"]["uid"])
    labels = made["metadata"]["labels"]
    assert labels[TENANT_LABEL] == tenancy.name
    assert labels["kubernetes.io/metadata.name"] == f"{tenancy.name}-production"


async def test_the_home_of_the_owner_stays_outside(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    # then
    home = (await tenancy.admin.get(f"{NAMESPACES}/{tenancy.home}")).body
    assert not _tenants_of(home)
    assert TENANT_LABEL not in home["metadata"]["labels"]


async def test_without_a_prefix_rule_any_name_will_do_and_with_it_none_but_the_tenant_s(tenancy: Tenancy) -> None:
    # given
    await tenancy.make(forceTenantPrefix=True)
    # when
    refused = await tenancy.owner.post(NAMESPACES, {"metadata": {"name": f"x{tenancy.name}"}})
    made = await tenancy.make_namespace(f"{tenancy.name}-x")
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"forceTenantPrefix": False}})

    async def freely() -> Object | None:
        reply = await tenancy.owner.post(NAMESPACES, {"metadata": {"name": f"y{tenancy.name}"}})
        return reply.body if reply.status == 201 else None

    free = await tenancy.until(freely)
    # then
    assert "prefix" in _denied(refused).lower()
    assert [one["name"] for namespace in (made, free) for one in _tenants_of(namespace)] == [tenancy.name] * 2


async def test_a_capsule_user_without_a_tenant_gets_no_namespace(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    # when
    refused = await tenancy.stranger.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-mine"}})
    # then
    assert "do not have any Tenant assigned" in _denied(refused)


async def test_who_is_no_capsule_user_may_not_even_try(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    # when
    refused = await tenancy.outsider.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-mine"}})
    # then
    assert (refused.status, refused.body["reason"]) == (403, "Forbidden")
    assert 'cannot create resource "namespaces"' in refused.body["message"]


async def test_an_administrator_of_the_cluster_makes_plain_namespaces(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    # when
    made = await tenancy.admin.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-plain"}})
    labelled = {"name": f"{tenancy.name}-claimed", "labels": {TENANT_LABEL: tenancy.name}}
    claimed = await tenancy.admin.post(NAMESPACES, {"metadata": labelled})
    # then
    assert made.status == 201
    assert not _tenants_of(made.body)
    assert "no Tenant ownerReference" in _denied(claimed)


async def test_of_several_tenants_the_label_decides(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    second = f"{tenancy.name}-b"
    await tenancy.make_tenant(second)
    # when
    labelled = {"metadata": {"name": f"l{tenancy.name}", "labels": {TENANT_LABEL: second}}}

    async def chosen() -> Object | None:
        reply = await tenancy.owner.post(NAMESPACES, labelled)
        return reply.body if reply.status == 201 else None

    made = await tenancy.until(chosen)
    # then
    assert [one["name"] for one in _tenants_of(made)] == [second]


async def test_the_label_of_somebody_else_s_tenant_is_refused(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    other = f"{tenancy.name}-other"
    body = {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": other},
        "spec": {"owners": [{"kind": "User", "name": f"{tenancy.name}-dana"}]},
    }
    await tenancy.must(tenancy.admin.post(TENANTS, body))
    # when
    refused = await tenancy.owner.post(
        NAMESPACES, {"metadata": {"name": f"{tenancy.name}-x", "labels": {TENANT_LABEL: other}}}
    )
    # then
    assert "non-owned Tenant" in _denied(refused)
    assert refused.status == 400
    assert (await tenancy.admin.get(f"{NAMESPACES}/{tenancy.name}-x")).status == 404


async def test_nobody_takes_a_namespace_out_of_its_tenant(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    changes: list[Object] = [
        {"labels": {TENANT_LABEL: None}},
        {"labels": {TENANT_LABEL: "other"}},
        {"ownerReferences": None},
    ]
    # when
    by_owner = [await tenancy.owner.patch(f"{NAMESPACES}/{name}", {"metadata": change}) for change in changes]
    by_admin = [await tenancy.admin.patch(f"{NAMESPACES}/{name}", {"metadata": change}) for change in changes]
    # then: put right on the way for owners, refused to others
    for reply in by_owner:
        assert reply.status == 200, reply
        assert reply.body["metadata"]["labels"][TENANT_LABEL] == tenancy.name
        assert [one["name"] for one in _tenants_of(reply.body)] == [tenancy.name]
    for reply in by_admin:
        _denied(reply)
    now = (await tenancy.admin.get(f"{NAMESPACES}/{name}")).body
    assert now["metadata"]["labels"][TENANT_LABEL] == tenancy.name
    assert [one["name"] for one in _tenants_of(now)] == [tenancy.name]


async def test_nobody_takes_a_namespace_into_a_tenant(tenancy: Tenancy) -> None:
    # given
    tenant = await tenancy.make()
    reference = {
        "apiVersion": tenant["apiVersion"],
        "kind": "Tenant",
        "name": tenancy.name,
        "uid": tenant["metadata"]["uid"],
    }
    metadata = {"labels": {TENANT_LABEL: tenancy.name}, "ownerReferences": [reference]}
    # when
    refused = [
        await client.patch(f"{NAMESPACES}/{tenancy.home}", {"metadata": metadata})
        for client in (tenancy.owner, tenancy.admin)
    ]
    # then
    assert [reply.status for reply in refused] == [403, 403]
    home = (await tenancy.admin.get(f"{NAMESPACES}/{tenancy.home}")).body
    assert not _tenants_of(home)


async def test_an_owner_deletes_its_own_namespace_and_no_other(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)

    async def deleted() -> bool:
        return (await tenancy.owner.delete(f"{NAMESPACES}/{name}")).status == 200

    # when: Capsule's controller gives the right to delete it, which takes a moment
    await tenancy.until(deleted)
    refused = await tenancy.owner.delete(f"{NAMESPACES}/{tenancy.home}")
    # then
    assert refused.status == 403


async def test_a_quota_of_namespaces_is_a_limit(tenancy: Tenancy) -> None:
    # given
    await tenancy.make(namespaceOptions={"quota": 1})
    await tenancy.make_namespace(f"{tenancy.name}-a")
    await tenancy.status(size=1)
    # when
    refused = await tenancy.owner.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-b"}})
    # then
    assert "quota" in _denied(refused).lower()


async def test_a_cordon_stops_what_owners_write(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    config_maps = f"{NAMESPACES}/{name}/configmaps"
    await tenancy.until(lambda: may(tenancy.owner, "create", "configmaps", namespace=name))
    before = await tenancy.owner.post(config_maps, {"metadata": {"name": "before"}})
    # when
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"cordoned": True}})
    await tenancy.status(state="Cordoned")

    async def refused() -> Reply | None:
        reply = await tenancy.owner.post(config_maps, {"metadata": {"generateName": "after-"}})
        return reply if reply.status != 201 else None

    stopped = await tenancy.until(refused)
    another = await tenancy.owner.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-b"}})
    by_admin = await tenancy.admin.post(config_maps, {"metadata": {"name": "admin"}})
    labels = (await tenancy.admin.get(f"{NAMESPACES}/{name}")).body["metadata"]["labels"]
    # then
    assert (before.status, by_admin.status) == (201, 201)
    assert "cordoned" in _denied(stopped).lower()
    assert "cordoned" in _denied(another).lower()
    assert labels["projectcapsule.dev/cordoned"] == "true"


async def test_objects_of_a_tenant_carry_its_labels(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    await tenancy.make_namespace(f"{tenancy.name}-a")
    path = f"{NAMESPACES}/{tenancy.name}-a/secrets"
    # when
    made = await tenancy.admin.post(path, {"metadata": {"name": "s"}})
    patched = await tenancy.admin.patch(f"{path}/s", {"metadata": {"labels": None}})
    # then
    for reply in (made, patched):
        labels = reply.body["metadata"]["labels"]
        assert labels["capsule.clastix.io/managed-by"] == tenancy.name
        assert labels["projectcapsule.dev/tenant"] == tenancy.name


@pytest.mark.parametrize("account", ["gitops", "system:serviceaccount:ns", "system:serviceaccount:a:b:c"])
async def test_the_name_of_an_owning_account_has_four_parts(tenancy: Tenancy, account: str) -> None:
    # when
    body: dict[str, Any] = {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": tenancy.name},
        "spec": {"owners": [{"kind": "ServiceAccount", "name": account}]},
    }
    refused = await tenancy.admin.post(TENANTS, body)
    # then
    _denied(refused)


async def test_a_tenant_owner_owns_the_tenants_that_it_matches(tenancy: Tenancy) -> None:
    # given
    await tenancy.make(permissions={"matchOwners": [{"matchLabels": {"team": tenancy.name}}]})
    dana = f"{tenancy.name}-dana"
    body = {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "TenantOwner",
        "metadata": {"name": dana, "labels": {"team": tenancy.name}},
        "spec": {"kind": "User", "name": dana},
    }
    # when
    await tenancy.must(tenancy.admin.post(TENANT_OWNERS, body))

    async def owns() -> bool:
        owners = (await tenancy.tenant()).get("status", {}).get("owners", [])
        return dana in [owner["name"] for owner in owners]

    await tenancy.until(owns)
    client = tenancy.admin.acting(dana, "system:authenticated")
    await tenancy.until(lambda: may(client, "create", "namespaces"))
    made = await tenancy.must(client.post(NAMESPACES, {"metadata": {"name": f"{tenancy.name}-dana"}}))
    # then
    assert [one["name"] for one in _tenants_of(made.body)] == [tenancy.name]
    configured = (await tenancy.admin.get("/apis/capsule.clastix.io/v1beta2/capsuleconfigurations/default")).body
    assert {"kind": "User", "name": dana} in configured["status"]["users"]
    # and when it goes, so does what it gave
    await tenancy.admin.delete(f"{TENANT_OWNERS}/{dana}")

    async def owns_no_longer() -> bool:
        return not await owns()

    await tenancy.until(owns_no_longer)
