"""Numbers, times and names in our own annotations, read as what they are: text that an account may have written. Pure.

An account has every right at home, where the Secrets of its token lie. What it writes there must harm nobody else, and
never break a revocation: what Tether would not have written counts as not there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from eventcore.numbers import INT32, whole

MOST_GENERATION: Final = INT32
FOREVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""When a static token expires."""
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LONGEST_TIME: Final = 64
_SECRET_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def generation_in(text: str) -> int:
    """Return the token generation that a text is, 0 where it is none."""
    return whole(text, MOST_GENERATION) or 0


def time_in(text: str) -> datetime:
    """Return the time that a text is, from 2000 to FOREVER; ValueError."""
    found = datetime.fromisoformat(text[:_LONGEST_TIME])
    if found.tzinfo is None or not _EARLIEST <= found <= FOREVER:
        raise ValueError("a time without a zone, or none of ours")
    return found.astimezone(UTC)


def secret_name_in(text: str) -> str:
    """Return the name of a Secret that a text is; ValueError for what would be another path."""
    if not _SECRET_NAME.fullmatch(text):
        raise ValueError("not the name of a Secret")
    return text
