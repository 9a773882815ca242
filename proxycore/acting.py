"""Whom a request acts as, and what must be allowed for that: pure, and as the API server has it.

Only the caller itself needs no right: the same user in exactly its groups, and either neither uid nor extras, as Flux
asks, or exactly the caller's. Such a request goes on as the caller, whole, with its own token and nothing taken away,
so what is left out of the headers is left out of nothing. Everything else is somebody else, also the caller in fewer
groups: whoever leaves a group may leave the rules that Capsule has for it. Then every single thing that is asked for
needs a right, also what the caller has itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from proxycore.identities import Identity, account_groups

AUTHENTICATED: Final = "system:authenticated"
UNAUTHENTICATED: Final = "system:unauthenticated"
ANONYMOUS_USER: Final = "system:anonymous"
_AUTHENTICATION_GROUP: Final = "authentication.k8s.io"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to impersonate, as RBAC names it."""

    resource: str  # users, groups, serviceaccounts, uids or userextras
    name: str
    group: str = ""
    subresource: str = ""
    namespace: str = ""

    @property
    def sort(self) -> Target:
        """The same without a name: the right to it is a right to every name."""
        return msgspec.structs.replace(self, name="")


class Acting(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request acts as. ``own``: the caller itself, so its own token goes upstream and nothing else.

    ``asked``: the caller's own token goes upstream with headers that ask for exactly this, so that the API server
    decides; None: the request goes under the proxy's account, which acts as ``identity``. ``proven``: it is known here
    that the caller may act so; what is not must decide nothing.
    """

    identity: Identity
    own: bool
    asked: Identity | None = None
    proven: bool = True


def effective(asked: Identity) -> Identity:
    """Return the identity that the API server makes of what was asked for: groups that come by themselves are added."""
    groups = asked.groups
    if not groups and asked.account is not None:
        groups = account_groups(asked.account[0])
    if asked.user == ANONYMOUS_USER:
        added = () if UNAUTHENTICATED in groups else (UNAUTHENTICATED,)
    else:
        added = () if {AUTHENTICATED, UNAUTHENTICATED} & set(groups) else (AUTHENTICATED,)
    return msgspec.structs.replace(asked, groups=(*groups, *added))


def naming(identity: Identity) -> Identity:
    """Return the least that has to be asked for so that `effective` of it is this identity.

    For each group that is named the API server asks for a right, which no name could limit.
    """
    groups, account = identity.groups, identity.account
    if account is not None and frozenset(groups) == frozenset(account_groups(account[0])):
        named: tuple[str, ...] = ()
    elif UNAUTHENTICATED in groups or identity.user == ANONYMOUS_USER:
        named = groups
    else:
        named = tuple(group for group in groups if group != AUTHENTICATED)
        if not named and account is not None:
            named = groups  # without any that is named, an account would get its own
    return msgspec.structs.replace(identity, groups=named)


def is_caller(caller: Identity, asked: Identity) -> bool:
    """Tell whether the asked-for identity is the caller itself."""
    return (
        asked.user == caller.user
        and frozenset(effective(asked).groups) == frozenset(caller.groups)
        and asked.uid in {"", caller.uid}
        and (not asked.extra or _sets(asked) == _sets(caller))
    )


def targets(asked: Identity) -> list[tuple[Target, ...]]:
    """Return what must be allowed, the user first: all of the list, each by any one of its alternatives.

    The first alternative is what the API server asks.
    """
    user = Target(resource="users", name=asked.user)
    found: list[tuple[Target, ...]] = [(user,)]
    if asked.account is not None:
        namespace, name = asked.account
        found = [(Target(resource="serviceaccounts", namespace=namespace, name=name), user)]
    found += [(Target(resource="groups", name=group),) for group in asked.groups]
    if asked.uid:
        found.append((Target(group=_AUTHENTICATION_GROUP, resource="uids", name=asked.uid),))
    found += [
        (Target(group=_AUTHENTICATION_GROUP, resource="userextras", subresource=key, name=value),)
        for key, values in asked.extra.items()
        for value in values
    ]
    return found


def _sets(identity: Identity) -> dict[str, frozenset[str]]:
    return {key: frozenset(values) for key, values in identity.extra.items()}
