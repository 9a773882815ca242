"""How a tenant may try to be more, or less, than it is to Capsule and to the proxy: each ends in a refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.kube import KubeClient, api_path
from tests.behaviour.test_attacks import CAPSULE, MADE, RBAC, TENANT_LABEL, binding, doors, every_verb, refused
from tether import manifests

if TYPE_CHECKING:
    from tests.kubeapi import Client

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
OK = 200


@pytest.fixture
async def writing(admin: KubeClient) -> AsyncIterator[None]:
    """Bring what ProxySettings need, and let the proxy write for their subjects, for as long as a test lasts."""
    applier = manifests.Applier(admin, "person")
    await applier.apply(manifests.read(manifests.shipped("deploy/crds/proxysettings.yaml")))
    rights = manifests.read(manifests.shipped("deploy/optional/proxy-writes.yaml"))
    await applier.apply(rights)
    yield
    for obj in reversed(rights):
        await admin.delete(await applier.path(obj))


async def test_nobody_gets_around_the_cordon_of_its_tenant_as_itself_in_fewer_groups(
    acting: None, tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant that is cordoned, and a proxy that may act for others
    await tenancy.make()
    own = await tenancy.make_usable("production")
    body = tenancy.tenant(tenancy.user)
    body["spec"]["cordoned"] = True
    await tenancy.apply(body)
    maps = api_path("", "v1", "configmaps", namespace=own)
    async with doors(tenancy) as clients:
        for door, client in clients.items():

            async def cordoned(client: Client = client, door: str = door) -> bool:
                answer = await client.post(maps, {"metadata": {"generateName": f"before-{door}-"}})
                return refused(answer) and "cordon" in answer.body["message"]

            await until(cordoned)
        # When its account writes as itself, in groups of which Capsule knows none as its users, or beside itself
        through = clients["proxy"]
        asked = {
            "one group": through.acting(tenancy.user, "system:authenticated"),
            "some groups": through.acting(tenancy.user, "system:serviceaccounts", "system:authenticated"),
            "a key": through.acting(tenancy.user, **{"Extra_%41": "x"}),
            "its uid": through.acting(tenancy.user, Uid="1"),
        }
        for what, one in asked.items():
            answer = await one.post(maps, {"metadata": {"name": "after"}})
            assert answer.status == 403, (what, answer)
            assert "cannot impersonate" in answer.body["message"], what
    assert await tenancy.get("ConfigMap", own, "after") is None


async def test_a_proxy_setting_that_the_tenant_writes_gives_nothing_that_its_owner_has_not(
    writing: None, tenancy: Tenancy, admin: Any, until: Any
) -> None:
    # Given a node, a class and a volume, and a proxy that may write such
    await tenancy.make()
    own, name = await tenancy.make_usable("production"), f"{tenancy.name}-prey"
    node, cls, volume = (
        api_path("", "v1", "nodes"),
        api_path("storage.k8s.io", "v1", "storageclasses"),
        api_path("", "v1", "persistentvolumes"),
    )
    metadata = {"name": name, "labels": {TENANT_LABEL: tenancy.name}}
    capacity = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}
    await admin.create(node, {"metadata": metadata})
    await admin.create(cls, {"metadata": metadata, "provisioner": "none.example"})
    await admin.create(volume, {"metadata": metadata, "spec": capacity})
    # When the tenant writes a ProxySetting that gives itself, and an account of its own, everything
    given = [
        {"kind": kind, "operations": ["List", "Update", "Delete"]}
        for kind in ("Nodes", "StorageClasses", "PersistentVolumes")
    ]
    subjects = [
        {"kind": "ServiceAccount", "name": user} for user in (tenancy.user, f"system:serviceaccount:{own}:default")
    ]
    spec = {"subjects": [one | {"proxySettings": given} for one in subjects]}
    settings = api_path(CAPSULE, "v1beta1", "proxysettings", namespace=own)
    async with tenancy.flux() as client:

        async def written() -> bool:
            body = {
                "apiVersion": f"{CAPSULE}/v1beta1",
                "kind": "ProxySetting",
                "metadata": {"name": "all"},
                "spec": spec,
            }
            return bool((await client.post(settings, body)).status == MADE)

        await until(written)

        # Then its status and an Event say that it does not count
        async def told() -> bool:
            status = (await client.get(f"{settings}/all")).body.get("status") or {}
            said = [one["message"] for one in status.get("conditions", ()) if one["status"] == "False"]
            events = (await client.get(api_path("", "v1", "events", namespace=own))).body["items"]
            said += [one["message"] for one in events if one["reason"] == "NotPermitted"]
            return len(said) > 1 and all("of Nodes does not count" in one for one in said)

        await until(told)
        # And nothing of it is to be had
        for collection in (node, cls, volume):
            answers = await every_verb(client, collection, name)
            assert set(answers.values()) == {403}, (collection, answers)
        for collection in (node, cls, volume):
            assert b'"mine"' not in await admin.get(f"{collection}/{name}")
        # But what the administrator permits on the Tenant
        permitted = {"metadata": {"annotations": {"capsule-tether.io/cluster-resources": "true"}}}
        await admin.merge_patch(api_path(CAPSULE, "v1beta2", "tenants", name=tenancy.name), permitted)

        async def deleted() -> bool:
            return bool((await client.delete(f"{node}/{name}")).status == OK)

        await until(deleted)
    for collection in (cls, volume):
        await admin.delete(f"{collection}/{name}")


async def test_who_may_act_as_others_does_so_through_the_proxy_with_extras_and_the_proxy_needs_no_right(
    tenancy: Tenancy, admin: Any, until: Any
) -> None:
    # Given an agent outside of every tenant that may impersonate, as that of a management platform, and a tenant
    await tenancy.make()
    own, name = await tenancy.make_usable("production"), f"{tenancy.name}-agent"
    await admin.create(api_path("", "v1", "namespaces"), {"metadata": {"name": name}})
    await admin.create(api_path("", "v1", "serviceaccounts", namespace=name), {"metadata": {"name": "agent"}})
    rule = {
        "apiGroups": ["", "authentication.k8s.io"],
        "resources": ["serviceaccounts", "groups", "userextras/username", "userextras/a/b"],
        "verbs": ["impersonate"],
    }
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": name}
    await admin.create(api_path(RBAC, "v1", "clusterroles"), {"metadata": {"name": name}, "rules": [rule]})
    await admin.create(api_path(RBAC, "v1", "clusterrolebindings"), binding(name, name, subject))
    issued = await admin.token_request(name, "agent", expiration_seconds=3600)
    extras = {"Extra_Username": "dana", "Extra_A%2fB": "x"}
    maps = api_path("", "v1", "configmaps", namespace=own)
    whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    async with tenancy.cluster.wire(issued.token) as client:
        agent = client.acting(tenancy.user, **extras)

        # When it acts as the tenant's owner, then it sees and does what the owner does, and no more
        async def sees() -> bool:
            return bool((await agent.get("/api/v1/namespaces")).status == OK)

        await until(sees)
        assert await agent.names("/api/v1/namespaces") == [own]
        assert (await agent.post(maps, {"metadata": {"name": "made"}})).status == MADE
        assert (await agent.get(api_path("", "v1", "secrets", namespace="kube-system"))).status == 403
        me = (await agent.post(whoami, {})).body["status"]["userInfo"]
        assert (me["username"], me["extra"]) == (tenancy.user, {"username": ["dana"], "a/b": ["x"]})
        # And what it has no right to is refused in the API server's words, filtered or not
        for more in ({"Extra_more": "x"}, {"Extra_%41": "x"}, {"Uid": "1"}):
            for path in ("/api/v1/namespaces", maps):
                answer = await client.acting(tenancy.user, **extras, **more).get(path)
                assert (answer.status, "cannot impersonate" in answer.body["message"]) == (403, True), (more, path)
        # As itself it sees nothing of the tenant
        assert (await client.get("/api/v1/namespaces")).status == 403
    for plural in ("clusterrolebindings", "clusterroles"):
        await admin.delete(api_path(RBAC, "v1", plural, name=name))
