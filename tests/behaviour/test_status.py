"""`tether status` on a running cluster: from the bus alone it tells what there is, what waits and what failed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"


async def status(tenancy: Tenancy, *arguments: str) -> Object:
    done = await asyncio.to_thread(tenancy.cluster.tether, "status", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return dict(msgspec.json.decode(done.stdout))


async def test_a_tenant_that_is_served_is_told_whole(tenancy: Tenancy, until: Any) -> None:
    await tenancy.make()
    names = sorted(await tenancy.make_namespaces("production", "development"))

    async def complete() -> Object | None:
        found = await status(tenancy, tenancy.name)
        account = found["accounts"][0] if found["accounts"] else {}
        there = account.get("current") == len(names) + 1 and account["granted"] and found["tenants"][0]["granted"]
        return found if there and found["waiting"] else None

    found = await until(complete)
    (tenant,), (account,) = found["tenants"], found["accounts"]
    assert tenant["name"] == tenancy.name
    assert tenant["namespaces"] == names
    assert tenant["owners"] == [f"ServiceAccount {tenancy.user}"]
    assert account["account"] == f"{tenancy.home}/{ACCOUNT}"
    assert account["tenants"] == [tenancy.name]
    assert account["behind"] == []
    assert account["generation"] == 1
    expires = datetime.fromisoformat(account["expires"])
    assert timedelta(hours=23) < expires - datetime.now(UTC) < timedelta(hours=25)

    # And the rotation of its token is what waits, for a time before the token ends
    (timer,) = [one for one in found["waiting"] if one["worker"] == "token"]
    assert timer["reason"] == "timer"
    assert datetime.fromisoformat(timer["due"]) < expires

    # And the kinds are fresh, and all workers run
    ages = {kind["kind"]: kind["age"] for kind in found["kinds"]}
    # Others may be of a kind that was switched on for a while.
    assert all(ages[kind] < 30 for kind in ("ServiceAccount", "Namespace", "Tenant", "Secret"))
    assert all(worker["listening"] for worker in found["workers"])


async def test_what_was_refused_is_told_with_its_reason(tenancy: Tenancy, until: Any) -> None:
    # Given a Secret of somebody else where the kubeconfig should be
    await tenancy.make_home()
    metadata = {"name": f"{ACCOUNT}-kubeconfig", "namespace": tenancy.home}
    await tenancy.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"kubeconfig": "YQ=="}})
    await tenancy.apply(tenancy.tenant(tenancy.user))
    await tenancy.apply(tenancy.account(**{"capsule.addon.fluxcd/enabled": "true"}))

    async def failed() -> list[Object]:
        found = await status(tenancy)
        return [one for one in found["failures"] if one["account"] == f"{tenancy.home}/{ACCOUNT}"]

    (failure,) = await until(failed)
    assert failure["what"] == "refused"
    assert failure["worker"] == "kubeconfig"
    assert "not made by Tether" in failure["message"]

    # And the account shows where its kubeconfig is not
    found = await status(tenancy, tenancy.name)
    assert found["accounts"][0]["behind"] == [tenancy.home]


async def test_a_tenant_that_nobody_knows_is_refused_by_name(tenancy: Tenancy) -> None:
    done = await asyncio.to_thread(tenancy.cluster.tether, "status", "nobody")
    assert done.returncode == 1
    assert "the bus knows no Tenant nobody" in done.stderr
    assert "Traceback" not in done.stderr


async def test_tables_are_for_people(tenancy: Tenancy) -> None:
    await tenancy.make()
    await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
    done = await asyncio.to_thread(tenancy.cluster.tether, "status")
    assert done.returncode == 0, done.stderr
    for words in ("FRESH", "WORK", "TENANTS", "ACCOUNTS", f"{tenancy.home}/{ACCOUNT}"):
        assert words in done.stdout


async def test_it_is_watched_until_ctrl_c(tenancy: Tenancy) -> None:
    # Given somebody who watches
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "tether.cli",
        "status",
        "--watch",
        "--json",
        env={**os.environ, **tenancy.cluster.environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    assert process.stdout
    assert process.stderr
    first = msgspec.json.decode(await process.stdout.readline())
    assert tenancy.name not in {tenant["name"] for tenant in first["tenants"]}

    # When a tenant comes
    await tenancy.make()

    # Then it is seen without asking again
    async with asyncio.timeout(60):
        while tenancy.name not in {tenant["name"] for tenant in first["tenants"]}:
            first = msgspec.json.decode(await process.stdout.readline())

    # And Ctrl-C ends it without a word
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert errors == b""
