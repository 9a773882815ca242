"""Whom RoleBindings name, and where: what makes a namespace visible to somebody who owns no tenant of its. Pure.

Only RoleBindings in namespaces that are provably some tenant's count, which `Relations` tells. A binding shows its own
namespace and nothing else, and a label on it says whether lists across namespaces hold that one too.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec

from workers.ownership import GROUP_ALL_ACCOUNTS, GROUP_AUTHENTICATED, Account, Owner

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import RoleBinding, Subject

LABEL_SHARED: Final = "reflection.proxy.projectcapsule.dev/enabled"
EVERYBODY: Final = frozenset({GROUP_ALL_ACCOUNTS, GROUP_AUTHENTICATED, "system:unauthenticated"})
"""Groups that say nothing about who is meant: with them one tenant could put its namespaces into every other's list."""


class Binding(msgspec.Struct, frozen=True):
    """One RoleBinding. ``shared``: its namespace is for lists across namespaces too."""

    namespace: str
    subjects: frozenset[Owner]
    shared: bool


class Bindings:
    """The RoleBindings by subject and by namespace."""

    def __init__(self) -> None:
        self._all: dict[ObjectKey, Binding] = {}
        self._by_subject: defaultdict[Owner, set[ObjectKey]] = defaultdict(set)
        self._by_namespace: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def put(self, key: ObjectKey, binding: RoleBinding | None) -> None:
        """Take what is now at this key; None: nothing."""
        old = self._all.pop(key, None)
        if old is not None:
            for subject in old.subjects:
                self._by_subject[subject].discard(key)
                if not self._by_subject[subject]:
                    del self._by_subject[subject]
            self._by_namespace[old.namespace].discard(key)
            if not self._by_namespace[old.namespace]:
                del self._by_namespace[old.namespace]
        subjects = named(binding)
        if binding is None or not subjects:
            return
        self._all[key] = Binding(key.namespace, subjects, binding.metadata.labels.get(LABEL_SHARED) == "true")
        self._by_namespace[key.namespace].add(key)
        for subject in subjects:
            self._by_subject[subject].add(key)

    def of(self, subject: Owner) -> list[Binding]:
        """Return the bindings that name a subject."""
        return [self._all[key] for key in self._by_subject.get(subject, ())]

    def named_by(self, key: ObjectKey) -> frozenset[Owner]:
        """Return whom one binding names."""
        return self._all[key].subjects if key in self._all else frozenset()

    def subjects_in(self, namespace: str) -> set[Owner]:
        """Return whom the bindings in a namespace name."""
        return {subject for key in self._by_namespace.get(namespace, ()) for subject in self._all[key].subjects}

    def subjects(self) -> set[Owner]:
        """Return whom any binding names."""
        return set(self._by_subject)


def named(binding: RoleBinding | None) -> frozenset[Owner]:
    """Return whom a RoleBinding names that is not being deleted, without the groups that everybody is in."""
    if binding is None or binding.metadata.deletion_timestamp is not None:
        return frozenset()
    return frozenset(owner for subject in binding.subjects or () if (owner := _owner(subject)) is not None)


def _owner(subject: Subject) -> Owner | None:
    match subject.kind:
        case "ServiceAccount" if subject.namespace and subject.name:
            username = Account(subject.namespace, subject.name).username
            return Owner("ServiceAccount", username) if Account.of_username(username) else None
        case "User" if subject.name:
            # RBAC compares user names, so a User may be a ServiceAccount.
            return Owner("ServiceAccount" if Account.of_username(subject.name) else "User", subject.name)
        case "Group" if subject.name and subject.name not in EVERYBODY:
            return Owner("Group", subject.name)
        case _:
            return None
