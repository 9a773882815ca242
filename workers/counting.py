"""Whom objects of tenants name, of which in each namespace the first ones count, up to a number. Pure.

Each subject is a grant to be compiled and written, and a tenant makes as many objects as it likes: so nobody else waits
for those that are too many. What administrators write for the whole cluster counts whole.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from workers.tables import member

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventcore.keys import ObjectKey
    from workers.ownership import Owner


_NOBODY: Final = frozenset["Owner"]()


class Subjects:
    """The subjects of each object that count, in the order of the objects' names; ``most`` of a namespace."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._named: dict[ObjectKey, tuple[tuple[Owner, ...], frozenset[Owner]]] = {}  # in order, and all of these
        self._beyond: set[ObjectKey] = set()
        self._in: defaultdict[str, list[ObjectKey]] = defaultdict(list)
        self._counting: dict[str, dict[ObjectKey, frozenset[Owner]]] = {}
        self._of: defaultdict[Owner, set[ObjectKey]] = defaultdict(set)

    def put(self, key: ObjectKey, subjects: Collection[Owner]) -> None:
        """Take whom an object names now."""
        named = tuple(nsmallest(self._most, subjects) if key.namespace else subjects)
        (self._beyond.add if len(named) < len(subjects) else self._beyond.discard)(key)
        there = self._in[key.namespace]
        if self._named.pop(key, None) is not None:
            del there[bisect_left(there, key)]
        if named:
            self._named[key] = named, frozenset(named)
            insort(there, key)
        before, after = self.counting_in(key.namespace), self._count(key)
        for one in before.keys() | after.keys():
            was, will = before.get(one, _NOBODY), after.get(one, _NOBODY)
            if was is not will:
                for subject in was ^ will:
                    member(self._of, subject, one, present=subject in will)
        self._counting[key.namespace] = after
        if not there:
            del self._in[key.namespace], self._counting[key.namespace]

    def all(self) -> set[Owner]:
        """Return every subject that counts anywhere."""
        return set(self._of)

    def of(self, subject: Owner) -> list[ObjectKey]:
        """Return the keys of the objects that name a subject, in order."""
        return sorted(self._of.get(subject, ()))

    def counting(self, key: ObjectKey) -> frozenset[Owner]:
        """Return the subjects of an object that count."""
        return self.counting_in(key.namespace).get(key, _NOBODY)

    def counting_in(self, namespace: str) -> dict[ObjectKey, frozenset[Owner]]:
        """Return the subjects that count by the key of the object that names them; what is returned never changes."""
        return self._counting.get(namespace, {})

    def cut(self) -> list[str]:
        """Return the namespaces in which somebody is named who does not count."""
        return [namespace for namespace in self._in if self.is_cut(namespace)]

    def is_cut(self, namespace: str) -> bool:
        """Tell whether somebody is named in a namespace who does not count: then the last object has no room."""
        last = self._in[namespace][-1] if namespace in self._in else None
        return last is not None and (last in self._beyond or self.counting(last) is not self._named[last][1])

    def subjects_in(self, namespace: str) -> set[Owner]:
        """Return the subjects that count in a namespace, for "" those of the objects that are in none."""
        return set().union(*self.counting_in(namespace).values())

    def _count(self, changed: ObjectKey) -> dict[ObjectKey, frozenset[Owner]]:
        if not changed.namespace:
            rest = {key: found for key, found in self.counting_in("").items() if key != changed}
            return rest | ({changed: self._named[changed][1]} if changed in self._named else {})
        counting: dict[ObjectKey, frozenset[Owner]] = {}
        left = self._most
        for key in self._in[changed.namespace]:
            ordered, whole = self._named[key]
            counting[key] = whole if len(whole) <= left else frozenset(ordered[:left])
            left -= len(counting[key])
            if not left:
                break
        return counting
