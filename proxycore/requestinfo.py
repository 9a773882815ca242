"""What a request asks for, read from its method and target as kube-apiserver reads them.

The proxy decides by this reading and the API server acts by its own, so the two must never differ. A target that
somebody between the two could read in another way (dot segments, an encoded slash, an empty segment, control
characters, a semicolon in the query) is refused instead of being interpreted.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from proxycore.statuses import RefusedError, bad_request

_ESCAPES = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN_TARGET = re.compile(r"/[\x21-\x7e]*")
_FALSE = frozenset({"", "0", "false"})
_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PREFIXES = frozenset({"api", "apis"})
_TENANT = "tenant"
_TENANT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_WATCH = re.compile(r"(?:^|&)watch=([^&]*)")
_ODD = re.compile(r"[/\\%\x00-\x1f\x7f]")
MOST_SEGMENTS: Final = 256
"""Of a path: those of the API have nine at most, those behind the proxy of a Service what that likes."""
_SPECIAL_VERBS = frozenset({"proxy", "watch"})
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_CORE_PARTS = 3
_TO_SUBRESOURCE = 3


class RequestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``path`` is decoded; ``target`` and ``query`` are as they came.

    ``tenant``: the name in a prefix ``/tenant/<name>``, "" without one; ``target`` and ``path`` begin after it.
    ``verb`` is get, list, watch, create, update, patch, delete or deletecollection for a resource, else the method in
    lower case. ``legacy_watch`` tells the old spelling ``/api/v1/watch/...``. ``pattern`` is what the path follows, for
    whoever counts (see `patterns`), "" until somebody looked.
    """

    method: str
    target: str
    path: str
    query: str
    verb: str
    is_resource: bool = False
    prefix: str = ""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    legacy_watch: bool = False
    tenant: str = ""
    pattern: str = ""

    @property
    def is_namespaces(self) -> bool:
        """Whether this is about v1 Namespaces themselves, not about what is inside them or a subresource."""
        return (
            self.is_resource
            and self.prefix == "api"
            and self.version == "v1"
            and self.resource == "namespaces"
            and not self.subresource
        )


def parse(method: str, target: str) -> RequestInfo:
    """Return what the request asks for; RefusedError (400) when the target could mean two things."""
    if not _PLAIN_TARGET.fullmatch(target) or "#" in target:
        raise RefusedError(bad_request("the request target must be an absolute path of visible ASCII characters"))
    raw_path, _, query = target.partition("?")
    if ";" in query or _ESCAPES.search(query):
        raise RefusedError(bad_request("the query holds a raw semicolon or a broken percent escape"))
    segments = _segments(raw_path)
    tenant = ""
    if segments[0] == _TENANT:
        tenant, segments, target = _narrowed(segments, raw_path, target)
    path = "/" + "/".join(segments)
    parts = [part for part in segments if part]
    base = RequestInfo(method=method, target=target, path=path, query=query, verb=method.lower(), tenant=tenant)
    if len(parts) < _CORE_PARTS or parts[0] not in _PREFIXES:
        return base
    prefix, *rest = parts
    group = ""
    if prefix == "apis":
        if len(rest) < _CORE_PARTS:
            return base
        group, *rest = rest
    version, *rest = rest
    return _resource(base, prefix, group, version, rest)


def _narrowed(segments: list[str], raw_path: str, target: str) -> tuple[str, list[str], str]:
    """Return the tenant, and segments and target without the prefix ``/tenant/<name>``."""
    name = segments[1] if len(segments) > 1 else ""
    prefix = f"/{_TENANT}/{name}"
    # Spelled plainly or not at all, so that what is left is what the API server gets, byte for byte.
    if not _TENANT_NAME.fullmatch(name) or not (raw_path + "/").startswith(prefix + "/"):
        raise RefusedError(bad_request("the prefix of a tenant is /tenant/ and the tenant's name, spelled plainly"))
    rest = segments[2:]
    if rest[:1] == [_TENANT]:
        raise RefusedError(bad_request("the prefix of a tenant may come only once"))
    left = target[len(prefix) :]
    return name, rest or [""], left if left.startswith("/") else "/" + left


def _segments(raw_path: str) -> list[str]:
    if raw_path.count("/") > MOST_SEGMENTS:
        raise RefusedError(bad_request(f"the path has more than {MOST_SEGMENTS} segments"))
    raw = raw_path[1:].split("/")
    if _ESCAPES.search(raw_path):
        raise RefusedError(bad_request("the path holds a broken percent escape"))
    found = []
    for place, segment in enumerate(raw):
        try:
            decoded = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError:
            raise RefusedError(bad_request("the path is not UTF-8")) from None
        if not decoded and place < len(raw) - 1:
            raise RefusedError(bad_request("the path holds an empty segment"))
        if decoded in {".", ".."} or _ODD.search(decoded):
            raise RefusedError(
                bad_request("a path segment is a dot segment, or holds a slash, a percent sign or a control character")
            )
        found.append(decoded)
    return found


def _resource(base: RequestInfo, prefix: str, group: str, version: str, parts: list[str]) -> RequestInfo:
    verb = _VERBS.get(base.method, base.verb)
    legacy = parts[0] in _SPECIAL_VERBS
    if legacy:
        verb, *parts = parts
        if not parts:
            raise RefusedError(bad_request(f"unable to determine kind and namespace from url, {base.path}"))
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        # Another step that is no subresource of Namespace is a resource inside it.
        if len(parts) >= _TO_SUBRESOURCE and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
            if prefix == "api" and parts[0] == "namespaces":
                return base  # no API server has Namespaces inside of one: it says so itself
    name = parts[1] if len(parts) > 1 else ""
    has_subresource = len(parts) >= _TO_SUBRESOURCE and not legacy
    if not name and verb == "get":
        verb = "watch" if _asks_to_watch(base.query) else "list"
    elif not name and verb == "delete":
        verb = "deletecollection"
    return msgspec.structs.replace(
        base,
        verb=verb,
        is_resource=True,
        prefix=prefix,
        group=group,
        version=version,
        namespace=namespace,
        resource=parts[0],
        subresource=parts[2] if has_subresource else "",
        name=name,
        legacy_watch=legacy and verb == "watch",
    )


def _asks_to_watch(query: str) -> bool:
    # As kube-apiserver converts it: any value but 0 and false is true. Odd spellings are refused where it matters.
    found = _WATCH.search(query)
    return found is not None and found[1].lower() not in _FALSE
