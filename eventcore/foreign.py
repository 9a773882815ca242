"""Text that others wrote, made fit for a line that a person or a program reads: short, and printable."""

from __future__ import annotations

from typing import Final

SHOWN: Final = 120
"""Characters of a foreign name in a message: a name that Kubernetes bounds, or as much of one as tells it apart."""


def shown(text: str, limit: int = SHOWN) -> str:
    """Return at most ``limit`` characters of the text, what is not printable escaped, and how long it is if longer."""
    head = text[:limit]
    if not head.isprintable():
        head = "".join(one if one.isprintable() else repr(one)[1:-1] for one in head)[:limit]
    return f"{head}... ({len(text)} characters)" if len(text) > limit else head


def cut(text: str, size: int) -> str:
    """Return the text, cut with ``...`` at its end where it is over ``size`` bytes of UTF-8."""
    if len(text) * 4 <= size:
        return text
    data = text[:size].encode(errors="replace")
    return text if len(data) <= size and len(text) <= size else data[: size - 3].decode(errors="ignore") + "..."
