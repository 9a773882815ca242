"""One cluster-scoped kind in memory: what is, what was, and who has to look at what again. No I/O.

It is level-triggered as the feed of Namespaces: a change tells every subscriber which name to look at again, so a slow
client costs a set of names and never a growing buffer. For each change what was before is kept, so that a watch can go
on from a resourceVersion.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore import numbers
from proxycore.documents import seen
from proxycore.rules import Seen
from proxycore.waking import Waking

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from eventcore.kube_watch import WatchEvent

CAPACITY: Final = 4096
"""Changes that are kept of a kind; a watch from before the oldest cannot go on from memory."""
_EXISTS: Final = frozenset({"ADDED", "MODIFIED"})
_NAMES_KIND: Final = frozenset({"kind", "apiVersion"})


class Record(msgspec.Struct, frozen=True):
    """An object as it was at a version. ``body`` is its JSON without kind and apiVersion."""

    seen: Seen
    uid: str
    version: int
    body: bytes


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()


@dataclass(frozen=True, slots=True)
class _Past:
    """One change: at this version the name stopped being what it was before."""

    version: int
    name: str
    old: Record | None


@dataclass(slots=True, eq=False)
class Subscription:
    """What one watch has to look at again. ``awake`` is set by whatever it waits for.

    ``concerns`` tells of which names it wants to hear, asked when what is there has changed.
    """

    awake: asyncio.Event
    concerns: Callable[[str], bool]
    names: set[str] = field(default_factory=set)

    def take(self) -> set[str]:
        """Return the names since the last time."""
        names, self.names = self.names, set()
        return names


class KindMemory:
    """The objects of a kind. ``version``: all up to it is here; ``floor``: the past is known from it on.

    ``head`` is how an object in an event begins, ``list_head`` how a list does: kind and apiVersion.
    """

    def __init__(self) -> None:
        self.version = 0
        self.floor = 0
        self.records: dict[str, Record] = {}
        self.head = b""
        self.list_head = b""
        self.items_are_typed = False  # whether items of a list tell their kind, as those of custom resources do
        self._past: deque[_Past] = deque()
        self._graves: OrderedDict[str, Record] = OrderedDict()
        self._subscribers: set[Subscription] = set()
        self._waking = Waking()

    # What is, and what was.

    def at(self, name: str, version: int) -> Record | None:
        """Return what a name was at a version from the floor on; a version that is still to come: what it is."""
        found = self.records.get(name)
        for past in reversed(self._past):
            if past.version <= version:
                break
            if past.name == name:
                found = past.old
        return found

    def changed_since(self, version: int) -> set[str]:
        """Return the names that changed after a version."""
        found = set()
        for past in reversed(self._past):
            if past.version <= version:
                break
            found.add(past.name)
        return found

    def grave(self, name: str, uid: str) -> Record | None:
        """Return the last state of an object that was deleted, with the version of that."""
        found = self._graves.get(name)
        return found if found is not None and found.uid == uid else None

    # Who follows.

    def subscribe(self, awake: asyncio.Event, concerns: Callable[[str], bool]) -> Subscription:
        """Return a subscription to changes from now on; give it back with `unsubscribe`."""
        subscription = Subscription(awake, concerns)
        self._subscribers.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscribers.discard(subscription)

    @property
    def followers(self) -> int:
        """How many watches follow."""
        return len(self._subscribers)

    def wake(self) -> None:
        """Let every watch look at how things stand."""
        self._waking.wake(one.awake for one in self._subscribers)

    # What comes.

    def name_kind(self, kind: str, api_version: str, item: msgspec.Raw | None) -> None:
        """Note the kind, by a list and one of its items."""
        named = {"kind": kind.removesuffix("List"), "apiVersion": api_version}
        self.head = msgspec.json.encode(named)[:-1] + b","
        self.list_head = msgspec.json.encode(named | {"kind": kind})[:-1] + b","
        self.items_are_typed = item is not None and _TYPED.decode(item).kind != ""

    def replace(self, found: dict[str, Record], version: int) -> None:
        """Take a whole list. What was between memory and the list is not known: nobody goes on from before it."""
        for name in self.records.keys() | found.keys():
            old, new = self.records.get(name), found.get(name)
            if (old and (old.uid, old.version)) != (new and (new.uid, new.version)):
                self._change(name, new, version if new is None else new.version)
        self.floor = version
        self._past.clear()
        self._moved(version)

    def take(self, event: WatchEvent) -> None:
        """Take an event of a watch; msgspec.DecodeError when it is none."""
        if event.type == "BOOKMARK":
            self._moved(version_in(_OBJECT.decode(event.object).metadata.resource_version))
            return
        record = self.record(event)
        name = record.seen.name
        if event.type in _EXISTS:
            self._change(name, record, record.version)
        else:
            self._graves[name] = record
            self._graves.move_to_end(name)
            if len(self._graves) > CAPACITY:
                self._graves.popitem(last=False)
            self._change(name, None, record.version)
        self._moved(record.version)

    def record(self, event: WatchEvent) -> Record:
        """Return the record in an event; msgspec.DecodeError when there is none."""
        return record_of(event.object)

    def _change(self, name: str, record: Record | None, version: int) -> None:
        old = self.records.pop(name, None)
        if record is not None:
            self.records[name] = record
        self._past.append(_Past(version, name, old))
        if len(self._past) > CAPACITY:
            self.floor = max(self.floor, self._past.popleft().version)
        concerned = [one for one in self._subscribers if one.concerns(name)]
        for subscription in concerned:
            subscription.names.add(name)
        self._waking.wake(one.awake for one in concerned)

    def _moved(self, version: int) -> None:
        self.version = max(self.version, version)


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    kind: str = ""
    api_version: str = ""


_TYPED: Final = msgspec.json.Decoder(_Typed)
_OBJECT: Final = msgspec.json.Decoder(_Object)


def record_of(raw: msgspec.Raw) -> Record:
    """Return an object's record; msgspec.DecodeError when it is none."""
    meta = _OBJECT.decode(raw).metadata
    version = version_in(meta.resource_version)
    typed = _TYPED.decode(raw)
    body = bytes(raw)
    if typed.kind or typed.api_version:
        found: dict[str, Any] = msgspec.json.decode(raw)
        body = msgspec.json.encode({name: value for name, value in found.items() if name not in _NAMES_KIND})
    return Record(seen(raw), meta.uid, version, body)


def version_in(text: str) -> int:
    """Return the number that a resourceVersion is; msgspec.DecodeError when it is none."""
    number = numbers.version(text)
    if number is None:
        raise msgspec.DecodeError("a resourceVersion is no number")
    return number
