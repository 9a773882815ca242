"""Label selectors as people write them, ``app=web,tier in (a, b),!legacy``, read as kubectl reads them. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from eventcore.objects import LabelSelector, LabelSelectorRequirement

_KEY: Final = r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_VALUE: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_REQUIREMENT: Final = re.compile(
    rf"""\s*(?:
        !\s*(?P<absent>{_KEY})
        | (?P<key>{_KEY})\s*(?P<equal>==|=|!=)\s*(?P<value>{_VALUE})
        | (?P<of>{_KEY})\s+(?P<word>in|notin)\s*\((?P<values>\s*{_VALUE}\s*(?:,\s*{_VALUE}\s*)*)\)
        | (?P<present>{_KEY})
    )\s*(?:,(?=.)|$)""",
    re.VERBOSE,
)


@lru_cache(maxsize=1024)
def parse_selector(text: str) -> LabelSelector:
    """Return the selector that a text means, the one of everything for ""; ValueError with the part that is wrong."""
    found: list[LabelSelectorRequirement] = []
    at, text = 0, text.strip()
    while at < len(text):
        match = _REQUIREMENT.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 40]!r} is not part of a label selector such as app=web,tier in (a,b)")
        found.append(_requirement(match.groupdict()))
        at = match.end()
    return LabelSelector(match_expressions=found)


def _requirement(part: dict[str, str | None]) -> LabelSelectorRequirement:
    match part:
        case {"absent": str(key)}:
            return LabelSelectorRequirement(key=key, operator="DoesNotExist")
        case {"present": str(key)}:
            return LabelSelectorRequirement(key=key, operator="Exists")
        case {"key": str(key), "equal": equal, "value": str(value)}:
            return LabelSelectorRequirement(key=key, operator="NotIn" if equal == "!=" else "In", values=[value])
        case {"of": str(key), "word": word, "values": str(values)}:
            named = [one.strip() for one in values.split(",")]
            return LabelSelectorRequirement(key=key, operator="In" if word == "in" else "NotIn", values=named)
        case _:
            raise ValueError("not a requirement")
