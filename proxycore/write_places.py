"""Places for the records of writes under the proxy's account: a share for each caller, a part for bodies to come.

A place is held from before the write is sent until NATS took its record. One whose body is still on its way holds it
for as long as its client likes to take, so such writes can never have all of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from proxycore.statuses import RefusedError, too_many_requests, unavailable

WRITES: Final = 256
"""Records of writes that may wait or be expected; where there is no place, nothing is written."""
EACH: Final = 32
"""The same of one share."""
COMING: Final = 128
"""Writes whose body is not whole yet."""


class Place(NamedTuple):
    """A place that is held."""

    share: str
    whole: bool


class WritePlaces:
    """Who holds how many."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._all = 0
        self._coming = 0

    def take(self, share: str, *, whole: bool) -> Place:
        """Take a place; RefusedError 429 when the share has its part, 503 when there is none for anybody."""
        if self._held[share] >= EACH:
            raise RefusedError(too_many_requests("too many of your writes are under way; try again"))
        if self._all >= WRITES:
            raise RefusedError(unavailable("as many writes are under way as can be recorded; try again"))
        if not whole and self._coming >= COMING:
            raise RefusedError(unavailable("too many writes are under way whose body has not come; try again"))
        self._held[share] += 1
        self._all += 1
        self._coming += not whole
        return Place(share, whole)

    def answered(self, place: Place) -> None:
        """The write has its answer: nothing of it is to come. Its place is held until its record is published."""
        self._coming -= not place.whole

    def give_back(self, place: Place) -> None:
        """The record is published."""
        self._all -= 1
        self._held[place.share] -= 1
        if not self._held[place.share]:
            del self._held[place.share]
