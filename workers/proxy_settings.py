"""Index over ProxySettings and GlobalProxySettings: whom each of them names.

Part of `workers.relations`, and brought up to date in the same step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, cast

from eventcore.objects import GlobalProxySettings, ProxySetting
from workers.counting import Subjects
from workers.ownership import Owner, well_formed
from workers.tables import member, put

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import KubeObject

MOST_SUBJECTS: Final = 256
"""Subjects that the ProxySettings of a namespace may name, all together, in the order of the settings' names."""
KINDS = frozenset({"ProxySetting", "GlobalProxySettings"})
Setting = ProxySetting | GlobalProxySettings


class ProxySettingsIndex:
    """Every live setting by its key, and the subjects that they name. Reading returns shared sets."""

    def __init__(self) -> None:
        self.all: dict[ObjectKey, Setting] = {}
        self.subjects = Subjects(MOST_SUBJECTS)
        self._in: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def apply(self, key: ObjectKey, new: KubeObject | None) -> None:
        """Take one setting as it is now, None: gone."""
        setting = cast("Setting | None", new)
        put(self.all, key, setting)
        member(self._in, key.namespace, key, present=setting is not None)
        self.subjects.put(key, setting_subjects(setting))

    def of(self, subject: Owner) -> list[tuple[ObjectKey, Setting]]:
        """Return every setting that names a subject, in the order of their keys."""
        return [(key, self.all[key]) for key in self.subjects.of(subject)]

    def keys_in(self, namespace: str) -> set[ObjectKey]:
        """Return the keys of the ProxySettings in a namespace, for "" those of all GlobalProxySettings."""
        return self._in.get(namespace, set())


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
