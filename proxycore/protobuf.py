r"""The API server's answers in protobuf, cut down item by item without knowing their kinds: pure.

A body is ``k8s\\0`` and a ``runtime.Unknown``; its ``raw`` is the object or the list. Every list of Kubernetes keeps
its metadata in field 1 and its items in field 2, and every object its metadata in field 1: so what decides of an object
is read, and its bytes pass as they are. Of a list only its version is kept: what remains, and where a page would go on,
tells of what was left out. Field numbers as in the API's generated.proto files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from proxycore.rules import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Judge = Callable[[Seen], bool]

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"
MAGIC: Final = b"k8s\x00"
_BYTES: Final = 2
_VARINT: Final = 0
_SIZES: Final = {1: 8, 5: 4}
_LONGEST_VARINT: Final = 10
# Field numbers.
_UNKNOWN_TYPE, _UNKNOWN_RAW = 1, 2
_API_VERSION, _KIND = 1, 2
_LIST_METADATA, _LIST_ITEMS, _LIST_VERSION, _LIST_CONTINUE = 1, 2, 2, 3
_METADATA, _SPEC, _NAME, _LABELS = 1, 2, 1, 11
_KEY, _VALUE = 1, 2
_MESSAGE, _REASON = 3, 4
_CLAIM_REF, _CLAIM_NAMESPACE = 4, 2


class ProtobufError(msgspec.DecodeError):
    """These bytes are not what the API server answers in protobuf."""


class Listed(msgspec.Struct, frozen=True):
    """A list, with its items as they came. ``continue_``: where the next page begins, "" at the end."""

    api_version: str
    kind: str
    version: str
    continue_: str
    items: list[bytes]

    @classmethod
    def of(cls, body: bytes) -> Listed:
        """Read a list; ProtobufError."""
        raw = _raw(body)
        types = [value for number, value, _ in _fields(body[len(MAGIC) :]) if number == _UNKNOWN_TYPE]
        named = {number: _text(value) for type_ in types for number, value, _ in _fields(type_)}
        metas = [value for number, value, _ in _fields(raw) if number == _LIST_METADATA]
        told = {
            number: _text(value)
            for meta in metas
            for number, value, _ in _fields(meta)
            if number in {_LIST_VERSION, _LIST_CONTINUE}
        }
        return cls(
            api_version=named.get(_API_VERSION, ""),
            kind=named.get(_KIND, ""),
            version=told.get(_LIST_VERSION, ""),
            continue_=told.get(_LIST_CONTINUE, ""),
            items=[value for number, value, _ in _fields(raw) if number == _LIST_ITEMS],
        )

    def encode(self) -> bytes:
        """Return the body of an answer."""
        told = ((_LIST_VERSION, self.version), (_LIST_CONTINUE, self.continue_))
        meta = b"".join(_field(number, text.encode()) for number, text in told if text)
        items = b"".join(_field(_LIST_ITEMS, item) for item in self.items)
        named = _field(_API_VERSION, self.api_version.encode()) + _field(_KIND, self.kind.encode())
        return MAGIC + _field(_UNKNOWN_TYPE, named) + _field(_UNKNOWN_RAW, _field(_LIST_METADATA, meta) + items)


def failure(body: bytes) -> tuple[str, str]:
    """Return message and reason of a Status; ProtobufError."""
    told = {number: _text(value) for number, value, _ in _fields(_raw(body)) if number in {_MESSAGE, _REASON}}
    return told.get(_MESSAGE, ""), told.get(_REASON, "")


def filter_list(body: bytes, judge: Judge, *, volumes: bool = False) -> bytes:
    """Return a list with the allowed objects alone; ProtobufError. ``volumes``: they are PersistentVolumes."""
    kept = bytearray()
    for number, value, _ in _fields(_raw(body)):
        if number == _LIST_METADATA:
            kept += _field(_LIST_METADATA, _list_metadata(value))
        elif number == _LIST_ITEMS and judge(seen(value, volume=volumes)):
            kept += _field(_LIST_ITEMS, value)
    return _rewrapped(body, bytes(kept))


def filter_one(body: bytes, judge: Judge, *, volumes: bool = False) -> bytes | None:
    """Return an object as it is, None when it is not allowed; ProtobufError."""
    return body if judge(seen(_raw(body), volume=volumes)) else None


def seen(raw: bytes, *, volume: bool = False) -> Seen:
    """Return what decides of one object; ProtobufError when it is none."""
    name, namespace = "", ""
    labels: dict[str, str] = {}
    for number, value, _ in _fields(raw):
        if number == _METADATA:
            for inner, content, _ in _fields(value):
                if inner == _NAME:
                    name = _text(content)
                elif inner == _LABELS:
                    entry = {key: _text(part) for key, part, _ in _fields(content)}
                    labels[entry.get(_KEY, "")] = entry.get(_VALUE, "")
        elif number == _SPEC and volume:
            claims = (content for inner, content, _ in _fields(value) if inner == _CLAIM_REF)
            parts = (part for claim in claims for part in _fields(claim))
            namespace = next((_text(content) for inner, content, _ in parts if inner == _CLAIM_NAMESPACE), "")
    return Seen(name=name, labels=labels, claim_namespace=namespace)


def _list_metadata(raw: bytes) -> bytes:
    return b"".join(_field(number, value) for number, value, _ in _fields(raw) if number == _LIST_VERSION)


def _raw(body: bytes) -> bytes:
    if not body.startswith(MAGIC):
        raise ProtobufError("no protobuf of Kubernetes")
    found = [value for number, value, _ in _fields(body[len(MAGIC) :]) if number == _UNKNOWN_RAW]
    if len(found) != 1:
        raise ProtobufError("an envelope without one message")
    return found[0]


def _rewrapped(body: bytes, raw: bytes) -> bytes:
    parts = [
        _field(number, raw) if number == _UNKNOWN_RAW else whole for number, _, whole in _fields(body[len(MAGIC) :])
    ]
    return MAGIC + b"".join(parts)


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (number, content, the whole field) in order. The content of what is not length-delimited is empty."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        content = b""
        if wire == _VARINT:
            _, at = _varint(data, at)
        else:
            if wire == _BYTES:
                size, at = _varint(data, at)
            elif wire in _SIZES:
                size = _SIZES[wire]
            else:
                raise ProtobufError(f"wire type {wire} is not in use")
            content = data[at : at + size] if wire == _BYTES else b""
            at += size
        if at > len(data) or not number:
            raise ProtobufError("the message ends too early")
        yield number, content, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_LONGEST_VARINT):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return value, at + place + 1
    raise ProtobufError("a number without an end")


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ProtobufError("a name that is not UTF-8") from None
