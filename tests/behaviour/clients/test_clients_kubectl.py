"""Every kubectl of the machine, and the pinned one, through the proxy on a real control plane."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.behaviour.clients.conftest import Program, object_of

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.kubectl]

Tenancy = Any


def manifest(namespace: str, **data: str) -> str:
    return msgspec.json.encode(object_of("ConfigMap", namespace, "page", data=data)).decode()


async def test_kubectl_reads_what_is_the_tenants_and_nothing_else(
    owner: Tenancy, namespace: str, foreign: str, kubectl: Program
) -> None:
    # when the tenant looks at namespaces in each way
    listed = await kubectl.run("get", "namespaces", "--output=name")
    wide = await kubectl.run("get", "namespaces", "--output=wide")
    whole = await kubectl.json("get", "namespaces", "--output=json")
    described = await kubectl.run("describe", "namespace", namespace)
    by_label = await kubectl.run("get", "ns", "-l", f"kubernetes.io/metadata.name={foreign}", "--output=name")
    tenants = await kubectl.run("get", "tenants", "--output=name")

    # then it is its own
    assert listed.out.split() == [f"namespace/{namespace}"]
    assert [line.split()[:2] for line in wide.out.splitlines()] == [["NAME", "STATUS"], [namespace, "Active"]]
    assert [item["metadata"]["name"] for item in whole["items"]] == [namespace]
    assert namespace in described.out
    assert by_label.out == ""
    assert tenants.out.split() == [f"tenant.capsule.clastix.io/{owner.name}"]

    # and of another tenant's it is told what the API server says
    refused = await kubectl.run("get", "namespace", foreign, expect=1)
    inside = await kubectl.run("get", "configmaps", "--namespace", foreign, expect=1)
    assert "(Forbidden)" in refused.err
    assert "(Forbidden)" in inside.err


async def test_kubectl_learns_what_there_is_and_what_it_may(owner: Tenancy, namespace: str, kubectl: Program) -> None:
    resources = await kubectl.run("api-resources", "--output=name")
    explained = await kubectl.run("explain", "tenants.spec.owners")
    me = await kubectl.run("auth", "whoami")
    version = await kubectl.json("version", "--output=json")

    assert {"namespaces", "deployments.apps", "tenants.capsule.clastix.io"} <= set(resources.out.split())
    assert "proxySettings" in explained.out
    assert owner.user in me.out
    assert version["serverVersion"]["gitVersion"]

    # what the proxy itself gives is in the answer, and what nobody gives is not
    for question, answer in (
        (("list", "namespaces"), "yes"),
        (("watch", "namespaces"), "yes"),
        (("create", "configmaps", "--namespace", namespace), "yes"),
        (("list", "nodes", "--all-namespaces"), "no"),
        (("list", "secrets", "--all-namespaces"), "no"),
    ):
        said = await kubectl.run("auth", "can-i", *question, expect=0 if answer == "yes" else 1)
        assert said.out.split()[0] == answer, question
    everything = await kubectl.run("auth", "can-i", "--list", "--namespace", namespace)
    assert "namespaces" in everything.out


async def test_kubectl_applies_compares_labels_and_deletes(namespace: str, kubectl: Program) -> None:
    here = ("--namespace", namespace)
    page = ("configmap", "page", *here)

    # client side, and what would change
    made = await kubectl.run("apply", "-f", "-", stdin=manifest(namespace, a="1"))
    again = await kubectl.run("apply", "-f", "-", stdin=manifest(namespace, a="1"))
    differs = await kubectl.run("diff", "-f", "-", stdin=manifest(namespace, a="2"), expect=1)
    await kubectl.run("apply", "-f", "-", stdin=manifest(namespace, a="2"))
    assert (made.out, again.out) == ("configmap/page created\n", "configmap/page unchanged\n")
    assert '+  a: "2"' in differs.out
    assert (await kubectl.json("get", *page, "--output=json"))["data"] == {"a": "2"}

    # server side, with another manager in conflict
    served = ("apply", "--server-side", "--field-manager=other", "-f", "-")
    conflict = await kubectl.run(*served, stdin=manifest(namespace, a="3"), expect=1)
    await kubectl.run(*served, "--force-conflicts", stdin=manifest(namespace, a="3"))
    assert "conflict with" in conflict.err
    assert (await kubectl.json("get", *page, "--output=json"))["data"] == {"a": "3"}

    # labels, annotations, a patch, a condition to wait for, and the end
    await kubectl.run("label", *page, "colour=red")
    await kubectl.run("annotate", *page, "note=kept")
    await kubectl.run("patch", *page, "--type=merge", "--patch", '{"data":{"b":"4"}}')
    await kubectl.run("wait", *page, "--for=jsonpath={.data.b}=4", "--timeout=30s")
    chosen = await kubectl.run("get", "configmaps", *here, "-l", "colour=red", "--output=name")
    assert chosen.out == "configmap/page\n"
    await kubectl.run("delete", *page)
    assert "NotFound" in (await kubectl.run("get", *page, expect=1)).err


async def test_kubectl_makes_namespaces_of_its_tenant_and_touches_no_other(
    owner: Tenancy, namespace: str, foreign: str, kubectl: Program
) -> None:
    name = f"{owner.name}-made"
    tried = await kubectl.run("create", "namespace", name, "--dry-run=server", "--output=name")
    await kubectl.run("create", "namespace", name)
    await kubectl.run("wait", "namespace", name, "--for=jsonpath={.status.phase}=Active", "--timeout=30s")
    labelled = await kubectl.run("label", "namespace", foreign, "mine=1", expect=1)
    deleted = await kubectl.run("delete", "namespace", foreign, "--wait=false", expect=1)

    assert tried.out == f"namespace/{name}\n"
    assert "(Forbidden)" in labelled.err
    assert "(Forbidden)" in deleted.err
    listed = await kubectl.run("get", "namespaces", "--output=name")
    assert listed.out.split() == [f"namespace/{name}", f"namespace/{namespace}"]


async def test_a_watch_of_kubectl_sees_who_joins_and_who_leaves(
    owner: Tenancy, namespace: str, foreign: str, kubectl: Program
) -> None:
    arguments = ("get", "namespaces", "--watch", "--output-watch-events", "--no-headers")
    async with kubectl.running(*arguments) as watching:
        assert (await watching.line()).split()[:2] == ["ADDED", namespace]

        joined = await owner.make_usable("joins")
        await watching.until(lambda line: line.split()[:2] == ["ADDED", joined])

        await kubectl.run("delete", "namespace", joined, "--wait=false")
        seen = await watching.until(lambda line: line.split()[:2] == ["DELETED", joined])
    assert not any(foreign in line for line in seen)
