"""What memory answers, in the form that its client asked for: objects, their metadata, or a Table's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from proxycore.documents import META_VERSION
from proxycore.representations import INITIAL_EVENTS_END

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxycore.kind_memory import KindMemory, Record
    from proxycore.representations import Form
    from proxycore.table_memory import SharedTable

_PARTIAL: Final = b'{"kind":"PartialObjectMetadata","apiVersion":"%b","metadata":' % META_VERSION.encode()
_PARTIAL_LIST: Final = b'{"kind":"PartialObjectMetadataList","apiVersion":"%b",' % META_VERSION.encode()
_TABLE: Final = b'{"kind":"Table","apiVersion":"%b","metadata":' % META_VERSION.encode()


class Shape(Protocol):
    """Renders lists and single objects, and what stands under ``object`` in an event."""

    def listed(self, records: Iterable[Record], version: int) -> bytes:
        """Return a list."""

    def body(self, record: Record) -> bytes:
        """Return an object."""

    def name(self, record: Record, version: int) -> bytes:
        """Return the name of an object, and a version, and nothing else of it."""

    def mark(self, version: int, *, initial_events_end: bool) -> bytes:
        """Return a bookmark."""


class Objects:
    """Objects, or their metadata alone."""

    def __init__(self, kind: KindMemory, form: Form) -> None:
        self._kind = kind
        self._form = form

    def listed(self, records: Iterable[Record], version: int) -> bytes:
        partial = self._form == "metadata"
        typed = partial or self._kind.items_are_typed
        items = b",".join(self.body(record) if typed else record.body for record in records)
        head = _PARTIAL_LIST if partial else self._kind.list_head
        return b'%b"metadata":{"resourceVersion":"%d"},"items":[%b]}' % (head, version, items)

    def body(self, record: Record) -> bytes:
        if self._form == "metadata":
            return _PARTIAL + bytes(_METADATA.decode(record.body).metadata) + b"}"
        return self._kind.head + record.body[1:]

    def name(self, record: Record, version: int) -> bytes:
        meta = {"metadata": {"name": record.seen.name, "resourceVersion": str(version)}}
        return self.body(msgspec.structs.replace(record, body=msgspec.json.encode(meta)))

    def mark(self, version: int, *, initial_events_end: bool) -> bytes:
        meta = msgspec.json.encode(_mark_meta(version, initial_events_end=initial_events_end))
        return (_PARTIAL if self._form == "metadata" else self._kind.head + b'"metadata":') + meta + b"}"


class Rows:
    """Rows of a Table, of one client: the first Table tells the columns, as an API server's does."""

    def __init__(self, kind: SharedTable, *, include: str) -> None:
        self._kind = kind
        self._with_object = include != "None"
        self._told = False

    def listed(self, records: Iterable[Record], version: int) -> bytes:
        return self._table({"resourceVersion": str(version)}, b",".join(map(self._row, records)))

    def body(self, record: Record) -> bytes:
        return self._table({"resourceVersion": str(record.version)}, self._row(record))

    def name(self, record: Record, version: int) -> bytes:
        meta = {"name": record.seen.name, "resourceVersion": str(version)}
        row: dict[str, Any] = {"cells": [record.seen.name, *[""] * (len(self._kind.column_names) - 1)]}
        if self._with_object:
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": META_VERSION, "metadata": meta}
        return self._table({"resourceVersion": str(version)}, msgspec.json.encode(row))

    def mark(self, version: int, *, initial_events_end: bool) -> bytes:
        return self._table(_mark_meta(version, initial_events_end=initial_events_end), b"")

    def _row(self, record: Record) -> bytes:
        return record.body if self._with_object else msgspec.json.encode({"cells": _ROW.decode(record.body).cells})

    def _table(self, meta: dict[str, Any], rows: bytes) -> bytes:
        columns = b"null" if self._told else bytes(self._kind.columns)
        self._told = True
        return b'%b%b,"columnDefinitions":%b,"rows":[%b]}' % (_TABLE, msgspec.json.encode(meta), columns, rows)


def _mark_meta(version: int, *, initial_events_end: bool) -> dict[str, Any]:
    meta: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial_events_end:
        meta["annotations"] = {INITIAL_EVENTS_END: "true"}
    return meta


class _Whole(msgspec.Struct, frozen=True):
    metadata: msgspec.Raw


class _Row(msgspec.Struct, frozen=True):
    cells: msgspec.Raw


_METADATA: Final = msgspec.json.Decoder(_Whole)
_ROW: Final = msgspec.json.Decoder(_Row)
