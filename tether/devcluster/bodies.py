"""Request bodies: JSON, YAML and what kubectl sends as protobuf become objects; anything else is a clear 400 or 415."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from tether.devcluster import protobuf
from tether.devcluster.errors import bad_request, unsupported_media_type
from tether.devcluster.negotiation import JSON, YAML

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object

MAX_BYTES = 3 * 1024 * 1024
_MAX_NODES = 500_000  # of one YAML document with its aliases written out
READABLE = (JSON, YAML, protobuf.MEDIA_TYPE)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # which one depends on the build
    """YAML as JSON has it: a timestamp stays the string that it is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def media_type_of(content_type: str) -> str:
    """Return the bare media type of a Content-Type header; JSON when there is none, as Kubernetes assumes."""
    return content_type.split(";", maxsplit=1)[0].strip().lower() or JSON


def decode(body: bytes, content_type: str) -> Object:
    """Return the object in a body; 400 when it is malformed, 415 when its format is not read here."""
    media_type = media_type_of(content_type)
    if media_type == JSON:
        value = decode_json(body)
    elif media_type in {YAML, "application/x-yaml"}:
        value = decode_yaml(body)
    elif media_type == protobuf.MEDIA_TYPE:
        value = protobuf.decode(body)
    else:
        raise unsupported_media_type(READABLE)
    if not isinstance(value, dict):
        raise bad_request("the request body is not an object")
    return value


def decode_json(body: bytes) -> Any:
    """Return JSON data; 400 when malformed."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"error decoding the request body as JSON: {error}") from error


def decode_yaml(body: bytes) -> Any:
    """Return the JSON data that one YAML document stands for; 400 when malformed."""
    try:
        value = yaml.load(body, Loader=_Loader)  # noqa: S506 -- a subclass of the safe loader
        return _json_data(value, [_MAX_NODES])
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        text = str(error).replace("\n", " ")
        raise bad_request(f"error decoding the request body as YAML: {text}") from error


def _json_data(value: Any, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError("the document is too large once its aliases are written out")
    if isinstance(value, dict):
        return {_key(key): _json_data(item, budget) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_data(item, budget) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"a value of type {type(value).__name__} has no JSON form")


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
