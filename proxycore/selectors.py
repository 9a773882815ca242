"""Label and field selectors: parsed strictly, evaluated in memory, written back in one canonical form.

A client's selector is never pasted beside ours: it is parsed, and what goes upstream is rendered from the parsed
requirements, so no bracket or comma of a client can change the meaning of the proxy's own requirement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from eventcore.selectors import Requirement, SelectorError, parse
from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_FIELDS: Final = 64
"""Terms of a field selector: no kind has as many fields to ask for."""
_FIELD = re.compile(r"([A-Za-z0-9.]+)(==|=|!=)([^=!]*)")


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Return the requirements of a ``labelSelector``; RefusedError (400) when it is none."""
    try:
        return parse(text)
    except SelectorError as error:
        raise RefusedError(bad_request(str(error))) from None


def parse_fields(text: str, supported: Iterable[str]) -> tuple[Requirement, ...]:
    """Return the requirements of a ``fieldSelector`` on these fields; RefusedError (400) otherwise."""
    known = frozenset(supported)
    found = []
    if text.count(",") >= MOST_FIELDS:
        raise RefusedError(bad_request(f"a field selector may have {MOST_FIELDS} terms"))
    for part in text.split(","):
        if not part:
            continue
        match = _FIELD.fullmatch(part)
        if match is None or "\\" in part:
            raise RefusedError(bad_request(f"invalid field selector: {text[:256]!r}"))
        if match[1] not in known:
            raise RefusedError(bad_request(f"field label not supported: {match[1][:256]}"))
        found.append(Requirement(match[1], "notin" if match[2] == "!=" else "in", (match[3],)))
    return tuple(found)


def matches(requirements: Iterable[Requirement], found: Mapping[str, str]) -> bool:
    """Tell whether all requirements hold."""
    return all(requirement.matches(found) for requirement in requirements)


def render(requirements: Iterable[Requirement]) -> str:
    """Return a selector that means all of these."""
    return ",".join(requirement.render() for requirement in requirements)
