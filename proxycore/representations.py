"""Namespaces as clients ask for them: JSON, metadata only, or the Table that kubectl prints; lists and watch events.

What the proxy answers from memory, or filters item by item, is rendered here. The API server renders all the rest.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from eventcore.objects import Namespace
from proxycore.statuses import RefusedError, Status, not_acceptable

if TYPE_CHECKING:
    from collections.abc import Iterable

Form = Literal["json", "table", "metadata"]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_OFFERED = "application/json"
MOST_RANGES: Final = 64
"""Media types of an Accept header that are looked at: kubectl names three."""
_QUALITY: Final = re.compile(r"[01](?:\.[0-9]{0,16})?|\.[0-9]{1,16}")
_JSON_TYPES = frozenset({"application/json", "application/*", "*/*"})
_META_GROUP = {"g": "meta.k8s.io", "v": "v1"}
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400
# (below so many seconds, unit, its letter, smaller unit, its letter, show the smaller below so many of the larger)
_AGES: tuple[tuple[float, int, str, int, str, int], ...] = (
    (2 * _MINUTE, 1, "s", 1, "s", 0),
    (3 * _HOUR, _MINUTE, "m", 1, "s", 10),
    (2 * _DAY, _HOUR, "h", _MINUTE, "m", 8),
    (2 * _YEAR, _DAY, "d", _HOUR, "h", 8),
    (float("inf"), _YEAR, "y", _DAY, "d", 8),
)
_COLUMNS: list[dict[str, Any]] = [
    {
        "name": "Name",
        "type": "string",
        "format": "name",
        "description": "Name of the namespace, unique within the cluster.",
        "priority": 0,
    },
    {"name": "Status", "type": "string", "format": "", "description": "The status of the namespace", "priority": 0},
    {
        "name": "Age",
        "type": "string",
        "format": "",
        "description": "Time since the namespace was created, by the clock of the server.",
        "priority": 0,
    },
]


class Item(msgspec.Struct, frozen=True):
    """A Namespace: its JSON, and the parts of it that decide."""

    body: bytes
    namespace: Namespace

    def fields(self) -> dict[str, str]:
        """Return what a field selector may look at."""
        return {"metadata.name": self.namespace.metadata.name, "status.phase": self.namespace.status.phase}


_ITEM_DECODER = msgspec.json.Decoder(Namespace)


def item_of(body: bytes | msgspec.Raw) -> Item:
    """Read one Namespace; msgspec.DecodeError when it is none."""
    return Item(bytes(body), _ITEM_DECODER.decode(body))


def negotiate(accept: str, *, watch: bool, single: bool = False) -> Form:
    """Return the first form of an ``Accept`` header that can be rendered here; RefusedError (406) if none can."""
    partial = "PartialObjectMetadata" if watch or single else "PartialObjectMetadataList"
    asked: list[tuple[float, dict[str, str], str]] = []
    for part in ranges(accept) if accept.strip() else ["*/*"]:
        media, *rest = (word.strip() for word in part.split(";"))
        params = _parameters(rest)
        asked.append((_quality(params), params, media.lower()))
    for quality, params, media in sorted(asked, key=lambda one: -one[0]):
        if quality <= 0 or media not in _JSON_TYPES:
            continue
        wanted = params.get("as", "")
        meta_group = {key: params.get(key, "") for key in _META_GROUP} == _META_GROUP
        if not wanted:
            return "json"
        if wanted == "Table" and meta_group:
            return "table"
        if wanted == partial and meta_group:
            return "metadata"
    raise RefusedError(not_acceptable(_OFFERED))


def takes(accept: str, media_type: str) -> bool:
    """Tell whether an ``Accept`` header names a media type itself, for whole objects."""
    for part in ranges(accept):
        media, *rest = (word.strip() for word in part.split(";"))
        params = _parameters(rest)
        if media.lower() == media_type and _quality(params) > 0 and "as" not in params:
            return True
    return False


def ranges(header: str) -> list[str]:
    """Return the media types or codings of a header, the first MOST_RANGES of them."""
    return header.split(",", MOST_RANGES)[:MOST_RANGES]


def quality_of(parameters: str) -> float:
    """Return the quality among the parameters of a media type or a coding, 1 without one, 0 for one that is none."""
    return _quality(_parameters(parameters.split(";")))


def _parameters(words: Iterable[str]) -> dict[str, str]:
    return {key.strip().lower(): value.strip() for key, _, value in (word.partition("=") for word in words)}


def _quality(params: dict[str, str]) -> float:
    text = params.get("q", "1")
    return float(text) if _QUALITY.fullmatch(text) else 0.0


def accepts_json(accept: str) -> bool:
    """Tell whether plain JSON is among the forms of an ``Accept`` header."""
    try:
        return negotiate(accept, watch=False, single=True) == "json"
    except RefusedError:
        return False


def render_list(items: list[Item], resource_version: str, form: Form, include: str, now: datetime) -> bytes:
    """Return a list of Namespaces with the collection's resourceVersion."""
    meta = {"resourceVersion": resource_version}
    if form == "table":
        return msgspec.json.encode(_table(items, meta, include, now))
    if form == "metadata":
        found: dict[str, Any] = {
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": meta,
            "items": [_partial(item) for item in items],
        }
        return msgspec.json.encode(found)
    plain = [_untyped(item.body) for item in items]
    return msgspec.json.encode({"kind": "NamespaceList", "apiVersion": "v1", "metadata": meta, "items": plain})


def _untyped(body: bytes) -> msgspec.Raw:
    """Return a Namespace as it stands in a list: without kind and apiVersion."""
    kind = _KINDS.decode(body)
    if not (kind.kind or kind.api_version):
        return msgspec.Raw(body)
    found: dict[str, Any] = msgspec.json.decode(body)
    return msgspec.Raw(msgspec.json.encode({k: v for k, v in found.items() if k not in {"kind", "apiVersion"}}))


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    kind: str = ""
    api_version: str = ""


_KINDS = msgspec.json.Decoder(_Kind)


def render_event(
    type_: EventType, item: Item, form: Form, include: str, now: datetime, *, resource_version: str = ""
) -> bytes:
    """Return a watch event as a line; a deletion has a newer ``resource_version`` than the object itself."""
    if resource_version:
        body = _value(item)
        body["metadata"] = {**body["metadata"], "resourceVersion": resource_version}
        item = item_of(msgspec.json.encode(body))
    return _line(type_, _shown(item, form, include, now))


def render_one(item: Item, form: Form, include: str, now: datetime) -> bytes:
    """Return a Namespace as the answer to a get."""
    return msgspec.json.encode(_shown(item, form, include, now))


def render_bookmark(resource_version: str, form: Form, *, initial_events_end: bool = False) -> bytes:
    """Return a BOOKMARK event as a line."""
    meta: dict[str, Any] = {"resourceVersion": resource_version, "creationTimestamp": None}
    if initial_events_end:
        meta["annotations"] = {INITIAL_EVENTS_END: "true"}
    match form:
        case "table":
            found: dict[str, Any] = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            return _line("BOOKMARK", found | {"columnDefinitions": _COLUMNS, "rows": []})
        case "metadata":
            found = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            return _line("BOOKMARK", found)
        case _:
            return _line("BOOKMARK", {"kind": "Namespace", "apiVersion": "v1", "metadata": meta})


def render_error(status: Status) -> bytes:
    """Return an ERROR event as a line: how a watch that has begun tells of a failure."""
    return msgspec.json.encode({"type": "ERROR", "object": status.body()}) + b"\n"


def age(created: datetime | None, now: datetime) -> str:
    """Return the time since, as kubectl writes it: the two largest units while the first of them is small."""
    if created is None:
        return "<unknown>"
    seconds = max(0, int((now.astimezone(UTC) - created.astimezone(UTC)).total_seconds()))
    _, unit, letter, smaller, small_letter, until = next(row for row in _AGES if seconds < row[0])
    whole, rest = divmod(seconds, unit)
    part = rest // smaller
    return f"{whole}{letter}{part}{small_letter}" if whole < until and part else f"{whole}{letter}"


def _line(type_: EventType, obj: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"type": type_, "object": obj}) + b"\n"


def _shown(item: Item, form: Form, include: str, now: datetime) -> dict[str, Any]:
    match form:
        case "table":
            return _table([item], {"resourceVersion": item.namespace.metadata.resource_version}, include, now)
        case "metadata":
            return _partial(item)
        case _:
            return {"kind": "Namespace", "apiVersion": "v1", **_value(item)}


def _value(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(item.body)
    return found


def _partial(item: Item) -> dict[str, Any]:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": _value(item)["metadata"],
    }


def _table(items: list[Item], meta: dict[str, str], include: str, now: datetime) -> dict[str, Any]:
    rows = []
    for item in items:
        metadata = item.namespace.metadata
        row: dict[str, Any] = {
            "cells": [metadata.name, item.namespace.status.phase, age(metadata.creation_timestamp, now)]
        }
        if include == "Metadata":
            row["object"] = _partial(item)
        elif include == "Object":
            row["object"] = {"kind": "Namespace", "apiVersion": "v1", **_value(item)}
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": _COLUMNS,
        "rows": rows,
    }
