"""Tokens are replaced in time, and when a namespace that held one has gone to somebody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eventcore.events import AuditRecord
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
KUBECONFIG = f"{NAME}-kubeconfig"
TOKEN = f"{NAME}-token"
ROTATIONS = 10


async def test_a_token_is_rotated_in_time_and_the_one_before_it_dies_after_the_overlap(line: Line) -> None:
    # given the example runs with tokens that live long
    async with line.everything():
        await line.settle()
        first = await line.token(HOME)
        assert await line.accepts(first)

    # when they live for ten minutes from now on, and are rotated after two seconds
    async with line.everything(token_ttl=600.0, token_rotate_after=2.0, token_overlap=0.5):
        # then a timer rotates them, and every kubeconfig holds the same new one
        def by_timer() -> list[AuditRecord]:
            return [record for record in line.audit if record.action == "rotated" and record.cause == "timer"]

        async def rotated() -> bool:
            tokens = {await line.token(HOME), await line.token("oil-production")}
            return bool(by_timer()) and len(tokens) == 1 and not tokens & {"", first}

        await line.until(rotated, "a rotation by a timer, in every kubeconfig")

        # and what the one before was bound to is removed, not before the overlap is over
        record = by_timer()[0]
        generation = int(record.message.split()[1].rstrip(","))
        revoked = await line.until_recorded("token", "revoked", f"{TOKEN}-{generation - 1}")
        assert (revoked.time - record.time).total_seconds() >= 0.3
        assert await line.get("Secret", HOME, f"{TOKEN}-{generation - 1}") is None
        assert not await line.accepts(first)


@pytest.mark.slow
async def test_ten_rotations_in_a_row_refuse_nobody_who_reads_again_and_whoever_does_not(line: Line) -> None:
    # given the example runs with tokens that are rotated every second, and a client in the tenant's namespace
    async with line.everything():
        await line.settle()
        first = await line.token(HOME)
    async with line.everything(token_ttl=600.0, token_rotate_after=1.0, token_overlap=6.0):
        async with line.reading("oil-production") as seen:
            # when ten of them were in use
            async def ten() -> bool:
                return len(seen.tokens) > ROTATIONS

            await line.until(ten, "ten rotations")

            # then the first dies though rotation goes on
            async def dead() -> bool:
                return not await line.accepts(first)

            await line.until(dead, "the end of the first token")
            so_far = len(seen.tokens)

            async def goes_on() -> bool:
                return len(seen.tokens) > so_far

            await line.until(goes_on, "one more rotation")
        # and the client was never refused
        assert seen.refused == 0


async def test_the_grant_names_every_generation_that_is_good(line: Line) -> None:
    # given the one before stays good for long
    async with line.everything(token_ttl=600.0, token_rotate_after=300.0, token_overlap=120.0):
        await line.settle()
        first = await line.token(HOME)

        # when a rotation is asked for, and its overlap is the short one of a forced rotation
        patch = {"metadata": {"annotations": {"capsule-tether.io/rotate": "1"}}}
        await line.patch("Secret", HOME, TOKEN, patch)

        # then both generations are good at first
        await line.until_generations(HOME, 1, 2)
        assert await line.accepts(first)


async def test_a_namespace_that_goes_to_another_tenant_loses_the_kubeconfig_and_forces_a_rotation(line: Line) -> None:
    async with line.everything():
        # given two tenants, and a namespace of the first that holds its kubeconfig
        await line.settle()
        await line.apply_files("gas.yaml")
        await line.until_there("Secret", "gas-system", KUBECONFIG)
        leaked = await line.token("oil-production")

        # when the namespace is given to the second
        line.hand_over("oil-production", "gas")

        # then the first one's token is replaced at home, and the namespace holds the second one's kubeconfig
        await line.until_recorded("token", "rotated", f"Secret/{HOME}/{TOKEN}")

        async def handed_over() -> bool:
            home, there = await line.token(HOME), await line.token("oil-production")
            return home not in {"", leaked} and there == await line.token("gas-system")

        await line.until(handed_over, "the kubeconfig of gas in the namespace, and a new one at home")
        await line.until_granted("oil")
        await line.until_granted("gas", "oil-production")


async def test_a_namespace_that_leaves_with_a_copy_whose_marks_somebody_took_off_forces_a_rotation_too(
    line: Line,
) -> None:
    async with line.everything():
        # given a copy from which somebody in the namespace took all that tells whose it is
        await line.settle()
        await line.apply_files("gas.yaml")
        await line.until_there("Secret", "gas-system", KUBECONFIG)
        before = (await line.must("Secret", "oil-production", KUBECONFIG))["metadata"]
        gone = {field: dict.fromkeys(before[field], None) for field in ("labels", "annotations")}
        await line.patch("Secret", "oil-production", KUBECONFIG, {"metadata": gone})

        # when the namespace is given to another tenant
        line.hand_over("oil-production", "gas")

        # then the token that can be read in it is replaced
        await line.until_recorded("token", "rotated", f"Secret/{HOME}/{TOKEN}")


async def test_a_namespace_that_is_deleted_forces_no_rotation(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        token = await line.token(HOME)

        # when a namespace of the tenant is deleted
        await line.delete("Namespace", "", "oil-production")
        await line.until_gone("Namespace", "", "oil-production")
        await line.until_granted("oil")

        # then the token is the same
        assert await line.token(HOME) == token
        assert not [record for record in line.audit if record.action == "rotated"]


async def test_a_missing_ca_is_waited_for_and_said_once(line: Line) -> None:
    # given there is no CA yet
    await line.delete("Secret", "capsule-system", "capsule-proxy")
    async with line.everything(retry_base=0.05, retry_max=0.2):
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")

        # when the kubeconfig was tried some times
        async def told() -> bool:
            return "KubeconfigWaits" in {event["reason"] for event in await line.all("Event", HOME)}

        await line.until(told, "an Event that says what is missing")

        # then the Event names the Secret, and there is one
        events = [event for event in await line.all("Event", HOME) if event["reason"] == "KubeconfigWaits"]
        assert len(events) == 1
        assert "capsule-system/capsule-proxy" in events[0]["message"]

        # and with the CA comes the kubeconfig
        await line.put_ca()
        await line.until_there("Secret", HOME, KUBECONFIG)
