"""Accounts that owned a Tenant, own none any more, and are still there: what is left at their homes.

Tether takes back what it gave. It cannot take back what the account made for itself while it could: tokens that it
asked for, and rights under other names at home. Both end with the ServiceAccount or with the home.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import NotFoundError
from eventcore.kube import api_path
from eventcore.objects import Meta, Subject
from tether.cluster_lists import list_all
from tether.doctor_snapshot import Finding, FormerOwner
from workers.desired import RBAC_GROUP

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from eventcore.kube import KubeClient
    from workers.ownership import Account
    from workers.relations import Relations

_SHOWN: Final = 3


class _RoleRef(msgspec.Struct, frozen=True):
    kind: str = ""
    name: str = ""


class _Binding(msgspec.Struct, rename="camel"):
    metadata: Meta
    role_ref: _RoleRef = _RoleRef()
    subjects: list[Subject] | None = None


def former_owners(relations: Relations, known: Collection[Account]) -> list[Account]:
    """Return those of the accounts that had a token of ours which own nothing now and are still there."""
    return sorted(
        account for account in known if account in relations.accounts and not relations.tenants_of_account(account)
    )


async def look(
    client: KubeClient, relations: Relations, known: Collection[Account], role: str
) -> tuple[FormerOwner, ...]:
    """Return what is left at the homes of former owners; KubeError.

    ``role`` is the one at home. Whatever bears it or ``cluster-admin`` there for an account of the home is named.
    """
    found = []
    for account in former_owners(relations, known):
        bindings: list[_Binding] = []
        with suppress(NotFoundError):
            path = api_path(RBAC_GROUP, "v1", "rolebindings", namespace=account.namespace)
            bindings = await list_all(client, _Binding, path)
        mighty = tuple(
            sorted(
                one.metadata.name
                for one in bindings
                if one.role_ref.kind == "ClusterRole"
                and one.role_ref.name in {role, "cluster-admin"}
                and any(
                    (subject.kind, subject.namespace) == ("ServiceAccount", account.namespace)
                    for subject in one.subjects or ()
                )
            )
        )
        found.append(FormerOwner(account=account, bindings=mighty))
    return tuple(found)


def former_findings(former: Collection[FormerOwner]) -> Iterator[Finding]:
    """Return what is to be said of former owners."""
    for one in former:
        account = one.account
        remedy = f"delete the namespace, or kubectl delete serviceaccount -n {account.namespace} {account.name}"
        if one.bindings:
            # A name that a tenant chose may hold anything, and somebody will paste this into a shell.
            names = shlex.join(one.bindings[:_SHOWN]) + (" ..." if len(one.bindings) > _SHOWN else "")
            remedy += f" and kubectl delete rolebinding -n {account.namespace} {names}"
        text = "owned a Tenant and owns none any more, but is still there: a token that it asked for itself, and what "
        text += "it made at its home, stay good"
        yield Finding(severity="warning", check="former-owners", object=str(account), message=text, remedy=remedy)
        if one.bindings:
            named = ", ".join(one.bindings[:_SHOWN]) + (", ..." if len(one.bindings) > _SHOWN else "")
            text = f"is the home of {account}, which owns no Tenant any more, and accounts in it still have all rights "
            text += f"there by RoleBinding {named}"
            yield Finding(
                severity="error",
                check="former-owners",
                object=f"Namespace/{account.namespace}",
                message=text,
                remedy=remedy,
            )
