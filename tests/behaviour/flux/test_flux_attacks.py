"""The attacks of the guide, through Flux's own controllers under lockdown: each is refused, and nothing comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from controlplane.flux import NAMESPACE as FLUX

from tests.behaviour.conftest import ACCOUNT, path
from tests.behaviour.flux.conftest import config_map, documents

if TYPE_CHECKING:
    from tests.behaviour.conftest import Object
    from tests.behaviour.flux.conftest import GitOps

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(200)]

RBAC = "rbac.authorization.k8s.io"


async def push(oil: GitOps, files: dict[str, str]) -> None:
    """Push what shall be applied, and let Flux fetch it."""
    oil.repository.push(files, "Attack")
    for namespace in (oil.home, oil.production):
        await oil.ready("GitRepository", namespace, oil.name)
        await oil.reconcile("GitRepository", namespace, oil.name)


Put = Callable[..., Awaitable[None]]


@pytest.fixture
async def put(oil: GitOps) -> AsyncIterator[Put]:
    """Return a function that makes Flux objects as the tenant: with its own kubeconfig, through the proxy."""
    made: list[str] = []

    async def put(*objects: Object) -> None:
        async with oil.tenancy.acting() as client:
            for obj in objects:
                made.append(path(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]))
                await client.apply(made[-1], obj, manager="tenant")

    yield put
    for target in made:  # an attack that is over need not go on
        await oil.tenancy.admin.merge_patch(target, {"spec": {"suspend": True}})


def account(namespace: str, name: str) -> str:
    return f'forbidden: User "system:serviceaccount:{namespace}:{name}" cannot '


@pytest.mark.parametrize("named", [None, "kustomize-controller"])
async def test_without_a_kubeconfig_flux_acts_for_an_account_of_the_namespace_that_has_no_rights(
    oil: GitOps, put: Put, named: str | None
) -> None:
    # Given what would be of the tenant's own, and what would be of Flux's
    name = f"bare-{named or 'default'}"
    wanted = documents(config_map(oil.production, name), config_map(FLUX, f"{oil.name}-{name}"))
    await push(oil, {f"{name}/attack.yaml": wanted})

    # When it is applied with no kubeconfig, by no account or by one named as Flux's own
    bare: Any = {"kubeConfig": None, "serviceAccountName": named}
    await put(oil.kustomization(name, oil.production, name, **bare), oil.release(name, oil.production, **bare))

    # Then Flux acts for the namesake in the object's own namespace, and is refused
    who = account(oil.production, named or ACCOUNT)
    await oil.refused("Kustomization", oil.production, name, who)
    await oil.refused("HelmRelease", oil.production, name, who)
    assert await oil.tenancy.get("ConfigMap", oil.production, name) is None
    assert await oil.tenancy.get("ConfigMap", FLUX, f"{oil.name}-{name}") is None
    assert await oil.tenancy.get("ConfigMap", oil.production, f"{name}-chart") is None


async def test_at_home_an_account_named_as_fluxs_own_is_the_homes_and_has_no_rights(oil: GitOps, put: Put) -> None:
    name, bare = "privileged", "privileged-bare"
    await push(oil, {f"{name}/attack.yaml": documents(config_map(FLUX, f"{oil.name}-{name}"))})
    spec: Any = {"serviceAccountName": "kustomize-controller"}
    await put(oil.kustomization(name, oil.home, name, **spec))
    await put(oil.kustomization(bare, oil.home, name, kubeConfig=None, **spec))

    # Then both act for the account at home, to which the API server gives nothing
    await oil.refused("Kustomization", oil.home, name, account(oil.home, "kustomize-controller"))
    await oil.refused("Kustomization", oil.home, bare, account(oil.home, "kustomize-controller"))
    assert await oil.tenancy.get("ConfigMap", FLUX, f"{oil.name}-{name}") is None


async def test_a_source_in_another_namespace_is_not_read(oil: GitOps, gas: GitOps, put: Put) -> None:
    # Given the source and the chart of another tenant
    await gas.ready("HelmRelease", gas.home, "app")
    await oil.ready("GitRepository", oil.production, oil.name)
    source = {"kind": "GitRepository", "name": gas.name, "namespace": gas.home}
    chart = {"kind": "HelmChart", "name": f"{gas.home}-app", "namespace": gas.home}

    # When Flux objects at home and in the tenant's namespace name them
    for namespace in (oil.home, oil.production):
        await put(oil.kustomization("foreign", namespace, "config/apps", sourceRef=source))
        await put(oil.release("foreign", namespace, chart=None, chartRef=chart))

    # Then Flux reads none of it
    refusal = "cross-namespace references (have been blocked|are not allowed)"
    for namespace in (oil.home, oil.production):
        for kind in ("Kustomization", "HelmRelease"):
            await oil.refused(kind, namespace, "foreign", refusal)


async def test_a_base_outside_of_the_source_is_not_read(oil: GitOps, gas: GitOps, put: Put) -> None:
    name = "remote"
    base = f"{gas.repository.url}//config/apps?ref=main"
    kustomize = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [base]}
    await push(oil, {f"{name}/kustomization.yaml": documents(kustomize)})
    await put(oil.kustomization(name, oil.home, name, targetNamespace=oil.development))
    await oil.refused("Kustomization", oil.home, name, "build failed: .* fs-security-constraint ")


async def test_namespaces_of_the_platform_and_of_others_are_not_taken_over(oil: GitOps, gas: GitOps, put: Put) -> None:
    await gas.ready("Kustomization", gas.home, gas.name)
    tenant = await oil.there("Tenant", "", oil.name)
    owner = {"apiVersion": tenant["apiVersion"], "kind": "Tenant", "name": oil.name, "uid": tenant["metadata"]["uid"]}
    targets = {f"takeover-{target}": target for target in (FLUX, "kube-system", gas.production, gas.home)}
    before = {name: await oil.there("Namespace", "", target) for name, target in targets.items()}

    # When the tenant's repository claims namespaces, and would put something into them
    files = {}
    for name, target in targets.items():
        claim = {"name": target, "labels": {"capsule.clastix.io/tenant": oil.name}, "ownerReferences": [owner]}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": claim}
        files[f"{name}/attack.yaml"] = documents(namespace, config_map(target, f"{oil.name}-taken"))
    await push(oil, files)
    await put(*(oil.kustomization(name, oil.home, name) for name in targets))

    # Then that is refused, and each namespace is as it was
    for name, target in targets.items():
        await oil.refused("Kustomization", oil.home, name, f"Namespace/{target} .*(forbidden|denied)")
        after = await oil.there("Namespace", "", target)
        for field in ("labels", "ownerReferences"):
            assert after["metadata"].get(field) == before[name]["metadata"].get(field)
        assert await oil.tenancy.get("ConfigMap", target, f"{oil.name}-taken") is None


async def test_objects_and_releases_do_not_reach_a_namespace_that_is_not_the_tenants(
    oil: GitOps, gas: GitOps, put: Put
) -> None:
    await gas.ready("Kustomization", gas.home, gas.name)
    await oil.ready("Kustomization", oil.home, oil.name)
    for target in (FLUX, gas.production):
        name = f"reach-{target}"
        await put(oil.kustomization(name, oil.home, "config/apps", targetNamespace=target))
        await put(oil.release(name, oil.home, targetNamespace=target, releaseName="reach"))
        await oil.refused("Kustomization", oil.home, name, account(oil.home, ACCOUNT))
        await oil.refused("HelmRelease", oil.home, name, account(oil.home, ACCOUNT))
        assert await oil.tenancy.get("ConfigMap", target, "web") is None
        assert await oil.tenancy.get("ConfigMap", target, "reach-chart") is None


async def test_rights_are_not_given_outside_of_the_tenants_namespaces(oil: GitOps, gas: GitOps, put: Put) -> None:
    await gas.ready("Kustomization", gas.home, gas.name)
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": oil.home}],
    }
    bound = f"{oil.name}-rights"
    targets = {f"rights-{target or 'cluster'}": target for target in (FLUX, "kube-system", gas.production, "")}

    # When the tenant's repository binds its account to cluster-admin in foreign namespaces, and in all of them
    files = {}
    for name, target in targets.items():
        metadata = {"name": bound, **({"namespace": target} if target else {})}
        kind = "RoleBinding" if target else "ClusterRoleBinding"
        files[f"{name}/attack.yaml"] = documents({**binding, "kind": kind, "metadata": metadata})
    await push(oil, files)
    await put(*(oil.kustomization(name, oil.home, name) for name in targets))

    # Then that is refused
    for name, target in targets.items():
        await oil.refused("Kustomization", oil.home, name, account(oil.home, ACCOUNT))
        assert await oil.tenancy.get("RoleBinding" if target else "ClusterRoleBinding", target, bound) is None
