"""What an administrator may choose about kubeconfigs, by settings, and what happens when a token is refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from eventcore.kube import api_path
from eventcore.objects import CA_MEMORY
from tether import manifests
from tether.devcluster.pki import ClusterPki
from workers.authority import certificates

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
NAME = f"{ACCOUNT}-proxy"
CONFIGMAPS = api_path("", "v1", "configmaps", namespace="capsule-system")
TOKEN_ROLE = api_path("rbac.authorization.k8s.io", "v1", "clusterroles", name="tether-worker-token")
NAMESPACES = api_path("", "v1", "namespaces")


@pytest.fixture(scope="module")
def chosen(cluster: Any) -> Iterator[None]:
    """Run with the CA in a ConfigMap, another name and other keys, and ConfigMaps allowed, for these tests."""
    asyncio.run(_choose(cluster))
    yield
    asyncio.run(_forget(cluster))


async def _choose(cluster: Any) -> None:
    async with cluster.client() as admin:
        await manifests.Applier(admin, "person").apply(
            manifests.read(manifests.shipped("deploy/optional/configmaps.yaml"))
        )
        secret = await admin.get(api_path("", "v1", "secrets", namespace="capsule-system", name="capsule-proxy"))
        authority = base64.b64decode(msgspec.json.decode(secret)["data"]["ca.crt"]).decode()
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "proxy-ca", "namespace": "capsule-system"},
        }
        await admin.apply(
            f"{CONFIGMAPS}/proxy-ca", body | {"data": {"ca.crt": authority}}, manager="person", force=True
        )
    await cluster.restart(
        "watcher",
        "router",
        "worker",
        TETHER_PROXY_CA_CONFIGMAP="proxy-ca",
        TETHER_KUBECONFIG_SUFFIX="proxy",
        TETHER_KUBECONFIG_KEYS="config,value",
        TETHER_KUBECONFIG_CONFIGMAPS="true",
        TETHER_RETRY_BASE="200ms",
    )


async def _forget(cluster: Any) -> None:
    """Run as before; the overlap of these tests' CAs is not that of the next ones."""
    await cluster.restart("watcher", "router", "worker")
    async with cluster.client() as admin:
        await admin.delete(api_path("", "v1", "secrets", namespace="capsule-system", name=CA_MEMORY))


async def annotate(tenancy: Tenancy, **values: str | None) -> None:
    path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    given = {f"capsule-tether.io/{name.replace('_', '-')}": value for name, value in values.items()}
    await tenancy.admin.merge_patch(path, {"metadata": {"annotations": given}})


async def bundle(tenancy: Tenancy, namespace: str) -> tuple[str, ...]:
    config = msgspec.yaml.decode(await tenancy.secret(namespace, NAME, "config"))
    found = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    return certificates(found)


async def test_the_name_the_keys_and_a_ca_in_a_configmap_are_chosen_and_followed(
    chosen: None, tenancy: Tenancy, until: Any
) -> None:
    # given a tenant with a namespace
    await tenancy.make()
    await tenancy.must("Secret", tenancy.home, NAME)
    before = await bundle(tenancy, tenancy.home)

    # then its kubeconfigs have the chosen name and keys, and open the proxy
    secret = await tenancy.must("Secret", tenancy.home, NAME)
    assert set(secret["data"]) == {"config", "value"}
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig") is None
    file = tenancy.cluster.folder / f"{tenancy.name}.kubeconfig"
    file.touch(mode=0o600)
    file.write_bytes(await tenancy.secret(tenancy.home, NAME, "config"))
    async with tenancy.cluster.client(file) as client:
        await client.get(NAMESPACES)

    # and when the ConfigMap holds another CA, they trust it too
    other = ClusterPki.load_or_create(None).ca_pem
    source = f"{CONFIGMAPS}/proxy-ca"
    try:
        await tenancy.admin.merge_patch(source, {"data": {"ca.crt": other}})

        async def both() -> bool:
            return await bundle(tenancy, tenancy.home) == (other.strip(), *before)

        await until(both)
    finally:
        await tenancy.admin.merge_patch(source, {"data": {"ca.crt": "\n".join(before)}})


async def test_a_configmap_for_flux_is_rendered_beside_the_secret_or_instead_of_it(
    chosen: None, tenancy: Tenancy
) -> None:
    # given an account that asks for it
    await tenancy.make()
    await annotate(tenancy, kubeconfig_configmap="beside")
    found = await tenancy.must("ConfigMap", tenancy.home, NAME)
    assert found["data"]["provider"] == "generic"
    assert found["data"]["serviceAccountName"] == ACCOUNT
    assert found["data"]["address"] == tenancy.cluster.environ["TETHER_PROXY_URL"]
    await tenancy.must("Secret", tenancy.home, NAME)

    # when it asks for the ConfigMap alone, then no Secret holds a kubeconfig
    await annotate(tenancy, kubeconfig_configmap="instead")
    await tenancy.gone("Secret", tenancy.home, NAME)

    # and when it asks for nothing any more, the Secret is back and the ConfigMap gone
    await annotate(tenancy, kubeconfig_configmap=None)
    await tenancy.must("Secret", tenancy.home, NAME)
    await tenancy.gone("ConfigMap", tenancy.home, NAME)


async def test_a_refused_token_is_asked_for_again_told_and_comes_when_it_may(
    chosen: None, tenancy: Tenancy, until: Any, audit: Any
) -> None:
    # given a worker that may not ask for tokens
    role = msgspec.json.decode(await tenancy.admin.get(TOKEN_ROLE))
    less = [rule for rule in role["rules"] if "serviceaccounts/token" not in rule["resources"]]
    assert len(less) < len(role["rules"])
    await tenancy.admin.merge_patch(TOKEN_ROLE, {"rules": less})
    try:
        # when an account is enabled
        await tenancy.make()

        # then an Event on it says what was refused, and an audit record that it failed
        async def told() -> bool:
            found = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "events", namespace=tenancy.home)))
            events = [one for one in found["items"] if one["reason"] == "TokenRefused"]
            return any("serviceaccounts/token" in one["message"] for one in events)

        await until(told)
        records = [one for one in await audit() if one.account == f"{tenancy.home}/{ACCOUNT}"]
        assert ("minted", "failed") in {(one.action, one.outcome) for one in records}
    finally:
        await tenancy.admin.merge_patch(TOKEN_ROLE, {"rules": role["rules"]})

    # and when it may, the token comes by itself
    await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    await tenancy.must("Secret", tenancy.home, NAME)
