"""People with client certificates behind the proxy, and URLs of one tenant, with kubectl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventcore.kube import KubeClient, api_path
from tests.kubeapi import Ran, run_kubectl
from tether import manifests
from tether.dev_layout import write_private
from tether.devcluster.pki import ClusterPki

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.kubectl]

Tenancy = Any
Kubectl = Callable[..., Awaitable[Ran]]
GROUP = "people.example"
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
OK = 200
FORBIDDEN = 403


@pytest.fixture
async def acting(admin: KubeClient) -> AsyncIterator[None]:
    """Let the proxy act for callers whose token cannot be sent on, for as long as a test lasts."""
    objects = manifests.read(manifests.shipped("deploy/optional/proxy-impersonation.yaml"))
    applier = manifests.Applier(admin, "person")
    await applier.apply(objects)
    yield
    for obj in reversed(objects):
        await admin.delete(await applier.path(obj))


@pytest.fixture
def authority(cluster: Any, control_plane: Path | None) -> ClusterPki:
    """The authority by which the API server judges its clients."""
    root = cluster.folder if control_plane is None else control_plane.parent
    return ClusterPki.load_or_create(next(root.rglob("ca.key")).parent)


@pytest.fixture
def kubectl(cluster: Any, authority: ClusterPki, tmp_path: Path) -> Kubectl:
    """Run kubectl through the proxy as somebody with a certificate; ``at`` is what follows the proxy's URL."""

    async def run(
        user: str,
        *arguments: str,
        groups: tuple[str, ...] = (GROUP,),
        at: str = "",
        signer: ClusterPki = authority,
        **options: Any,
    ) -> Ran:
        certificate, key = signer.client_certificate(user, groups)
        write_private(tmp_path / "tls.crt", certificate)
        write_private(tmp_path / "tls.key", key)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": cluster.environ["TETHER_PROXY_URL"] + at,
                        "certificate-authority": cluster.environ["TETHER_PROXY_CA_FILE"],
                    },
                }
            ],
            "users": [{"name": "u", "user": {"client-certificate": "tls.crt", "client-key": "tls.key"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = tmp_path / "kubeconfig"
        file.write_bytes(msgspec.json.encode(config))
        return await run_kubectl(file, tmp_path, *arguments, **options)

    return run


async def own(tenancy: Tenancy, *owners: dict[str, str]) -> None:
    """Make a tenant of people."""
    tenant = tenancy.tenant()
    tenant["spec"] = {"owners": list(owners)}
    await tenancy.apply(tenant)


async def made(kubectl: Kubectl, until: Any, user: str, name: str) -> None:
    """Make a namespace as somebody; Capsule's right to do so may follow the Tenant a little later."""

    async def create() -> bool:
        ran = await kubectl(user, "create", "namespace", name, expect=None)
        return ran.code == 0 or "AlreadyExists" in ran.err

    await until(create)


async def test_people_with_certificates_see_their_tenants_and_nothing_else(
    acting: None, admin: KubeClient, kubectl: Kubectl, tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    # given two people who own a tenant each, and a group that owns one of them too
    configuration = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")
    await admin.json_patch(configuration, [{"op": "add", "path": "/spec/userGroups/-", "value": GROUP}])
    alice, bob, team = f"alice-{tenancy.name}", f"bob-{other.name}", f"team-{tenancy.name}"
    await own(tenancy, {"kind": "User", "name": alice})
    await own(other, {"kind": "User", "name": bob}, {"kind": "Group", "name": team})

    # when each makes a namespace through the proxy
    for user, one in ((alice, tenancy), (bob, other)):
        await made(kubectl, until, user, f"{one.name}-web")

    # then each sees its own
    async def names(user: str, *groups: str, at: str = "") -> list[str]:
        ran = await kubectl(user, "get", "namespaces", "-o", "name", groups=(GROUP, *groups), at=at)
        return [line.removeprefix("namespace/") for line in ran.out.split()]

    assert await until(lambda: names(alice)) == [f"{tenancy.name}-web"]
    assert await until(lambda: names(bob)) == [f"{other.name}-web"]
    both = sorted([f"{tenancy.name}-web", f"{other.name}-web"])
    assert sorted(await names(alice, team)) == both

    # and by the URL of a tenant only that one's
    assert await names(alice, team, at=f"/tenant/{other.name}") == [f"{other.name}-web"]
    assert await names(alice, team, at=f"/tenant/{tenancy.name}") == [f"{tenancy.name}-web"]
    tenants = await kubectl(alice, "get", "tenants", "-o", "name", groups=(GROUP, team), at=f"/tenant/{tenancy.name}")
    assert tenants.out.split() == [f"tenant.capsule.clastix.io/{tenancy.name}"]
    narrowed = await kubectl(
        alice, "-n", f"{other.name}-web", "get", "pods", groups=(GROUP, team), at=f"/tenant/{tenancy.name}", expect=1
    )
    assert "the URL is narrowed to the tenant" in narrowed.err
    foreign = await kubectl(alice, "get", "namespaces", at=f"/tenant/{other.name}", expect=1)
    assert "NotFound" in foreign.err or "not found" in foreign.err

    # and the API server knows who it is, and answers by RBAC
    me = await kubectl(alice, "auth", "whoami")
    assert alice in me.out
    assert GROUP in me.out
    refused = await kubectl(alice, "-n", "kube-system", "get", "secrets", expect=1)
    assert f'User "{alice}" cannot list resource "secrets"' in refused.err
    masters = await kubectl(alice, "get", "namespaces", "--as", "root", "--as-group", "system:masters", expect=1)
    assert f'User "{alice}" cannot impersonate' in masters.err

    # and a certificate of another authority is nobody's
    forged = await kubectl(alice, "get", "namespaces", signer=ClusterPki.load_or_create(None), expect=1)
    assert f"{tenancy.name}-web" not in forged.out
    assert "Unable to connect to the server" in forged.err  # the handshake ends it


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
