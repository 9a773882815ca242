"""Index over ProxySettings and GlobalProxySettings: whom each of them names.

Part of `workers.relations`, and brought up to date in the same step. Tenants write ProxySettings, and each subject is a
grant to be compiled and written: so those of one namespace count up to a number, and nobody else waits for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, cast

from eventcore.objects import GlobalProxySettings, ProxySetting
from workers.ownership import Owner, well_formed

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import KubeObject

MOST_SUBJECTS: Final = 256
"""Subjects that the ProxySettings of a namespace may name, all together, in the order of the settings' names."""
KINDS = frozenset({"ProxySetting", "GlobalProxySettings"})
Setting = ProxySetting | GlobalProxySettings


class ProxySettingsIndex:
    """Every live setting by its key, and by the subjects in it that count. Reading returns shared sets."""

    def __init__(self) -> None:
        self.all: dict[ObjectKey, Setting] = {}
        self._of: defaultdict[Owner, set[ObjectKey]] = defaultdict(set)
        self._in: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._counting: defaultdict[str, dict[ObjectKey, frozenset[Owner]]] = defaultdict(dict)

    def apply(self, key: ObjectKey, new: KubeObject | None) -> None:
        """Take one setting as it is now, None: gone."""
        setting = cast("Setting | None", new)
        self.all.pop(key, None)
        self._in[key.namespace].discard(key)
        if setting is not None:
            self.all[key] = setting
            self._in[key.namespace].add(key)
        if not self._in[key.namespace]:
            del self._in[key.namespace]
        before, after = self.counting_in(key.namespace), self._count(key)
        for one in [one for one in before.keys() | after.keys() if before.get(one) != after.get(one)]:
            for subject in before.get(one, frozenset()):
                self._of[subject].discard(one)
                if not self._of[subject]:
                    del self._of[subject]
            for subject in after.get(one, frozenset()):
                self._of[subject].add(one)
        self._counting[key.namespace] = after
        if not after:
            del self._counting[key.namespace]

    def of(self, subject: Owner) -> list[tuple[ObjectKey, Setting]]:
        """Return every setting that names a subject, in the order of their keys."""
        return [(key, self.all[key]) for key in sorted(self._of.get(subject, ()))]

    def counting(self, key: ObjectKey) -> frozenset[Owner]:
        """Return the subjects of a setting that count."""
        return self.counting_in(key.namespace).get(key, frozenset())

    def counting_in(self, namespace: str) -> dict[ObjectKey, frozenset[Owner]]:
        """Return the subjects that count by the key of the setting that names them; what is returned never changes."""
        return self._counting.get(namespace, {})

    def keys_in(self, namespace: str) -> set[ObjectKey]:
        """Return the keys of the ProxySettings in a namespace, for "" those of all GlobalProxySettings."""
        return self._in.get(namespace, set())

    def subjects_in(self, namespace: str) -> set[Owner]:
        """Return the subjects that count in a namespace, for "" those of all GlobalProxySettings."""
        return set().union(*self.counting_in(namespace).values())

    def _count(self, changed: ObjectKey) -> dict[ObjectKey, frozenset[Owner]]:
        """Return which subjects of a namespace count: the first ones, but all that administrators write."""
        if not changed.namespace:
            rest = {key: found for key, found in self.counting_in("").items() if key != changed}
            found = setting_subjects(self.all.get(changed))
            return rest | ({changed: found} if found else {})
        counting: dict[ObjectKey, frozenset[Owner]] = {}
        left = MOST_SUBJECTS
        for key in sorted(self.keys_in(changed.namespace)):
            named_there = sorted(setting_subjects(self.all[key]))[:left]
            if named_there:
                counting[key] = frozenset(named_there)
                left -= len(named_there)
            if not left:
                break
        return counting


def setting_subjects(setting: Setting | None) -> frozenset[Owner]:
    """Return the well-formed subjects of a setting that is not being deleted."""
    if setting is None or setting.metadata.deletion_timestamp is not None:
        return frozenset()
    return frozenset(Owner(kind, name) for kind, name in named(setting) if well_formed(kind, name))


def named(setting: Setting) -> list[tuple[str, str]]:
    """Return (kind, name) of every subject that a setting names, well-formed or not."""
    if isinstance(setting, ProxySetting):
        return [(subject.kind, subject.name) for subject in setting.spec.subjects]
    return [(subject.kind, subject.name) for rule in setting.spec.rules for subject in rule.subjects]
