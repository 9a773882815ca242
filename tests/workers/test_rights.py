"""The rights that ship: enough for each worker alone, no more than the table of docs/security.md gives reasons for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from eventcore.errors import ForbiddenError
from eventcore.keys import WORKERS
from eventcore.kube import KubeClient, api_path
from tether.manifests import Applier, read

if TYPE_CHECKING:
    from tests.workers.conftest import Line

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "rbac"
HOME, NAME = "oil-system", "gitops-reconciler"
IMPERSONATOR = f"{HOME}-{NAME}-impersonator"
RBAC = "rbac.authorization.k8s.io"
Object = dict[str, Any]


async def account_of(line: Line, account: str, folder: Path, *, without: str = "") -> str:
    """Apply what ships for the workers, but for one file, and return the kubeconfig of one of their accounts."""
    for file in sorted(SHIPPED.glob("worker*.yaml")):
        if file.name != without:
            await Applier(line.client, "person").apply(read(file))
    issued = await line.client.token_request("capsule-system", account, expiration_seconds=3600)
    kubeconfig = folder / f"{account}.kubeconfig"
    kubeconfig.write_text(line.api.kubeconfig(token=issued.token))
    return str(kubeconfig)


@pytest.mark.parametrize("how", ["together", "apart"])
async def test_the_rights_that_ship_for_the_workers_are_enough(line: Line, tmp_path: Path, how: str) -> None:
    async with AsyncExitStack() as stack:
        # given the workers run under the accounts that ship
        if how == "together":
            kubeconfig = await account_of(line, "tether-worker", tmp_path)
            await stack.enter_async_context(line.workers(kubeconfig=kubeconfig))
        for name in WORKERS if how == "apart" else ():
            kubeconfig = await account_of(line, f"tether-worker-{name}", tmp_path)
            await stack.enter_async_context(line.workers(name, kubeconfig=kubeconfig))
        await stack.enter_async_context(line.watcher())
        await stack.enter_async_context(line.router())

        # when the example comes, and goes again, then every worker could do its part
        await line.settle()
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_enabled": None})
        await line.until_gone("Secret", "oil-production", f"{NAME}-kubeconfig")
        await line.until_gone("Secret", HOME, f"{NAME}-token")
        await line.until_gone("RoleBinding", HOME, NAME)
        await line.until_gone("ClusterRole", "", IMPERSONATOR)


@pytest.mark.slow
async def test_without_impersonator_roles_the_right_to_make_any_is_not_needed(line: Line, tmp_path: Path) -> None:
    # given impersonator roles of before
    async with line.everything():
        await line.settle()
    kubeconfig = await account_of(line, "tether-worker", tmp_path)

    # when they are switched off; then they go, and the rest stays
    async with line.everything(kubeconfig=kubeconfig, impersonator_roles=False):
        await line.until_gone("ClusterRoleBinding", "", IMPERSONATOR)
        await line.until_gone("ClusterRole", "", IMPERSONATOR)
        assert await line.get("RoleBinding", HOME, NAME)

    # and when the right to make them is gone too; then the account still gets and loses all the rest
    for kind in ("ClusterRoleBinding", "ClusterRole"):
        await line.delete(kind, "", "tether-worker-impersonators")
    await line.delete("RoleBinding", HOME, NAME)
    async with line.everything(kubeconfig=kubeconfig, impersonator_roles=False):
        await line.until_there("RoleBinding", HOME, NAME)
        await line.annotate(f"{HOME}/{NAME}", **{"capsule.addon.fluxcd_enabled": None})
        await line.until_gone("RoleBinding", HOME, NAME)
        await line.until_gone("Secret", "oil-production", f"{NAME}-kubeconfig")


async def test_a_worker_cannot_do_the_others_work(line: Line, tmp_path: Path) -> None:
    for name in WORKERS:
        kubeconfig = await account_of(line, f"tether-worker-{name}", tmp_path)
        settings = msgspec.structs.replace(line.settings, kubeconfig=kubeconfig)
        client = await KubeClient.connect(settings)
        try:
            if name in {"rbac", "access"}:
                with pytest.raises(ForbiddenError):
                    await client.get(api_path("", "v1", "secrets", namespace="kube-system", name="any"))
            if name != "rbac":
                with pytest.raises(ForbiddenError):
                    await client.get(line.path("RoleBinding", "kube-system", "any"))
            if name != "token":
                with pytest.raises(ForbiddenError):
                    await client.token_request("capsule-system", NAME, expiration_seconds=600)
            # Nobody lists: the rights are for objects whose names are known.
            with pytest.raises(ForbiddenError):
                await client.get(api_path("", "v1", "secrets", namespace="kube-system"))
        finally:
            await client.close()


def shipped() -> Iterator[Object]:
    for folder in ("rbac", "optional"):
        for file in sorted((ROOT / "deploy" / folder).glob("*.yaml")):
            yield from yaml.safe_load_all(file.read_text())


def given(roles: Iterator[Object]) -> set[tuple[str, ...]]:
    """Return every right of ClusterRoles and Roles: role, resource with its group, names and verbs."""
    return {
        (
            role["metadata"]["name"],
            f"{resource}.{group}" if group else resource,
            ", ".join(rule.get("resourceNames", [])),
            ", ".join(rule["verbs"]),
        )
        for role in roles
        if role["kind"] in {"ClusterRole", "Role"}
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_every_right_stands_in_the_table_with_its_reason_and_no_other_does() -> None:
    # | role | resources | names | verbs | why |
    lines = (ROOT / "docs" / "security.md").read_text().splitlines()
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines if "tether-" in line
    ]
    written: set[tuple[str, ...]] = set()
    for role, resources, names, verbs, why in (row for row in rows if len(row) == len("abcde")):
        assert why, role
        written |= {(role, resource, names, verbs) for resource in re.split(r",\s*", resources)}

    assert written == given(shipped())


def test_no_right_is_a_wildcard() -> None:
    for role, resource, _, verbs in given(shipped()):
        assert "*" not in resource + verbs, role


def test_the_policies_agree_about_what_they_allow() -> None:
    objects = [obj for file in sorted((ROOT / "deploy" / "admission").glob("*.yaml")) for obj in read(file)]
    policies = [obj for obj in objects if obj["kind"] == "ValidatingAdmissionPolicy"]
    bound = [obj for obj in objects if obj["kind"] == "ValidatingAdmissionPolicyBinding"]

    # Every policy is in force for the workers, and fails closed.
    assert {one["spec"]["policyName"] for one in bound} == {one["metadata"]["name"] for one in policies}
    assert all(one["spec"]["validationActions"] == ["Deny"] for one in bound)
    assert all(one["spec"]["failurePolicy"] == "Fail" for one in policies)
    assert len({str(one["spec"]["matchConditions"]) for one in policies}) == 1

    # The same accounts and namespaces stand in each, and they are those of the rights.
    said: dict[str, set[str]] = {"accounts": set(), "roles": set(), "protected": set()}
    for policy in policies:
        for variable in policy["spec"].get("variables", []):
            if variable["name"] in said:
                said[variable["name"]].add(variable["expression"])
    assert {name: len(found) for name, found in said.items()} == {"accounts": 1, "roles": 1, "protected": 1}
    named = {(role, what, verbs): names for role, what, names, verbs in given(shipped())}
    (accounts,), (roles,) = said["accounts"], said["roles"]
    assert yaml.safe_load(accounts) == [named["tether-worker-token", "serviceaccounts/token", "create"]]
    assert yaml.safe_load(roles) == [named["tether-worker-rbac", f"clusterroles.{RBAC}", "bind"]]
