"""The objects that Tether made, by the account that they were made for. Pure; part of `workers.relations`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from eventcore.foreign import is_object_name
from eventcore.objects import ANNOTATION_TENANT
from workers.own_objects import OwnObject, is_ca_copy, is_lockdown, own_account
from workers.tables import member

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import Meta
    from workers.ownership import Account


class OwnIndex:
    """Reading returns shared sets: copy before a change."""

    def __init__(self) -> None:
        self._objects: defaultdict[Account, dict[ObjectKey, OwnObject]] = defaultdict(dict)
        self._homes: defaultdict[str, set[Account]] = defaultdict(set)
        self._copies_in: defaultdict[str, set[Account]] = defaultdict(set)
        self._lockdown_in: defaultdict[str, set[Account]] = defaultdict(set)
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

    def apply(self, key: ObjectKey, old: Meta | None, new: Meta | None) -> None:
        """Take one change of an object of a kind of ours."""
        member(self._ca_copies, key.namespace, key, present=is_ca_copy(new))
        before, after = own_account(old), own_account(new)
        if before and before != after:
            self._objects[before].pop(key, None)
            self._count(before, key)
        if after and new:
            self._objects[after][key] = OwnObject(key, new)
            self._count(after, key)

    def _count(self, account: Account, key: ObjectKey) -> None:
        found = self._objects.get(account, {})
        if not found:
            self._objects.pop(account, None)
        member(self._homes, account.namespace, account, present=bool(found))
        here = any(one.component == "kubeconfig" and k.namespace == key.namespace for k, one in found.items())
        member(self._copies_in, key.namespace, account, present=here)
        bound = any(is_lockdown(k, account) and k.namespace == key.namespace for k in found)
        member(self._lockdown_in, key.namespace, account, present=bound)
