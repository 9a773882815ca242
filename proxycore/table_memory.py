"""A cluster-scoped kind in memory as the rows that kubectl prints, for as many ``kubectl get --watch`` as there are.

Only the API server can print a row, and a row tells an age. A watch that goes on from a version sends each row as it
was printed for the change that it tells of; before one that begins with all that there is, all are printed anew.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec

from proxycore.documents import TABLE, partial, seen
from proxycore.kind_memory import Record, version_in
from proxycore.shared import SharedKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventcore.kube import KubeClient
    from eventcore.kube_watch import WatchEvent


PRINTED_SECONDS: Final = 1.0
"""A row tells an age in seconds at best."""


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    uid: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta


class _Row(msgspec.Struct, frozen=True):
    cells: msgspec.Raw
    object: msgspec.Raw


class _Column(msgspec.Struct, frozen=True):
    name: str


class _Table(msgspec.Struct, frozen=True, rename="camel"):
    metadata: _Meta
    column_definitions: msgspec.Raw = msgspec.Raw(b"null")
    rows: list[msgspec.Raw] | None = None


class SharedTable(SharedKind):
    """The rows of one kind. ``columns``: their definitions as JSON; the body of a `Record` is a row."""

    accept = TABLE
    params: Mapping[str, str] = {"includeObject": "Metadata"}

    columns = msgspec.Raw(b"null")
    column_names: tuple[str, ...] = ()

    def __init__(self, client: KubeClient, path: str, ended: Callable[[SharedKind], None]) -> None:
        super().__init__(client, path, ended)
        self._printed = float("-inf")
        self._printing = asyncio.Lock()

    async def read(self, params: Mapping[str, str]) -> tuple[dict[str, Record], int]:
        found = await self._client.get_as(_Table, self.path, params={**self.params, **params}, accept=self.accept)
        self.columns = msgspec.Raw(bytes(found.column_definitions))
        self.column_names = tuple(one.name for one in msgspec.json.decode(self.columns, type=list[_Column]))
        records = map(self._record, found.rows or ())
        return {record.seen.name: record for record in records}, version_in(found.metadata.resource_version)

    async def print_anew(self) -> None:
        """Let the rows tell the ages of now, to the second, whoever asks in it; KubeError, msgspec.DecodeError."""
        async with self._printing:
            if time.monotonic() - self._printed < PRINTED_SECONDS:
                return
            found, _ = await self.read({"resourceVersion": "0"})
            self._printed = time.monotonic()
            for name, record in found.items():
                held = self.records.get(name)
                # Of what changed meanwhile the watch upstream brings the row.
                if held is not None and (held.uid, held.version) == (record.uid, record.version):
                    self.records[name] = record

    def record(self, event: WatchEvent) -> Record:
        rows = msgspec.json.decode(event.object, type=_Table).rows or []
        if len(rows) != 1:
            raise msgspec.DecodeError("an event of a Table holds one row")
        return self._record(rows[0])

    def _record(self, raw: msgspec.Raw) -> Record:
        row = msgspec.json.decode(raw, type=_Row)
        meta = msgspec.json.decode(row.object, type=_Object).metadata
        version = version_in(meta.resource_version)
        body = b'{"cells":%b,"object":%b}' % (row.cells, self._kept(row.object))
        return Record(seen(row.object), meta.uid, version, body)

    def _kept(self, found: msgspec.Raw) -> msgspec.Raw:
        """Return what of a row's object its clients may ask for."""
        return found


class SharedVolumes(SharedTable):
    """The rows of PersistentVolumes: only the whole object tells whose one is, and its metadata is kept."""

    params: Mapping[str, str] = {"includeObject": "Object"}

    def _kept(self, found: msgspec.Raw) -> msgspec.Raw:
        return partial(found)
