"""People with client certificates behind the proxy, and URLs of one tenant, with kubectl."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from eventcore.kube import KubeClient, api_path
from tests.behaviour.people import PEOPLE, Person, are_users
from tests.kubeapi import Client
from tether.devcluster.pki import ClusterPki

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.kubectl, pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
CAPSULE = "capsule.clastix.io"
LABEL = "capsule.clastix.io/tenant"
NAMESPACES = "/api/v1/namespaces"
OK = 200
CREATED = 201
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409


@pytest.fixture
async def alice(
    acting: None, admin: KubeClient, cluster: Any, authority: ClusterPki, tenancy: Tenancy, tmp_path: Path
) -> Person:
    """Somebody who owns a tenant; the group of its certificate is one of Capsule's users."""
    await are_users(admin, PEOPLE)
    found = Person(cluster, tmp_path, authority).shows(f"alice-{tenancy.name}", PEOPLE)
    await own(tenancy, {"kind": "User", "name": found.name})
    return found


def path(group: str, plural: str, name: str = "", namespace: str = "") -> str:
    return api_path(group, "v1beta2" if group else "v1", plural, namespace=namespace, name=name)


async def own(tenancy: Tenancy, *owners: dict[str, str]) -> None:
    """Make a tenant of people."""
    tenant = tenancy.tenant()
    tenant["spec"] = {"owners": list(owners)}
    await tenancy.apply(tenant)


async def made(client: Client, until: Any, tenant: str, name: str) -> None:
    """Make a namespace of a tenant and wait until it is listed.

    Capsule's right to make it may follow the Tenant a little later, and who is a user of Capsule the configuration.
    """
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: tenant}}}

    async def create() -> bool:
        return (await client.post(NAMESPACES, body)).status in {CREATED, CONFLICT}

    async def listed() -> bool:
        found = await client.get(NAMESPACES)
        return found.status == OK and name in [one["metadata"]["name"] for one in found.body["items"]]

    await until(create)
    await until(listed)


async def test_a_person_with_a_certificate_sees_its_tenant_and_nothing_else(
    alice: Person, tenancy: Tenancy, until: Any
) -> None:
    # given a namespace that it made through the proxy
    async with alice.wire() as client:
        await made(client, until, tenancy.name, f"{tenancy.name}-web")
        # then RBAC answers in its name, and it may not act as others
        refused = await client.get(path("", "secrets", namespace="kube-system"))
        masters = await client.acting("root", "system:masters").get(NAMESPACES)
    assert (refused.status, masters.status) == (FORBIDDEN, FORBIDDEN)
    assert f'User "{alice.name}" cannot list resource "secrets"' in refused.body["message"]
    assert f'User "{alice.name}" cannot impersonate' in masters.body["message"]

    # and kubectl shows the namespace alone, and who it is
    listed = await alice.kubectl("get", "namespaces", "-o", "name")
    assert listed.out.split() == [f"namespace/{tenancy.name}-web"]
    me = await alice.kubectl("auth", "whoami")
    assert alice.name in me.out
    assert PEOPLE in me.out

    # and a certificate of another authority is nobody's: the handshake ends it
    async with alice.shows(alice.name, PEOPLE, signer=ClusterPki.load_or_create(None)).wire() as client:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await client.get(NAMESPACES)


async def test_a_person_with_two_tenants_sees_one_by_its_url(
    alice: Person, tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    # given a tenant of its own and one of its team
    team = f"team-{other.name}"
    await own(other, {"kind": "Group", "name": team})
    alice.shows(alice.name, PEOPLE, team)
    mine, ours = f"{tenancy.name}-web", f"{other.name}-web"
    async with alice.wire() as client:
        await made(client, until, tenancy.name, mine)
        await made(client, until, other.name, ours)
        assert sorted(await client.names(NAMESPACES)) == sorted([mine, ours])

    # when it goes by the URL of a tenant; then it sees that one
    for one, inside, outside in ((tenancy, mine, ours), (other, ours, mine)):
        async with alice.wire(at=f"/tenant/{one.name}") as client:
            assert await client.names(NAMESPACES) == [inside]
            assert await client.names(path(CAPSULE, "tenants")) == [one.name]
            refused = await client.get(path("", "pods", namespace=outside))
            assert refused.status == FORBIDDEN
            assert "the URL is narrowed to the tenant" in refused.body["message"]
    shown = await alice.kubectl("get", "namespaces", "-o", "name", at=f"/tenant/{other.name}")
    assert shown.out.split() == [f"namespace/{ours}"]

    # and without the team the other tenant is not there
    async with alice.shows(alice.name, PEOPLE).wire(at=f"/tenant/{other.name}") as client:
        assert (await client.get(NAMESPACES)).status == NOT_FOUND


async def test_the_url_of_a_tenant_stands_in_kubeconfigs_that_are_generated(tenancy: Tenancy, until: Any) -> None:
    # given an account whose Tenant names such a URL
    url = f"{tenancy.cluster.environ['TETHER_PROXY_URL']}/tenant/{tenancy.name}"
    await tenancy.make_home()
    tenant = tenancy.tenant(tenancy.user)
    tenant["metadata"]["annotations"] = {"capsule-tether.io/proxy-url": url}
    await tenancy.apply(tenant, tenancy.account(**{ENABLED: "true"}))

    # when it makes a namespace with the kubeconfig of the workers
    (name,) = await tenancy.make_namespaces("web")

    # then it works there and is refused elsewhere, in whatever is the cluster's
    async def usable() -> bool:
        async with tenancy.flux() as client:
            assert client.url == url
            return bool((await client.get(api_path("", "v1", "secrets", namespace=name))).status == OK)

    await until(usable)
    async with tenancy.flux() as client:
        home = await client.get(api_path("", "v1", "secrets", namespace=tenancy.home))
        assert home.status == FORBIDDEN
        assert "the URL is narrowed to the tenant" in home.body["message"]
        assert await client.names(api_path("", "v1", "namespaces")) == [name]

    # and the command of the guide takes it too
    generate = ("generate", "--output", "-", "--namespace", tenancy.home, "--serviceaccount", ACCOUNT)
    # with a token of its own, since the account has Tether's
    trust = (
        "--token-life",
        "1h",
        "--server-tls-secret-namespace",
        "capsule-system",
        "--server-tls-secret-name",
        "capsule-proxy",
    )
    admin = ("--kubeconfig", str(tenancy.cluster.folder / "admin.kubeconfig"))
    arguments = ("kubeconfig", *generate, "--server", url, *trust, *admin)
    done = await asyncio.to_thread(lambda: tenancy.cluster.tether(*arguments))
    assert done.returncode == 0, done
    assert url in done.stdout
