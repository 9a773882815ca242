"""Tokens come and go without a moment in which a tenant's Flux is refused, and are dead when they should be."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.errors import UnauthorizedError
from eventcore.kube import api_path
from tests.repeating import repeating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
ACCOUNT = "gitops-reconciler"
REVIEWS = api_path("authentication.k8s.io", "v1", "selfsubjectreviews")
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
ROTATIONS = 10
CACHED = 10
"""Seconds for which an API server believes in a token that it has seen; what refuses earlier knew by itself."""


async def accepted(tenancy: Tenancy, token: str, *, direct: bool) -> bool:
    """Tell whether a token is good, through the proxy or at the API server itself."""
    file = tenancy.cluster.as_token(token, direct=direct)
    try:
        async with tenancy.cluster.client(file) as client:
            await client.create(REVIEWS, REVIEW)
    except UnauthorizedError:
        return False
    finally:
        file.unlink()
    return True


async def held(tenancy: Tenancy, namespace: str) -> str:
    """Return the token in the kubeconfig of a namespace as it is now."""
    secret = await tenancy.get("Secret", namespace, f"{ACCOUNT}-kubeconfig")
    config = msgspec.yaml.decode(base64.b64decode(secret["data"]["kubeconfig"]))
    return str(config["users"][0]["user"]["token"])


@asynccontextmanager
async def flux(tenancy: Tenancy, namespace: str) -> AsyncIterator[list[tuple[str, bool]]]:
    """Run a client that reads its kubeconfig anew before each request; yield its tokens and whether each was good."""
    seen: list[tuple[str, bool]] = []

    async def work() -> None:
        token = await held(tenancy, namespace)
        for direct in (False, True):
            good = await accepted(tenancy, token, direct=direct)
            seen.append((token, good))

    async with repeating(work, 0.05):
        yield seen


async def generation(tenancy: Tenancy) -> str:
    secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    return str(secret["metadata"]["annotations"]["capsule-tether.io/generation"])


async def everywhere(tenancy: Tenancy, until: Any, namespace: str, old: str) -> str:
    """Wait until both kubeconfigs hold one token that is another one; return it."""

    async def moved() -> str:
        tokens = {await held(tenancy, tenancy.home), await held(tenancy, namespace)}
        return tokens.pop() if len(tokens) == 1 and old not in tokens else ""

    return str(await until(moved))


@pytest.mark.slow
async def test_ten_rotations_refuse_nobody_who_reads_again_and_in_the_end_everybody_who_does_not(
    tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant with a namespace, and a client there
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")
    first = token = await tenancy.token()
    async with flux(tenancy, namespace) as seen:
        # When its token is rotated ten times, as an administrator asks for it
        for _ in range(ROTATIONS):
            patch = {"metadata": {"annotations": {"capsule-tether.io/rotate": await generation(tenancy)}}}
            await tenancy.admin.merge_patch(
                api_path("", "v1", "secrets", namespace=tenancy.home, name=f"{ACCOUNT}-token"), patch
            )
            token = await everywhere(tenancy, until, namespace, token)

        async def used() -> bool:
            return (token, True) in seen

        await until(used)

        # Then who kept the first token is refused when the overlap is over
        async def refused() -> bool:
            return not (await accepted(tenancy, first, direct=False) or await accepted(tenancy, first, direct=True))

        await until(refused)

    # And who read the Secret again never was
    assert len({token for token, _ in seen}) > 1
    assert [token for token, good in seen if not good] == []


async def test_a_change_of_the_mode_refuses_nobody_who_reads_again(tenancy: Tenancy, until: Any) -> None:
    # Given a tenant with a bound token, and a client in its namespace
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")
    bound = await tenancy.token()
    mode = "capsule-tether.io/token-mode"
    account = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    async with flux(tenancy, namespace) as seen:
        # When the account asks for a static token, then it moves to one that has no end
        await tenancy.admin.merge_patch(account, {"metadata": {"annotations": {mode: "static"}}})
        static = await everywhere(tenancy, until, namespace, bound)
        claims = msgspec.json.decode(base64.urlsafe_b64decode(static.split(".")[1] + "=="))
        assert "exp" not in claims

        # And when it asks for a bound one, it moves again
        await tenancy.admin.merge_patch(account, {"metadata": {"annotations": {mode: "bound"}}})
        back = await everywhere(tenancy, until, namespace, static)

        async def used() -> bool:
            return (back, True) in seen

        await until(used)

    # And nobody was refused
    assert [token for token, good in seen if not good] == []


async def test_a_revoked_token_is_dead_at_once_at_the_proxy_and_soon_at_the_api_server(
    tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant whose token is in use at both
    await tenancy.make()
    token = await tenancy.token()

    async def good() -> bool:
        return await accepted(tenancy, token, direct=False) and await accepted(tenancy, token, direct=True)

    await until(good)

    # When the account is disabled, and its grant is gone
    annotations = {"capsule.addon.fluxcd/enabled": None}
    account = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    await tenancy.admin.merge_patch(account, {"metadata": {"annotations": annotations}})
    await tenancy.gone("Secret", tenancy.home, f"{ACCOUNT}-token-1")

    # Then the proxy refuses the token as soon as it hears, and the API server when its cache forgets it
    async def refused(*, direct: bool) -> bool:
        return not await accepted(tenancy, token, direct=direct)

    async with asyncio.timeout(CACHED - 2):
        await until(lambda: refused(direct=False))
    async with asyncio.timeout(CACHED + 5):
        await until(lambda: refused(direct=True))


async def test_a_tenant_with_a_url_of_its_own_gets_it_in_every_kubeconfig(tenancy: Tenancy, until: Any) -> None:
    # Given a tenant with a namespace
    await tenancy.make()
    (namespace,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")
    url = f"https://{tenancy.name}.example:9001"

    # When an administrator gives its Tenant a URL
    target = api_path("capsule.clastix.io", "v1beta2", "tenants", name=tenancy.name)
    await tenancy.admin.merge_patch(target, {"metadata": {"annotations": {"capsule-tether.io/proxy-url": url}}})

    # Then both kubeconfigs point there
    async def moved() -> bool:
        contents = [await tenancy.secret(one, f"{ACCOUNT}-kubeconfig", "value") for one in (tenancy.home, namespace)]
        return {msgspec.yaml.decode(one)["clusters"][0]["cluster"]["server"] for one in contents} == {url}

    await until(moved)
