"""Whose RoleBinding it is that bears an account's name at its home.

Tether makes it there, and the account may write everything there: its marks prove nothing, nor does their absence. An
administrator may have put one there too, by Git for instance, and that one stays as it is. The two are told apart by
what no tenant writes: whether it stood there before Tether gave the account anything. Tether remembers that by the uid
on the account's ClusterRole, which is cluster-scoped. What is not remembered there is Tether's, if it has made the
ClusterRole, or an object of that name bore its mark (ADR 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore.keys import ObjectKey
from workers.desired import ANNOTATION_LEFT, Target, home_role_binding
from workers.existing import same_content
from workers.names import cluster_role_name, with_hash
from workers.own_objects import own_account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.context import Context
    from workers.desired import Manifest
    from workers.existing import Existing
    from workers.ownership import Account


class HomeRights:
    """The RoleBinding of one account at home as it was just read."""

    def __init__(self, wanted: Manifest, existing: Existing | None, left: str) -> None:
        self.wanted = wanted
        self.existing = existing
        self.left = left
        """The uid of the one that is somebody else's, "" without one."""

    @classmethod
    async def read(cls, context: Context, account: Account, tenant: str = "") -> HomeRights:
        """Look at the RoleBinding and, where its marks do not tell, at what is remembered; KubeError."""
        wanted = home_role_binding(account, tenant, context.settings.home_cluster_role)
        existing = await context.writer.read(wanted.target)
        left = ""
        if existing is not None and not context.writer.is_ours(wanted.target, existing, account):
            remembered = await _remembered(context, account)
            key = ObjectKey("RoleBinding", account.namespace, wanted.target.name)
            if remembered is None:
                left = existing.uid if context.reader.view.last(key) is None else ""
            else:
                left = existing.uid if remembered == existing.uid else ""
        return cls(wanted, existing, left)

    def claims(self, found: Existing) -> bool:
        """Tell whether an object of that name is Tether's, whatever marks are on it."""
        if found.uid == self.left:
            return False
        content = self.wanted.content
        role = {"roleRef": content["roleRef"]}
        subjects = found.body.get("subjects") or []
        return found.marked or (same_content(found.body, role) and content["subjects"][0] in subjects)


async def _remembered(context: Context, account: Account) -> str | None:
    """Return the uid that an account's ClusterRole remembers, "" for none; None where there never was a ClusterRole."""
    for target in role_targets(account):
        # Where no impersonator roles are made there may be no right to look for one.
        found = await context.writer.read(target) if context.settings.impersonator_roles else None
        if found is not None and found.belongs_to(account):
            return found.annotations.get(ANNOTATION_LEFT, "")
    for target in role_targets(account):
        last = context.reader.view.last(ObjectKey("ClusterRole", "", target.name))
        if last is not None and own_account(last.metadata) == account:
            return last.metadata.annotations.get(ANNOTATION_LEFT, "")
    return None


def role_targets(account: Account) -> Iterator[Target]:
    """Yield both places where the ClusterRole of an account may be."""
    plain = cluster_role_name(account)
    for name in (plain, with_hash(plain, account)):
        yield Target("ClusterRole", "", name)
