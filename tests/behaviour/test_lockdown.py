"""Flux under lockdown: what its controllers send for a Kustomization or a HelmRelease, at home and in the tenant.

With a kubeconfig and a default account, Flux's requests carry the kubeconfig's token and
``Impersonate-User: system:serviceaccount:<the object's namespace>:<the default account>``, without groups.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.kube import api_path
from tests.behaviour.lockdown import opted_in

if TYPE_CHECKING:
    from tests.kubeapi import Client

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
GROUP = "rbac.authorization.k8s.io"


@pytest.fixture
async def switched_on(cluster: Any, admin: Any) -> AsyncIterator[None]:
    async with opted_in(cluster, admin):
        yield


def acting(client: Client, namespace: str) -> Client:
    return client.acting(f"system:serviceaccount:{namespace}:{ACCOUNT}")


def binding(tenancy: Tenancy) -> str:
    return f"tether:lockdown:{tenancy.home}:{ACCOUNT}"


async def kustomization(client: Client, namespace: str) -> list[int]:
    """Send what kustomize-controller sends for one ConfigMap: discovery, dry run, apply, health, prune."""
    name = api_path("", "v1", "configmaps", namespace=namespace, name="app")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app", "namespace": namespace}}
    options = {"force": "true"}
    answers = [
        await client.get("/api/v1"),
        await client.apply(name, body, "kustomize-controller", dryRun="All", **options),
        await client.apply(name, body, "kustomize-controller", **options),
        await client.get(name),
        await client.delete(name),
    ]
    return [answer.status for answer in answers]


async def helm_release(client: Client, namespace: str) -> list[int]:
    """Send what helm-controller sends for a release: its storage Secret is looked for, made, changed and removed."""
    secrets = api_path("", "v1", "secrets", namespace=namespace)
    name = f"{secrets}/sh.helm.release.v1.app.v1"
    body = {
        "metadata": {"name": "sh.helm.release.v1.app.v1", "labels": {"owner": "helm", "name": "app"}},
        "type": "helm.sh/release.v1",
        "data": {"release": base64.b64encode(b"chart").decode()},
    }
    answers = [
        await client.get(secrets, params={"labelSelector": "name=app,owner=helm"}),
        await client.post(secrets, body),
        await client.patch(name, {"metadata": {"labels": {"status": "deployed"}}}),
        await client.delete(name),
    ]
    return [answer.status for answer in answers]


async def works(client: Client, namespace: str) -> bool:
    """Tell whether both do their work; 201 is for what was made."""
    first, second = await kustomization(client, namespace), await helm_release(client, namespace)
    return set(first) | set(second) <= {200, 201}


async def test_flux_objects_at_home_work_at_home_and_in_the_tenants_namespaces(tenancy: Tenancy, until: Any) -> None:
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")

    # Given Flux acts for an object in the home namespace
    async with tenancy.flux() as client:
        flux = acting(client, tenancy.home)

        # Then it works at home and, with spec.targetNamespace, in the tenant's namespace
        await until(lambda: works(flux, tenancy.home))
        await until(lambda: works(flux, namespace))


async def test_switched_off_flux_acts_in_a_tenants_namespace_for_an_account_without_rights(
    tenancy: Tenancy, until: Any
) -> None:
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")

    async with tenancy.flux(namespace) as client:
        # Given the owner may act for every account of its namespace
        async def owner_works() -> bool:
            return await works(client, namespace)

        await until(owner_works)
        flux = acting(client, namespace)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        whoami = await flux.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        assert whoami.body["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:{ACCOUNT}"

        # When Flux acts for a Kustomization and a HelmRelease there, then all that is work is refused
        assert await kustomization(flux, namespace) == [200, 403, 403, 403, 403]
        assert await helm_release(flux, namespace) == [403, 403, 403, 403]
        refused = await flux.get(api_path("", "v1", "configmaps", namespace=namespace))
        assert f'User "system:serviceaccount:{namespace}:{ACCOUNT}" cannot list' in refused.body["message"]

    # And nothing was bound there for it
    assert await tenancy.get("RoleBinding", namespace, binding(tenancy)) is None


async def test_switched_on_flux_objects_in_a_tenants_namespace_work_there_and_nowhere_else(
    switched_on: None,
    tenancy: Tenancy,
    other: Tenancy,
    until: Any,
) -> None:
    # Given two tenants
    await tenancy.make()
    await other.make()
    namespace, second = await tenancy.make_namespaces("production", "development")
    (foreign,) = await other.make_namespaces("production")

    # Then Flux's default account is bound to the role of the home, in each namespace of the tenant and not at home
    bound = await tenancy.must("RoleBinding", namespace, binding(tenancy))
    assert bound["roleRef"] == {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"}
    assert bound["subjects"] == [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}]
    await tenancy.must("RoleBinding", second, binding(tenancy))
    await other.must("RoleBinding", foreign, binding(other))
    assert await tenancy.get("RoleBinding", tenancy.home, binding(tenancy)) is None
    assert await tenancy.get("RoleBinding", foreign, binding(tenancy)) is None

    # And what Flux sends for objects there is done there, and refused in every other namespace
    async with tenancy.flux(namespace) as client:
        flux = acting(client, namespace)
        await until(lambda: works(flux, namespace))
        for elsewhere in (second, foreign, tenancy.home, "flux-system", "kube-system"):
            assert await kustomization(flux, elsewhere) == [200, 403, 403, 403, 403]
            assert await helm_release(flux, elsewhere) == [403, 403, 403, 403]
        # The other tenant's account is not the caller's to act for.
        refused = await acting(client, foreign).get("/api/v1/namespaces")
        assert refused.status == 403
        assert "cannot impersonate" in refused.body["message"]


async def test_the_binding_is_put_right_follows_the_tenant_and_goes_with_the_setting(
    cluster: Any, tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    name = binding(tenancy)
    await cluster.restart("router", "worker", TETHER_FLUX_SERVICE_ACCOUNT=ACCOUNT)
    try:
        await tenancy.make()
        await other.make()
        namespace, second = await tenancy.make_namespaces("production", "development")
        (witness,) = await other.make_namespaces("production")
        before = await tenancy.must("RoleBinding", namespace, name)
        await tenancy.must("RoleBinding", second, name)
        path = api_path(GROUP, "v1", "rolebindings", namespace=namespace, name=name)

        # When somebody adds a subject, then it is taken out again
        more = [*before["subjects"], {"kind": "User", "apiGroup": GROUP, "name": "mallory"}]
        await tenancy.admin.merge_patch(path, {"subjects": more})

        async def put_right() -> bool:
            found = await tenancy.get("RoleBinding", namespace, name)
            return found is not None and found["subjects"] == before["subjects"]

        await until(put_right)

        # When somebody deletes it, then it is there again
        await tenancy.admin.delete(path)

        async def again() -> bool:
            found = await tenancy.get("RoleBinding", namespace, name)
            return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

        await until(again)

        # When the owner opts out of the fan-out, then it goes; when it is back in, it comes
        await tenancy.apply(tenancy.account(**{ENABLED: "true", "capsule.addon.fluxcd/kubeconfig-global": "false"}))
        await tenancy.gone("RoleBinding", namespace, name)
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}))
        await tenancy.must("RoleBinding", namespace, name)

        # When the account owns no tenant any more, then it goes everywhere, and the other tenant's stays
        await other.must("RoleBinding", witness, binding(other))
        await tenancy.apply(tenancy.tenant())
        await tenancy.gone("RoleBinding", namespace, name)
        await tenancy.gone("RoleBinding", second, name)
        assert await other.get("RoleBinding", witness, binding(other)) is not None
    finally:
        await cluster.restart("router", "worker")

    # And when the setting is off, then the last ones go, and the rights of the owner stay
    await other.gone("RoleBinding", witness, binding(other))
    assert await other.get("RoleBinding", other.home, ACCOUNT) is not None
