"""A kubeconfig is only where a namespace is provably the tenant's, whatever labels say, and the account wants it."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.errors import KubeError
from eventcore.kube import api_path
from tether.devcluster.pki import ClusterPki
from workers.authority import certificates

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
ACCOUNT = "gitops-reconciler"
SECRET = f"{ACCOUNT}-kubeconfig"
LABEL = "capsule.clastix.io/tenant"
NAMESPACES = api_path("", "v1", "namespaces")


async def copies(tenancy: Tenancy) -> set[str]:
    """Return the namespaces that hold a kubeconfig which was made for the tenant's account."""
    items = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "secrets")))["items"]
    return {
        one["metadata"]["namespace"]
        for one in items
        if one["metadata"]["name"] == SECRET
        and one["metadata"].get("annotations", {}).get("capsule-tether.io/account") == f"{tenancy.home}/{ACCOUNT}"
    }


async def proven(tenancy: Tenancy) -> set[str]:
    """Return the namespaces whose label and owner reference both name the Tenant that there is now."""
    tenant = await tenancy.get("Tenant", "", tenancy.name)
    uid = tenant["metadata"]["uid"] if tenant else ""
    items = msgspec.json.decode(await tenancy.admin.get(NAMESPACES))["items"]
    return {
        one["metadata"]["name"]
        for one in items
        if one["metadata"].get("labels", {}).get(LABEL) == tenancy.name
        and [ref["uid"] for ref in one["metadata"].get("ownerReferences", [])] == [uid]
    }


def exactly(tenancy: Tenancy) -> Callable[[], Awaitable[bool]]:
    """Return the question whether copies are at home and in what is proven, and nowhere else."""

    async def check() -> bool:
        return await copies(tenancy) == {tenancy.home} | await proven(tenancy)

    return check


async def test_a_forged_label_brings_no_copy(tenancy: Tenancy, other: Tenancy, until: Any) -> None:
    # Given a tenant with a namespace, and a second tenant
    await tenancy.make()
    await other.make()
    (own,) = await tenancy.make_namespaces("production")
    await until(exactly(tenancy))

    # When a namespace of nobody says that it is the first one's
    forged = f"forged-{tenancy.name}"
    labels = {LABEL: tenancy.name}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": forged, "labels": labels}}
    with suppress(KubeError):  # Capsules differ: one refuses it, one lets it be, one makes it the tenant's
        await tenancy.apply(body)

    # Then it gets a copy when Capsule made it the tenant's, and else none: what came later has been worked on by then
    (later,) = await tenancy.make_namespaces("later")
    (witness,) = await other.make_namespaces("production")
    await other.must("Secret", witness, SECRET)
    await until(exactly(tenancy))
    assert {own, later} <= await copies(tenancy)
    assert witness not in await copies(tenancy)


async def test_a_tenant_that_was_made_again_owns_nothing_of_before(tenancy: Tenancy, until: Any) -> None:
    # Given a tenant with a namespace
    await tenancy.make()
    (before,) = await tenancy.make_namespaces("before")
    await tenancy.must("Secret", before, SECRET)
    old = (await tenancy.must("Tenant", "", tenancy.name))["metadata"]["uid"]

    # When the Tenant is deleted and made again under the same name
    await tenancy.admin.delete(api_path("capsule.clastix.io", "v1beta2", "tenants", name=tenancy.name))
    for kind, namespace, name in (
        ("Tenant", "", tenancy.name),
        ("Secret", tenancy.home, f"{ACCOUNT}-token"),
        ("Secret", tenancy.home, SECRET),
    ):
        await tenancy.gone(kind, namespace, name)
    await tenancy.apply(tenancy.tenant(tenancy.user))
    new = (await tenancy.must("Tenant", "", tenancy.name))["metadata"]["uid"]

    # Then copies are at home and in the new one's namespaces alone
    assert new != old
    (after,) = await tenancy.make_namespaces("after")
    await tenancy.must("Secret", after, SECRET)
    await until(exactly(tenancy))
    assert before not in await copies(tenancy)


async def test_a_selector_of_the_account_chooses_among_its_namespaces(tenancy: Tenancy, until: Any) -> None:
    # Given a tenant with two namespaces
    await tenancy.make()
    own = await tenancy.make_namespaces("production", "development")
    await until(exactly(tenancy))

    async def only(*chosen: str) -> None:
        async def check() -> bool:
            return await copies(tenancy) == {tenancy.home, *chosen}

        await until(check)

    # When its account chooses one of them by label, then the other loses its copy, and gets it back afterwards
    account = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    name = "capsule-tether.io/kubeconfig-namespaces"
    selector = f"kubernetes.io/metadata.name={own[0]}"
    await tenancy.admin.merge_patch(account, {"metadata": {"annotations": {name: selector}}})
    await only(own[0])
    await tenancy.admin.merge_patch(account, {"metadata": {"annotations": {name: None}}})
    await only(*own)


async def test_a_new_ca_is_trusted_beside_the_one_before(tenancy: Tenancy, until: Any) -> None:
    # Given a tenant with a namespace, whose kubeconfigs trust the proxy's CA
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")
    source = api_path("", "v1", "secrets", namespace="capsule-system", name="capsule-proxy")
    before = (await tenancy.must("Secret", "capsule-system", "capsule-proxy"))["data"]["ca.crt"]
    other = ClusterPki.load_or_create(None).ca_pem

    async def begins_with(*wanted: str) -> None:
        async def check() -> bool:
            for one in (tenancy.home, namespace):
                config = msgspec.yaml.decode(await tenancy.secret(one, SECRET, "value"))
                bundle = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
                if certificates(bundle)[: len(wanted)] != tuple(pem.strip() for pem in wanted):
                    return False
            return True

        await until(check)

    old = base64.b64decode(before).decode()
    await begins_with(old)
    try:
        # When the CA is another one, under the other key
        new = base64.b64encode(other.encode()).decode()
        await tenancy.admin.merge_patch(source, {"data": {"ca.crt": None, "ca": new}})

        # Then kubeconfigs trust both, the new one first, and still work
        await begins_with(other, old)
        async with tenancy.acting() as client:
            await client.get(NAMESPACES)
    finally:
        await tenancy.admin.merge_patch(source, {"data": {"ca.crt": before, "ca": None}})
    await begins_with(old, other)
