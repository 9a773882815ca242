"""Text that others wrote: whether it is a name that Kubernetes gives, and a form of it that is short and printable."""

from __future__ import annotations

import re
from typing import Final

from eventcore.printable import printable

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_SIZE: Final = 63
_NAME_SIZE: Final = 253

SHOWN: Final = 120
"""Characters of a foreign name in a message: a name that Kubernetes bounds, or as much of one as tells it apart."""


def shown(text: str, limit: int = SHOWN) -> str:
    """Return at most ``limit`` characters of the text, what is not printable escaped, and how long it is if longer."""
    head = printable(text[:limit])[:limit]
    return f"{head}... ({len(text)} characters)" if len(text) > limit else head


def cut(text: str, size: int) -> str:
    """Return the text, cut with ``...`` at its end where it is over ``size`` bytes of UTF-8."""
    if len(text) * 4 <= size:
        return text
    data = text[:size].encode(errors="replace")
    return text if len(data) <= size and len(text) <= size else data[: size - 3].decode(errors="ignore") + "..."


def is_namespace_name(text: str) -> bool:
    """Tell whether a Namespace can have this name (RFC 1123 label)."""
    return len(text) <= _LABEL_SIZE and _LABEL.fullmatch(text) is not None


def is_object_name(text: str) -> bool:
    """Tell whether a ServiceAccount, a Secret or a Tenant can have this name (RFC 1123 subdomain)."""
    return len(text) <= _NAME_SIZE and all(_LABEL.fullmatch(part) is not None for part in text.split("."))
