"""The discovery documents and the part of OpenAPI v3 that lets kubectl leave validation to the server. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from tether.devcluster.answers import Answer
from tether.devcluster.crds import version_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tether.devcluster.contracts import Object, Resource
    from tether.devcluster.resources import Served

VERSION: Object = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.4+tether-devcluster",
    "gitCommit": "embedded",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "embedded/any",
}
# kubectl reads version 2 when version 3 does not know a kind; without schemas in it, its usual error follows.
OPENAPI_V2 = Answer(
    status=200,
    body=b"\x0a\x032.0",  # swagger: "2.0", in protobuf: the one form in which kubectl asks
    media_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
)
_SUB_KINDS = {"token": ("authentication.k8s.io", "v1", "TokenRequest")}
_SUB_VERBS = {"token": ["create"], "finalize": ["update"]}


def kind_of(row: Resource, subresource: str) -> tuple[str, str]:
    """Return apiVersion and kind of what is posted to a kind or its subresource."""
    if subresource in _SUB_KINDS:
        group, version, kind = _SUB_KINDS[subresource]
        return f"{group}/{version}", kind
    return row.api_version, row.kind


def api_versions(url: str) -> Object:
    """Return the document of ``/api``."""
    server = {"clientCIDR": "0.0.0.0/0", "serverAddress": url.removeprefix("https://")}
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [server]}


def api_groups(kinds: Sequence[Served]) -> Object:
    """Return the document of ``/apis``."""
    groups = sorted({served.resource.group for served in kinds} - {""})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(kinds, group) for group in groups]}


def api_group(kinds: Sequence[Served], group: str) -> Object | None:
    """Return the document of ``/apis/<group>``, None for a group that is not there."""
    if not any(served.resource.group == group for served in kinds):
        return None
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(kinds, group)


def _group(kinds: Sequence[Served], group: str) -> Object:
    names = {served.resource.version for served in kinds if served.resource.group == group}
    versions = [
        {"groupVersion": f"{group}/{version}", "version": version}
        for version in sorted(names, key=version_rank, reverse=True)
    ]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def resource_list(kinds: Sequence[Served], group: str, version: str) -> Object | None:
    """Return the document of ``/api/v1`` or ``/apis/<group>/<version>``, None for what is not there."""
    rows = [served.resource for served in kinds if (served.resource.group, served.resource.version) == (group, version)]
    if not rows:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": rows[0].api_version,
        "resources": [entry for row in sorted(rows, key=lambda row: row.plural) for entry in _entries(row)],
    }


def _entries(row: Resource) -> list[Object]:
    main: Object = {
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": sorted(row.verbs),
    }
    if row.short_names:
        main["shortNames"] = list(row.short_names)
    if row.categories:
        main["categories"] = list(row.categories)
    entries = [main]
    for sub in row.subresources:
        entry: Object = {"name": f"{row.plural}/{sub}", "singularName": "", "namespaced": row.namespaced}
        entry["kind"] = row.kind
        if sub in _SUB_KINDS:
            entry["group"], entry["version"], entry["kind"] = _SUB_KINDS[sub]
        entry["verbs"] = _SUB_VERBS.get(sub, ["get", "patch", "update"])
        entries.append(entry)
    return entries


def openapi_index(kinds: Sequence[Served]) -> Object:
    """Return the document of ``/openapi/v3``: one relative URL for each group and version, with a hash of it."""
    return {
        "paths": {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={_hash(openapi(kinds, path))}"}
            for path in sorted({_path_of(served.resource) for served in kinds})
        }
    }


def _hash(document: Object | None) -> str:
    return hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:32].upper()


def _path_of(row: Resource) -> str:
    return f"apis/{row.group}/{row.version}" if row.group else f"api/{row.version}"


def openapi(kinds: Sequence[Served], path: str) -> Object | None:
    """Return the OpenAPI document of ``apis/<group>/<version>`` or ``api/v1``, None for what is not there.

    It says of each kind that its patch takes ``fieldValidation``: by that kubectl knows that the server validates.
    Schemas stand in it for custom kinds, so that ``kubectl explain`` has something to tell.
    """
    rows = [served for served in kinds if _path_of(served.resource) == path]
    if not rows:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": dict(_operations(served.resource) for served in rows),
        "components": {"schemas": dict(_schema(served) for served in rows)},
    }


def _kind_of(row: Resource) -> Object:
    return {"group": row.group, "version": row.version, "kind": row.kind}


def _operations(row: Resource) -> tuple[str, Object]:
    middle = "namespaces/{namespace}/" if row.namespaced else ""
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    operation: Object = {
        "operationId": f"{row.group}.{row.version}.{row.kind}",
        "x-kubernetes-group-version-kind": _kind_of(row),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
    }
    patch = {"x-kubernetes-action": "patch"} | operation
    get = {"x-kubernetes-action": "get"} | operation
    return f"/{_path_of(row)}/{middle}{row.plural}/{{name}}", {"get": get, "patch": patch}


def _schema(served: Served) -> tuple[str, Object]:
    row = served.resource
    reversed_group = ".".join(reversed(row.group.split("."))) if row.group else "io.k8s.api.core"
    schema: Object = {"type": "object"} | served.schema | {"x-kubernetes-group-version-kind": [_kind_of(row)]}
    return f"{reversed_group}.{row.version}.{row.kind}", schema
