"""The guide's tenant on the real control plane, end to end: Flux's own controllers reconcile it from Git, locked down.

The administrator makes the home, the marked account, the Tenant, the entry of Capsule's configuration, and one
GitRepository and Kustomization at home. All else stands in the tenant's repository.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from controlplane.awaiting import condition
from controlplane.flux import NAMESPACE as FLUX

from eventcore.kube_watch import watch
from tests.behaviour.conftest import ACCOUNT, eventually, path
from tests.behaviour.flux.conftest import chart, config_map, documents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.behaviour.conftest import Object
    from tests.behaviour.flux.conftest import GitOps

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]

ROTATIONS = 3


async def test_the_tenants_namespaces_come_out_of_git_through_the_proxy_and_are_the_tenants(oil: GitOps) -> None:
    # When Flux has reconciled the tenant's repository
    root = await oil.ready("Kustomization", oil.home, oil.name)
    assert root["status"]["lastAppliedRevision"].startswith("main@sha1:")

    # Then it did so through the proxy, for the way in that it was given leads nowhere else
    config = msgspec.yaml.decode(await oil.tenancy.secret(oil.home, f"{ACCOUNT}-kubeconfig", "kubeconfig"))
    assert [cluster["cluster"]["server"] for cluster in config["clusters"]] == [
        oil.tenancy.cluster.environ["TETHER_PROXY_URL"]
    ]

    # And the namespaces are owned by the Tenant, as Capsule says it
    tenant = await oil.there("Tenant", "", oil.name)
    for name in (oil.production, oil.development):
        namespace = await oil.there("Namespace", "", name)
        owner = namespace["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Tenant", oil.name, tenant["metadata"]["uid"])
        assert namespace["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] == oil.name
        # And the kubeconfig follows into them
        copied = msgspec.yaml.decode(await oil.tenancy.secret(name, f"{ACCOUNT}-kubeconfig", "kubeconfig"))
        assert copied["contexts"][0]["context"]["namespace"] == name

    # And the rights that the tenant gives within them are there
    role = await oil.there("RoleBinding", oil.production, "reader")
    assert role["subjects"][0]["name"] == f"{oil.name}-developer"


async def test_while_no_proxy_runs_flux_reconciles_nothing_and_goes_on_when_it_is_back(oil: GitOps) -> None:
    await oil.ready("Kustomization", oil.home, oil.name)
    cluster = oil.tenancy.cluster
    address = cluster.environ["TETHER_PROXY_URL"].removeprefix("https://")
    try:
        # When all proxies end
        await cluster.stop("proxy")
        await oil.request("Kustomization", oil.home, oil.name)

        # Then Flux has no other way to the tenant's objects
        await oil.refused(
            "Kustomization", oil.home, oil.name, f"dial tcp {re.escape(address)}: connect: connection refused"
        )
    finally:
        await cluster.start()

    # And it goes on when they are back
    await oil.reconcile("Kustomization", oil.home, oil.name)


async def test_flux_objects_at_home_place_their_objects_into_the_tenants_namespace(oil: GitOps) -> None:
    # Given a Kustomization and a HelmRelease at home, out of Git, with spec.targetNamespace
    await oil.ready("Kustomization", oil.home, "apps")
    await oil.ready("HelmRelease", oil.home, "app")

    # Then what they hold is in the tenant's namespace
    await oil.there("Deployment", oil.development, "web")
    assert (await oil.there("ConfigMap", oil.development, "web"))["data"] == {"stage": "one"}
    release = f"{oil.development}-app"  # the name that Flux gives to a release with a targetNamespace
    made = await oil.there("ConfigMap", oil.development, f"{release}-chart")
    assert made["metadata"]["annotations"]["meta.helm.sh/release-name"] == release


async def test_switched_off_flux_objects_in_a_tenants_namespace_are_refused(oil: GitOps) -> None:
    # Given both with the distributed kubeconfig, made by the tenant
    await oil.ready("GitRepository", oil.production, oil.name)
    async with oil.tenancy.acting() as client:
        for obj in (
            oil.kustomization("off", oil.production, "config/apps", targetNamespace=oil.production),
            oil.release("off", oil.production),
        ):
            await client.apply(path(obj["kind"], oil.production, "off"), obj, manager="tenant")

    # Then Flux acts for its default account in that namespace, which has no rights
    user = f"system:serviceaccount:{oil.production}:{ACCOUNT}"
    for kind in ("Kustomization", "HelmRelease"):
        await oil.refused(kind, oil.production, "off", f'forbidden: User "{user}" cannot ')
        await oil.tenancy.admin.merge_patch(path(kind, oil.production, "off"), {"spec": {"suspend": True}})
    assert await oil.tenancy.get("ConfigMap", oil.production, "web") is None
    assert await oil.tenancy.get("ConfigMap", oil.production, "off-chart") is None


async def test_switched_on_flux_objects_in_a_tenants_namespace_are_reconciled(switched_on: None, gas: GitOps) -> None:
    # Given the opt-in, when Tether has bound Flux's default account, and Flux reconciles
    await gas.there("RoleBinding", gas.production, f"tether:lockdown:{gas.home}:{ACCOUNT}")
    flux = (("Kustomization", "own"), ("HelmRelease", "app"))
    for kind, name in flux:
        await gas.reconcile(kind, gas.production, name)

    # Then both did their work in their own namespace
    await gas.there("ConfigMap", gas.production, "own")
    await gas.there("ConfigMap", gas.production, "app-chart")

    # And a rotation of the token does not stop them
    async with failures(gas, gas.production, *flux) as seen:
        await rotate(gas, gas.production)
        for kind, name in flux:
            await gas.reconcile(kind, gas.production, name)
    assert seen == []


async def test_a_push_changes_the_cluster(oil: GitOps) -> None:
    await oil.ready("Kustomization", oil.home, oil.name)
    await oil.ready("Kustomization", oil.home, "apps")
    await oil.ready("HelmRelease", oil.home, "app")
    before = oil.state()
    staging = f"{oil.name}-staging"

    # When the tenant pushes another namespace, another value and another chart, and takes the Deployment out
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": staging}}
    more = {
        "config/namespaces.yaml": before["config/namespaces.yaml"] + "---\n" + documents(namespace),
        "config/apps/web.yaml": documents(config_map("", "web", stage="two")),
        **chart("1.1.0", stage="two"),
    }
    commit = oil.repository.push(more, "Stage two")
    await oil.reconcile("GitRepository", oil.home, oil.name)

    # Then the cluster is as the commit says
    for kind, name in (("Kustomization", oil.name), ("Kustomization", "apps")):
        await oil.until(kind, oil.home, name, lambda obj: commit in applied(obj))
    made = await oil.there("Namespace", "", staging)
    assert made["metadata"]["ownerReferences"][0]["name"] == oil.name
    await oil.there("Secret", staging, f"{ACCOUNT}-kubeconfig")
    assert (await oil.there("ConfigMap", oil.development, "web"))["data"] == {"stage": "two"}
    await oil.gone("Deployment", oil.development, "web")
    released = f"{oil.development}-app-chart"
    await oil.until("ConfigMap", oil.development, released, at_stage("two"))

    # And when it is reverted, then the namespace that Git does not name any more goes, and the rest is as it was
    oil.repository.push(before, "Back")
    await oil.reconcile("GitRepository", oil.home, oil.name)
    await oil.gone("Namespace", "", staging)
    await oil.there("Deployment", oil.development, "web")
    await oil.until("ConfigMap", oil.development, released, at_stage("one"))


async def test_rotations_of_the_token_fail_no_reconcile(oil: GitOps) -> None:
    flux = (("Kustomization", oil.name), ("Kustomization", "apps"), ("HelmRelease", "app"))
    for kind, name in flux:
        await oil.ready(kind, oil.home, name)
    first = await oil.tenancy.token()

    # When the token is rotated, and Flux reconciles each time while it is and after it was
    async with failures(oil, oil.home, *flux) as seen:
        for _ in range(ROTATIONS):
            for kind, name in flux:
                await oil.request(kind, oil.home, name)
            await rotate(oil, oil.development)
            for kind, name in flux:
                await oil.reconcile(kind, oil.home, name)

        # And once more when the first one is dead at the API server itself
        async def dead() -> bool:
            review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": first}}
            answer = await oil.tenancy.admin.create("/apis/authentication.k8s.io/v1/tokenreviews", review)
            return not msgspec.json.decode(answer)["status"].get("authenticated")

        await eventually(dead)
        for kind, name in flux:
            await oil.reconcile(kind, oil.home, name)

    # Then no reconcile failed
    assert seen == []


async def test_fluxs_own_accounts_are_not_users_of_capsule(oil: GitOps) -> None:
    spec = (await oil.there("CapsuleConfiguration", "", "default"))["spec"]
    users = [*spec.get("userGroups", []), *spec.get("userNames", []), *(user["name"] for user in spec.get("users", []))]
    assert f"system:serviceaccounts:{oil.home}" in users
    assert [user for user in users if FLUX in user or user in {"system:serviceaccounts", "system:authenticated"}] == []


def at_stage(stage: str) -> Callable[[Object | None], bool]:
    return lambda obj: obj is not None and obj["data"] == {"stage": stage}


def applied(obj: Object | None) -> str:
    return str(((obj or {}).get("status") or {}).get("lastAppliedRevision"))


async def rotate(oil: GitOps, namespace: str) -> None:
    """Rotate the token as an administrator asks for it; return when home and a namespace hold the new one."""
    before = await oil.tenancy.token()
    name = f"{ACCOUNT}-token"
    generation = (await oil.there("Secret", oil.home, name))["metadata"]["annotations"]["capsule-tether.io/generation"]
    patch = {"metadata": {"annotations": {"capsule-tether.io/rotate": generation}}}
    await oil.tenancy.admin.merge_patch(path("Secret", oil.home, name), patch)

    async def moved() -> bool:
        held = [
            await oil.tenancy.secret(place, f"{ACCOUNT}-kubeconfig", "kubeconfig") for place in (oil.home, namespace)
        ]
        return all(before.encode() not in content for content in held)

    await eventually(moved)


@asynccontextmanager
async def failures(oil: GitOps, namespace: str, *objects: tuple[str, str]) -> AsyncIterator[list[str]]:
    """Yield what these objects (kind and name) say whenever they are not ready in the block."""
    seen: list[str] = []

    async def follow(kind: str, version: str) -> None:
        async for event in watch(oil.tenancy.admin, path(kind, namespace), resource_version=version):
            if event.type == "MODIFIED":
                obj = msgspec.json.decode(event.object)
                ready = condition(obj, "Ready")
                if ready.get("status") == "False" and (kind, obj["metadata"]["name"]) in objects:
                    seen.append(f"{kind} {obj['metadata']['name']}: {ready['message']}")

    async with asyncio.TaskGroup() as tasks:
        following = []
        for kind in {kind for kind, _ in objects}:
            listed = msgspec.json.decode(await oil.tenancy.admin.get(path(kind, namespace)))
            following.append(tasks.create_task(follow(kind, listed["metadata"]["resourceVersion"])))
        yield seen
        for task in following:
            task.cancel()
