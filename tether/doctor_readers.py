"""Who else can read the Secrets beside a tenant's copies: whoever can, holds the token of the tenant's owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.kube import api_path
from eventcore.objects import Meta, Subject
from tether.cluster_lists import RBAC, list_all
from tether.doctor_snapshot import Finding
from workers.ownership import Account, Owner, identities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from eventcore.kube import KubeClient
    from tether.doctor_snapshot import AccountState, Snapshot
    from workers.relations import Relations

SHOWN: Final = 5
"""Subjects that a finding names; the others are counted."""
_LONGEST: Final = 100
_READS: Final = frozenset({"get", "list", "watch", "*"})
_ADMINISTRATORS: Final = Owner("Group", "system:masters")


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """rules[] of a Role or ClusterRole."""

    api_groups: list[str] | None = None
    resources: list[str] | None = None
    verbs: list[str] | None = None
    resource_names: list[str] | None = None

    def reads(self, secrets: Iterable[str]) -> bool:
        """Tell whether it lets one read any of these Secrets."""
        return (
            not {"", "*"}.isdisjoint(self.api_groups or ())
            and not {"secrets", "*"}.isdisjoint(self.resources or ())
            and not _READS.isdisjoint(self.verbs or ())
            and (not self.resource_names or not set(self.resource_names).isdisjoint(secrets))
        )


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """rbac.authorization.k8s.io/v1 Role or ClusterRole, its aggregation filled in by the cluster."""

    metadata: Meta
    rules: list[PolicyRule] | None = None


class RoleRef(msgspec.Struct, frozen=True, kw_only=True):
    """roleRef."""

    kind: str = ""
    name: str = ""


class Binding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """rbac.authorization.k8s.io/v1 RoleBinding."""

    metadata: Meta
    role_ref: RoleRef = RoleRef()
    subjects: list[Subject] | None = None


def copies(accounts: Iterable[AccountState]) -> dict[str, dict[Account, set[str]]]:
    """Return the accounts with a token or a kubeconfig in each namespace, and the names of those Secrets."""
    found: dict[str, dict[Account, set[str]]] = {}
    for state in accounts:
        for config in state.configs:
            if config.ours and config.token:
                found.setdefault(config.namespace, {}).setdefault(state.account, set()).add(config.name)
    return found


async def look_at_readers(client: KubeClient, accounts: Iterable[AccountState]) -> dict[str, tuple[Subject, ...]]:
    """Return whom RoleBindings let read the copies, by namespace; KubeError."""
    held = copies(accounts)
    if not held:
        return {}
    bindings = await list_all(client, Binding, api_path(RBAC, "v1", "rolebindings"))
    roles = await list_all(client, Role, api_path(RBAC, "v1", "roles"))
    cluster_roles = await list_all(client, Role, api_path(RBAC, "v1", "clusterroles"))
    return readers(held, bindings, [*roles, *cluster_roles])


def readers(
    held: Mapping[str, Mapping[Account, set[str]]], bindings: Iterable[Binding], roles: Iterable[Role]
) -> dict[str, tuple[Subject, ...]]:
    """Return the subjects of every binding whose role reads a copy in its namespace."""
    rules = {(role.metadata.namespace, role.metadata.name): role.rules or [] for role in roles}
    found: dict[str, dict[tuple[str, str, str], Subject]] = {}
    for binding in bindings:
        namespace = binding.metadata.namespace
        if namespace not in held:
            continue
        where = namespace if binding.role_ref.kind == "Role" else ""
        names = {name for some in held[namespace].values() for name in some}
        if any(rule.reads(names) for rule in rules.get((where, binding.role_ref.name), ())):
            subjects = found.setdefault(namespace, {})
            for one in binding.subjects or ():
                subjects.setdefault((one.kind, one.namespace, one.name), one)
    return {namespace: tuple(subjects.values()) for namespace, subjects in found.items()}


def reader_findings(snapshot: Snapshot, relations: Relations) -> Iterator[Finding]:
    """Yield a finding for each namespace in which others than the owners can read a copy."""
    held = copies(snapshot.accounts)
    for namespace, subjects in sorted(snapshot.readers.items()):
        # An account that owns several Tenants: its token is worth all of them, so only who owns them all has it anyway.
        tenants = {tenant for account in held.get(namespace, ()) for tenant in relations.tenants_of_account(account)}
        owners = [relations.owners(tenant).all | {_ADMINISTRATORS} for tenant in tenants]
        bound = Subject(kind="ServiceAccount", name=snapshot.flux_account, namespace=namespace)
        others = sorted(
            {
                _text(one)
                for one in subjects
                if not all(_is_among(one, some) for some in owners)
                and (one.kind, one.name, one.namespace) != (bound.kind, bound.name, bound.namespace)
            }
        )
        if others:
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            text = f"{', '.join(others[:SHOWN])}{more} can read Secrets here, and so the kubeconfig of the owner of "
            text += f"Tenant {', '.join(sorted(tenants))}"
            yield Finding(
                severity="warning",
                check="readers",
                object=f"Namespace/{namespace}",
                message=text,
                remedy="give them a role without Secrets, or keep the copy out of here: docs/kubeconfigs.md",
            )


def _is_among(subject: Subject, owners: frozenset[Owner]) -> bool:
    account = Account.of_username(subject.name) if subject.kind == "User" else None
    if subject.kind == "ServiceAccount":
        account = Account(subject.namespace, subject.name)
    found = identities(account) if account is not None else (Owner(subject.kind, subject.name),)
    return not owners.isdisjoint(found)


def _text(subject: Subject) -> str:
    name = f"{subject.namespace}/{subject.name}" if subject.kind == "ServiceAccount" else subject.name
    return f"{subject.kind} {name if len(name) <= _LONGEST else name[:_LONGEST] + '...'}"
