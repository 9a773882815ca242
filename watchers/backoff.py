"""How long to wait before the next try: exponential, capped, with full jitter, so that a fleet spreads out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Backoff:
    """Waits between tries, in seconds: uniformly between 0 and a ceiling that doubles from ``base`` up to ``cap``."""

    def __init__(self, base: float, cap: float, *, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._base = base
        self._cap = cap
        self._draw = draw
        self._tries = 0

    def next(self, at_least: float = 0.0) -> float:
        """Return the wait before the next try; ``at_least`` is what the server asked for (Retry-After)."""
        ceiling = self._cap
        # Beyond 2**30 the float would overflow some day; no cap is that large.
        if self._tries < 30:  # noqa: PLR2004 -- explained above
            ceiling = min(self._cap, self._base * 2**self._tries)
        self._tries += 1
        # On top of Retry-After, not below it: clients that were all told the same time spread out too.
        return at_least + self._draw(0.0, ceiling)

    def reset(self) -> None:
        """Begin again at ``base``: the last try was a success."""
        self._tries = 0
