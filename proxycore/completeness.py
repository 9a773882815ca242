"""Whether what was read of a stream is all that decides: streams that NATS lost fill again, message by message.

A proxy that took them half full would refuse callers whose grants are not compiled yet, and take tokens for revoked.
So OBJECTS is taken once each kind that decides was listed into it, and the grants once the bucket holds those that
OBJECTS and the grants of before make expect. What a bucket still lacks when nothing comes any more, a Tenant that
cannot be compiled or what was revoked meanwhile, is waited for no longer; the user list of Capsule always is.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from eventcore.bus import KV_PREFIX
from eventcore.errors import EventError
from eventcore.keys import key
from eventcore.logs import get
from eventcore.objects import Tenant
from proxycore.identities import CONFIG_KEY, account_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eventcore.objects import TenantSpecOwner
    from eventcore.reading import Reader
    from eventcore.views import AccessView, GrantRecord, ObjectRecord, ObjectsView

log = get("proxy.completeness")

CONFIGURATION: Final = "CapsuleConfiguration"
QUIET_SECONDS: Final = 5.0
"""A bucket to which nothing came for so long gets no more."""
MOST_SECONDS: Final = 30.0
"""The longest wait for the grants of tenants, whatever still comes."""
_CONFIG: Final = KV_PREFIX + CONFIG_KEY.token()


class Completeness:
    """Says when each view may be taken. ``lacking``: what the grants still wait for, "" for nothing."""

    def __init__(
        self,
        objects: Reader[ObjectsView, ObjectRecord],
        access: Reader[AccessView, GrantRecord],
        *,
        kinds: tuple[str, ...],
        configuration: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._access = access
        self._kinds = (*kinds, CONFIGURATION)
        self._configuration = configuration
        self._clock = clock
        self._table: AccessView | None = None
        self._since = self._grew = 0.0
        self._sequence = 0
        self.lacking = "not read yet"
        objects.take_when(self.listed)
        access.take_when(self.compiled)

    def listed(self, table: ObjectsView) -> bool:
        """Tell whether OBJECTS holds each kind that decides, since a watcher vouched for it."""
        if any(table.mark(kind) is None for kind in self._kinds):
            return False
        asyncio.get_running_loop().call_soon(self._access.look_again)  # once this table is taken
        return True

    def unlisted(self) -> str:
        """Return the kinds that no watcher has vouched for, "" for none."""
        view = self._objects.view
        return ", ".join(kind for kind in self._kinds if view.mark(kind) is None)

    def compiled(self, table: AccessView) -> bool:
        """Tell whether the bucket holds the grants that are to be expected, or got all that it will get."""
        if not self._objects.ready:
            self.lacking = "OBJECTS is not read yet"
            return False
        now = self._clock()
        if table is not self._table:
            self._table, self._since, self._sequence = table, now, -1
        if table.sequence != self._sequence:
            self._sequence, self._grew = table.sequence, now
        if self.lacking.startswith(KV_PREFIX) and not (_grants(table, self.lacking) or self._waited(now)):
            return False  # the same one as before
        objects, before = self._objects.view, self._access.view
        self.lacking = next(missing(objects, before, table, self._configuration), "")
        if self.lacking and not self._waited(now):
            return False
        if self.lacking:
            log.warning("grants are taken without some that were expected", lacking=self.lacking)
            self.lacking = ""
        self._table = None
        return True

    def _waited(self, now: float) -> bool:
        quiet = now - self._grew >= QUIET_SECONDS
        return self.lacking != _CONFIG and (quiet or now - self._since >= MOST_SECONDS)


def missing(objects: ObjectsView, before: AccessView, table: AccessView, configuration: str) -> Iterator[str]:
    """Yield the subjects of the grants that a bucket lacks: those of what is in OBJECTS, and those of before. Pure."""
    if objects.get(CONFIGURATION, "", configuration) is not None and not _grants(table, _CONFIG):
        yield _CONFIG
    for tenant in objects.typed("Tenant", Tenant):
        if tenant.metadata.deletion_timestamp is None:
            names: list[tuple[str, ...]] = [("tenant", tenant.metadata.name)]
            names += [("subject", one.kind, one.name) for one in tenant.spec.owners if _is_somebody(one)]
            yield from (subject for subject in map(_subject, names) if subject and not _grants(table, subject))
    found = table.records()
    for subject, record in before.records().items():
        if record.grant is not None and subject not in found:
            yield subject


def _grants(table: AccessView, subject: str) -> bool:
    record = table.records().get(subject)
    return record is not None and record.grant is not None


def _is_somebody(owner: TenantSpecOwner) -> bool:
    if owner.kind == "ServiceAccount":
        return account_of(owner.name) is not None
    return owner.kind in {"User", "Group"} and bool(owner.name)


def _subject(parts: tuple[str, ...]) -> str:
    try:
        return KV_PREFIX + key(*parts).token()
    except EventError:
        return ""  # a name that has no key has no grant
