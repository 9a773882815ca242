"""What was rendered a moment ago: many clients of a tenant ask for the same lists, and are told of the same events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxycore.remembering import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from eventcore.views import ObjectRecord

MOST: Final = 64 * 2**20
SHARE: Final = 8 * 2**20
LARGEST: Final = 2**20
"""Bytes of lists that are kept, of those of one caller, and of one list."""
MOST_LINES: Final = 256
LARGEST_LINE: Final = 65_536
"""Events that are kept, and bytes of one."""
_RECORD: Final = 8


class RenderedLists:
    """Keeps bodies by what was asked for; one is used again only while every record in it is the same object."""

    def __init__(self) -> None:
        self._kept: Memory[Hashable, tuple[list[ObjectRecord], bytes]] = Memory(most=MOST, share=SHARE)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes that are kept, about."""
        return self._kept.size

    def body(
        self,
        asked: Hashable,
        records: list[ObjectRecord],
        render: Callable[[], bytes],
        *,
        holder: Hashable = "",
        size: int = 0,
    ) -> bytes:
        """Return the body; ``asked`` must hold all that it depends on besides the records, and has about ``size``."""
        found = self._kept.get(asked)
        if found is not None and len(found[0]) == len(records) and all(map(_is, found[0], records)):
            return found[1]
        body = render()
        if len(body) <= LARGEST:
            self._kept.put(asked, (records, body), holder=holder, size=len(body) + _RECORD * len(records) + size)
        return body


class RenderedEvents:
    """Keeps lines of watches by what was asked for; one is used again only for the same object of memory."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[ObjectRecord, bytes]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def line(self, asked: Hashable, record: ObjectRecord, render: Callable[[], bytes]) -> bytes:
        """Return the line; ``asked`` must hold all that it depends on besides the record."""
        found = self._kept.get(asked)
        if found is not None and found[0] is record:
            return found[1]
        line = render()
        if len(line) <= LARGEST_LINE:
            if len(self._kept) >= MOST_LINES:
                self._kept.clear()
            self._kept[asked] = record, line
        return line


def _is(one: ObjectRecord, other: ObjectRecord) -> bool:
    return one is other
