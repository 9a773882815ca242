"""Label and field selectors: parsed strictly, evaluated in memory, written back in one canonical form.

A client's selector is never pasted beside ours: it is parsed, and what goes upstream is rendered from the parsed
requirements, so no bracket or comma of a client can change the meaning of the proxy's own requirement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_KEY = re.compile(rf"(?:{_DNS}/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_SET = re.compile(r"\s*(\S+)\s+(in|notin)\s*\(([^()]*)\)\s*")
_COMPARE = re.compile(r"\s*([^\s=!<>()]+)\s*(==|=|!=|<|>)\s*([^\s=!<>()]*)\s*")
_EXISTS = re.compile(r"\s*(!?)\s*([^\s=!<>()]+)\s*")
_FIELD = re.compile(r"([A-Za-z0-9.]+)(==|=|!=)([^=!]*)")


class Requirement(msgspec.Struct, frozen=True):
    """One condition. ``operator`` is in, notin, exists, !exists, gt or lt; ``=`` and ``!=`` become sets of one."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, found: Mapping[str, str]) -> bool:
        """Tell whether labels or fields satisfy it, as Kubernetes evaluates them."""
        value = found.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "!exists":
                return value is None
            case _:
                try:
                    left, right = int(value or ""), int(self.values[0])
                except ValueError:
                    return False
                return left > right if self.operator == "gt" else left < right

    def render(self) -> str:
        """Return the one spelling that goes upstream."""
        match self.operator:
            case "exists":
                return self.key
            case "!exists":
                return f"!{self.key}"
            case "gt":
                return f"{self.key}>{self.values[0]}"
            case "lt":
                return f"{self.key}<{self.values[0]}"
            case _ if len(self.values) == 1:
                # The API server refuses an empty set, so the empty value has this form only.
                return f"{self.key}{'=' if self.operator == 'in' else '!='}{self.values[0]}"
            case _:
                return f"{self.key} {self.operator} ({','.join(self.values)})"


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Return the requirements of a ``labelSelector``; RefusedError (400) when it is none."""
    return tuple(_label(part, text) for part in _split(text)) if text.strip() else ()


def parse_fields(text: str, supported: Iterable[str]) -> tuple[Requirement, ...]:
    """Return the requirements of a ``fieldSelector`` on these fields; RefusedError (400) otherwise."""
    known = frozenset(supported)
    found = []
    for part in text.split(","):
        if not part:
            continue
        match = _FIELD.fullmatch(part)
        if match is None or "\\" in part:
            raise RefusedError(bad_request(f"invalid field selector: {text!r}"))
        if match[1] not in known:
            raise RefusedError(bad_request(f"field label not supported: {match[1]}"))
        found.append(Requirement(match[1], "notin" if match[2] == "!=" else "in", (match[3],)))
    return tuple(found)


def matches(requirements: Iterable[Requirement], found: Mapping[str, str]) -> bool:
    """Tell whether all requirements hold."""
    return all(requirement.matches(found) for requirement in requirements)


def render(requirements: Iterable[Requirement]) -> str:
    """Return a selector that means all of these."""
    return ",".join(requirement.render() for requirement in requirements)


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return parts


def _label(part: str, text: str) -> Requirement:
    requirement = _read_label(part)
    if (
        requirement is None
        or not _KEY.fullmatch(requirement.key)
        or not all(_VALUE.fullmatch(value) for value in requirement.values)
    ):
        raise RefusedError(bad_request(f"unable to parse requirement: {part.strip()!r} in label selector {text!r}"))
    return requirement


def _read_label(part: str) -> Requirement | None:
    if match := _SET.fullmatch(part):
        values = tuple(sorted({value.strip() for value in match[3].split(",")}))
        # The API server refuses empty brackets.
        return Requirement(match[1], match[2], values) if match[3].strip() else None
    if match := _COMPARE.fullmatch(part):
        key, operator, value = match.groups()
        if operator in {"<", ">"}:
            found = Requirement(key, "gt" if operator == ">" else "lt", (value,))
            return found if re.fullmatch(r"-?[0-9]+", value) else None
        return Requirement(key, "notin" if operator == "!=" else "in", (value,))
    if match := _EXISTS.fullmatch(part):
        return Requirement(match[2], "!exists" if match[1] else "exists")
    return None
