"""A namespace that asks for it holds the proxy's CA: public certificates, kept current; nobody else loses an object."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.objects import Meta, Namespace
from eventcore.settings import Settings
from workers.ca_copies import NAME, wish

if TYPE_CHECKING:
    from tests.workers.conftest import Line, MakeLine

Object = dict[str, Any]
ASKS = "capsule-tether.io/proxy-ca"
COMPONENT = "capsule-tether.io/component"
PLACE = "tekton-pipelines"
CA = ("Secret", "capsule-system", "capsule-proxy")


@pytest.fixture
async def allowing(make_line: MakeLine) -> Line:
    """A line where copies may be ConfigMaps."""
    return await make_line(kubeconfig_configmaps=True)


async def ask(line: Line, kind: str | None, namespace: str = PLACE) -> None:
    """Annotate a Namespace, which is made if it is not there."""
    if await line.get("Namespace", "", namespace) is None:
        await line.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    await line.patch("Namespace", "", namespace, {"metadata": {"annotations": {ASKS: kind}}})


async def events(line: Line, reason: str) -> list[str]:
    """Return what Events of a reason say about Namespaces."""
    found = await line.all("Event", "default")
    return [one["message"] for one in found if (one["reason"], one["involvedObject"]["kind"]) == (reason, "Namespace")]


def data(line: Line, *names: str) -> Object:
    bundle = b"".join(base64.b64decode(line.ca_of(name)) for name in names)
    return dict.fromkeys(("ca", "ca.crt"), base64.b64encode(bundle).decode())


async def until_data(line: Line, wanted: Object, namespace: str = PLACE) -> None:
    async def check() -> bool:
        found = await line.get("Secret", namespace, NAME)
        return found is not None and bool(found["data"] == wanted)

    await line.until(check, "a copy that holds what is trusted")


async def test_a_copy_holds_the_ca_alone_follows_it_and_goes_with_the_annotation(line: Line) -> None:
    # given a source that holds the key of the proxy too
    await line.patch(*CA, {"data": {"tls.key": base64.b64encode(b"-----BEGIN PRIVATE KEY-----").decode()}})
    async with line.everything():
        await line.settle()

        # when a namespace asks for a copy
        await ask(line, "secret")

        # then it holds the certificate, under both names, and nothing else
        await until_data(line, data(line, "proxy"))
        made = await line.must("Secret", PLACE, NAME)
        assert made["type"] == "Opaque"
        assert made["metadata"]["labels"] == {COMPONENT: "ca"}
        assert not made["metadata"].get("ownerReferences")

        # and when the CA is replaced, then both are there for the overlap
        await line.patch(*CA, {"data": {"ca.crt": line.ca_of("another")}})
        await until_data(line, data(line, "another", "proxy"))

        # and when somebody deletes or edits it, then it is put right
        await line.delete("Secret", PLACE, NAME)
        await until_data(line, data(line, "another", "proxy"))
        await line.patch("Secret", PLACE, NAME, {"data": {"ca": None, "more": "eA=="}})
        await until_data(line, data(line, "another", "proxy"))

        # and when the annotation goes, so does the copy
        await ask(line, None)
        await line.until_gone("Secret", PLACE, NAME)
        await line.until_recorded("kubeconfig", "distributed", f"Secret/{PLACE}/{NAME}")


@pytest.mark.slow
async def test_the_overlap_ends_in_a_copy_too(line: Line) -> None:
    async with line.everything():
        await line.settle()
        await ask(line, "secret")
        await until_data(line, data(line, "proxy"))
        await line.patch(*CA, {"data": {"ca.crt": line.ca_of("another")}})
        await until_data(line, data(line, "another", "proxy"))

    async with line.everything(proxy_ca_overlap=1.5):
        await until_data(line, data(line, "another"))


async def test_what_was_asked_while_nobody_ran_is_done_at_the_next_start(line: Line) -> None:
    async with line.everything():
        await line.settle()
        await ask(line, "secret")
        await until_data(line, data(line, "proxy"))

    await ask(line, None)
    await ask(line, "secret", "dashboards")

    async with line.everything():
        await line.until_gone("Secret", PLACE, NAME)
        await until_data(line, data(line, "proxy"), "dashboards")


async def test_a_copy_may_be_a_configmap_and_change_its_kind(allowing: Line) -> None:
    line = allowing
    async with line.everything():
        await line.settle()
        await ask(line, "configmap")
        made = await line.until_there("ConfigMap", PLACE, NAME)
        assert made["data"] == {"ca.crt": base64.b64decode(line.ca_of("proxy")).decode()}
        assert await line.get("Secret", PLACE, NAME) is None

        await ask(line, "secret")
        await until_data(line, data(line, "proxy"))
        await line.until_gone("ConfigMap", PLACE, NAME)

        await ask(line, "configmap")
        await line.until_there("ConfigMap", PLACE, NAME)
        await line.until_gone("Secret", PLACE, NAME)
        await ask(line, None)
        await line.until_gone("ConfigMap", PLACE, NAME)


async def test_somebody_elses_object_of_that_name_is_left_and_said(line: Line) -> None:
    async with line.everything():
        await line.settle()
        await line.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
        foreign = {"metadata": {"name": NAME}, "data": {"ca.crt": "eA=="}}
        await line.client.create(line.path("Secret", PLACE), foreign)
        before = await line.must("Secret", PLACE, NAME)

        await ask(line, "secret")

        async def told() -> bool:
            return any(f"Secret/{PLACE}/{NAME} exists" in text for text in await events(line, "ForeignObject"))

        await line.until(told, "an Event on the Namespace")
        assert await line.must("Secret", PLACE, NAME) == before

        # and when the annotation goes, it is still not ours to delete: what came later has been worked on by then
        await ask(line, None)
        await ask(line, "secret", "dashboards")
        await until_data(line, data(line, "proxy"), "dashboards")
        assert await line.must("Secret", PLACE, NAME) == before


async def test_what_is_not_understood_or_allowed_is_said_and_copies_nothing(line: Line) -> None:
    async with line.everything():
        await line.settle()
        await ask(line, "configmap")
        await ask(line, "yes please", "dashboards")
        source = await line.must(*CA)
        await ask(line, "secret", "capsule-system")

        async def told() -> bool:
            texts = " ".join(await events(line, "AnnotationIgnored"))
            return all(
                part in texts
                for part in ("TETHER_KUBECONFIG_CONFIGMAPS=true", "'yes please'", "where the proxy's CA comes from")
            )

        await line.until(told, "Events on the Namespaces")
        for namespace in (PLACE, "dashboards"):
            for kind in ("Secret", "ConfigMap"):
                assert await line.get(kind, namespace, NAME) is None
        assert (await line.must(*CA))["data"] == source["data"]


async def test_a_tenant_gets_nothing_but_the_public_ca_by_it(line: Line) -> None:
    # given a tenant that annotates its own namespace, and forges a copy in another one that holds its own secret
    async with line.everything():
        await line.settle()
        await line.make_namespace("oil-system", "oil-development")
        token = await line.token("oil-system")
        async with line.acting_as(token) as owner:
            path = line.path("Namespace", "", "oil-development")
            await owner.merge_patch(path, {"metadata": {"annotations": {ASKS: "secret"}}})

        await until_data(line, data(line, "proxy"), "oil-development")
        found = await line.must("Secret", "oil-development", NAME)
        assert set(found["data"]) == {"ca", "ca.crt"}
        assert token not in str(found)


@pytest.mark.parametrize(
    ("asked", "configmaps", "kind"),
    [
        (None, True, ""),
        ("secret", False, "Secret"),
        ("configmap", True, "ConfigMap"),
        ("configmap", False, ""),
        ("Secret", True, ""),
        ("", True, ""),
    ],
)
def test_the_wish_of_a_namespace(asked: str | None, configmaps: bool, kind: str) -> None:
    annotations = {} if asked is None else {ASKS: asked}
    settings = Settings(kubeconfig_configmaps=configmaps)

    assert wish(Namespace(metadata=Meta(name="a", annotations=annotations)), settings)[0] == kind
    assert wish(None, settings) == ("", "")
