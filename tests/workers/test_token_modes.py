"""Tokens are bound or static as asked, and whoever reads its kubeconfig again is never refused while that changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from workers.token import HOLD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
ACCOUNT = f"{HOME}/{NAME}"
TOKEN = f"{NAME}-token"
MODE = "capsule-tether.io_token-mode"
OPAQUE, LEGACY = "Opaque", "kubernetes.io/service-account-token"


async def until_moved(line: Line, old: str) -> str:
    """Wait until every kubeconfig holds another token, that token works, and the one before does not."""

    async def moved() -> bool:
        tokens = {await line.token(HOME), await line.token("oil-production")}
        return len(tokens) == 1 and not tokens & {"", old} and not await line.accepts(old)

    await line.until(moved, "a new token everywhere, and the end of the old one")
    return await line.token(HOME)


async def type_of(line: Line, name: str) -> str:
    return str((await line.must("Secret", HOME, name))["type"])


@pytest.mark.slow
async def test_an_account_changes_to_a_static_token_and_back_without_a_refused_request(line: Line) -> None:
    async with line.everything(token_overlap=4.0):
        # given the example runs with a bound token, and a client in the tenant's namespace
        await line.settle()
        first = await line.token(HOME)
        assert await type_of(line, f"{TOKEN}-1") == OPAQUE
        async with line.reading("oil-production") as seen:
            # when the account asks for a static token
            await line.annotate(ACCOUNT, **{MODE: "static"})

            # then it moves to the token of a Secret that Kubernetes fills, and the bound one is revoked
            second = await until_moved(line, first)
            await line.until_gone("Secret", HOME, f"{TOKEN}-1")
            assert await type_of(line, f"{TOKEN}-2") == LEGACY

            # and when it asks no more, it moves to a bound one, and the Secret of the static one is removed
            await line.annotate(ACCOUNT, **{MODE: None})
            third = await until_moved(line, second)
            await line.until_gone("Secret", HOME, f"{TOKEN}-2")
            assert await type_of(line, f"{TOKEN}-3") == OPAQUE

            async def used() -> bool:
                return third in seen.tokens

            await line.until(used, "a request with the third token")

        # and the client was never refused, and <account>-token was never of another type
        assert (seen.refused, seen.tokens) == (0, [first, second, third])
        assert await type_of(line, TOKEN) == OPAQUE


async def test_the_setting_decides_for_accounts_that_ask_for_nothing(line: Line) -> None:
    # given the example runs with static tokens
    async with line.everything(token_mode="static"):
        await line.settle()
        static = await line.token(HOME)
        assert await type_of(line, f"{TOKEN}-1") == LEGACY
        assert await line.accepts(static)
        records = [record for record in line.audit if record.action == "minted"]
        assert [record.message for record in records] == ["generation 1, never expires"]

    # when the setting is another one, then the account moves
    async with line.everything(token_overlap=0.5):
        await until_moved(line, static)
        assert await type_of(line, f"{TOKEN}-2") == OPAQUE


async def test_a_static_token_is_revoked_with_the_annotation(line: Line) -> None:
    async with line.everything(token_mode="static"):
        await line.settle()
        token = await line.token(HOME)

        await line.annotate(ACCOUNT, **{"capsule.addon.fluxcd_enabled": None})

        for name in (TOKEN, f"{TOKEN}-1", f"{NAME}-kubeconfig"):
            await line.until_gone("Secret", HOME, name)
        assert not await line.accepts(token)


@pytest.mark.slow
async def test_a_static_token_is_replaced_when_a_namespace_that_held_it_goes_to_another_tenant(line: Line) -> None:
    async with line.everything(token_mode="static"):
        # given two tenants with static tokens
        await line.settle()
        await line.apply_files("gas.yaml")
        await line.until_there("Secret", "gas-system", f"{NAME}-kubeconfig")
        leaked = await line.token("oil-production")

        # when a namespace of the first is given to the second
        line.hand_over("oil-production", "gas")

        # then the first one's static token is another one, and the leaked one is dead
        async def replaced() -> bool:
            return await line.token(HOME) not in {"", leaked} and not await line.accepts(leaked)

        await line.until(replaced, "another static token at home, and the end of the leaked one")
        assert await type_of(line, f"{TOKEN}-2") == LEGACY


async def test_a_static_token_that_is_spoiled_is_replaced(line: Line) -> None:
    async with line.everything(token_mode="static"):
        await line.settle()
        old = await line.token(HOME)

        await line.delete("Secret", HOME, f"{TOKEN}-1")

        async def replaced() -> bool:
            tokens = {await line.token(HOME), await line.token("oil-production")}
            return len(tokens) == 1 and not tokens & {"", old} and await line.accepts(tokens.pop())

        await line.until(replaced, "a new token in every kubeconfig")


async def test_a_token_secret_that_is_deleted_comes_back_with_the_static_token_that_is_in_use(line: Line) -> None:
    async with line.everything(token_mode="static"):
        await line.settle()
        token = await line.token(HOME)
        async with line.reading("oil-production") as seen:
            old = await line.must("Secret", HOME, TOKEN)
            await line.delete("Secret", HOME, TOKEN)

            async def back() -> bool:
                new = await line.get("Secret", HOME, TOKEN)
                return new is not None and new["metadata"]["uid"] != old["metadata"]["uid"]

            await line.until(back, f"{TOKEN} again")
        new = await line.must("Secret", HOME, TOKEN)
        assert new["data"] == old["data"]
        assert (seen.refused, seen.tokens) == (0, [token])


@pytest.mark.slow
async def test_a_token_stays_good_while_a_kubeconfig_still_holds_it(line: Line) -> None:
    # given the example runs
    async with line.everything():
        await line.settle()

    # when the token changes while nobody writes kubeconfigs
    overlap = 0.2
    async with line.watcher(), line.router(), line.workers("rbac", "token", "access", token_overlap=overlap):
        await line.annotate(ACCOUNT, **{MODE: "static"})
        rotated = await line.until_recorded("token", "rotated", f"Secret/{HOME}/{TOKEN}")

        # then the one before is not revoked when the overlap is over, but in the end it is
        revoked = await line.until_recorded("token", "revoked", f"{TOKEN}-1")
        assert (revoked.time - rotated.time).total_seconds() >= overlap * HOLD


async def test_a_refused_request_for_a_token_is_made_again_and_then_said(line: Line, tmp_path: Path) -> None:
    # given workers that may do all but ask for tokens
    name = "half-a-worker"
    core = ["serviceaccounts", "secrets", "namespaces", "events"]
    tenants, rbac = "capsule.clastix.io", "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": core, "verbs": ["*"]},
        {"apiGroups": [tenants, rbac], "resources": ["*"], "verbs": ["*"]},
    ]
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    role = {"apiGroup": rbac, "kind": "ClusterRole", "name": name}
    await line.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    )
    issued = await line.client.token_request("default", name, audiences=(), expiration_seconds=3600)
    config = tmp_path / "half-a-worker.kubeconfig"
    config.write_text(line.api.kubeconfig(token=issued.token))
    quick = {"retry_base": 0.05, "retry_max": 0.2}
    async with line.watcher(), line.router(), line.workers("token", kubeconfig=str(config), **quick):
        # when an account is to get one
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")

        # then an Event says that it is refused, and why
        async def told() -> bool:
            events = [event for event in await line.all("Event", HOME) if event["reason"] == "TokenRefused"]
            return any("serviceaccounts/token" in event["message"] for event in events)

        await line.until(told, "an Event that says what was refused")
        failed = await line.until_recorded("token", "minted", TOKEN)
        assert (failed.outcome, failed.account, failed.tenant) == ("failed", ACCOUNT, "oil")
        assert failed.cause

        # and its tries leave one Secret, not one each: what a try makes is no cause of the next
        assert [one["metadata"]["name"] for one in await line.all("Secret", HOME)] == [f"{TOKEN}-1"]

        # and when it is allowed, the token comes, and no Secret of a try is left
        allowed = {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}
        await line.patch("ClusterRole", "", name, {"rules": [*rules, allowed]})
        secret = await line.until_there("Secret", HOME, TOKEN)
        bindings = [one["metadata"]["name"] for one in await line.all("Secret", HOME)]
        current = secret["metadata"]["annotations"]["capsule-tether.io/binding"]
        assert [one for one in bindings if one.startswith(f"{TOKEN}-")] == [current]


async def test_an_annotation_that_means_nothing_is_ignored_with_an_event(line: Line) -> None:
    async with line.everything():
        await line.settle()

        await line.annotate(ACCOUNT, **{MODE: "Static"})

        async def told() -> bool:
            events = [event for event in await line.all("Event", HOME) if event["reason"] == "AnnotationIgnored"]
            return len(events) == 1 and "use bound or static" in events[0]["message"]

        await line.until(told, "one Event that names the annotation")
        assert await type_of(line, f"{TOKEN}-1") == OPAQUE
