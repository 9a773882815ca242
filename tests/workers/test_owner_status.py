"""While Capsule does not bring a Tenant's status up to date, its spec counts at once, and the rest for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.workers.conftest import Line, MakeLine

HOME, NAME = "oil-system", "gitops-reconciler"
TOKEN = f"{NAME}-token"
OWNER = {"kind": "ServiceAccount", "name": f"system:serviceaccount:{HOME}:{NAME}", "clusterRoles": ["admin"]}
ALL = (
    ("Secret", HOME, TOKEN),
    ("Secret", HOME, f"{NAME}-kubeconfig"),
    ("RoleBinding", HOME, NAME),
    ("ClusterRoleBinding", "", f"{HOME}-{NAME}-impersonator"),
    ("ClusterRole", "", f"{HOME}-{NAME}-impersonator"),
)


async def until_served(line: Line) -> None:
    for place in ALL:
        await line.until_there(*place)


async def witness(line: Line) -> None:
    """Make another tenant and wait for its kubeconfig: what came before has been worked on by then."""
    await line.apply_files("gas.yaml")
    await line.until_there("Secret", "gas-system", f"{NAME}-kubeconfig")


async def write_status(line: Line, *owners: dict[str, Any]) -> None:
    """Write the status as Capsule does it: of the spec that is there."""
    generation = (await line.must("Tenant", "", "oil"))["metadata"]["generation"]
    path = f"{line.path('Tenant', '', 'oil')}/status"
    status = {"observedGeneration": generation, "owners": list(owners), "state": "Active", "size": 0, "conditions": []}
    await line.client.merge_patch(path, {"status": status})


async def test_an_owner_in_the_spec_of_a_tenant_that_capsule_never_looked_at_gets_everything(
    make_line: MakeLine,
) -> None:
    line = await make_line(capsule_controllers=False)
    async with line.everything():
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        await until_served(line)
    assert "status" not in await line.must("Tenant", "", "oil")


@pytest.mark.slow
async def test_an_owner_that_stands_in_an_outdated_status_alone_counts_for_the_grace_and_no_longer(
    make_line: MakeLine,
) -> None:
    line = await make_line(capsule_controllers=False)
    async with line.everything():
        # given an account that is an owner by the status alone, as a rule of Capsule's may make it
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        await line.patch("Tenant", "", "oil", {"spec": {"owners": []}})
        await write_status(line, OWNER)
        await until_served(line)
        token = await line.token(HOME)

        # when the spec changes and Capsule does not look at it, then nothing is taken within the grace
        await line.patch("Tenant", "", "oil", {"spec": {"cordoned": True}})
        await witness(line)
        assert await line.token(HOME) == token

    async with line.everything(owner_status_grace=0.5):
        # and everything when the grace is over
        for place in ALL:
            await line.until_gone(*place)
        assert not await line.accepts(token)

        # when Capsule looks at it again, then the account has everything again
        await write_status(line, OWNER)
        await until_served(line)

        # when the status is outdated once more, then everything goes, although nothing else ever happens
        await line.patch("Tenant", "", "oil", {"spec": {"cordoned": False}})
        for place in ALL:
            await line.until_gone(*place)


async def test_an_outdated_status_gives_nothing_to_whom_it_names(make_line: MakeLine) -> None:
    line = await make_line(capsule_controllers=False)
    async with line.everything():
        # given a Tenant that nobody owns, whose status is of an older spec
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        for place in ALL:
            await line.until_there(*place)
        await write_status(line)
        await line.patch("Tenant", "", "oil", {"spec": {"owners": []}})
        for place in ALL:
            await line.until_gone(*place)

        # when that status names an owner, and while that counts
        path = f"{line.path('Tenant', '', 'oil')}/status"
        await line.client.merge_patch(path, {"status": {"owners": [OWNER]}})

        # then it gets no right and no token
        await witness(line)
        assert await line.get("Secret", HOME, TOKEN) is None
        assert await line.get("RoleBinding", HOME, NAME) is None


async def test_a_token_worker_takes_the_grant_before_it_deletes_what_tokens_are_bound_to(line: Line) -> None:
    # given the example, served
    async with line.everything():
        await line.settle()

    # when the account is switched off, and of the workers only the one for tokens runs
    async with line.watcher(), line.router(), line.workers("token"):
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_enabled": None})

        def done() -> list[str]:
            return [record.object for record in line.audit if (record.component, record.action) == ("token", "revoked")]

        async def all_done() -> bool:
            return len(done()) == 3

        await line.until(all_done, "all that was revoked")

        # then it took the grant first, which the proxy obeys at once, then the credentials
        secrets = [f"Secret/{HOME}/{TOKEN}-1", f"Secret/{HOME}/{TOKEN}"]
        assert done() == [f"access/account/{HOME}/{NAME}", *secrets]
