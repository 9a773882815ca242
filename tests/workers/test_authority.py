"""Kubeconfigs trust the proxy's CA as it is, for a time the one before, and never anything that is no certificate."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import CA_MEMORY
from tether.devcluster.pki import ClusterPki
from workers.authority import Memory, certificates

if TYPE_CHECKING:
    from tests.workers.conftest import Line, MakeLine

HOME, NAME = "oil-system", "gitops-reconciler"
KUBECONFIG = f"{NAME}-kubeconfig"
CA = ("Secret", "capsule-system", "capsule-proxy")
START = datetime(2026, 1, 1, tzinfo=UTC)
changes = st.lists(st.tuples(st.lists(st.sampled_from("abcd"), min_size=1, unique=True), st.floats(0, 100)))


@given(changes, st.floats(0, 50))
def test_a_certificate_is_trusted_while_it_is_current_and_for_the_overlap_after(
    changes: list[tuple[list[str], float]], overlap: float
) -> None:
    memory, moment, left = Memory(()), START, dict[str, datetime]()
    for current, passed in changes:
        moment += timedelta(seconds=passed)
        left |= {one: moment for one in memory.current if one not in current}
        left = {one: at for one, at in left.items() if one not in current}

        memory = memory.advanced(current, moment, overlap)

        assert memory.current == tuple(current)
        kept = {past.certificate for past in memory.previous}
        assert kept == {one for one, at in left.items() if at + timedelta(seconds=overlap) > moment}
        assert memory.ends is None or memory.ends > moment


def test_a_shorter_overlap_counts_for_what_is_remembered() -> None:
    memory = Memory(("a",)).advanced(["b"], START, 1000.0)

    assert memory.bundle == b"b\na\n"
    assert memory.advanced(["b"], START, 10.0).ends == START + timedelta(seconds=10)
    assert memory.advanced(["b"], START, 0.0) == Memory(("b",))


def test_of_a_pem_text_only_the_certificates_are_taken_each_once() -> None:
    pki = ClusterPki.load_or_create(None)
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

    assert certificates(f"# comment\n{key}{pki.ca_pem}{pki.ca_pem}") == (pki.ca_pem.strip(),)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="certificate"):
        certificates(text)


async def trusted(line: Line, namespace: str) -> list[str]:
    """Return the certificates in a namespace's kubeconfig as base64 of their PEM, as ``Line.ca_of`` gives them."""
    config = await line.kubeconfig(namespace)
    if config is None:
        return []
    bundle = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    return [base64.b64encode(f"{one}\n".encode()).decode() for one in certificates(bundle)]


async def until_trusted(line: Line, *names: str) -> None:
    async def check() -> bool:
        wanted = [line.ca_of(name) for name in names]
        return [await trusted(line, namespace) for namespace in (HOME, "oil-production")] == [wanted, wanted]

    await line.until(check, f"kubeconfigs that trust {names}")


@pytest.mark.slow
async def test_a_new_ca_stands_beside_the_old_one_for_the_overlap_and_then_alone(line: Line) -> None:
    # given the example runs
    async with line.everything():
        await line.settle()
        await until_trusted(line, "proxy")

        # when the proxy's CA is another one, under the key that the addon used
        await line.patch(*CA, {"data": {"ca.crt": None, "ca": line.ca_of("another")}})

        # then every kubeconfig trusts both, the new one first
        await until_trusted(line, "another", "proxy")
        # and one that is made now does so too
        await line.make_namespace(HOME, "oil-development")
        await line.until_there("Secret", "oil-development", KUBECONFIG)
        assert await trusted(line, "oil-development") == [line.ca_of("another"), line.ca_of("proxy")]

    # and when the overlap is over
    async with line.everything(proxy_ca_overlap=1.5):
        # then a timer leaves the new one alone
        await until_trusted(line, "another")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": {"ca.crt": base64.b64encode(b"no certificate").decode()}}, "not a PEM certificate"),
        ({"data": {"ca.crt": None}}, "none of the keys"),
        (None, "does not exist"),
    ],
    ids=["not a certificate", "no key", "deleted"],
)
async def test_a_ca_that_is_spoiled_replaces_no_good_one(line: Line, change: dict[str, Any] | None, says: str) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()

        # when the CA is spoiled
        await (line.delete(*CA) if change is None else line.patch(*CA, change))

        # then an Event on the account says so
        async def told() -> bool:
            events = await line.all("Event", HOME)
            return any(event["reason"] == "KubeconfigWaits" and says in event["message"] for event in events)

        await line.until(told, "an Event that says what is wrong")
        # and kubeconfigs trust the one before, also one that is made now
        await line.make_namespace(HOME, "oil-development")
        await line.until_there("Secret", "oil-development", KUBECONFIG)
        for namespace in (HOME, "oil-production", "oil-development"):
            assert await trusted(line, namespace) == [line.ca_of("proxy")]


async def test_the_ca_may_come_from_a_configmap_and_is_followed_there(make_line: MakeLine) -> None:
    # given the proxy's CA is in a ConfigMap
    line = await make_line(proxy_ca_configmap="proxy-ca", proxy_ca_overlap=0.0)

    async def put(name: str) -> None:
        data = {"ca.crt": base64.b64decode(line.ca_of(name)).decode()}
        metadata = {"name": "proxy-ca", "namespace": "capsule-system"}
        await line.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    await put("one")
    async with line.everything():
        await line.settle()
        await until_trusted(line, "one")

        # when it is another one
        await put("two")

        # then kubeconfigs trust that one, and alone since there is no overlap
        await until_trusted(line, "two")


async def test_a_secret_of_somebody_else_is_not_used_as_memory(line: Line) -> None:
    # given a Secret of that name that Tether did not make
    metadata = {"name": CA_MEMORY, "namespace": "capsule-system"}
    data = {"key": base64.b64encode(b"value").decode()}
    await line.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
    async with line.everything(retry_base=0.05, retry_max=0.2):
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")

        # when the kubeconfig was tried some times
        async def told() -> bool:
            events = await line.all("Event", HOME)
            return any("delete or rename it" in event["message"] for event in events)

        await line.until(told, "an Event that says what is in the way")

        # then it is as it was, and when it is gone the kubeconfig comes
        assert (await line.must("Secret", "capsule-system", CA_MEMORY))["data"] == data
        await line.delete("Secret", "capsule-system", CA_MEMORY)
        await line.until_there("Secret", HOME, KUBECONFIG)
