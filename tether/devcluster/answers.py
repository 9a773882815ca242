"""Objects, lists and watch events as bytes, in the representation that was negotiated. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from tether.devcluster.contracts import ApiError, Object, Resource
from tether.devcluster.negotiation import YAML, Representation
from tether.devcluster.resources import is_built_in
from tether.devcluster.tables import partial, table

if TYPE_CHECKING:
    from collections.abc import Mapping


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    status: int
    body: bytes
    media_type: str
    headers: dict[str, str] = {}


def encode(value: Any, media_type: str) -> bytes:
    """Return JSON data as JSON or YAML."""
    if media_type == YAML:
        return yaml.safe_dump(value, sort_keys=True, allow_unicode=True).encode()
    return msgspec.json.encode(value)


def document(value: Any, how: Representation, status: int = 200) -> Answer:
    """Return an answer that is what it is, never a table."""
    return Answer(status=status, body=encode(value, how.media_type), media_type=how.media_type)


def one(resource: Resource, obj: Object, how: Representation, query: Mapping[str, str], status: int = 200) -> Answer:
    """Return one object."""
    return document(_transformed(resource, obj, how, query, with_columns=True), how, status)


def many(
    resource: Resource, items: list[Object], meta: Object, how: Representation, query: Mapping[str, str]
) -> Answer:
    """Return a list of objects."""
    if how.as_kind == "PartialObjectMetadata":
        raise ApiError(406, "NotAcceptable", "you requested PartialObjectMetadata, but the requested object is a list")
    if how.as_kind == "Table":
        include = _include(query)
        rows = [_versioned(resource, obj) for obj in items] if include == "Object" else items
        return document(table(resource, rows, meta, include=include, version=how.as_version), how)
    if how.as_kind == "PartialObjectMetadataList":
        body: Object = {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{how.as_version}"}
        body |= {"metadata": meta, "items": [partial(obj, how.as_version) for obj in items]}
        return document(body, how)
    listed = [_listed(resource, obj) for obj in items]
    body = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta, "items": listed}
    return document(body, how)


def _listed(resource: Resource, obj: Object) -> Object:
    """Return an object as an item of a list: of a built-in kind it does not say its kind, as in Kubernetes."""
    if is_built_in(resource):
        return {key: value for key, value in obj.items() if key not in {"apiVersion", "kind"}}
    return _versioned(resource, obj)


def watch_line(
    resource: Resource, event: tuple[str, Object], how: Representation, query: Mapping[str, str], *, first: bool
) -> bytes:
    """Return one watch event as a line; only the ``first`` table of a watch names its columns."""
    kind, obj = event
    if kind != "ERROR":
        obj = _transformed(resource, obj, how, query, with_columns=first)
    return msgspec.json.encode({"type": kind, "object": obj}) + b"\n"


def _versioned(resource: Resource, obj: Object) -> Object:
    return obj if obj.get("apiVersion") == resource.api_version else obj | {"apiVersion": resource.api_version}


def _transformed(
    resource: Resource, obj: Object, how: Representation, query: Mapping[str, str], *, with_columns: bool
) -> Object:
    obj = _versioned(resource, obj)
    if how.as_kind == "Table":
        version = (obj.get("metadata") or {}).get("resourceVersion", "")
        meta = {"resourceVersion": version}
        found = table(resource, [obj], meta, include=_include(query), version=how.as_version)
        return found if with_columns else found | {"columnDefinitions": None}
    if how.as_kind == "PartialObjectMetadata":
        return partial(obj, how.as_version)
    if how.as_kind == "PartialObjectMetadataList":
        message = "you requested PartialObjectMetadataList, but the requested object is not a list"
        raise ApiError(406, "NotAcceptable", f"{message} ({resource.kind})")
    return obj


def _include(query: Mapping[str, str]) -> str:
    asked = query.get("includeObject", "") or "Metadata"
    if asked not in {"None", "Metadata", "Object"}:
        raise ApiError(400, "BadRequest", f'unrecognized includeObject value: "{asked}"')
    return asked
