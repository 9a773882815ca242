"""The query of a list or watch that the proxy answers itself or narrows: read once, strictly.

A parameter that comes twice is refused, since two readers may take different ones. What goes upstream is written anew
from what was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote

import msgspec

from eventcore.numbers import INT64, UINT64, whole
from eventcore.selectors import Requirement
from proxycore.selectors import parse_fields, parse_labels, render
from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME_LABEL = "kubernetes.io/metadata.name"
"""On every Namespace, set by Kubernetes itself and protected from change."""

LONGEST_QUERY: Final = 65_536
MOST_PARAMETERS: Final = 64
"""Characters of a query, and parameters in it; a list knows some dozen."""
LONGEST_QUOTED: Final = 64
NAMESPACE_FIELDS = ("metadata.name", "status.phase")
_TRUE_WORDS = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE_WORDS = frozenset({"0", "false", "FALSE", "False"})


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a list or watch. ``timeout`` is in seconds, None when not given."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()
    resource_version: str = ""
    resource_version_match: str = ""
    watch: bool = False
    bookmarks: bool = False
    initial_events: bool | None = None
    timeout: int | None = None
    continues: bool = False
    include_object: str = "Metadata"
    passed_on: tuple[tuple[str, str], ...] = ()  # what only the API server reads: limit, continue, pretty, ...

    @property
    def from_cache(self) -> bool:
        """Whether a list may be answered from memory, as kube-apiserver may answer it from its watch cache."""
        return (
            self.resource_version == "0"
            and self.resource_version_match in {"", "NotOlderThan"}
            and not self.continues
            and self.initial_events is None
        )

    @property
    def from_the_beginning(self) -> bool:
        """Whether a watch begins with all that there is."""
        return self.resource_version in {"", "0"} or bool(self.initial_events)

    def upstream(self, only: tuple[str, ...] | None) -> str:
        """Return the query of the list upstream, narrowed to these namespaces; None narrows nothing."""
        labels = self.labels
        if only is not None:
            labels = (Requirement(NAME_LABEL, "in", only), *labels) if only else (*_NOTHING, *labels)
        pairs = [*self.passed_on]
        if labels:
            pairs.append(("labelSelector", render(labels)))
        if self.fields:
            text = ",".join(
                f"{one.key}{'!=' if one.operator == 'notin' else '='}{one.values[0]}" for one in self.fields
            )
            pairs.append(("fieldSelector", text))
        if self.resource_version:
            pairs.append(("resourceVersion", self.resource_version))
        if self.resource_version_match:
            pairs.append(("resourceVersionMatch", self.resource_version_match))
        return encoded(pairs)


_NOTHING = (Requirement(NAME_LABEL, "exists"), Requirement(NAME_LABEL, "!exists"))


def encoded(pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs as a query."""
    return "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs)


def parse_query(
    query: str, *, legacy_watch: bool = False, fields: tuple[str, ...] | None = NAMESPACE_FIELDS
) -> ListQuery:
    """Read the query of a list or watch; RefusedError (400) when a parameter is wrong or comes twice.

    ``fields``: those that a field selector may name. None: the API server alone knows, and reads the selector itself.
    """
    if len(query) > LONGEST_QUERY or query.count("&") >= MOST_PARAMETERS:
        why = f"the query of a list may have {LONGEST_QUERY} characters and {MOST_PARAMETERS} parameters"
        raise RefusedError(bad_request(why))
    pairs = parse_qsl(query, keep_blank_values=True)
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RefusedError(bad_request("a query parameter comes more than once"))
    watch = _boolean(found, "watch") or legacy_watch
    if watch and found.get("continue"):
        raise RefusedError(bad_request("continue is not for watches"))
    if (version := found.pop("resourceVersion", "")) and whole(version, UINT64) is None:
        why = f'invalid resource version: resourceVersion: Invalid value: "{_cut(version)}"'
        raise RefusedError(bad_request(f"{why}: {_no_number('ParseUint', version)}"))
    if "limit" in found:
        _integer(found["limit"])
    include = found.get("includeObject", "") or "Metadata"
    if include not in {"None", "Metadata", "Object"}:
        raise RefusedError(bad_request(f"unrecognized includeObject value: {include[:64]!r}"))
    initial = _boolean(found, "sendInitialEvents") if "sendInitialEvents" in found else None
    match = found.pop("resourceVersionMatch", "")
    _check_initial_events(initial, match, watch=watch)
    return ListQuery(
        labels=parse_labels(found.pop("labelSelector", "")),
        fields=parse_fields(found.pop("fieldSelector", ""), fields) if fields is not None else (),
        resource_version=version,
        resource_version_match=match,
        watch=watch,
        bookmarks=_boolean(found, "allowWatchBookmarks"),
        initial_events=initial,
        timeout=_seconds(found),
        continues=bool(found.get("continue")),
        include_object=include,
        passed_on=tuple(found.items()),
    )


def _check_initial_events(initial: bool | None, match: str, *, watch: bool) -> None:
    if initial is None:
        if watch and match:
            raise RefusedError(
                bad_request("resourceVersionMatch is forbidden for watch unless sendInitialEvents is set")
            )
    elif not watch:
        raise RefusedError(bad_request("sendInitialEvents is forbidden for list"))
    elif match != "NotOlderThan":
        raise RefusedError(bad_request("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))


def _boolean(found: dict[str, str], key: str) -> bool:
    """Take a boolean out of the query, only in spellings that every reader understands alike."""
    value = found.pop(key, None)
    if value is None or value in _FALSE_WORDS:
        return False
    if value in _TRUE_WORDS:
        return True
    raise RefusedError(bad_request(f"invalid value for {key}: write true or false"))


def _seconds(found: dict[str, str]) -> int | None:
    text = found.pop("timeoutSeconds", None)
    return None if text is None else _integer(text) or None


def _integer(text: str) -> int:
    """Return an integer of 64 bits; RefusedError (400) in the words of kube-apiserver."""
    negative = text.startswith("-")
    number = whole(text[1:] if text.startswith(("-", "+")) else text, INT64)
    if number is None:
        raise RefusedError(bad_request(_no_number("ParseInt", text)))
    return -number if negative else number


def _no_number(function: str, text: str) -> str:
    why = "value out of range" if text.isascii() and text.lstrip("-+").isdecimal() else "invalid syntax"
    return f'strconv.{function}: parsing "{_cut(text)}": {why}'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]}..."
