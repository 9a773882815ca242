"""Whom RoleBindings name, and where: what makes a namespace visible to somebody who owns no tenant of its. Pure.

Only RoleBindings in namespaces that are provably some tenant's count, which `Relations` tells. A binding shows its own
namespace and nothing else, and a label on it says whether lists across namespaces hold that one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from workers.counting import Subjects
from workers.ownership import GROUP_ALL_ACCOUNTS, GROUP_AUTHENTICATED, Account, Owner

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import RoleBinding, Subject

MOST_SUBJECTS: Final = 1024
"""Subjects that the RoleBindings of a namespace may show it to, all together, in the order of the bindings' names."""
LABEL_SHARED: Final = "reflection.proxy.projectcapsule.dev/enabled"
EVERYBODY: Final = frozenset({GROUP_ALL_ACCOUNTS, GROUP_AUTHENTICATED, "system:unauthenticated"})
"""Groups that say nothing about who is meant: with them one tenant could put its namespaces into every other's list."""


class Binding(msgspec.Struct, frozen=True):
    """Where one RoleBinding is. ``shared``: its namespace is for lists across namespaces too."""

    namespace: str
    shared: bool


class Bindings:
    """The RoleBindings by the subjects that they name."""

    def __init__(self) -> None:
        self.subjects = Subjects(MOST_SUBJECTS)
        self._shared: set[ObjectKey] = set()

    def put(self, key: ObjectKey, binding: RoleBinding | None) -> None:
        """Take what is now at this key; None: nothing."""
        shared = binding is not None and binding.metadata.labels.get(LABEL_SHARED) == "true"
        (self._shared.add if shared else self._shared.discard)(key)
        self.subjects.put(key, named(binding))

    def of(self, subject: Owner) -> list[Binding]:
        """Return the bindings that name a subject."""
        return [Binding(key.namespace, key in self._shared) for key in self.subjects.of(subject)]


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
