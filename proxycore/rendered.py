"""Lists that were rendered a moment ago: many clients of a tenant ask for the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from eventcore.views import ObjectRecord

MOST: Final = 256
LARGEST: Final = 2**20
"""Lists that are kept, and bytes of one."""


class RenderedLists:
    """Keeps bodies by what was asked for; one is used again only while every record in it is the same object."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[list[ObjectRecord], bytes]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def body(self, asked: Hashable, records: list[ObjectRecord], render: Callable[[], bytes]) -> bytes:
        """Return the body; ``asked`` must hold all that it depends on besides the records."""
        found = self._kept.get(asked)
        if found is not None and len(found[0]) == len(records) and all(map(_is, found[0], records)):
            return found[1]
        body = render()
        if len(body) <= LARGEST:
            if len(self._kept) >= MOST:
                self._kept.clear()
            self._kept[asked] = records, body
        return body


def _is(one: ObjectRecord, other: ObjectRecord) -> bool:
    return one is other
