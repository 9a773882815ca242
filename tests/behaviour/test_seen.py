"""What an operator sees from outside: each transition once, as an Event on the account and as records in the audit."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.kube import api_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.events import AuditRecord

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
Object = dict[str, Any]
Step = tuple[str, str, str]
ACCOUNT = "gitops-reconciler"
KUBECONFIG, TOKEN = f"{ACCOUNT}-kubeconfig", f"{ACCOUNT}-token"
ENABLED = "capsule.addon.fluxcd/enabled"
EVENT_ID = re.compile(r"[\w-]+:[0-9a-f-]{36}:(\d+|gone)")


async def told(tenancy: Tenancy) -> Counter[tuple[str, str]]:
    """Return type and reason of each Event of Tether's on the account, with how often it was told."""
    body = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "events", namespace=tenancy.home)))
    mine = [one for one in body["items"] if one["source"].get("component") == "tether"]
    uid = (await tenancy.must("ServiceAccount", tenancy.home, ACCOUNT))["metadata"]["uid"]
    assert {(one["involvedObject"]["kind"], one["involvedObject"]["uid"]) for one in mine} <= {("ServiceAccount", uid)}
    counted: Counter[tuple[str, str]] = Counter()
    for one in mine:
        counted[one["type"], one["reason"]] += one["count"]
    return counted


async def idle(tenancy: Tenancy, until: Any) -> None:
    """Wait until no request waits or is in hand."""

    async def done() -> bool:
        status = await asyncio.to_thread(tenancy.cluster.tether, "status", "--json")
        return all(one["pending"] + one["in_hand"] == 0 for one in msgspec.json.decode(status.stdout)["workers"])

    await until(done)


async def test_each_transition_is_told_once_with_who_what_tenant_cause_and_outcome(
    tenancy: Tenancy, audit: Callable[[], Awaitable[list[AuditRecord]]], until: Any
) -> None:
    # Given an account that was enabled, and a namespace of its tenant
    await tenancy.make()
    (own,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", own, KUBECONFIG)
    account, home = f"{tenancy.home}/{ACCOUNT}", tenancy.home

    async def records() -> list[AuditRecord]:
        found = await audit()
        return [r for r in found if r.component != "proxy" and (r.account == account or r.tenant == tenancy.name)]

    def copies(action: str) -> list[Step]:
        return [("kubeconfig", action, f"Secret/{place}/{KUBECONFIG}") for place in (home, own)]

    rights = [f"RoleBinding/{home}/{ACCOUNT}", *(f"{k}/{tenancy.impersonator}" for k in KINDS)]
    wanted: list[Step] = [("rbac", "granted", right) for right in rights]
    wanted += [("token", "minted", f"Secret/{home}/{TOKEN}"), *copies("distributed")]
    events = Counter({("Normal", reason): 1 for reason in ("Granted", "TokenMinted", "KubeconfigDistributed")})

    async def exactly() -> bool:
        seen = Counter((r.component, r.action, r.object) for r in await records() if not r.object.startswith("access/"))
        return seen == Counter(wanted) and await told(tenancy) == events

    # Then each of its steps is told once, and a replay, in which nothing changes, tells nothing
    await until(exactly)
    assert (await asyncio.to_thread(tenancy.cluster.tether, "replay", "--all")).returncode == 0
    await idle(tenancy, until)
    assert await exactly()

    # When its token is rotated, then the new token and each new copy has its record, and all copies one Event
    first = await tenancy.secret(own, KUBECONFIG, "value")
    token = api_path("", "v1", "secrets", namespace=home, name=TOKEN)
    await tenancy.admin.merge_patch(token, {"metadata": {"annotations": {"capsule-tether.io/rotate": "1"}}})
    wanted += [("token", "rotated", f"Secret/{home}/{TOKEN}"), *copies("distributed")]
    events.update({("Normal", reason): 1 for reason in ("TokenRotated", "KubeconfigDistributed")})

    async def rotated() -> bool:
        seen = {(r.component, r.action) for r in await records()}
        return ("token", "rotated") in seen and await tenancy.secret(own, KUBECONFIG, "value") != first

    await until(rotated)
    await until(lambda: no_copy_is_missing(tenancy, own))

    # When it is switched off, then each thing that is taken back has its record, and the account is told twice
    await tenancy.apply(tenancy.account(**{ENABLED: "false"}))
    wanted += [("rbac", "revoked", right) for right in rights]
    wanted += [("token", "revoked", f"Secret/{home}/{TOKEN}{end}") for end in ("", "-1", "-2")] + copies("removed")
    events.update({("Normal", reason): 1 for reason in ("TokenRevoked", "Revoked")})
    await until(exactly)
    assert (await asyncio.to_thread(tenancy.cluster.tether, "replay", "--all")).returncode == 0
    await idle(tenancy, until)
    assert await exactly()

    # And each record says for whom and which tenant, which event led to it, and how it ended
    uid = (await tenancy.must("ServiceAccount", home, ACCOUNT))["metadata"]["uid"]
    found = await records()
    for record in found:
        assert record.outcome == "done", record
        assert record.tenant == tenancy.name, record
        assert EVENT_ID.fullmatch(record.cause), record
        assert record.account == account or record.object == f"access/tenant/{tenancy.name}", record
    assert all(uid in r.cause for r in found if (r.component, r.action) == ("rbac", "revoked"))
    # And what the proxy was told has its records too
    grants = {(r.action, r.object) for r in found if r.object.startswith("access/")}
    assert grants == {
        ("granted", f"access/tenant/{tenancy.name}"),
        ("granted", f"access/subject/ServiceAccount/{tenancy.user}"),
        ("granted", f"access/account/{account}"),
        ("revoked", f"access/account/{account}"),
    }


KINDS = ("ClusterRole", "ClusterRoleBinding")


async def no_copy_is_missing(tenancy: Tenancy, own: str) -> bool:
    """Tell whether both copies hold one token."""
    digests = set()
    for place in (tenancy.home, own):
        found = await tenancy.must("Secret", place, KUBECONFIG)
        digests.add(found["metadata"]["annotations"]["capsule-tether.io/digest"])
    token = await tenancy.must("Secret", tenancy.home, TOKEN)
    return digests == {token["metadata"]["annotations"]["capsule-tether.io/digest"]}
