"""Who somebody is to Kubernetes, and which namespaces the grants give them: pure.

The set is a union over the caller's own name and each of its groups, and nothing but what the compiled grants hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import msgspec

from eventcore.grants import ConfigGrant, Grant, SubjectGrant, TenantGrant
from eventcore.keys import Key, key

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
CONFIG_KEY = key("config")
_LONGEST_NAME = 253
_LONGEST_ACCOUNT = len(SERVICE_ACCOUNT_PREFIX) + 63 + 1 + _LONGEST_NAME
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PART = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_ACCOUNT = re.compile(rf"{SERVICE_ACCOUNT_PREFIX}({_LABEL}):({_PART}(?:\.{_PART})*)")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A user as ``authentication.k8s.io`` describes it.

    ``only``: the one tenant that a request is narrowed to by its URL, "" for all. Whatever reads the grants for an
    identity goes through `tenants_of`, or looks at it itself.
    """

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = {}
    only: str = ""

    @property
    def account(self) -> tuple[str, str] | None:
        """Return (namespace, name) of a ServiceAccount, None for anybody else."""
        return account_of(self.user)


class Grants(Protocol):
    """The compiled grants in memory, as AccessView has them."""

    def get(self, target: Key, /) -> Grant | None:
        """Return the grant of a key, or None."""


class Overlay:
    """Grants as they were: ``past`` stands before what ``base`` says."""

    def __init__(self, base: Grants) -> None:
        self._base = base
        self.past: dict[Key, Grant | None] = {}

    def get(self, target: Key, /) -> Grant | None:
        return self.past[target] if target in self.past else self._base.get(target)


def account_of(user: str) -> tuple[str, str] | None:
    """Return (namespace, name) of a ServiceAccount's user name, None for any other name.

    With names that no ServiceAccount can have it is a user like any other, as the API server has it.
    """
    found = _ACCOUNT.fullmatch(user) if len(user) <= _LONGEST_ACCOUNT else None
    return (found[1], found[2]) if found and len(found[2]) <= _LONGEST_NAME else None


def account_groups(namespace: str) -> tuple[str, ...]:
    """Return the groups that every ServiceAccount of a namespace is in."""
    return "system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"


def is_capsule_user(identity: Identity, grants: Grants) -> bool:
    """Tell whether Capsule counts the identity among its users, by its name or one of its groups."""
    config = grants.get(CONFIG_KEY)
    if not isinstance(config, ConfigGrant):
        return False
    groups = frozenset(identity.groups)
    return any(
        ref.name in groups if ref.kind == "Group" else ref.name == identity.user and ref.kind in _USER_KINDS
        for ref in config.users
    )


_USER_KINDS = frozenset({"User", "ServiceAccount"})


def subject_keys(identity: Identity) -> list[Key]:
    """Return the keys of the grants of the identity itself and of its groups.

    An owner of kind User may name an account too: Capsule compares user names for both kinds alike.
    """
    own = ("User",) if identity.account is None else ("ServiceAccount", "User")
    named = [(kind, identity.user) for kind in own]
    return [key("subject", *one) for one in (*named, *(("Group", group) for group in identity.groups))]


def grant_keys(identity: Identity, grants: Grants) -> set[Key]:
    """Return every key that decides about the identity's namespaces now."""
    subjects = subject_keys(identity)
    return {*subjects, *(key("tenant", tenant) for tenant, _ in tenants_of(identity, grants))}


def namespaces_of(identity: Identity, grants: Grants) -> frozenset[str]:
    """Return the namespaces of all tenants that the identity or one of its groups owns, and those reflected to it."""
    found = _owned_namespaces(identity, grants)
    for grant in _reflecting(identity, grants):
        found.update(grant.reflected)
    return frozenset(found)


def crossed_namespaces(identity: Identity, grants: Grants) -> frozenset[str]:
    """Return the namespaces that a list across namespaces may hold if RBAC allows it in each of them."""
    found = _owned_namespaces(identity, grants)
    for grant in _reflecting(identity, grants):
        found.update(grant.shared)
    return frozenset(found)


def _owned_namespaces(identity: Identity, grants: Grants) -> set[str]:
    found: set[str] = set()
    for tenant, _ in tenants_of(identity, grants):
        grant = grants.get(key("tenant", tenant))
        if isinstance(grant, TenantGrant):
            found.update(grant.namespaces)
    return found


def _reflecting(identity: Identity, grants: Grants) -> Iterator[SubjectGrant]:
    """Yield what may show namespaces of others; nothing to whom a URL narrows to one tenant."""
    for subject in subject_keys(identity) if not identity.only else ():
        grant = grants.get(subject)
        if isinstance(grant, SubjectGrant):
            yield grant


def owns_any(identity: Identity, grants: Grants) -> bool:
    """Tell whether the identity or one of its groups owns a live tenant."""
    return any(isinstance(grants.get(key("tenant", one)), TenantGrant) for one, _ in tenants_of(identity, grants))


def tenants_of(identity: Identity, grants: Grants) -> Iterator[tuple[str, SubjectGrant]]:
    """Yield each tenant of the identity and of its groups with the grant that says so; a tenant may come twice."""
    for subject in subject_keys(identity):
        grant = grants.get(subject)
        if isinstance(grant, SubjectGrant):
            for tenant in grant.tenants:
                if identity.only in {"", tenant}:
                    yield tenant, grant
