"""A namespace that is not there: what installers need to hear, and nobody else does."""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.kube import api_path
from tests.kubeapi import run_kubectl

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
NAMESPACES = api_path("", "v1", "namespaces")


def config_map(namespace: str, name: str = "") -> str:
    return api_path("", "v1", "configmaps", namespace=namespace, name=name)


async def test_only_an_owner_who_asks_for_one_thing_hears_that_it_is_missing(
    cluster: Any, tenancy: Tenancy, other: Tenancy
) -> None:
    # Given two tenants, and an account at home of the first that owns nothing
    await tenancy.make()
    await other.make()
    (theirs,) = await other.make_namespaces("production")
    metadata = {"name": "stranger", "namespace": other.home}
    await other.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    issued = await tenancy.admin.token_request(other.home, "stranger", expiration_seconds=3600)
    nowhere = f"{tenancy.name}-nowhere"

    async with cluster.wire(await tenancy.token()) as owner, cluster.wire(issued.token) as stranger:
        # Then its owner is told of what is not there, and of nothing that is somebody else's
        for path in (f"{NAMESPACES}/{nowhere}", config_map(nowhere, "a")):
            assert (await owner.get(path)).status == 404
            assert (await stranger.get(path)).status == 403
        for path in (
            f"{NAMESPACES}/{theirs}",
            config_map(theirs, "a"),
            config_map("kube-system", "a"),
            config_map(nowhere),
            f"{NAMESPACES}/{nowhere}/pods/a/log",
            f"{NAMESPACES}/{nowhere}/status",
        ):
            assert (await owner.get(path)).status == 403, path
        for answer in (
            await owner.delete(config_map(nowhere, "a")),
            await owner.patch(config_map(nowhere, "a"), {"data": {}}),
            await owner.post(config_map(nowhere), {"metadata": {"name": "a"}}),
        ):
            assert answer.status == 403


@pytest.mark.kubectl
async def test_kubectl_apply_makes_a_namespace_and_what_is_in_it(tenancy: Tenancy, until: Any) -> None:
    # Given an owner
    await tenancy.make()
    file, name = await tenancy.kubeconfig(), f"{tenancy.name}-applied"
    manifest = (
        f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n"
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a, namespace: {name}}}\ndata: {{a: b}}\n"
    )

    async def applied() -> bool:
        arguments = ("apply", "--validate=false", "-f", "-")
        ran = await run_kubectl(file, tenancy.cluster.folder, *arguments, stdin=manifest, expect=None)
        # At first the namespace alone may work: Capsule gives the owner its rights in it a moment later.
        assert f'namespaces "{name}" is forbidden: User "{tenancy.user}" cannot get' not in ran.err
        return ran.code == 0

    # When it applies a namespace and what is in it, as any installer does, then both are there
    await until(applied)
    await tenancy.must("ConfigMap", name, "a")
