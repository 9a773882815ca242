"""Lists of single namespaces become one list, and the token by which the next page goes on: pure.

A token says where to go on, never what may be seen: its namespace is a place in the order of names, and is listed only
if the caller may list it then.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from eventcore.numbers import version
from proxycore.documents import META_VERSION, View
from proxycore.protobuf import MAGIC, Listed, failure
from proxycore.statuses import RefusedError, Status, bad_gateway, bad_request

_NULL: Final = msgspec.Raw(b"null")
_TABLE: Final = "Table"
_JSON: Final = "application/json"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a page goes on: in ``namespace``, at ``version`` ("" where the kind has none), by the API server's token.

    ``upstream`` is "" where the namespace begins.
    """

    namespace: str
    version: str
    upstream: str = ""

    def encode(self) -> str:
        """Return the value of ``continue``."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def place_of(token: str) -> Place:
    """Return the place that a ``continue`` names; RefusedError 400 when we did not write it like this."""
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=Place)
    except (binascii.Error, ValueError, RecursionError, msgspec.MsgspecError):
        raise RefusedError(bad_request("continue key is not valid: list again without it")) from None
    if place.version and version(place.version) is None:
        raise RefusedError(bad_request("continue key is not valid: list again without it"))
    return place


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """One answer of the API server: a list, or a Table."""

    kind: str
    api_version: str
    metadata: _Meta = _Meta()
    items: list[msgspec.Raw] | None = None
    rows: list[msgspec.Raw] | None = None
    column_definitions: msgspec.Raw = _NULL

    @property
    def entries(self) -> list[msgspec.Raw]:
        """The items, or the rows."""
        return (self.rows if self.kind == _TABLE else self.items) or []

    @property
    def version(self) -> str:
        return self.metadata.resource_version

    @property
    def goes_on(self) -> str:
        """The API server's token, "" at the end."""
        return self.metadata.continue_


def part_of(body: bytes, *, binary: bool = False) -> Part:
    """Read a list, ``binary``: in protobuf; RefusedError 502 when it is none."""
    try:
        if not binary:
            return _PARTS.decode(body)
        listed = Listed.of(body)
        meta = _Meta(listed.version, listed.continue_)
        return Part(listed.kind, listed.api_version, meta, [msgspec.Raw(item) for item in listed.items])
    except msgspec.DecodeError:
        raise RefusedError(bad_gateway("the API server's list cannot be read")) from None


class Merged:
    """One list of many. The kind, its version and its columns are those of the first. ``binary``: in protobuf."""

    def __init__(self, kind: str, api_version: str, *, binary: bool = False) -> None:
        self.kind = kind
        self.api_version = api_version
        self.binary = binary
        self.count = 0
        self._columns = _NULL
        self._entries: list[msgspec.Raw] = []

    def add(self, part: Part) -> None:
        """Take what one answer holds."""
        if self._columns == _NULL:
            self.kind, self.api_version, self._columns = part.kind, part.api_version, part.column_definitions
        self._entries += part.entries
        self.count = len(self._entries)

    def encode(self, version: str, place: Place | None) -> bytes:
        """Return the list; ``place``: where the next page goes on."""
        token = place.encode() if place is not None else ""
        if self.binary:
            return Listed(self.api_version, self.kind, version, token, list(map(bytes, self._entries))).encode()
        meta = {name: text for name, text in (("resourceVersion", version), ("continue", token)) if text}
        head = {"kind": self.kind, "apiVersion": self.api_version, "metadata": meta}
        if self.kind != _TABLE:
            return msgspec.json.encode({**head, "items": self._entries})
        columns = self._columns if self._columns != _NULL else msgspec.Raw(_NAME_COLUMN)
        return msgspec.json.encode({**head, "columnDefinitions": columns, "rows": self._entries})


def empty_form(view: View, kind: str, api_version: str, list_kind: str = "") -> Merged:
    """Return a list without objects. ``list_kind``: what the API server calls it, "" for what it does by convention."""
    if view.form == "table":
        return Merged(_TABLE, META_VERSION)
    if view.form == "metadata":
        return Merged("PartialObjectMetadataList", META_VERSION)
    return Merged(list_kind or f"{kind}List", api_version, binary=view.binary)


def upstream_accept(wanted: str, accept: str) -> str:
    """Return the Accept header upstream for a form: with plain JSON behind it where the client takes that too."""
    plain = any("as=" not in part and part.split(";")[0].strip() == _JSON for part in accept.lower().split(","))
    return f"{wanted},{_JSON}" if plain and wanted != _JSON else wanted


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    group: str = ""
    kind: str = ""
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    reason: str = ""
    details: _Details | None = None


def refusal_of(code: int, body: bytes) -> Status:
    """Return what the API server says of a failure, without the tokens that it may offer."""
    try:
        found = _Status(*failure(body)) if body.startswith(MAGIC) else msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        found = _Status(message=f"the API server answered {code}")
    details = found.details or _Details()
    named = {"name": details.name, "group": details.group, "kind": details.kind}
    return Status(
        code=code,
        reason=found.reason or "Unknown",
        message=found.message,
        retry_after=details.retry_after_seconds,
        details={name: value for name, value in named.items() if value},
    )


_PARTS: Final = msgspec.json.Decoder(Part)
_NAME_COLUMN: Final = msgspec.json.encode(
    [{"name": "Name", "type": "string", "format": "name", "description": "Name of the object.", "priority": 0}]
)
