"""What is left of capsule-addon-fluxcd around an account, and the steps that hand it to Tether.

Pure. The order is what keeps a tenant's Flux working: every kubeconfig first moves to a token that outlives the change
(the bridge), only then does Tether replace the addon's token, and the bridge goes when nobody holds it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from workers.desired import Target
from workers.names import fit, token_name
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

Verb = Literal[
    "stop", "keep", "unreplicate", "leave", "bridge", "move", "adopt", "replace", "distribute", "remove", "blocked"
]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A GlobalTenantResource of the addon."""

    name: str
    prunes: bool


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A kubeconfig Secret of the account. ``token`` is the digest of the token in it, "" without one.

    ``ours``: it carries Tether's marks. ``proven``: it lies at home, or in a namespace that is provably the tenant's.
    """

    namespace: str
    name: str
    token: str = ""
    ours: bool = False
    proven: bool = True
    immutable: bool = False

    @property
    def target(self) -> Target:
        return Target("Secret", self.namespace, self.name)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One enabled account as the cluster has it now. Tokens are digests."""

    account: Account
    tenants: tuple[str, ...]
    resources: tuple[Resource, ...] = ()
    member_of: str = ""  # the Tenant that the home namespace refers to
    capsule_user: bool = True  # also when its home is in no tenant
    static: str = ""  # the token that never expires and is to go
    token: Literal["absent", "static", "tether", "foreign"] = "absent"  # noqa: S105 -- a state, not a token
    current: str = ""  # the token that Tether gave out
    bridge: Literal["absent", "empty", "ready"] = "absent"
    bridge_held: tuple[Target, ...] = ()  # Secrets that hold the bridge's token
    rights: tuple[Target, ...] = ()  # of the addon's shape, without a mark of ours
    wrong_rights: tuple[str, ...] = ()  # what is wrong with the others, a line each
    holders: tuple[Holder, ...] = ()
    elsewhere: tuple[Target, ...] = ()  # other Secrets that hold the static token that is to go
    missing: tuple[str, ...] = ()  # namespaces where Tether's kubeconfig is not, or holds another token

    @property
    def concerned(self) -> bool:
        """Tell whether there is anything of the addon around. Rights alone may come from Git, where they belong."""
        return bool(
            self.resources
            or self.member_of
            or self.token == "static"  # noqa: S105 -- a state, not a token
            or self.bridge != "absent"
            or any(not holder.ours and holder.proven for holder in self.holders)
        )


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do. ``text`` says it to a person; ``object`` is what is touched."""

    verb: Verb
    text: str
    object: str
    target: Target | None = None


BRIDGE_SUFFIX: Final = "-token-migration"


def bridge_name(account: Account) -> str:
    """Return the name of the Secret that holds the token of the time between."""
    return fit(f"{account.name}{BRIDGE_SUFFIX}", account)


def bridge_target(account: Account) -> Target:
    """Return the Secret that holds the token of the time between."""
    return Target("Secret", account.namespace, bridge_name(account))


def token_target(account: Account) -> Target:
    """Return the Secret that holds the account's token, the addon's and then Tether's."""
    return Target("Secret", account.namespace, token_name(account))


def plan(found: Found) -> list[Step]:
    """Return every step that is left for an account, in order; none when Tether has all of it."""
    if not found.concerned:
        return []
    steps = [*_replication(found), *_home(found)]
    static, bridged = found.token == "static", found.bridge != "absent"  # noqa: S105 -- a state, not a token
    # A GlobalTenantResource may lie over anything that we cannot see yet, so this is judged after it is gone too.
    blocks = list(_blocks(found)) if static else []
    movable = [h for h in found.holders if h.proven and not h.immutable]
    to_move = [h for h in movable if h.token and h.token == found.static] if static else []
    if to_move or (static and bridged and found.bridge != "ready"):
        if found.bridge != "ready":
            steps.append(
                _step("bridge", bridge_target(found.account), "make a second token, which outlives the change")
            )
        steps += [_step("move", holder.target, "let it use the second token") for holder in to_move]
    if blocks:
        return [*steps, *blocks]
    steps += [_step("adopt", target, "hand it to Tether") for target in found.rights]
    steps += [_step("adopt", h.target, "hand it to Tether") for h in found.holders if h.proven and not h.ours]
    if static:
        text = "hand it to Tether, which replaces the token that never expires by its own"
        steps.append(_step("replace", token_target(found.account), text))
    if found.token == "foreign":  # noqa: S105 -- a state, not a token
        return [*steps, _foreign_token(found)]
    if static or found.missing or any(not h.ours for h in found.holders if h.proven):
        text = "wait until Tether's kubeconfig stands at home and in every namespace of the tenant"
        steps.append(Step(verb="distribute", text=text, object=str(found.account)))
    if bridged or any(step.verb == "bridge" for step in steps):
        text = "remove the second token, when nobody holds it any more"
        steps.append(_step("remove", bridge_target(found.account), text))
    return steps


def _replication(found: Found) -> Iterable[Step]:
    for resource in found.resources:
        name = f"GlobalTenantResource/{resource.name}"
        if resource.prunes:
            yield Step(verb="keep", text="switch its pruning off, so that the copies stay", object=name)
        text = "delete it: it holds the token in clear, and would overwrite what Tether writes"
        yield Step(verb="unreplicate", text=text, object=name)


def _home(found: Found) -> Iterable[Step]:
    if not found.member_of:
        return
    name = f"Namespace/{found.account.namespace}"
    if not found.capsule_user:
        yield Step(
            verb="blocked",
            object=name,
            text=f"stays in Tenant {found.member_of}: only as its member is {found.account} a user of Capsule. Add "
            f"the group system:serviceaccounts:{found.account.namespace} to spec.userGroups of the "
            "CapsuleConfiguration, then run this again",
        )
        return
    yield Step(verb="leave", text=f"take it out of Tenant {found.member_of}: a home stays outside", object=name)


def _blocks(found: Found) -> Iterable[Step]:
    for target in found.elsewhere:
        yield Step(
            verb="blocked",
            object=str(target),
            text="holds the token that never expires, and is not one of the kubeconfigs that Tether replaces: give it "
            "another token or delete it, then run this again",
        )
    for holder in found.holders:
        if holder.immutable and holder.proven and holder.token and holder.token == found.static:
            yield Step(
                verb="blocked",
                object=str(holder.target),
                text="is immutable, so its token cannot be changed: delete it and make it anew without "
                "`immutable: true`, then run this again",
            )


def _foreign_token(found: Found) -> Step:
    return Step(
        verb="blocked",
        object=str(token_target(found.account)),
        text="was made neither by the addon nor by Tether, and Tether needs its name: delete or rename it",
    )


def _step(verb: Verb, target: Target, text: str) -> Step:
    return Step(verb=verb, text=text, object=str(target), target=target)
