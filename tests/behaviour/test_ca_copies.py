"""The proxy's CA in other namespaces (the guide's Tekton case): on request, kept current, and nothing secret in it."""

from __future__ import annotations

import base64
import ssl
from typing import Any

import aiohttp
import pytest

from eventcore.kube import api_path
from tether.devcluster.pki import ClusterPki
from workers.authority import certificates

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
Object = dict[str, Any]
ASKS = "capsule-tether.io/proxy-ca"
NAME = "capsule-proxy"
NAMESPACES = api_path("", "v1", "namespaces")
SOURCE = api_path("", "v1", "secrets", namespace="capsule-system", name=NAME)


async def make_dashboard(tenancy: Tenancy, kind: str) -> str:
    """Make a namespace of the platform that asks for a copy."""
    name = f"tekton-{tenancy.name}"
    metadata = {"name": name, "annotations": {ASKS: kind}}
    await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return name


async def ask(tenancy: Tenancy, namespace: str, kind: str | None) -> None:
    await tenancy.admin.merge_patch(f"{NAMESPACES}/{namespace}", {"metadata": {"annotations": {ASKS: kind}}})


async def test_a_namespace_gets_the_ca_by_annotation_and_it_is_kept_current(
    cluster: Any, tenancy: Tenancy, until: Any
) -> None:
    # Given a namespace of a dashboard that asks for the proxy's CA
    await tenancy.make_home()
    place = await make_dashboard(tenancy, "secret")

    # Then it holds it, under both names, and no key
    made = await tenancy.must("Secret", place, NAME)
    assert made["type"] == "Opaque"
    assert set(made["data"]) == {"ca", "ca.crt"}
    assert "PRIVATE" not in "".join(base64.b64decode(value).decode() for value in made["data"].values())

    # And who trusts it can speak to the proxy
    trust = ssl.create_default_context(cadata=base64.b64decode(made["data"]["ca.crt"]).decode())
    url = f"{cluster.environ['TETHER_PROXY_URL']}/version"
    async with aiohttp.ClientSession(trust_env=False) as session, session.get(url, ssl=trust) as answer:
        assert answer.status == 401

    # When the CA is another one, then both are there
    before = (await tenancy.must("Secret", "capsule-system", NAME))["data"]["ca.crt"]
    old = base64.b64decode(before).decode()
    other = ClusterPki.load_or_create(None).ca_pem

    async def begins_with(first: str, *others: str) -> None:
        async def check() -> bool:
            found = await tenancy.get("Secret", place, NAME)
            pems = certificates(base64.b64decode(found["data"]["ca.crt"]).decode()) if found else ()
            return pems[:1] == (first.strip(),) and {one.strip() for one in others} <= set(pems)

        await until(check)

    await begins_with(old)
    try:
        await tenancy.admin.merge_patch(SOURCE, {"data": {"ca.crt": base64.b64encode(other.encode()).decode()}})
        await begins_with(other, old)
    finally:
        await tenancy.admin.merge_patch(SOURCE, {"data": {"ca.crt": before}})
    await begins_with(old, other)

    # When the annotation goes, so does the copy
    await ask(tenancy, place, None)
    await tenancy.gone("Secret", place, NAME)
    await tenancy.admin.delete(api_path("", "v1", "secrets", namespace="capsule-system", name="tether-proxy-ca"))


async def test_an_object_that_somebody_else_made_is_left_with_an_event(tenancy: Tenancy, until: Any) -> None:
    # Given a Secret of that name in a namespace of the platform
    await tenancy.make_home()
    name = f"foreign-{tenancy.name}"
    await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    foreign = {"metadata": {"name": NAME}, "data": {"ca.crt": "eA=="}}
    await tenancy.admin.create(api_path("", "v1", "secrets", namespace=name), foreign)

    # When the namespace asks for a copy
    await ask(tenancy, name, "secret")

    # Then an Event on the Namespace says what is in the way, and it stays
    async def told() -> bool:
        found = await tenancy.admin.get_as(Object, api_path("", "v1", "events", namespace="default"))
        return any(
            one["involvedObject"]["kind"] == "Namespace"
            and one["involvedObject"]["name"] == name
            and one["reason"] == "ForeignObject"
            for one in found["items"]
        )

    await until(told)
    assert (await tenancy.must("Secret", name, NAME))["data"] == foreign["data"]


async def test_a_tenant_gets_nothing_secret_by_annotating_its_own_namespace(tenancy: Tenancy) -> None:
    # Given a tenant with a namespace of its own
    await tenancy.make()
    own = await tenancy.make_usable("production")

    # When its owner annotates it, as far as Capsule lets it, or an administrator does
    await ask(tenancy, own, "secret")

    # Then there is the public CA, which its kubeconfig holds anyway, and nothing else
    made = await tenancy.must("Secret", own, NAME)
    assert set(made["data"]) == {"ca", "ca.crt"}
    assert certificates(base64.b64decode(made["data"]["ca"]).decode())
    token = await tenancy.token()
    assert token not in base64.b64decode(made["data"]["ca"]).decode()
