"""Asking the API server whether Tether's accounts have the rights that deploy/rbac gives them.

The manifests are the list of what is needed. A role that runs this itself asks about itself; anybody else who may asks
about each account.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.errors import NotFoundError
from eventcore.kube import api_path
from tether import manifests
from tether.doctor_snapshot import Right
from workers.ownership import Account, identities

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube import KubeClient
    from tether.manifests import Object

AT_ONCE: Final = 16


class Need(msgspec.Struct, frozen=True, order=True):
    """One right: what an account must be able to do. ``namespace`` is "" for the whole cluster."""

    account: Account
    verb: str
    group: str
    resource: str
    subresource: str = ""
    name: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        what += f".{self.group}" if self.group else ""
        name = f" {self.name}" if self.name else ""
        return f"{self.verb} {what}{name}" + (f" in {self.namespace}" if self.namespace else "")


class _Status(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Status


def needs(objects: Iterable[Object], namespace: str) -> list[Need]:
    """Return the rights that manifests give to accounts, those that live in Tether's namespace moved to this one.

    Pure.
    """
    found = list(objects)
    roles = {(o["kind"], o["metadata"]["name"]): o.get("rules") or [] for o in found if "rules" in o}
    wanted: set[Need] = set()
    for binding in found:
        if binding["kind"] not in {"ClusterRoleBinding", "RoleBinding"}:
            continue
        rules = roles.get((binding["roleRef"]["kind"], binding["roleRef"]["name"]), [])
        scope = str(binding["metadata"].get("namespace", "")) if binding["kind"] == "RoleBinding" else ""
        for subject in binding.get("subjects") or []:
            if subject["kind"] == "ServiceAccount":
                account = Account(namespace, str(subject["name"]))
                wanted |= {need for rule in rules for need in _of_rule(account, rule, scope)}
    return sorted(wanted)


def _of_rule(account: Account, rule: Object, namespace: str) -> Iterable[Need]:
    for verb in rule.get("verbs") or []:
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                plural, _, subresource = str(resource).partition("/")
                for name in rule.get("resourceNames") or [""]:
                    yield Need(account, verb, group, plural, subresource, name, namespace)


async def look_at_rights(
    client: KubeClient, namespace: str, optional: Iterable[str] = ()
) -> tuple[tuple[str, ...], tuple[Right, ...]]:
    """Return the accounts of deploy/rbac that do not exist, and every right of the others; KubeError.

    ``optional`` names files of deploy/optional whose rights are needed too.
    """
    shipped = manifests.read(manifests.shipped("deploy/rbac"))
    for name in optional:
        shipped += manifests.read(manifests.shipped(f"deploy/optional/{name}"))
    accounts = sorted({Account(namespace, o["metadata"]["name"]) for o in shipped if o["kind"] == "ServiceAccount"})
    wanted = needs(shipped, namespace)
    me = Account.of_username(await whoami(client))
    if me in accounts:
        return (), tuple(await _ask_all(client, [need for need in wanted if need.account == me], as_self=True))
    absent = [account for account in accounts if not await _exists(client, account)]
    there = [need for need in wanted if need.account not in absent]
    names = tuple(f"ServiceAccount/{account}" for account in absent)
    return names, tuple(await _ask_all(client, there, as_self=False))


async def whoami(client: KubeClient) -> str:
    """Return the user name under which this client is known; KubeError."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await client.create(api_path("authentication.k8s.io", "v1", "selfsubjectreviews"), review)
    return str(msgspec.json.decode(answer, type=dict[str, Any])["status"]["userInfo"]["username"])


async def _exists(client: KubeClient, account: Account) -> bool:
    try:
        await client.get(api_path("", "v1", "serviceaccounts", namespace=account.namespace, name=account.name))
    except NotFoundError:
        return False
    return True


async def _ask_all(client: KubeClient, wanted: list[Need], *, as_self: bool) -> list[Right]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(need: Need) -> Right:
        async with limit:
            return Right(account=str(need.account), right=str(need), allowed=await _ask(client, need, as_self=as_self))

    return list(await asyncio.gather(*(ask(need) for need in wanted)))


async def _ask(client: KubeClient, need: Need, *, as_self: bool) -> bool:
    attributes = {"verb": need.verb, "group": need.group, "resource": need.resource, "subresource": need.subresource}
    attributes |= {"name": need.name, "namespace": need.namespace}
    spec: Object = {"resourceAttributes": {key: value for key, value in attributes.items() if value}}
    kind = "SelfSubjectAccessReview"
    if not as_self:
        kind = "SubjectAccessReview"
        groups = [owner.name for owner in identities(need.account) if owner.kind == "Group"]
        spec |= {"user": need.account.username, "groups": groups}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    answer = await client.create(api_path("authorization.k8s.io", "v1", f"{kind.lower()}s"), body)
    return msgspec.json.decode(answer, type=_Review).status.allowed
