r"""Kubernetes' protobuf request bodies, for the kinds that kubectl sends so: from bytes to the JSON form. Pure.

A body is ``k8s\\0`` and a ``runtime.Unknown`` (type and raw message). Messages are rows of data here: the field
number, the JSON name, and how the value reads. What is not in the rows is refused, never guessed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tether.devcluster.errors import bad_request, unsupported_media_type

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"

Reader = Callable[[Any], Any]
"""From the wire value (int for a varint, bytes for a length-delimited field) to JSON data; ValueError if malformed."""


class Repeated:
    """A list of values."""

    def __init__(self, item: Reader) -> None:
        self.item = item


class MapOf:
    """A map from string: a repeated entry of key 1 and value 2."""

    def __init__(self, item: Reader) -> None:
        self.item = item


Fields = dict[int, tuple[str, "Reader | Repeated | MapOf"]]


def decode(body: bytes) -> Object:
    """Return the object in a protobuf body; 400 when malformed, 415 for a kind that is not read here."""
    if not body.startswith(_MAGIC):
        raise bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = _message(_UNKNOWN)(body[len(_MAGIC) :])
        kind = envelope.get("typeMeta", {}).get("kind", "")
        fields = _KINDS.get(kind)
        if fields is None:
            raise unsupported_media_type(("application/json", "application/yaml"))
        found: Object = _message(fields)(envelope.get("raw", b""))
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise bad_request(f"error decoding the request body as protobuf: {error}") from error
    return {"apiVersion": envelope["typeMeta"].get("apiVersion", ""), "kind": kind} | found


def _wire(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == 2:  # noqa: PLR2004 -- length-delimited
            size, at = _varint(data, at)
        elif wire_type in {1, 5}:
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} is not in use")
        if at + size > len(data):
            raise ValueError("unexpected end of message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:  # noqa: PLR2004 -- bits of the largest integer
            raise ValueError("malformed varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 -- the last byte has no continuation bit
            return value, at
        shift += 7


def _text(value: Any) -> str:
    return bytes(value).decode() if isinstance(value, bytes) else _wrong("text")


def _bytes(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _wrong("bytes")


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _wrong("bytes")


def _int(value: Any) -> int:
    if not isinstance(value, int):
        _wrong("a number")
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def _bool(value: Any) -> bool:
    return bool(_int(value))


def _wrong(wanted: str) -> Any:
    raise ValueError(f"a field is not {wanted}")


def _time(value: Any) -> str | None:
    seconds = 0
    for number, part in _wire(_raw(value)):
        if number == 1:
            seconds = _int(part)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None


def _message(fields: Fields) -> Reader:
    def read(value: Any) -> Object:
        found: Object = {}
        for number, part in _wire(_raw(value)):
            if number not in fields:
                continue
            name, how = fields[number]
            if isinstance(how, Repeated):
                found.setdefault(name, []).append(how.item(part))
            elif isinstance(how, MapOf):
                entry = dict(_wire(_raw(part)))
                found.setdefault(name, {})[_text(entry.get(1, b""))] = how.item(entry.get(2, b""))
            else:
                found[name] = how(part)
        return {name: item for name, item in found.items() if item not in (None, "", 0) or item is False}

    return read


def _quantity(value: Any) -> str:
    return str(_message({1: ("string", _text)})(value).get("string", "0"))


_UNKNOWN: Fields = {
    1: ("typeMeta", _message({1: ("apiVersion", _text), 2: ("kind", _text)})),
    2: ("raw", _raw),
}
_OWNER: Fields = {
    1: ("kind", _text),
    3: ("name", _text),
    4: ("uid", _text),
    5: ("apiVersion", _text),
    6: ("controller", _bool),
    7: ("blockOwnerDeletion", _bool),
}
_METADATA = _message(
    {
        1: ("name", _text),
        2: ("generateName", _text),
        3: ("namespace", _text),
        5: ("uid", _text),
        6: ("resourceVersion", _text),
        7: ("generation", _int),
        8: ("creationTimestamp", _time),
        11: ("labels", MapOf(_text)),
        12: ("annotations", MapOf(_text)),
        13: ("ownerReferences", Repeated(_message(_OWNER))),
        14: ("finalizers", Repeated(_text)),
    }
)
_REFERENCE = _message(
    {
        1: ("kind", _text),
        2: ("namespace", _text),
        3: ("name", _text),
        4: ("uid", _text),
        5: ("apiVersion", _text),
        6: ("resourceVersion", _text),
        7: ("fieldPath", _text),
    }
)
_RULE = _message(
    {
        1: ("verbs", Repeated(_text)),
        2: ("apiGroups", Repeated(_text)),
        3: ("resources", Repeated(_text)),
        4: ("resourceNames", Repeated(_text)),
        5: ("nonResourceURLs", Repeated(_text)),
    }
)
_SUBJECT = _message({1: ("kind", _text), 2: ("apiGroup", _text), 3: ("name", _text), 4: ("namespace", _text)})
_ROLE_REF = _message({1: ("apiGroup", _text), 2: ("kind", _text), 3: ("name", _text)})
_EXPRESSION = _message({1: ("key", _text), 2: ("operator", _text), 3: ("values", Repeated(_text))})
_LABEL_SELECTOR = _message({1: ("matchLabels", MapOf(_text)), 2: ("matchExpressions", Repeated(_EXPRESSION))})
_ROLE: Fields = {1: ("metadata", _METADATA), 2: ("rules", Repeated(_RULE))}
_AGGREGATION = _message({1: ("clusterRoleSelectors", Repeated(_LABEL_SELECTOR))})
_BINDING: Fields = {1: ("metadata", _METADATA), 2: ("subjects", Repeated(_SUBJECT)), 3: ("roleRef", _ROLE_REF)}
_RESOURCE_ATTRIBUTES = _message(
    {
        1: ("namespace", _text),
        2: ("verb", _text),
        3: ("group", _text),
        4: ("version", _text),
        5: ("resource", _text),
        6: ("subresource", _text),
        7: ("name", _text),
    }
)
_ACCESS = _message(
    {
        1: ("resourceAttributes", _RESOURCE_ATTRIBUTES),
        2: ("nonResourceAttributes", _message({1: ("path", _text), 2: ("verb", _text)})),
    }
)
_BOUND_OBJECT = _message({1: ("kind", _text), 2: ("apiVersion", _text), 3: ("name", _text), 4: ("uid", _text)})

# What `kubectl create deployment` sends: image, command, port and replicas.
_CONTAINER = _message(
    {
        1: ("name", _text),
        2: ("image", _text),
        3: ("command", Repeated(_text)),
        4: ("args", Repeated(_text)),
        6: ("ports", Repeated(_message({1: ("name", _text), 3: ("containerPort", _int), 4: ("protocol", _text)}))),
    }
)
_POD_TEMPLATE = _message({1: ("metadata", _METADATA), 2: ("spec", _message({2: ("containers", Repeated(_CONTAINER))}))})
_DEPLOYMENT_SPEC = _message(
    {
        1: ("replicas", _int),
        2: ("selector", _message({1: ("matchLabels", MapOf(_text))})),
        3: ("template", _POD_TEMPLATE),
    }
)

_KINDS: dict[str, Fields] = {
    "Deployment": {1: ("metadata", _METADATA), 2: ("spec", _DEPLOYMENT_SPEC)},
    "Namespace": {1: ("metadata", _METADATA), 2: ("spec", _message({1: ("finalizers", Repeated(_text))}))},
    "ConfigMap": {
        1: ("metadata", _METADATA),
        2: ("data", MapOf(_text)),
        3: ("binaryData", MapOf(_bytes)),
        4: ("immutable", _bool),
    },
    "Secret": {
        1: ("metadata", _METADATA),
        2: ("data", MapOf(_bytes)),
        3: ("type", _text),
        4: ("stringData", MapOf(_text)),
        5: ("immutable", _bool),
    },
    "ServiceAccount": {
        1: ("metadata", _METADATA),
        2: ("secrets", Repeated(_REFERENCE)),
        3: ("imagePullSecrets", Repeated(_message({1: ("name", _text)}))),
        4: ("automountServiceAccountToken", _bool),
    },
    "Role": _ROLE,
    "ClusterRole": _ROLE | {3: ("aggregationRule", _AGGREGATION)},
    "RoleBinding": _BINDING,
    "ClusterRoleBinding": _BINDING,
    "ResourceQuota": {
        1: ("metadata", _METADATA),
        2: ("spec", _message({1: ("hard", MapOf(_quantity)), 2: ("scopes", Repeated(_text))})),
    },
    "TokenRequest": {
        1: ("metadata", _METADATA),
        2: (
            "spec",
            _message(
                {
                    1: ("audiences", Repeated(_text)),
                    3: ("boundObjectRef", _BOUND_OBJECT),
                    4: ("expirationSeconds", _int),
                }
            ),
        ),
    },
    "SelfSubjectAccessReview": {1: ("metadata", _METADATA), 2: ("spec", _ACCESS)},
    "SelfSubjectRulesReview": {1: ("metadata", _METADATA), 2: ("spec", _message({1: ("namespace", _text)}))},
    "SelfSubjectReview": {1: ("metadata", _METADATA)},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", _int),
        2: ("preconditions", _message({1: ("uid", _text), 2: ("resourceVersion", _text)})),
        3: ("orphanDependents", _bool),
        4: ("propagationPolicy", _text),
        5: ("dryRun", Repeated(_text)),
    },
}
