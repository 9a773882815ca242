"""The objects that Tether made, by the account that they were made for. Pure; part of `workers.relations`."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from eventcore.foreign import is_object_name
from eventcore.objects import ANNOTATION_TENANT, LABEL_COMPONENT
from workers.desired import generation_of
from workers.own_objects import OwnObject, is_ca_copy, is_lockdown, own_account
from workers.ownership import Account
from workers.tables import member

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventcore.keys import ObjectKey
    from eventcore.objects import Meta


class Made(msgspec.Struct, frozen=True):
    """For whom an object was made: as it was first seen, since whoever may write it can change its marks."""

    uid: str
    account: Account
    component: str
    held: int = 0
    """The generation of the token in it when its namespace left the account's tenants; 0 while that has not been."""


class OwnIndex:
    """Reading returns shared sets: copy before a change."""

    def __init__(self) -> None:
        self._made: dict[ObjectKey, Made] = {}
        self._lost: defaultdict[Account, set[ObjectKey]] = defaultdict(set)
        self._objects: defaultdict[Account, dict[ObjectKey, OwnObject]] = defaultdict(dict)
        self._homes: defaultdict[str, set[Account]] = defaultdict(set)
        self._copies_in: defaultdict[str, set[Account]] = defaultdict(set)
        self._lockdown_in: defaultdict[str, set[Account]] = defaultdict(set)
        self._counts: Counter[tuple[Account, str, str]] = Counter()  # by account, namespace and what it is there
        self._ca_copies: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def accounts(self) -> set[Account]:
        """Return the accounts that have objects of ours."""
        return {account for account, found in self._objects.items() if found}

    def has(self, account: Account) -> bool:
        """Tell whether an account has objects of ours."""
        return bool(self._objects.get(account))

    def at_home_in(self, namespace: str) -> set[Account]:
        """Return the accounts of a namespace that have objects of ours anywhere."""
        return self._homes.get(namespace, set())

    def of(self, account: Account, component: str = "") -> list[OwnObject]:
        """Return our objects for an account, of one component when it is given."""
        found = self._objects.get(account, {}).values()
        return [one for one in found if not component or one.component == component]

    def copies_in(self, namespace: str) -> set[Account]:
        """Return the accounts that have a kubeconfig of ours in a namespace."""
        return self._copies_in.get(namespace, set())

    def lockdown_in(self, namespace: str) -> set[Account]:
        """Return the accounts for which Flux's default account is bound in a namespace."""
        return self._lockdown_in.get(namespace, set())

    def ca_copies(self) -> set[str]:
        """Return the namespaces that have a copy of the proxy's CA."""
        return set(self._ca_copies)

    def cluster_tenants(self, account: Account) -> set[str]:
        """Return the tenants that an account's cluster-scoped objects were made for: no tenant writes those."""
        found = (
            one.metadata.annotations.get(ANNOTATION_TENANT, "") for one in self.of(account) if not one.key.namespace
        )
        return {name for name in found if is_object_name(name)}

    def made_for(self, key: ObjectKey, uid: str) -> Account | None:
        """Return the account that the object with this uid was made for when it was first seen."""
        found = self._made.get(key)
        return found.account if found is not None and found.uid == uid else None

    def leave(self, namespace: str, accounts: Collection[Account]) -> None:
        """A namespace has just left the tenants of these accounts: what lies there then was theirs, and readable."""
        for account in accounts:
            for one in self.of(account, "kubeconfig"):
                made = self._made.get(one.key)
                if one.key.namespace == namespace and made is not None and made.account == account:
                    held = generation_of(one.metadata.annotations)
                    self._made[one.key] = msgspec.structs.replace(made, held=held)

    def held(self, key: ObjectKey, uid: str) -> int:
        """Return the generation of the token that the object with this uid held when its namespace left, or 0."""
        found = self._made.get(key)
        return found.held if found is not None and found.uid == uid else 0

    def is_anothers(self, key: ObjectKey, account: Account) -> bool:
        """Tell whether what was last seen here was made for another account."""
        found = self._made.get(key)
        return found is not None and found.account != account

    def forget(self, key: ObjectKey) -> bool:
        """Forget what is found to be gone, or is not ours to delete, unless it is shown; tell whether it was known."""
        found = self._made.get(key)
        if found is None or key not in self._lost.get(found.account, ()):
            return False
        del self._made[key]
        member(self._lost, found.account, key, present=False)
        return True

    def lost(self, account: Account, component: str = "") -> list[ObjectKey]:
        """Return what was made for an account and does not say so any more: it is gone, or its marks are."""
        found = self._lost.get(account, ())
        return sorted(key for key in found if not component or self._made[key].component == component)

    def losers(self) -> set[Account]:
        """Return the accounts of :meth:`lost`."""
        return set(self._lost)

    def apply(self, key: ObjectKey, old: Meta | None, new: Meta | None, gone: Meta | None = None) -> None:
        """Take one change of an object of a kind of ours. ``gone``: the last that was known of one that is not shown.

        That it is not shown may mean that it lost our label.
        """
        self._remember(key, new, gone)
        member(self._ca_copies, key.namespace, key, present=is_ca_copy(new))
        before, after = own_account(old), own_account(new)
        if before and (shown := self._objects[before].pop(key, None)) is not None:
            self._count(before, shown, -1)
        if after and new:
            self._objects[after][key] = OwnObject(key, new)
            self._count(after, self._objects[after][key], 1)

    def _remember(self, key: ObjectKey, new: Meta | None, gone: Meta | None) -> None:
        before = self._made.get(key)
        known, account = new or gone, own_account(new or gone)
        if known is None:
            self._made.pop(key, None)
        elif account is not None and (before is None or before.uid != known.uid):
            self._made[key] = Made(known.uid, account, known.labels.get(LABEL_COMPONENT, ""))
        after = self._made.get(key)
        if before is not None:
            member(self._lost, before.account, key, present=False)
        if after is not None and own_account(new) != after.account:
            member(self._lost, after.account, key, present=True)

    def _count(self, account: Account, one: OwnObject, by: int) -> None:
        """Count one object more or less: whoever may write Secrets makes any number of them, each a change."""
        found = bool(self._objects[account])
        if not found:
            del self._objects[account]
        member(self._homes, account.namespace, account, present=found)
        if one.component == "kubeconfig":
            self._count_in(self._copies_in, account, one, by, "copy")
        if is_lockdown(one.key, account):
            self._count_in(self._lockdown_in, account, one, by, "lockdown")

    def _count_in(
        self, index: defaultdict[str, set[Account]], account: Account, one: OwnObject, by: int, what: str
    ) -> None:
        place = (account, one.key.namespace, what)
        self._counts[place] += by
        if not self._counts[place]:
            del self._counts[place]
        member(index, one.key.namespace, account, present=place in self._counts)
