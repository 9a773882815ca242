"""What an operator does: wipe and replay, read the audit trail, look for secrets where none may be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.grants import BUCKET
from eventcore.kube import api_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.events import AuditRecord

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
ACCOUNT = "gitops-reconciler"
NAMESPACES = api_path("", "v1", "namespaces")


@pytest.mark.slow
async def test_after_access_was_wiped_a_replay_makes_the_proxy_right_again_without_touching_the_cluster(
    tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant whose list through the proxy is right
    await tenancy.make()
    own = await tenancy.make_namespaces("production", "development")
    for name in own:
        await tenancy.must("Secret", name, f"{ACCOUNT}-kubeconfig")

    async def listed() -> list[str]:
        async with tenancy.acting() as client:
            items = msgspec.json.decode(await client.get(NAMESPACES))["items"]
        return sorted(item["metadata"]["name"] for item in items)

    async def right() -> bool:
        return await tenancy_list() == sorted(own)

    async def tenancy_list() -> list[str]:
        try:
            return await listed()
        except Exception as error:  # noqa: BLE001 -- refused is an answer too
            return [type(error).__name__]

    await until(right)
    before = await versions(tenancy, own)

    # When every grant is removed by hand
    async with tenancy.cluster.bus() as bus:
        await bus.js.purge_stream(f"KV_{BUCKET}")

        async def wrong() -> bool:
            return await tenancy_list() != sorted(own)

        await until(wrong)

        # And all keys are replayed
        done = await asyncio.to_thread(tenancy.cluster.tether, "replay", "--all")
        assert done.returncode == 0, done.stderr

    # Then the proxy answers right again, and no object of the cluster was written
    await until(right)
    assert await versions(tenancy, own) == before


async def versions(tenancy: Tenancy, namespaces: list[str]) -> dict[str, str]:
    found = {}
    for kind, namespace, name in (
        ("Secret", tenancy.home, f"{ACCOUNT}-token"),
        ("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig"),
        ("RoleBinding", tenancy.home, ACCOUNT),
        ("ClusterRole", "", tenancy.impersonator),
        ("ClusterRoleBinding", "", tenancy.impersonator),
        *(("Secret", namespace, f"{ACCOUNT}-kubeconfig") for namespace in namespaces),
    ):
        obj = await tenancy.must(kind, namespace, name)
        found[f"{kind}/{namespace}/{name}"] = obj["metadata"]["resourceVersion"]
    return found


async def test_each_grant_mint_write_and_refusal_is_in_the_audit_trail_with_its_cause(
    tenancy: Tenancy, audit: Callable[[], Awaitable[list[AuditRecord]]], until: Any
) -> None:
    # Given a tenant that got all it needs, and was refused once by the proxy
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", name, f"{ACCOUNT}-kubeconfig")
    async with tenancy.cluster.client(tenancy.cluster.as_token("nonsense")) as client:
        with pytest.raises(Exception, match="Unauthorized"):
            await client.get(NAMESPACES)

    # Then every step has its record
    wanted = {
        ("rbac", f"RoleBinding/{tenancy.home}/{ACCOUNT}"),
        ("rbac", f"ClusterRole/{tenancy.impersonator}"),
        ("rbac", f"ClusterRoleBinding/{tenancy.impersonator}"),
        ("token", f"Secret/{tenancy.home}/{ACCOUNT}-token"),
        ("kubeconfig", f"Secret/{tenancy.home}/{ACCOUNT}-kubeconfig"),
        ("kubeconfig", f"Secret/{name}/{ACCOUNT}-kubeconfig"),
    }

    async def complete() -> list[AuditRecord]:
        records = [r for r in await audit() if r.account == f"{tenancy.home}/{ACCOUNT}" or r.component == "proxy"]
        if not wanted <= {(r.component, r.object) for r in records}:
            return []
        return records if any(r.component == "proxy" and r.outcome == "refused" for r in records) else []

    records: list[AuditRecord] = await until(complete)
    # And says what led to it
    for record in records:
        if record.component != "proxy":
            assert record.cause, record


async def test_no_token_and_no_key_is_in_the_files_of_nats_or_in_a_log(tenancy: Tenancy) -> None:
    # Given tokens that were minted, distributed and used
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    kubeconfig = await tenancy.secret(name, f"{ACCOUNT}-kubeconfig", "kubeconfig")
    token = await tenancy.token()
    async with tenancy.acting() as client:
        await client.get(NAMESPACES)
    folder: Path = tenancy.cluster.folder
    needles = {
        "the account's token": token.encode(),
        "the signature of the token": token.rsplit(".", 1)[1].encode(),
        "the kubeconfig": kubeconfig[:200],
        "the proxy's key": b"\n".join((folder / "proxy" / "tls.key").read_bytes().splitlines()[1:4]),
    }
    for role in (folder / "roles").glob("*.kubeconfig"):
        text = role.read_text()
        needles[f"the token of {role.stem}"] = text.split("token", 1)[1].strip(' :"\n').split('"')[0][-60:].encode()

    # Then none of it is anywhere in NATS' files or in a log
    searched = 0
    for file in [*(folder / "nats").rglob("*"), *(folder / "log").glob("*.log")]:
        if not file.is_file():
            continue
        content = file.read_bytes()
        searched += len(content)
        for what, needle in needles.items():
            assert needle, what
            assert needle not in content, f"{what} is in {file.relative_to(folder)}"
    assert searched > 10_000
    # And the search finds what is there
    assert any(b"gitops-reconciler" in file.read_bytes() for file in (folder / "nats").rglob("*.blk"))
