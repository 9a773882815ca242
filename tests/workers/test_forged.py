"""What an account, or a developer in one namespace, writes into marks and annotations harms nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from eventcore import topology
from tests.naming import short

if TYPE_CHECKING:
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
ACCOUNT = f"{HOME}/{NAME}"
KUBECONFIG, TOKEN = f"{NAME}-kubeconfig", f"{NAME}-token"
HOSTILE = {
    "blanks without an end": "a in (" + ",  " * 30 + "!",
    "many of them": "a in (" + ",  " * 20_000 + "!",
    "terms": ",".join(["a"] * 50_000),
}


def forged(namespace: str, name: str, generation: str, account: str = ACCOUNT) -> dict[str, Any]:
    """Return a Secret that says to be the one that a generation of an account's token is bound to."""
    annotations = {"capsule-tether.io/account": account, "capsule-tether.io/generation": generation}
    metadata = {"name": name, "namespace": namespace, "annotations": annotations}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata | {"labels": {"capsule-tether.io/component": "token"}},
    }


async def rotate(line: Line) -> None:
    """Ask for a rotation of the first generation, and wait for the second."""
    patch = {"metadata": {"annotations": {"capsule-tether.io/rotate": "1"}}}
    await line.patch("Secret", HOME, TOKEN, patch)
    await line.until_generations(HOME, 1, 2)


async def revoke(line: Line, token: str) -> None:
    """Take the account's annotation off, and wait until nothing of its token is left."""
    await line.annotate(ACCOUNT, **{"capsule.addon.fluxcd/enabled": None})

    async def dead() -> bool:
        return not await line.accepts(token) and await line.grant("account", HOME, NAME) is None

    await line.until(dead, "the end of the token")
    await line.until_gone("Secret", HOME, TOKEN)
    state = await line.bus.js.stream_info(topology.DLQ)
    assert state.state.messages == 0


@pytest.mark.parametrize("generation", ["9" * 5000, "9" * 24, "2147483646"], ids=short)
async def test_a_generation_that_is_forged_in_another_namespace_is_not_looked_at(line: Line, generation: str) -> None:
    async with line.everything():
        # given a developer in a namespace of the tenant, who marks a Secret there with the account's name
        await line.settle()
        await line.apply(forged("oil-production", f"{TOKEN}-{generation[:20]}", generation))

        # when the token is rotated, then by the next generation
        await rotate(line)

        # and when the account may no longer have one, then it is dead, and nobody had to give up
        await revoke(line, await line.token(HOME))
        assert await line.get("Secret", "oil-production", f"{TOKEN}-{generation[:20]}") is not None


async def test_generations_that_the_account_forges_at_home_harm_it_alone_and_hold_up_no_revocation(line: Line) -> None:
    async with line.everything():
        # given an account that makes Secrets like those of its token, and another tenant
        await line.settle()
        for generation in ("9" * 5000, "9" * 24, "2147483646", "2147483647", "0", "x"):
            name = f"{TOKEN}-{generation[:20]}"
            await line.apply(forged(HOME, name, generation))

        # when it is rotated, then by the next generation
        await rotate(line)
        # and the other one is served
        await line.apply_files("gas.yaml")
        await line.until_there("Secret", "gas-system", KUBECONFIG)

        # and when the account writes what is no generation on its current token, it gets a new one
        patch = {"metadata": {"annotations": {"capsule-tether.io/generation": "9" * 5000}}}
        await line.patch("Secret", HOME, TOKEN, patch)

        async def mended() -> bool:
            secret = await line.get("Secret", HOME, TOKEN)
            return secret is not None and len(secret["metadata"]["annotations"]["capsule-tether.io/generation"]) == 1

        await line.until(mended, "a token of a generation")

        # and when it may no longer have one, then it is dead
        await revoke(line, await line.token(HOME))


async def test_a_copy_that_is_forged_where_the_tenant_never_was_forces_no_rotation(line: Line) -> None:
    async with line.everything():
        # given a developer in a namespace of nobody, who knows the account and guesses its generation
        await line.settle()
        token = await line.token(HOME)
        await line.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}})
        secret = forged("elsewhere", KUBECONFIG, "1")
        secret["metadata"]["labels"]["capsule-tether.io/component"] = "kubeconfig"

        # when a Secret there says that it is a copy of the account's kubeconfig
        await line.apply(secret)
        await line.until_gone("Secret", "elsewhere", KUBECONFIG)

        # then nothing asks for another token
        annotations = (await line.must("Secret", HOME, TOKEN))["metadata"]["annotations"]
        assert "capsule-tether.io/rotate" not in annotations
        assert await line.token(HOME) == token


@pytest.mark.parametrize("selector", HOSTILE.values(), ids=HOSTILE)
async def test_a_selector_that_takes_long_to_read_stops_neither_others_nor_the_revocation(
    line: Line, selector: str
) -> None:
    async with line.everything():
        # given an enabled account that writes it on itself
        await line.settle()
        token = await line.token(HOME)
        await line.annotate(ACCOUNT, **{"capsule-tether.io/kubeconfig-namespaces": selector})

        # then it is told, and no namespace of its tenant gets a copy
        await line.until_gone("Secret", "oil-production", KUBECONFIG)

        async def told() -> bool:
            return "AnnotationIgnored" in {event["reason"] for event in await line.all("Event", HOME)}

        await line.until(told, "an Event that names the annotation")

        # and another tenant is served
        await line.apply_files("gas.yaml")
        await line.until_there("Secret", "gas-system", KUBECONFIG)

        # and when the account may no longer have a token, then it is dead
        await revoke(line, token)
