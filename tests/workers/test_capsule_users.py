"""With ``--capsule-users`` every entitled account is a user of Capsule, and none that is not stays one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.kube import api_path
from eventcore.objects import CAPSULE_GROUP
from workers.user_entries import ANNOTATION_PREFIX

if TYPE_CHECKING:
    from tests.workers.conftest import Line

Object = dict[str, Any]
NAME = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd_enabled"
CRD = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions", name=f"capsuleconfigurations.{CAPSULE_GROUP}")
BY_HAND = [{"kind": "User", "name": "zoe"}, {"kind": "Group", "name": "ops"}, {"kind": "User", "name": "adam"}]


def user(home: str) -> Object:
    return {"kind": "ServiceAccount", "name": f"system:serviceaccount:{home}:{NAME}"}


async def configure(line: Line, **spec: Any) -> None:
    body = {"apiVersion": f"{CAPSULE_GROUP}/v1beta2", "kind": "CapsuleConfiguration", "metadata": {"name": "default"}}
    await line.apply(body | {"spec": spec})


async def make(line: Line, number: int, *, owner: bool = True) -> str:
    """Make an enabled account with its home and, as its owner or not, its Tenant; return the home."""
    home, tenant = f"t{number}-system", f"t{number}"
    owners = [user(home)] if owner else [{"kind": "User", "name": "dana"}]
    await line.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}},
        {
            "apiVersion": f"{CAPSULE_GROUP}/v1beta2",
            "kind": "Tenant",
            "metadata": {"name": tenant},
            "spec": {"owners": owners},
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": NAME,
                "namespace": home,
                "annotations": {"capsule.addon.fluxcd/enabled": "true"},
            },
        },
    )
    return home


async def listed(line: Line, field: str = "users") -> list[Any]:
    return list((await line.must("CapsuleConfiguration", "", "default"))["spec"].get(field) or [])


async def memories(line: Line) -> set[str]:
    found = await line.must("CapsuleConfiguration", "", "default")
    annotations = found["metadata"].get("annotations") or {}
    return {value for key, value in annotations.items() if key.startswith(ANNOTATION_PREFIX)}


async def until_listed(line: Line, *wanted: Any, field: str = "users") -> None:
    """Wait until a list holds exactly these, those by hand first and in their order."""

    async def check() -> bool:
        found = await listed(line, field)
        return found[: len(BY_HAND)] == list(wanted)[: len(BY_HAND)] and sorted(map(str, found)) == sorted(
            map(str, wanted)
        )

    await line.until(check, f"{field} with {wanted}")


@pytest.mark.slow
async def test_many_accounts_at_once_all_become_users_and_leave_again(line: Line) -> None:
    # given an administrator's own list, and two processes of workers that know nothing of one another
    await configure(line, users=BY_HAND)
    async with (
        line.watcher(),
        line.router(),
        line.workers("rbac", capsule_users=True),
        line.workers("rbac", capsule_users=True),
    ):
        # when many owners come at once
        homes = [await make(line, number) for number in range(24)]

        # then all of them are in the list, each once, after what was there
        await until_listed(line, *BY_HAND, *map(user, homes))

        # and when they all go, nothing of Tether's is left
        for home in homes:
            await line.annotate(f"{home}/{NAME}", **{ENABLED: None})
        await until_listed(line, *BY_HAND)
        assert await memories(line) == set()


async def test_an_entry_by_hand_is_nobodys_but_its_authors(line: Line) -> None:
    # given one account that was listed by hand, and one that was not
    await configure(line, users=[user("t1-system"), *BY_HAND[1:]])
    async with line.watcher(), line.router(), line.workers("rbac", capsule_users=True):
        await make(line, 1)
        await make(line, 2)
        await line.until_there("RoleBinding", "t1-system", NAME)
        await until_listed(line, user("t1-system"), *BY_HAND[1:], user("t2-system"))
        assert await memories(line) == {"users t2-system/gitops-reconciler t2"}

        # when somebody takes Tether's own off, it comes back
        await line.client.json_patch(
            line.path("CapsuleConfiguration", "", "default"), [{"op": "remove", "path": "/spec/users/3"}]
        )
        await until_listed(line, user("t1-system"), *BY_HAND[1:], user("t2-system"))

        # when both are switched off; then the one by hand stays
        for number in (1, 2):
            await line.annotate(f"t{number}-system/{NAME}", **{ENABLED: None})
            await line.until_gone("RoleBinding", f"t{number}-system", NAME)
        await until_listed(line, user("t1-system"), *BY_HAND[1:])
        # and who came and went is in the audit
        for action in ("granted", "revoked"):
            record = await line.until_recorded("rbac", action, "CapsuleConfiguration/default")
            assert (record.account, record.tenant) == (f"t2-system/{NAME}", "t2")
            assert record.message == f"users: {user('t2-system')['name']}"


@pytest.mark.parametrize("how", ["owner", "account", "away"])
async def test_who_loses_its_reason_is_no_user_any_more(line: Line, how: str) -> None:
    await configure(line, users=BY_HAND)
    async with line.watcher(), line.router(), line.workers(capsule_users=True):
        # given an account that became a user
        await make(line, 1)
        await until_listed(line, *BY_HAND, user("t1-system"))
        await line.until_there("Secret", "t1-system", f"{NAME}-kubeconfig")

        # when it does not own its Tenant any more, or is deleted
        if how == "owner":
            await line.patch("Tenant", "", "t1", {"spec": {"owners": [{"kind": "User", "name": "dana"}]}})
        elif how == "account":
            await line.delete("ServiceAccount", "t1-system", NAME)
        if how != "away":
            await until_listed(line, *BY_HAND)
            return
    # or when all of it goes while nobody looks
    await line.delete("Namespace", "", "t1-system")
    await line.until_gone("Namespace", "", "t1-system")
    for kind in ("ClusterRoleBinding", "ClusterRole"):
        await line.delete(kind, "", f"t1-system-{NAME}-impersonator")
    async with line.watcher(), line.router(), line.workers(capsule_users=True):
        await until_listed(line, *BY_HAND)


async def test_switched_off_again_nothing_that_was_added_stays(line: Line) -> None:
    await configure(line, users=BY_HAND)
    async with line.watcher():
        async with line.router(), line.workers("rbac", capsule_users=True):
            await make(line, 1)
            await until_listed(line, *BY_HAND, user("t1-system"))

        async with line.router(), line.workers("rbac"):
            await until_listed(line, *BY_HAND)
            assert await line.get("RoleBinding", "t1-system", NAME)


async def test_by_default_nobody_becomes_a_user(line: Line) -> None:
    await configure(line, users=BY_HAND)
    async with line.watcher(), line.router(), line.workers("rbac"):
        await make(line, 1)
        await line.until_there("ClusterRoleBinding", "", f"t1-system-{NAME}-impersonator")
        assert await listed(line) == BY_HAND


@pytest.mark.parametrize(("field", "wanted"), [("userNames", user("t1-system")["name"]), ("userGroups", "")])
async def test_before_users_were_served_the_next_best_list_is_taken(line: Line, field: str, wanted: str) -> None:
    # given a Capsule whose schema has no users, or not even names
    crd = msgspec.json.decode(await line.client.get(CRD), type=Object)
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for newer in ("users", "userNames")[: 1 if field == "userNames" else 2]:
        del spec[newer]
    await line.client.replace(CRD, crd)
    await configure(line, **{field: ["ops", "adam"]})
    wanted = wanted or "system:serviceaccounts:t1-system"

    # when an owner comes and goes; then its entry does so in that list
    async with line.watcher(), line.router(), line.workers("rbac", capsule_users=True):
        await make(line, 1)
        await until_listed(line, "ops", "adam", wanted, field=field)
        await line.annotate(f"t1-system/{NAME}", **{ENABLED: None})
        await until_listed(line, "ops", "adam", field=field)


async def test_without_the_right_the_account_is_told_what_is_missing(line: Line, tmp_path: Any) -> None:
    from tests.workers.test_rights import account_of  # noqa: PLC0415 -- its helper alone

    # given the workers have what ships in deploy/rbac, and no more
    await configure(line, users=BY_HAND)
    kubeconfig = await account_of(line, "tether-worker", tmp_path)
    async with line.watcher(), line.router(), line.workers("rbac", capsule_users=True, kubeconfig=kubeconfig):
        await make(line, 1)

        # then the rest is there, and an Event says so
        await line.until_there("ClusterRoleBinding", "", f"t1-system-{NAME}-impersonator")

        async def told() -> list[str]:
            events = await line.all("Event", "t1-system")
            return [event["message"] for event in events if event["reason"] == "CapsuleUserRefused"]

        await line.until(told, "the Event")
        (message,) = await told()
        assert "deploy/optional/worker-users.yaml" in message
        assert await listed(line) == BY_HAND
