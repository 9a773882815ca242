"""A home that is a member of somebody else's Tenant: whoever made it acts for its accounts, so they get nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.errors import ForbiddenError, NotFoundError
from eventcore.kube import api_path

if TYPE_CHECKING:
    from eventcore.events import AuditRecord

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
ENABLED = "capsule.addon.fluxcd/enabled"


async def warnings(tenancy: Tenancy) -> list[str]:
    """Return what Events of one reason say on the account."""
    body = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "events", namespace=tenancy.home)))
    return [
        event["message"]
        for event in body["items"]
        if event["reason"] == "HomeOfAnotherTenant" and event["involvedObject"]["name"] == ACCOUNT
    ]


async def has(tenancy: Tenancy) -> list[str]:
    """Return which of the things that an account gets are there; a neighbour's kubeconfig may have the same name."""
    places = [
        ("RoleBinding", tenancy.home, ACCOUNT),
        ("ClusterRole", "", tenancy.impersonator),
        ("ClusterRoleBinding", "", tenancy.impersonator),
        ("Secret", tenancy.home, f"{ACCOUNT}-token"),
        ("Secret", tenancy.home, KUBECONFIG),
    ]
    found = [await tenancy.get(*place) for place in places]
    mark = ("capsule-tether.io/account", f"{tenancy.home}/{ACCOUNT}")
    return [f"{one['kind']}/{one['metadata']['name']}" for one in found if one and mark in _marks(one)]


def _marks(obj: Object) -> Any:
    return (obj["metadata"].get("annotations") or {}).items()


async def said_everywhere(tenancy: Tenancy, foreign: str, audit: Callable[[], Awaitable[list[AuditRecord]]]) -> None:
    """Status, doctor and the audit agree about the refusal."""
    account, cluster = f"{tenancy.home}/{ACCOUNT}", tenancy.cluster
    done = await asyncio.to_thread(cluster.tether, "status", "--json")
    (told,) = [one for one in msgspec.json.decode(done.stdout)["accounts"] if one["account"] == account]
    assert (told["home_of"], told["tenants"], told["granted"], told["wanted"]) == (foreign, [], False, 0)
    config = str(cluster.folder / "admin.kubeconfig")
    done = await asyncio.to_thread(cluster.tether, "doctor", "--json", "--kubeconfig", config)
    findings = [one for one in msgspec.json.decode(done.stdout)["findings"] if one["severity"] in {"warning", "error"}]
    (finding,) = [one for one in findings if one["object"] == f"Namespace/{tenancy.home}"]
    assert (finding["check"], finding["severity"]) == ("home", "error")
    assert not [one for one in findings if one["object"] == account]
    records = [r for r in await audit() if (r.component, r.account, r.outcome) == ("rbac", account, "refused")]
    assert [(r.component, r.action, r.tenant, r.object) for r in records] == [
        ("rbac", "refused", tenancy.name, f"ServiceAccount/{account}")
    ]
    assert records[0].cause


async def test_who_takes_the_name_of_a_home_first_gets_nothing_for_it(
    tenancy: Tenancy, other: Tenancy, audit: Callable[[], Awaitable[list[AuditRecord]]], until: Any
) -> None:
    # Given a Tenant whose owner is to live in a namespace that does not exist yet
    await tenancy.apply(tenancy.tenant(tenancy.user))

    # When another tenant makes a namespace of that name, and an enabled account in it
    await other.make()
    async with other.acting() as client:

        async def made() -> bool:
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenancy.home}}
            return await may(client.create(api_path("", "v1", "namespaces"), body)) is not None

        await until(made)

        async def enabled() -> bool:
            path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home)
            return await may(client.create(path, tenancy.account(**{ENABLED: "true"}))) is not None

        await until(enabled)

    # Then the account is told why it gets nothing, and gets nothing
    async def told() -> list[str]:
        return await warnings(tenancy)

    (message,) = await until(told)
    assert f"is a member of Tenant {other.name}" in message
    assert "spec.owners" in message
    assert await has(tenancy) == []
    assert await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token-1") is None
    await said_everywhere(tenancy, other.name, audit)

    # And nobody renders such a tenant unawares
    flags = ("--capsule-configuration", "--kubeconfig", str(tenancy.cluster.folder / "admin.kubeconfig"))
    render = ("tenant", "render", tenancy.name, "--owner", f"{tenancy.home}/{ACCOUNT}", *flags)
    done = await asyncio.to_thread(tenancy.cluster.tether, *render)
    assert done.returncode == 1
    assert f"{tenancy.home} is a member of Tenant {other.name}" in done.stderr


@pytest.mark.slow
async def test_a_home_that_becomes_a_member_of_another_tenant_loses_everything_and_may_get_it_back(
    tenancy: Tenancy, other: Tenancy, audit: Callable[[], Awaitable[list[AuditRecord]]], until: Any
) -> None:
    # Given an account that has everything, also in its tenant
    await tenancy.make()
    await other.make()
    own = await tenancy.make_usable("production")
    await tenancy.must("Secret", own, KUBECONFIG)
    token = await tenancy.token()

    # When its home becomes a member of a Tenant that it does not own
    await tenancy.join(other)

    # Then all of it is taken back, and it is told why
    async def nothing() -> bool:
        return await has(tenancy) == [] and await tenancy.get("Secret", own, KUBECONFIG) is None

    await until(nothing)

    async def told() -> list[str]:
        return await warnings(tenancy)

    await until(told)

    async def dead() -> bool:
        async with tenancy.cluster.wire(token) as client:
            answer = await client.get(api_path("", "v1", "namespaces"))
            return bool(answer.status == 401)

    await until(dead)
    await said_everywhere(tenancy, other.name, audit)

    # When it becomes an owner of that Tenant too, then it has everything again
    await other.apply(other.tenant(other.user, tenancy.user))

    async def back() -> bool:
        # At home the kubeconfig's plain name may be that of the other account, whose tenant the namespace is of too.
        rest = set(await has(tenancy)) - {f"Secret/{KUBECONFIG}"}
        # In a namespace of a tenant there is no role of Tether: what owners may do there Capsule gives.
        roles = {f"{kind}/{tenancy.impersonator}" for kind in ("ClusterRole", "ClusterRoleBinding")}
        return rest == roles | {f"Secret/{ACCOUNT}-token"} and await tenancy.get("Secret", own, KUBECONFIG) is not None

    await until(back)


async def test_a_home_that_is_a_member_of_the_accounts_own_tenant_keeps_working(tenancy: Tenancy, until: Any) -> None:
    await tenancy.make()
    await tenancy.must("Secret", tenancy.home, KUBECONFIG)
    token = await tenancy.token()

    await tenancy.join(tenancy)
    await tenancy.make_usable("production")

    async def listed() -> bool:
        async with tenancy.cluster.wire(token) as client:
            return tenancy.home in await client.names(api_path("", "v1", "namespaces"))

    await until(listed)
    # All but the role at home: in a tenant's namespace Capsule says what the tenant's owners may.
    assert len(await has(tenancy)) == len("1234")
    assert await tenancy.get("RoleBinding", tenancy.home, ACCOUNT) is None
    assert await tenancy.token() == token
    assert await warnings(tenancy) == []


async def may(request: Awaitable[bytes]) -> bytes | None:
    """Return the answer, None where Capsule has not given the right yet."""
    try:
        return await request
    except (ForbiddenError, NotFoundError):
        return None
