"""What somebody changes or takes away of ours comes back; what is somebody else's is left."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
KUBECONFIG = f"{NAME}-kubeconfig"
TOKEN = f"{NAME}-token"
IMPERSONATOR = f"{HOME}-{NAME}-impersonator"
COMPONENT = "capsule-tether.io/component"


@pytest.mark.parametrize(
    ("kind", "namespace", "name"),
    [
        ("RoleBinding", HOME, NAME),
        ("ClusterRole", "", IMPERSONATOR),
        ("ClusterRoleBinding", "", IMPERSONATOR),
        ("Secret", HOME, KUBECONFIG),
        ("Secret", "oil-production", KUBECONFIG),
    ],
)
async def test_what_is_deleted_by_hand_comes_back(line: Line, kind: str, namespace: str, name: str) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        old = await line.must(kind, namespace, name)

        # when one of its objects is deleted by hand
        await line.delete(kind, namespace, name)

        # then it is made again, the same
        async def made_again() -> bool:
            new = await line.get(kind, namespace, name)
            return new is not None and new["metadata"]["uid"] != old["metadata"]["uid"]

        await line.until(made_again, f"{kind} {name} again")
        new = await line.must(kind, namespace, name)
        for part in ("data", "rules", "roleRef", "subjects"):
            assert new.get(part) == old.get(part)


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "patch"),
    [
        ("ClusterRole", "", IMPERSONATOR, {"rules": [{"apiGroups": [""], "resources": ["*"], "verbs": ["*"]}]}),
        ("RoleBinding", HOME, NAME, {"subjects": [{"kind": "User", "name": "mallory"}]}),
        ("Secret", "oil-production", KUBECONFIG, {"data": {"kubeconfig": base64.b64encode(b"other").decode()}}),
        ("Secret", "oil-production", KUBECONFIG, {"data": {"more": base64.b64encode(b"other").decode()}}),
        ("Secret", "oil-production", KUBECONFIG, {"metadata": {"labels": {"reconcile.fluxcd.io/watch": None}}}),
        ("Secret", "oil-production", KUBECONFIG, {"metadata": {"labels": {COMPONENT: None}}}),
        ("Secret", "oil-production", KUBECONFIG, {"immutable": True, "data": {"more": "b3RoZXI="}}),
    ],
    ids=["rules", "subjects", "content", "another key", "flux label", "our label", "immutable"],
)
async def test_what_is_edited_by_hand_is_put_right(
    line: Line, kind: str, namespace: str, name: str, patch: dict[str, Any]
) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        old = await line.must(kind, namespace, name)

        # when one of its objects is edited
        await line.patch(kind, namespace, name, patch)

        # then it is as it was
        async def put_right() -> bool:
            new = await line.get(kind, namespace, name)
            same = ("data", "rules", "roleRef", "subjects", "immutable")
            return (
                new is not None
                and new["metadata"]["labels"] == old["metadata"]["labels"]
                and all(new.get(part) == old.get(part) for part in same)
            )

        await line.until(put_right, f"{kind} {name} as it was")


async def test_a_rolebinding_to_another_role_is_replaced(line: Line) -> None:
    # given rights were given by an earlier setting
    async with line.everything(home_cluster_role="admin"):
        await line.settle()
        assert (await line.must("RoleBinding", HOME, NAME))["roleRef"]["name"] == "admin"

    # when the workers run with another one
    async with line.everything():
        # then the binding is made again, since its role cannot be changed
        async def replaced() -> bool:
            binding = await line.get("RoleBinding", HOME, NAME)
            return binding is not None and binding["roleRef"]["name"] == "cluster-admin"

        await line.until(replaced, "a RoleBinding to cluster-admin")


@pytest.mark.parametrize(
    "how", ["deleted", *(pytest.param(one, marks=pytest.mark.slow) for one in ("edited", "unbound"))]
)
async def test_a_token_that_is_spoiled_is_replaced_in_every_kubeconfig(line: Line, how: str) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        old = await line.token(HOME)

        # when its token Secret, or what the token is bound to, is spoiled
        match how:
            case "deleted":
                await line.delete("Secret", HOME, TOKEN)
            case "edited":
                await line.patch("Secret", HOME, TOKEN, {"data": {"token": base64.b64encode(b"other").decode()}})
            case _:
                await line.delete("Secret", HOME, f"{TOKEN}-1")

        # then a new generation is in every kubeconfig, and works
        async def replaced() -> bool:
            tokens = {await line.token(HOME), await line.token("oil-production")}
            return len(tokens) == 1 and not tokens & {"", old} and await line.accepts(tokens.pop())

        await line.until(replaced, "a new token in every kubeconfig")


async def test_a_kubeconfig_of_somebody_else_is_left_with_an_event_and_a_record(line: Line) -> None:
    async with line.everything():
        # given a Secret that somebody else made stands where the kubeconfig belongs
        await line.settle()
        await line.delete("Secret", "oil-production", KUBECONFIG)
        await line.until_there("Secret", "oil-production", KUBECONFIG)
        await line.make_namespace(HOME, "oil-development")
        await line.until_there("Secret", "oil-development", KUBECONFIG)
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_kubeconfig-global": "false"})
        await line.until_gone("Secret", "oil-development", KUBECONFIG)
        foreign = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": KUBECONFIG, "namespace": "oil-development"},
            "data": {"kubeconfig": base64.b64encode(b"mine").decode()},
        }
        await line.apply(foreign)

        # when the account's kubeconfig is to go there
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_kubeconfig-global": None})

        # then it is left, there is a record, and one Event on the account says what to do
        record = await line.until_recorded("kubeconfig", "refused", f"Secret/oil-development/{KUBECONFIG}")
        assert record.outcome == "refused"
        assert record.account == f"{HOME}/{NAME}"
        await line.until_there("Secret", "oil-production", KUBECONFIG)
        left = await line.must("Secret", "oil-development", KUBECONFIG)
        assert left["data"] == foreign["data"]
        assert COMPONENT not in left["metadata"].get("labels", {})
        events = [event for event in await line.all("Event", HOME) if event["reason"] == "ForeignObject"]
        assert [event["involvedObject"]["name"] for event in events] == [NAME]
        assert "delete or rename it" in events[0]["message"]

        # and when it is out of the way, ours takes its place at the next occasion
        await line.delete("Secret", "oil-development", KUBECONFIG)
        await line.patch("Namespace", "", "oil-development", {"metadata": {"labels": {"touched": "yes"}}})
        await line.until_there("Secret", "oil-development", KUBECONFIG)


async def test_what_already_stands_as_it_should_is_neither_marked_nor_pruned(line: Line) -> None:
    # given an administrator bound the account by hand, as the guide says
    await line.apply_files("capsule-configuration.yaml", "oil.yaml")
    await line.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": NAME, "namespace": HOME},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": HOME}],
        }
    )
    before = await line.must("RoleBinding", HOME, NAME)
    async with line.everything():
        # when the line has made the rest, and the account is switched off
        await line.until_there("ClusterRoleBinding", "", IMPERSONATOR)
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_enabled": None})
        await line.until_gone("ClusterRoleBinding", "", IMPERSONATOR)
        await line.until_gone("ClusterRole", "", IMPERSONATOR)

    # then the administrator's binding is as it was
    assert await line.must("RoleBinding", HOME, NAME) == before
    assert not [record for record in line.audit if record.object == f"RoleBinding/{HOME}/{NAME}"]
