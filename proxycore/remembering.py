"""What is remembered for callers, bounded in bytes: in all, and for each caller.

A memory that counts entries alone is as large as callers make its entries, and one caller can push out what all others
would have used again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

    from eventcore.selectors import Requirement
    from proxycore.listquery import ListQuery

K = TypeVar("K")
V = TypeVar("V")

_ENTRY: Final = 256
_REQUIREMENT: Final = 400
_VALUE: Final = 120
_NAME: Final = 64
"""Bytes that these take in memory, rather more than less."""


class Memory(Generic[K, V]):
    """Keeps values up to ``most`` bytes, and up to ``share`` of one holder; what came first goes first.

    ``get`` is that of a dict.
    """

    def __init__(self, *, most: int, share: int) -> None:
        self._most = most
        self._share = share
        self._values: dict[K, V] = {}
        self._about: dict[K, tuple[Hashable, int]] = {}  # in the order in which they came
        self._held: dict[Hashable, dict[K, None]] = {}
        self._sizes: dict[Hashable, int] = {}
        self.get = self._values.get
        self.size = 0

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: K, value: V, *, holder: Hashable, size: int) -> None:
        """Keep a value of so many bytes for a holder, unless it is larger than a holder's share."""
        self.drop(key)
        size += _ENTRY
        if size > self._share:
            return
        self._values[key] = value
        self._about[key] = holder, size
        self._held.setdefault(holder, {})[key] = None
        self._sizes[holder] = self._sizes.get(holder, 0) + size
        self.size += size
        while self._sizes[holder] > self._share:
            self.drop(next(iter(self._held[holder])))
        while self.size > self._most:
            self.drop(next(iter(self._about)))

    def drop(self, key: K) -> None:
        """Forget a key, if it is there."""
        about = self._about.pop(key, None)
        if about is None:
            return
        holder, size = about
        del self._values[key]
        self.size -= size
        self._sizes[holder] -= size
        del self._held[holder][key]
        if not self._held[holder]:
            del self._held[holder], self._sizes[holder]

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._about.clear()
        self._held.clear()
        self._sizes.clear()
        self.size = 0


def size_of(query: ListQuery, names: int = 0) -> int:
    """Return about how many bytes a query that was read, and so many names beside it, take."""
    text = len(query.resource_version) + sum(len(name) + len(value) for name, value in query.passed_on)
    return text + _of(query.labels) + _of(query.fields) + _NAME * names


def _of(requirements: tuple[Requirement, ...]) -> int:
    return sum(_REQUIREMENT + len(one.key) + sum(_VALUE + len(value) for value in one.values) for one in requirements)
