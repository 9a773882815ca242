"""What the API server answers about a whole kind, cut down to what the caller may see: item by item, pure.

Works on JSON objects and lists, on metadata alone, and on Tables, of any kind. What says something about the objects
that were left out is left out too: how many remain, and where the next page begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from proxycore import protobuf
from proxycore.representations import Form, negotiate, takes
from proxycore.rules import Seen
from proxycore.statuses import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[[Seen], bool]

META_VERSION: Final = "meta.k8s.io/v1"
_JSON: Final = "application/json"
TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"
_PARTIAL: Final = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
_NULL: Final = msgspec.Raw(b"null")
_PARTIAL_LIST: Final = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None


class _ClaimRef(msgspec.Struct, frozen=True):
    namespace: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    claim_ref: _ClaimRef | None = None


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec | None = None


class _ListMeta(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    resource_version: str = ""


class _List(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    api_version: str
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    cells: msgspec.Raw
    object: msgspec.Raw = _NULL
    conditions: msgspec.Raw = _NULL


class _Table(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    api_version: str
    metadata: _ListMeta = _ListMeta()
    column_definitions: msgspec.Raw = _NULL
    rows: list[_Row] | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How the caller wants objects, and how much of each must be asked for to judge it.

    ``include``: of a Table's rows, what the caller wants beside the cells. ``whole``: metadata alone does not decide.
    ``binary``: as protobuf, ``form`` being json; never for a watch.
    """

    form: Form
    include: str = "Metadata"
    whole: bool = False
    binary: bool = False

    def accept(self, what: Literal["list", "one"]) -> str:
        """Return the Accept header of the request upstream."""
        if self.binary:
            return protobuf.MEDIA_TYPE
        if self.form == "table":
            return TABLE
        if self.form == "metadata" and not self.whole:
            return _PARTIAL_LIST if what == "list" else _PARTIAL
        return _JSON

    @property
    def asked_include(self) -> str:
        """What to ask for beside the cells of a Table: never less than what is needed to judge a row."""
        return "Object" if self.whole or self.include == "Object" else "Metadata"


def view_for(
    accept: str, *, watch: bool = False, single: bool = False, include: str = "Metadata", whole: bool = False
) -> View:
    """Return how an Accept header wants it: in protobuf only where nothing else will do; RefusedError 406."""
    try:
        form = negotiate(accept, watch=watch, single=single)
    except RefusedError:
        if watch or not takes(accept, protobuf.MEDIA_TYPE):
            raise
        return View(form="json", whole=whole, binary=True)
    return View(form=form, include=include, whole=whole)


def seen(raw: bytes | msgspec.Raw) -> Seen:
    """Return what decides of one object; msgspec.DecodeError when it is none."""
    found = _OBJECT.decode(raw)
    claim = found.spec.claim_ref if found.spec is not None else None
    return Seen(
        name=found.metadata.name,
        namespace=found.metadata.namespace,
        labels=found.metadata.labels or {},
        claim_namespace=claim.namespace if claim is not None else "",
    )


def filter_list(body: bytes, view: View, judge: Judge) -> bytes:
    """Return a list with the allowed objects alone, in the caller's form; msgspec.DecodeError when it is no list."""
    if view.binary:
        return protobuf.filter_list(body, judge, volumes=view.whole)
    if view.form == "table":
        return msgspec.json.encode(_filter_table(_TABLE_DECODER.decode(body), view, judge))
    found = _LIST.decode(body)
    kept = [item for item in found.items or () if judge(seen(item))]
    if view.form == "metadata" and view.whole:
        items = [partial(item) for item in kept]
        return msgspec.json.encode(_List("PartialObjectMetadataList", META_VERSION, found.metadata, items))
    return msgspec.json.encode(_List(found.kind, found.api_version, found.metadata, kept))


def filter_one(body: bytes, view: View, judge: Judge) -> bytes | None:
    """Return one object in the caller's form, None when it is not allowed; msgspec.DecodeError when it is none."""
    if view.binary:
        return protobuf.filter_one(body, judge, volumes=view.whole)
    if view.form == "table":
        table = _filter_table(_TABLE_DECODER.decode(body), view, judge)
        return msgspec.json.encode(table) if table.rows else None
    if not judge(seen(body)):
        return None
    return bytes(partial(body)) if view.form == "metadata" and view.whole else body


def names_in(body: bytes, judge: Judge) -> frozenset[str]:
    """Return the names of the allowed objects of a JSON list; msgspec.DecodeError when it is none."""
    found = (seen(item) for item in _LIST.decode(body).items or ())
    return frozenset(one.name for one in found if judge(one))


def version_of(raw: bytes | msgspec.Raw) -> str:
    """Return the resourceVersion of an object, a list or a Table, "" without one."""
    return _ANY_VERSION.decode(raw).metadata.resource_version


def row_objects(body: bytes | msgspec.Raw, form: Form) -> list[Seen]:
    """Return what decides of the objects in a watch event's object: one, or the rows of a Table."""
    if form != "table":
        return [seen(body)]
    return [seen(row.object) for row in _TABLE_DECODER.decode(body).rows or () if row.object != _NULL]


def shown(body: msgspec.Raw, view: View) -> msgspec.Raw:
    """Return a watch event's object in the caller's form."""
    if view.form == "table":
        return msgspec.Raw(msgspec.json.encode(_filter_table(_TABLE_DECODER.decode(body), view, lambda _: True)))
    return partial(body) if view.form == "metadata" and view.whole else body


def _filter_table(table: _Table, view: View, judge: Judge) -> _Table:
    rows = [
        _Row(row.cells, _row_object(row.object, view), row.conditions)
        for row in table.rows or ()
        if row.object != _NULL and judge(seen(row.object))
    ]
    return msgspec.structs.replace(table, rows=rows)


def _row_object(raw: msgspec.Raw, view: View) -> msgspec.Raw:
    if view.include == "None":
        return _NULL
    return partial(raw) if view.include == "Metadata" and view.asked_include == "Object" else raw


def partial(raw: bytes | msgspec.Raw) -> msgspec.Raw:
    """Return an object's metadata alone, as PartialObjectMetadata."""
    metadata: dict[str, Any] = msgspec.json.decode(raw).get("metadata") or {}
    found = {"kind": "PartialObjectMetadata", "apiVersion": META_VERSION, "metadata": metadata}
    return msgspec.Raw(msgspec.json.encode(found))


class _AnyVersion(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()


_OBJECT: Final = msgspec.json.Decoder(_Object)
_LIST: Final = msgspec.json.Decoder(_List)
_TABLE_DECODER: Final = msgspec.json.Decoder(_Table)
_ANY_VERSION: Final = msgspec.json.Decoder(_AnyVersion)
