"""``kubectl get -A`` through the proxy: a tenant's own namespaces, those that are shared with it, and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from eventcore.kube import api_path
from proxycore.protobuf import Listed, seen
from tests.kubeapi import find_kubectl, run_kubectl

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kubeapi import Client

# The first of them waits for the whole cluster and for a restart of most of it.
pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(240), pytest.mark.slow]

Tenancy = Any
Until = Any
ACCOUNT = "gitops-reconciler"
ROLES = ("watcher", "worker", "proxy")
RBAC = "rbac.authorization.k8s.io"
SHARED = {"reflection.proxy.projectcapsule.dev/enabled": "true"}
PODS = "/api/v1/pods"
PROTOBUF = "application/vnd.kubernetes.protobuf"


@pytest.fixture(scope="module", autouse=True)
def switched_on(cluster: Any) -> Iterator[None]:
    """Run all that knows of it with lists across namespaces and reflection for as long as these tests last."""
    asyncio.run(cluster.restart(*ROLES, TETHER_PROXY_ALL_NAMESPACED="true", TETHER_ENABLE_REFLECTOR="true"))
    yield
    asyncio.run(cluster.restart(*ROLES))


async def put_pod(tenancy: Tenancy, until: Until, namespace: str, name: str, *, node: str = "", **labels: str) -> None:
    """Make a Pod as the administrator; the namespace's default account follows a moment after the namespace."""
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "registry.example.com/app"}]}
    spec |= {"nodeName": node} if node else {}
    body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
    async with tenancy.cluster.wire(direct=True) as admin:

        async def made() -> bool:
            answer = await admin.post(api_path("", "v1", "pods", namespace=namespace), body)
            return answer.status in {201, 409}

        await until(made)


async def two_tenants(tenancy: Tenancy, other: Tenancy, until: Until) -> tuple[list[str], str]:
    """Make two tenants with Pods; return the namespaces of the first, and that of the other."""
    for one in (tenancy, other):
        await one.make()
    mine = [await tenancy.make_usable("a"), await tenancy.make_usable("b")]
    foreign = await other.make_usable("c")
    await put_pod(tenancy, until, mine[0], "web-1", app="web")
    await put_pod(tenancy, until, mine[0], "web-2", app="web")
    await put_pod(tenancy, until, mine[1], "db", app="db")
    await put_pod(other, until, foreign, "hidden", app="web")
    return mine, foreign


async def pods(client: Client, query: str = "") -> list[str]:
    """Return the Pods that a list across namespaces holds."""
    reply = await client.get(PODS + query)
    assert reply.status == 200, reply
    return [f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in reply.body["items"]]


async def until_listed(client: Client, until: Until, *wanted: str) -> None:
    """Wait until exactly these Pods are listed: Capsule gives the rights in a new namespace a moment after it."""

    async def listed() -> bool:
        reply = await client.get(PODS)
        return reply.status == 200 and await pods(client) == sorted(wanted)

    await until(listed)


@asynccontextmanager
async def following(kubeconfig: Path, home: Path, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run kubectl, and yield what it prints, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        find_kubectl(),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)},
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.terminate()
        await process.communicate()


async def test_kubectl_shows_the_tenants_namespaces_and_nothing_else(
    tenancy: Tenancy, other: Tenancy, until: Until, tmp_path: Path
) -> None:
    mine, foreign = await two_tenants(tenancy, other, until)
    names = [f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db"]
    config = await tenancy.kubeconfig()
    async with tenancy.flux() as client:
        await until_listed(client, until, *names)

    async def shown(*arguments: str) -> list[str]:
        ran = await run_kubectl(config, tmp_path, "get", *arguments, "-A", "--no-headers")
        assert foreign not in ran.out + ran.err
        assert "hidden" not in ran.out + ran.err
        return ["/".join(line.split()[:2]) for line in ran.out.splitlines() if line.strip()]

    assert await shown("pods") == names
    assert await shown("pods", "-l", "app=web") == names[:2]
    assert await shown("pods", "--field-selector", "metadata.name=db") == names[2:]
    assert await shown("pods", "--chunk-size", "1") == names
    assert [name for name in await shown("all") if "/pod/" in name] == [n.replace("/", "/pod/") for n in names]
    assert {f"{name}/{ACCOUNT}-kubeconfig" for name in mine} <= set(await shown("secrets"))
    listed = await run_kubectl(config, tmp_path, "get", "pods", "-A", "-o", "yaml")
    assert [one["metadata"]["name"] for one in yaml.safe_load(listed.out)["items"]] == ["web-1", "web-2", "db"]
    assert "yes" in (await run_kubectl(config, tmp_path, "auth", "can-i", "list", "pods", "-A")).out
    assert "no" in (await run_kubectl(config, tmp_path, "auth", "can-i", "delete", "pods", "-A", expect=1)).out


async def test_a_client_that_takes_protobuf_alone_gets_its_own_in_it_page_by_page(
    tenancy: Tenancy, other: Tenancy, until: Until
) -> None:
    mine, foreign = await two_tenants(tenancy, other, until)
    async with tenancy.flux() as client:
        await until_listed(client, until, f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db")

        async def page(token: str) -> tuple[int, bytes]:
            more = {"continue": token} if token else {}
            headers = {**client.headers, "Accept": PROTOBUF}
            async with client.session.get(client.url + PODS, params={"limit": "2", **more}, headers=headers) as answer:
                return answer.status, await answer.read()

        status, first = await page("")
        if tenancy.cluster.kind == "embedded":  # its API writes no protobuf
            assert status == 406
            return
        listed = Listed.of(first)
        _, second = await page(listed.continue_)
        refused, why = await page("nonsense")

    assert (listed.kind, listed.api_version) == ("PodList", "v1")
    assert [seen(item).name for item in listed.items] == ["web-1", "web-2"]
    rest = Listed.of(second)
    assert [seen(item).name for item in rest.items] == ["db"]
    assert (rest.version, rest.continue_) == (listed.version, "")
    assert foreign.encode() not in first + second
    assert (refused, b"continue key is not valid" in why) == (400, True)


async def test_kubectl_describes_a_node_of_the_tenant_with_the_tenants_pods_alone(
    tenancy: Tenancy, other: Tenancy, until: Until, tmp_path: Path
) -> None:
    # given a node that both tenants run on, and the one may list nodes
    mine, foreign = await two_tenants(tenancy, other, until)
    node = f"{tenancy.name}-node"
    await tenancy.admin.create("/api/v1/nodes", {"metadata": {"name": node, "labels": {"pool": tenancy.name}}})
    tenant = tenancy.tenant(tenancy.user)
    tenant["spec"]["nodeSelector"] = {"pool": tenancy.name}
    tenant["spec"]["owners"][0]["proxySettings"] = [{"kind": "Nodes", "operations": ["List"]}]
    await tenancy.apply(tenant)
    await put_pod(tenancy, until, mine[0], "on-the-node", node=node)
    await put_pod(other, until, foreign, "hidden-on-the-node", node=node)
    config = await tenancy.kubeconfig()

    # when it describes the node
    async def described() -> str:
        ran = await run_kubectl(config, tmp_path, "describe", "node", node, expect=None)
        return ran.out if ran.code == 0 and "on-the-node" in ran.out else ""

    shown = str(await until(described))

    # then its own Pod is there, and none of the other's
    assert f"{mine[0]}" in shown
    assert foreign not in shown
    assert "hidden" not in shown


async def test_kubectl_watches_all_namespaces_also_one_that_comes(
    tenancy: Tenancy, other: Tenancy, until: Until, tmp_path: Path
) -> None:
    mine, foreign = await two_tenants(tenancy, other, until)
    async with tenancy.flux() as client:
        await until_listed(client, until, f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db")
    seen: list[str] = []

    async with following(await tenancy.kubeconfig(), tmp_path, "get", "pods", "-A", "-w", "--no-headers") as out:

        async def seen_line(namespace: str, name: str) -> None:
            async with asyncio.timeout(60):
                while [namespace, name] not in [line.split()[:2] for line in seen]:
                    seen.append((await out.readline()).decode())

        await seen_line(mine[1], "db")
        await put_pod(other, until, foreign, "hidden-too")
        await put_pod(tenancy, until, mine[0], "late")
        await seen_line(mine[0], "late")
        new = await tenancy.make_usable("new")
        await put_pod(tenancy, until, new, "first")
        await seen_line(new, "first")

    assert foreign not in "".join(seen)


async def test_a_list_and_the_watch_from_it_miss_nothing(tenancy: Tenancy, other: Tenancy, until: Until) -> None:
    mine, _ = await two_tenants(tenancy, other, until)
    names = [f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db"]
    async with tenancy.flux() as client:
        await until_listed(client, until, *names)
        listed = await client.get(PODS, params={"limit": "2"})
        version = listed.body["metadata"]["resourceVersion"]
        rest = await client.get(PODS, params={"limit": "2", "continue": listed.body["metadata"]["continue"]})
        assert rest.body["metadata"]["resourceVersion"] == version
        assert [one["metadata"]["name"] for one in listed.body["items"] + rest.body["items"]] == [
            "web-1",
            "web-2",
            "db",
        ]

        async with client.watch(PODS, resourceVersion=version, allowWatchBookmarks="true") as events:
            await put_pod(tenancy, until, mine[1], "late")
            event = await events.next()
            while event["object"]["metadata"]["name"] != "late":
                event = await events.next()
            assert event["type"] == "ADDED"

        assert await pods(client, "?resourceVersion=0") == sorted([*names, f"{mine[1]}/late"])
        assert await pods(client, f"?resourceVersion={version}&resourceVersionMatch=Exact") == names
        whole = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        async with client.watch(PODS, **whole) as events:
            begun = [await events.next(bookmarks=True) for _ in range(5)]
        assert [event["type"] for event in begun] == ["ADDED"] * 4 + ["BOOKMARK"]
        assert begun[4]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}

        # a namespace that goes takes its objects along
        await tenancy.admin.delete(api_path("", "v1", "namespaces", name=mine[1]))
        await until_listed(client, until, *names[:2])


async def test_a_binding_shares_its_namespace_until_it_goes(tenancy: Tenancy, other: Tenancy, until: Until) -> None:
    mine, foreign = await two_tenants(tenancy, other, until)
    bindings = api_path(RBAC, "v1", "rolebindings", namespace=foreign)
    body = {
        "metadata": {"name": "guests", "labels": SHARED},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}],
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"},
    }

    async with tenancy.flux() as client, other.acting() as owner:

        async def seen(*wanted: str) -> bool:
            return sorted(await client.names("/api/v1/namespaces")) == sorted(wanted)

        own = [f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db"]
        await until(lambda: seen(*mine))
        await until_listed(client, until, *own)

        # when the other tenant's owner binds this one to a role in its namespace
        await owner.create(bindings, body)
        await until(lambda: seen(*mine, foreign))
        await until_listed(client, until, *own, f"{foreign}/hidden")
        # then only what the role lets be listed is listed
        secrets = await client.get("/api/v1/secrets")
        assert foreign not in {one["metadata"]["namespace"] for one in secrets.body["items"]}

        # and it ends with the binding
        await owner.delete(f"{bindings}/guests")
        await until(lambda: seen(*mine))
        await until_listed(client, until, *own)


async def test_the_administrators_binding_in_a_tenant_shares_what_is_in_it(
    tenancy: Tenancy, other: Tenancy, until: Until
) -> None:
    mine, foreign = await two_tenants(tenancy, other, until)
    tenant = api_path("capsule.clastix.io", "v1beta2", "tenants", name=other.name)
    guests = {
        "clusterRoleName": "view",
        "labels": SHARED,
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}],
    }
    own = [f"{mine[0]}/web-1", f"{mine[0]}/web-2", f"{mine[1]}/db"]

    async with tenancy.flux() as client:
        await tenancy.admin.json_patch(
            tenant, [{"op": "add", "path": "/spec/additionalRoleBindings/-", "value": guests}]
        )
        await until_listed(client, until, *own, f"{foreign}/hidden")
        assert sorted(await client.names("/api/v1/namespaces")) == sorted([*mine, foreign])

        await tenancy.admin.json_patch(tenant, [{"op": "remove", "path": "/spec/additionalRoleBindings/1"}])
        await until_listed(client, until, *own)

        async def hidden_again() -> bool:
            return sorted(await client.names("/api/v1/namespaces")) == sorted(mine)

        await until(hidden_again)
