"""Which of two answers about an object is newer, and what a complete list says about the view.

Pure: no clock, no client. The rules:

* A resourceVersion orders the versions of one object, that is of one uid. It says nothing about two uids.
* Two uids, a tombstone of the same uid (an object that lost our label and got it back is the same object), or a list
  that shows less than the view: only a fresh read from the API server decides.
* Only what was in the view *before* a list began, and is not in the complete list, is gone.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from eventcore.numbers import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

K = TypeVar("K")


class Verdict(Enum):
    """What to do with an answer of the API server, given what the bus holds last."""

    PUBLISH = "publish"
    DROP = "drop"
    ASK = "ask"  # the API server, again: GET the object


class Version(msgspec.Struct, frozen=True):
    """Which version of which object; ``deleted`` is its tombstone, with the last resourceVersion known of it."""

    uid: str
    resource_version: str
    deleted: bool = False


def is_newer(ours: Version, last: Version | None) -> Verdict:
    """Tell whether what a watch says (``ours``) is to follow what the bus holds last of the object."""
    if last is None:
        # Without anything on the bus there is nothing to bury.
        return Verdict.DROP if ours.deleted else Verdict.PUBLISH
    if ours.uid != last.uid:
        return Verdict.ASK
    if last.deleted:
        return Verdict.DROP if ours.deleted else Verdict.ASK
    order = _compare(ours.resource_version, last.resource_version)
    if order is None:
        return Verdict.ASK
    if ours.deleted:
        # A DELETED event may also mean that the object left the selector, and the bus may know that it came back.
        return Verdict.PUBLISH if order >= 0 else Verdict.ASK
    return Verdict.PUBLISH if order > 0 else Verdict.DROP


def is_newer_in_list(ours: Version, last: Version | None) -> Verdict:
    """Tell the same for an object in a list.

    A list that shows an older version than the bus holds is either a moment behind or comes from an API server that
    was restored from a backup; the view must follow the API server, so it is asked.
    """
    if last is not None and not last.deleted and last.uid == ours.uid:
        if last.resource_version == ours.resource_version:
            return Verdict.DROP
        order = _compare(ours.resource_version, last.resource_version)
        return Verdict.PUBLISH if order is not None and order > 0 else Verdict.ASK
    return is_newer(ours, last)


def settle(truth: Version | None, last: Version | None) -> Verdict:
    """Tell what to do once the API server was asked *after* ``last`` was read: it decides.

    ``truth`` is None when the object is gone. PUBLISH means to publish the truth, or a tombstone of ``last``.
    """
    if truth is None:
        return Verdict.DROP if last is None or last.deleted else Verdict.PUBLISH
    return Verdict.DROP if truth == last else Verdict.PUBLISH


class Gone(msgspec.Struct, Generic[K], frozen=True):
    """What a complete list does not hold and the view does.

    ``bury``: in the view before the list began, so the list is the newer answer. ``ask``: it came into the view while
    the list ran, which alone does not tell.
    """

    bury: tuple[K, ...] = ()
    ask: tuple[K, ...] = ()


def missing(before: Mapping[K, int], after: Mapping[K, int], listed: Iterable[K]) -> Gone[K]:
    """Compare the live objects of a view (key to stream sequence) before and after a complete list with the list."""
    seen = set(listed)
    absent = {key: sequence for key, sequence in after.items() if key not in seen}
    bury = tuple(key for key, sequence in absent.items() if before.get(key) == sequence)
    sure = set(bury)
    return Gone(bury=bury, ask=tuple(key for key in absent if key not in sure))


def is_mass_delete(gone: int, live: int, *, share: float, minimum: int) -> bool:
    """Tell whether burying ``gone`` of ``live`` objects is more than a pass may do unasked.

    ``minimum`` objects may always go; beyond them not more than ``share`` (0 to 1) of the kind. 1 switches it off.
    """
    return gone > minimum and gone > share * live


def is_one_tenants(gone: Iterable[str], live: Iterable[str], *, share: float) -> bool:
    """Tell whether one tenant alone deleted so many that it is a mass delete, which it may: all these are its own.

    Both name the tenant of each object, "" for none. Without that tenant's the list must hold what it should, and
    something at all: a list that is empty for everybody is nobody's doing.
    """
    gone_of, live_of = Counter(gone), Counter(live)
    tenant, most = max(((one, count) for one, count in gone_of.items() if one), key=itemgetter(1), default=("", 0))
    others = live_of.total() - live_of[tenant]
    return bool(tenant) and others > 0 and gone_of.total() - most <= share * others


def is_older(one: str, other: str) -> bool:
    """Tell whether a resourceVersion is older than another of the same object or collection; False if unknown."""
    return _compare(one, other) == -1


def _compare(one: str, other: str) -> int | None:
    """Order two resourceVersions of one object; None when they are no numbers, which Kubernetes allows."""
    if one == other:
        return 0
    left, right = version(one), version(other)
    if left is None or right is None:
        return None
    return (left > right) - (left < right)
