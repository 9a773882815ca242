"""Whole numbers in text that somebody else wrote: bounded before they are read. Pure.

Python reads a number of any length, in time that grows with the square of it, and refuses one of more than 4,300
digits with an error that nobody expects. So whatever comes from outside becomes a number here and nowhere else.
"""

from __future__ import annotations

from typing import Final

INT32: Final = 2**31 - 1
INT64: Final = 2**63 - 1
"""What Go's ``int64`` holds: timeoutSeconds, limit."""
UINT64: Final = 2**64 - 1
"""What a resourceVersion may be."""


def whole(text: str, most: int) -> int | None:
    """Return the number that decimal digits spell; None for any other text and for more than ``most``.

    Zeros before it count for nothing, as Go reads them.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0")
    if len(digits) > len(str(most)):
        return None
    number = int(digits or "0")
    return number if number <= most else None


def version(text: str) -> int | None:
    """Return a resourceVersion as a number, None where it is none, which Kubernetes allows."""
    return whole(text, UINT64)
