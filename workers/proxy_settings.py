"""Index over ProxySettings and GlobalProxySettings: whom each of them names.

Part of `workers.relations`, and brought up to date in the same step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, cast

from eventcore.objects import GlobalProxySettings, ProxySetting
from workers.ownership import Owner, well_formed

if TYPE_CHECKING:
    from eventcore.keys import ObjectKey
    from eventcore.objects import KubeObject

KINDS = frozenset({"ProxySetting", "GlobalProxySettings"})
Setting = ProxySetting | GlobalProxySettings


class ProxySettingsIndex:
    """Every live setting by its key, and by the subjects that it names. Reading returns shared sets."""

    def __init__(self) -> None:
        self.all: dict[ObjectKey, Setting] = {}
        self._of: defaultdict[Owner, set[ObjectKey]] = defaultdict(set)
        self._in: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def apply(self, key: ObjectKey, new: KubeObject | None) -> None:
        """Take one setting as it is now, None: gone."""
        setting = cast("Setting | None", new)
        for subject in setting_subjects(self.all.pop(key, None)):
            self._of[subject].discard(key)
            if not self._of[subject]:
                del self._of[subject]
        self._in[key.namespace].discard(key)
        if setting is not None:
            self.all[key] = setting
            self._in[key.namespace].add(key)
            for subject in setting_subjects(setting):
                self._of[subject].add(key)
        if not self._in[key.namespace]:
            del self._in[key.namespace]

    def of(self, subject: Owner) -> list[tuple[ObjectKey, Setting]]:
        """Return every setting that names a subject, in the order of their keys."""
        return [(key, self.all[key]) for key in sorted(self._of.get(subject, ()))]

    def keys_in(self, namespace: str) -> set[ObjectKey]:
        """Return the keys of the ProxySettings in a namespace, for "" those of all GlobalProxySettings."""
        return self._in.get(namespace, set())

    def subjects_in(self, namespace: str) -> set[Owner]:
        """Return the subjects that the settings in a namespace name, for "" those of all GlobalProxySettings."""
        return {subject for key in self.keys_in(namespace) for subject in setting_subjects(self.all[key])}


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
