"""Label selectors as people write them, ``app=web,tier in (a, b),!legacy,size>3``. Pure.

The grammar is that of kube-apiserver, token for token. Whoever writes a selector may be hostile: its bytes and terms
are bounded before it is read, and each token is looked at once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.numbers import INT64, whole
from eventcore.objects import LabelSelector, LabelSelectorRequirement

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST: Final = 65_536
MOST_TERMS: Final = 2048
"""Characters of a selector, and keys and values in it: kube-apiserver sets no bound, and clients need some dozens."""
MOST_REQUIREMENTS: Final = 128
"""Each costs on each object that it is held against."""
LONGEST_WRITTEN: Final = 4096
MOST_WRITTEN_TERMS: Final = 128
"""The same for a selector that stands in an annotation or a setting."""

_TOKEN: Final = re.compile(r"==|!=|[=!<>(),]|[^ \t\r\n=!<>(),]++")
_NAME: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS: Final = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_KEY: Final = re.compile(rf"(?:{_DNS}/)?{_NAME}")
_VALUE: Final = re.compile(rf"(?:{_NAME})?")
_SYMBOLS: Final = frozenset({"=", "==", "!=", "!", "<", ">", "(", ")", ","})
_OPERATORS: Final = {
    "=": "in",
    "==": "in",
    "!=": "notin",
    "in": "in",
    "notin": "notin",
    ">": "gt",
    "<": "lt",
}
_STRUCTURED: Final = {"in": "In", "notin": "NotIn", "exists": "Exists", "!exists": "DoesNotExist"}
_END: Final = ""


class SelectorError(ValueError):
    """A text is no selector; the message tells why in the words of kube-apiserver."""


class Requirement(msgspec.Struct, frozen=True):
    """One condition. ``operator`` is in, notin, exists, !exists, gt or lt; ``=`` and ``!=`` become sets of one.

    Values are sorted and come once.
    """

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
                left, right = whole(value or "", INT64), whole(self.values[0], INT64)
                if left is None or right is None:
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
                return f"{self.key}{'=' if self.operator == 'in' else '!='}{self.values[0]}"
            case _:
                return f"{self.key} {self.operator} ({','.join(self.values)})"


def parse(text: str, *, longest: int = LONGEST, most: int = MOST_TERMS) -> tuple[Requirement, ...]:
    """Return the requirements of a selector, none for ""; SelectorError.

    Keys and values stand between commas or next to an operator, so ``most`` commas bound them before anything is read.
    """
    if len(text) > longest or text.count(",") >= most:
        raise SelectorError(f"a label selector may have {longest} characters and {most} terms")
    tokens = _TOKEN.findall(text)
    found: list[Requirement] = []
    at = 0
    while at < len(tokens):
        requirement, at = _requirement(tokens, at)
        found.append(requirement)
        if len(found) > MOST_REQUIREMENTS:
            raise SelectorError(f"a label selector may have {MOST_REQUIREMENTS} requirements")
        word = _word(tokens, at)
        if word == _END:
            break
        if word != ",":
            raise SelectorError(f"found '{_cut(word)}', expected: ',' or 'end of string'")
        at += 1
        if (word := _word(tokens, at)) in _SYMBOLS - {"!"} or word == _END:
            raise SelectorError(f"found '{_cut(word)}', expected: identifier after ','")
    return tuple(found)


def parse_selector(text: str) -> LabelSelector:
    """Return the selector that somebody wrote, the one of everything for ""; SelectorError.

    It may have LONGEST_WRITTEN characters and MOST_WRITTEN_TERMS terms, and compares no numbers.
    """
    if len(text) > LONGEST_WRITTEN:
        raise SelectorError(
            f"{text[:40]!r}... is longer than the {LONGEST_WRITTEN} characters that a selector may have"
        )
    found = _written(text)
    if isinstance(found, str):
        raise SelectorError(f"{text[:40]!r} is not a label selector such as app=web,tier in (a,b): {found}")
    return found


@lru_cache(maxsize=256)
def _written(text: str) -> LabelSelector | str:
    """Return a selector, or why there is none: that is asked as often."""
    try:
        found = parse(text, longest=LONGEST_WRITTEN, most=MOST_WRITTEN_TERMS)
    except SelectorError as error:
        return str(error)
    if any(one.operator not in _STRUCTURED for one in found):
        return "< and > are not for this"
    return LabelSelector(
        match_expressions=[
            LabelSelectorRequirement(key=one.key, operator=_STRUCTURED[one.operator], values=list(one.values))
            for one in found
        ]
    )


def _word(tokens: list[str], at: int) -> str:
    return tokens[at] if at < len(tokens) else _END


def _requirement(tokens: list[str], at: int) -> tuple[Requirement, int]:
    """Return the requirement that begins at a token, and where it ends."""
    key = tokens[at]
    absent = key == "!"
    if absent:
        at += 1
        key = _word(tokens, at)
    if key in _SYMBOLS or key == _END:
        raise SelectorError(f"unable to parse requirement: found '{_cut(key)}', expected: identifier")
    if not _KEY.fullmatch(key):
        raise SelectorError(f"unable to parse requirement: {_cut(key)!r} is not a label's key")
    at += 1
    word = _word(tokens, at)
    if absent or word in {_END, ","}:
        return Requirement(key, "!exists" if absent else "exists"), at
    operator = _OPERATORS.get(word)
    if operator is None:
        raise SelectorError(f"unable to parse requirement: found '{_cut(word)}', expected: {', '.join(_OPERATORS)}")
    values, at = _set(tokens, at + 1) if word in {"in", "notin"} else _exact(tokens, at + 1)
    for value in values:
        if not _VALUE.fullmatch(value):
            raise SelectorError(f"unable to parse requirement: {_cut(value)!r} is not a label's value")
    if operator in {"gt", "lt"} and whole(values[0], INT64) is None:
        raise SelectorError("unable to parse requirement: for 'Gt', 'Lt' operators, the value must be an integer")
    return Requirement(key, operator, values), at


def _exact(tokens: list[str], at: int) -> tuple[tuple[str], int]:
    """Return the one value after an operator, which may be empty."""
    word = _word(tokens, at)
    if word in {_END, ","}:
        return ("",), at
    if word in _SYMBOLS:
        raise SelectorError(f"unable to parse requirement: found '{_cut(word)}', expected: identifier")
    return (word,), at + 1


def _set(tokens: list[str], at: int) -> tuple[tuple[str, ...], int]:
    """Return the values in brackets. Between commas, and in brackets that are empty, stands the empty value."""
    if (word := _word(tokens, at)) != "(":
        raise SelectorError(f"unable to parse requirement: found '{_cut(word)}', expected: '('")
    found: set[str] = set()
    value = ""
    while True:
        at += 1
        word = _word(tokens, at)
        if word in {",", ")"}:
            found.add(value)
            value = ""
            if word == ")":
                return tuple(sorted(found)), at + 1
        elif word in _SYMBOLS or word == _END or value:
            raise SelectorError(f"unable to parse requirement: found '{_cut(word)}', expected: ',' or ')'")
        else:
            value = word


def _cut(text: str) -> str:
    return text[:64]
