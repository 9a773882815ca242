"""`tether kubeconfig generate` beside a running Tether: the guide's manual recipe, and nobody's objects harmed."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventcore.errors import ForbiddenError, UnauthorizedError
from eventcore.kube import KubeClient, api_path

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
ENABLED = "capsule.addon.fluxcd/enabled"
NAMESPACES = api_path("", "v1", "namespaces")


async def generate(tenancy: Tenancy, *arguments: str, expect: int = 0) -> tuple[str, str]:
    """Run the guide's command for a tenant's account; return what it printed, and its errors."""
    cluster = tenancy.cluster
    done = await asyncio.to_thread(
        cluster.tether,
        *("kubeconfig", "generate", "--kubeconfig-secret-key", "kubeconfig", "--namespace", tenancy.home),
        *("--server", cluster.environ["TETHER_PROXY_URL"], "--server-tls-secret-namespace", "capsule-system"),
        *("--server-tls-secret-name", "capsule-proxy", "--serviceaccount", ACCOUNT),
        *("--kubeconfig", str(cluster.folder / "admin.kubeconfig")),
        *arguments,
    )
    assert done.returncode == expect, done
    assert done.stderr.count("\n") <= 1
    return done.stdout, done.stderr


async def whoami(client: KubeClient) -> str:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    body = await client.create(api_path("authentication.k8s.io", "v1", "selfsubjectreviews"), review)
    name: str = msgspec.json.decode(body)["status"]["userInfo"]["username"]
    return name


async def owned(tenancy: Tenancy, client: KubeClient, until: Any) -> list[str]:
    """Make a namespace as this client, and return what it lists once it lists anything."""
    name = f"{tenancy.name}-production"

    async def created() -> bool:
        try:
            await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        except ForbiddenError:
            return False  # Capsule's right to do so may follow the Tenant a little later
        return True

    async def listed() -> list[str]:
        items = msgspec.json.decode(await client.get(NAMESPACES))["items"]
        return [item["metadata"]["name"] for item in items]

    await until(created)
    found: list[str] = await until(listed)
    return found


@pytest.mark.parametrize("flags", [(), ("--token-life", "1h")], ids=["for ever", "for an hour"])
async def test_the_generated_kubeconfig_lets_the_owner_do_its_work_through_the_proxy(
    tenancy: Tenancy, until: Any, flags: tuple[str, ...]
) -> None:
    # Given the manual recipe: an owner without the annotation
    await tenancy.make(enabled=False)

    # When its kubeconfig is generated
    out, _ = await generate(tenancy, *flags)

    # Then it works as Tether's own does: the account makes its namespace, and sees this one alone
    assert f"Proxy kubeconfig Secret created: {tenancy.home}/{KUBECONFIG}" in out
    async with tenancy.acting() as client:
        assert await owned(tenancy, client, until) == [f"{tenancy.name}-production"]


async def test_generated_again_nothing_is_written_and_what_differs_is_repaired(tenancy: Tenancy) -> None:
    await tenancy.make(enabled=False)
    await generate(tenancy)
    first = await tenancy.must("Secret", tenancy.home, KUBECONFIG)

    out, _ = await generate(tenancy)
    assert out == f"Proxy kubeconfig Secret unchanged: {tenancy.home}/{KUBECONFIG}\n"
    assert await tenancy.get("Secret", tenancy.home, KUBECONFIG) == first

    # When somebody edits it
    broken = {"data": {"kubeconfig": base64.b64encode(b"broken").decode()}}
    await tenancy.admin.merge_patch(api_path("", "v1", "secrets", namespace=tenancy.home, name=KUBECONFIG), broken)
    out, _ = await generate(tenancy)

    # Then it is as it was, and still that object
    second = await tenancy.must("Secret", tenancy.home, KUBECONFIG)
    assert out.startswith(f"Proxy kubeconfig Secret updated: {tenancy.home}/{KUBECONFIG} (")
    assert second["data"] == first["data"]
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


async def test_a_token_that_expires_ends_with_its_secret(tenancy: Tenancy, until: Any) -> None:
    # Given a kubeconfig whose token expires
    await tenancy.make(enabled=False)
    await generate(tenancy, "--token-life", "30m")
    token = msgspec.yaml.decode(await tenancy.secret(tenancy.home, KUBECONFIG, "kubeconfig"))["users"][0]["user"][
        "token"
    ]
    async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
        assert await whoami(client) == tenancy.user

        # When the Secret is deleted
        await tenancy.admin.delete(api_path("", "v1", "secrets", namespace=tenancy.home, name=KUBECONFIG))

        # Then the API server knows the token no more
        async def refused() -> bool:
            try:
                await whoami(client)
            except UnauthorizedError:
                return True
            return False

        await until(refused)


async def test_what_the_workers_keep_is_not_touched_and_can_be_had_printed(
    tenancy: Tenancy, tmp_path: Path, until: Any
) -> None:
    # Given an account that Tether serves
    await tenancy.make()
    before = await tenancy.must("Secret", tenancy.home, KUBECONFIG)

    # When somebody generates beside it, even by force
    _, err = await generate(tenancy, "--adopt", expect=1)

    # Then nothing has changed
    assert "Tether's workers" in err
    assert await tenancy.get("Secret", tenancy.home, KUBECONFIG) == before

    # And one that is printed is good
    out, err = await generate(tenancy, "--output", "-", "--token-life", "1h")
    (tmp_path / "kubeconfig").write_text(out)
    async with tenancy.cluster.client(tmp_path / "kubeconfig") as client:
        assert await owned(tenancy, client, until) == [f"{tenancy.name}-production"]
    assert "expires" in err


async def test_the_workers_leave_what_was_generated_and_say_so(tenancy: Tenancy, until: Any) -> None:
    # Given a generated kubeconfig
    await tenancy.make(enabled=False)
    await generate(tenancy, "--token-life", "1h")
    before = await tenancy.must("Secret", tenancy.home, KUBECONFIG)

    # When the account is enabled after all
    await tenancy.apply(tenancy.account(**{ENABLED: "true"}))

    # Then the workers say that the Secret is somebody else's, and leave it
    async def told() -> list[str]:
        events = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "events", namespace=tenancy.home)))
        return [event["message"] for event in events["items"] if event["reason"] == "ForeignObject"]

    messages: list[str] = await until(told)
    assert [KUBECONFIG in message for message in messages] == [True]
    assert await tenancy.get("Secret", tenancy.home, KUBECONFIG) == before


@pytest.mark.parametrize("flags", [(), ("--token-life", "1h")], ids=["for ever", "for an hour"])
async def test_a_dry_run_asks_the_api_server_and_stores_nothing(tenancy: Tenancy, flags: tuple[str, ...]) -> None:
    await tenancy.make(enabled=False)

    out, _ = await generate(tenancy, "--dry-run", *flags)

    assert f"Proxy kubeconfig Secret would be created: {tenancy.home}/{KUBECONFIG}" in out
    assert await tenancy.get("Secret", tenancy.home, KUBECONFIG) is None
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token") is None


async def test_a_foreign_secret_stays_as_it_is(tenancy: Tenancy) -> None:
    await tenancy.make(enabled=False)
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KUBECONFIG, "namespace": tenancy.home}}
    await tenancy.apply(body)
    before = await tenancy.must("Secret", tenancy.home, KUBECONFIG)

    _, err = await generate(tenancy, expect=1)

    assert "was not made by this command" in err
    assert await tenancy.get("Secret", tenancy.home, KUBECONFIG) == before
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token") is None
