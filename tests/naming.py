"""Names of test cases whose values are long."""

from __future__ import annotations


def short(value: object) -> str:
    """Return an id of a value that a terminal can show."""
    text = ascii(value)
    return text if len(text) <= 32 else f"{text[:24]}...{len(text)}"
