"""The guide's example: an owner's account that is enabled gets all it needs, and nobody else gets anything."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from eventcore.errors import ForbiddenError
from eventcore.kube import api_path

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
ACCOUNT = "gitops-reconciler"
NAMESPACES = api_path("", "v1", "namespaces")


def names(body: bytes) -> list[str]:
    return sorted(item["metadata"]["name"] for item in msgspec.json.decode(body)["items"])


async def _witness(other: Tenancy) -> None:
    """Make a second, complete tenant and wait for its kubeconfig: what came before it has been worked on by then."""
    await other.make()
    await other.must("Secret", other.home, f"{ACCOUNT}-kubeconfig")


async def test_a_tenant_without_owners_gives_its_account_nothing(tenancy: Tenancy, other: Tenancy) -> None:
    await tenancy.make(owner=False)
    await _witness(other)
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig") is None
    assert await tenancy.get("RoleBinding", tenancy.home, ACCOUNT) is None


async def test_an_owner_without_the_annotation_gets_nothing(tenancy: Tenancy, other: Tenancy) -> None:
    await tenancy.make(enabled=False)
    await _witness(other)
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig") is None
    assert await tenancy.get("ClusterRole", "", tenancy.impersonator) is None


async def test_an_enabled_owner_gets_a_kubeconfig_that_points_at_the_proxy(tenancy: Tenancy) -> None:
    await tenancy.make()
    content = await tenancy.secret(tenancy.home, f"{ACCOUNT}-kubeconfig", "kubeconfig")
    config = msgspec.yaml.decode(content)
    assert config["clusters"][0]["cluster"]["server"] == tenancy.cluster.environ["TETHER_PROXY_URL"]
    assert base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).startswith(
        b"-----BEGIN CERT"
    )
    assert config["users"][0]["user"]["token"]
    assert config["contexts"][0]["context"]["namespace"] == tenancy.home
    # Flux reads the key "value" where none is named, and reacts at once to a Secret with this label.
    assert await tenancy.secret(tenancy.home, f"{ACCOUNT}-kubeconfig", "value") == content
    secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
    assert secret["metadata"]["labels"]["reconcile.fluxcd.io/watch"] == "Enabled"


async def test_an_enabled_owner_gets_a_token_that_is_its_own(tenancy: Tenancy) -> None:
    await tenancy.make()
    token = await tenancy.token()
    async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        body = await client.create(api_path("authentication.k8s.io", "v1", "selfsubjectreviews"), review)
    assert msgspec.json.decode(body)["status"]["userInfo"]["username"] == tenancy.user


async def test_an_enabled_owner_is_bound_to_cluster_admin_at_home_alone(tenancy: Tenancy) -> None:
    await tenancy.make()
    binding = await tenancy.must("RoleBinding", tenancy.home, ACCOUNT)
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "cluster-admin",
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}]


async def test_an_enabled_owner_may_impersonate_itself_and_nobody_else(tenancy: Tenancy) -> None:
    await tenancy.make()
    role = await tenancy.must("ClusterRole", "", tenancy.impersonator)
    binding = await tenancy.must("ClusterRoleBinding", "", tenancy.impersonator)
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [tenancy.user]}
    ]
    assert binding["roleRef"]["name"] == tenancy.impersonator
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}]


async def test_no_global_tenant_resource_is_ever_made(tenancy: Tenancy) -> None:
    await tenancy.make(**{"capsule.addon.fluxcd/kubeconfig-global": "true"})
    await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
    assert await tenancy.get("GlobalTenantResource", "", f"{tenancy.name}-{ACCOUNT}-kubeconfig") is None


async def test_the_home_namespace_stays_outside_the_tenant(tenancy: Tenancy) -> None:
    await tenancy.make()
    await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
    home = await tenancy.must("Namespace", "", tenancy.home)
    assert not home["metadata"].get("ownerReferences")
    assert set(home["metadata"]["labels"]) == {"kubernetes.io/metadata.name"}


async def test_the_kubeconfig_follows_into_every_namespace_of_the_tenant(tenancy: Tenancy) -> None:
    await tenancy.make()
    for name in await tenancy.make_namespaces("production", "development"):
        config = msgspec.yaml.decode(await tenancy.secret(name, f"{ACCOUNT}-kubeconfig", "kubeconfig"))
        assert config["contexts"][0]["context"]["namespace"] == name
        assert config["users"][0]["user"]["token"] == await tenancy.token()


async def test_the_account_that_opts_out_keeps_its_kubeconfig_at_home(tenancy: Tenancy, other: Tenancy) -> None:
    # Given an account that opts out, with a namespace
    await tenancy.make(**{"capsule.addon.fluxcd/kubeconfig-global": "false"})
    (name,) = await tenancy.make_namespaces("production")

    # When another tenant's namespace, made later, has its copy
    await other.make()
    (witness,) = await other.make_namespaces("production")
    await other.must("Secret", witness, f"{ACCOUNT}-kubeconfig")

    # Then there is none here
    assert await tenancy.get("Secret", name, f"{ACCOUNT}-kubeconfig") is None


async def test_through_the_proxy_a_tenant_lists_exactly_its_namespaces_and_gets_only_them(
    tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    # Given two tenants with namespaces
    await tenancy.make()
    await other.make()
    own = await tenancy.make_namespaces("production", "development")
    (foreign,) = await other.make_namespaces("production")

    async with tenancy.acting() as client:
        # Then the list is exactly the tenant's, whatever else there is in the cluster
        async def listed() -> bool:
            return names(await client.get(NAMESPACES)) == sorted(own)

        await until(listed)
        assert msgspec.json.decode(await client.get(f"{NAMESPACES}/{own[0]}"))["metadata"]["name"] == own[0]
        for hidden in (foreign, "kube-system"):
            with pytest.raises(ForbiddenError):
                await client.get(f"{NAMESPACES}/{hidden}")

    # And the API server refuses the same account, with the same token
    async with tenancy.cluster.client(tenancy.cluster.as_token(await tenancy.token(), direct=True)) as client:
        with pytest.raises(ForbiddenError, match="cannot list resource"):
            await client.get(NAMESPACES)


async def test_the_account_works_in_its_namespaces_and_not_in_those_of_others(
    tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    await tenancy.make()
    await other.make()
    (own,) = await tenancy.make_namespaces("production")
    (foreign,) = await other.make_namespaces("production")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}, "data": {"a": "b"}}

    async with tenancy.acting() as client:

        async def written() -> bool:
            try:
                await client.apply(api_path("", "v1", "configmaps", namespace=own, name="app"), body, manager="flux")
            except ForbiddenError:
                return False  # Capsule's RoleBinding follows the namespace
            return True

        await until(written)
        with pytest.raises(ForbiddenError):
            await client.apply(api_path("", "v1", "configmaps", namespace=foreign, name="app"), body, manager="flux")
        with pytest.raises(ForbiddenError):
            await client.get(api_path("", "v1", "secrets", namespace=foreign))
