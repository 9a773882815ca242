"""Two ways to change an index, the same in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections import defaultdict

K = TypeVar("K")
V = TypeVar("V")


def put(table: dict[K, V], key: K, value: V | None) -> None:
    """Set a value, or take the key out for None."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def member(index: defaultdict[K, set[V]], key: K, value: V, *, present: bool) -> None:
    """Add a member to the set of a key, or take it out; no empty set stays."""
    if present:
        index[key].add(value)
    elif key in index:
        index[key].discard(value)
        if not index[key]:
            del index[key]
