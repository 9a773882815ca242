"""What nats-server takes at all: said before anything is sent, since it answers some of it by closing the connection.

With the connection goes everything that was in flight on it, and whoever sends the same again is cut off again. The
client library looks at the size of a body alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
import nats.js.errors

from eventcore.errors import PublishError, RefusedError, WrongSequenceError
from eventcore.foreign import cut, shown
from eventcore.keys import MAX_SUBJECT

if TYPE_CHECKING:
    from eventcore.events import AuditRecord, DeadLetter

NEEDED_PAYLOAD: Final = 3 * 1024 * 1024
"""Bytes that nats-server's ``max_payload`` should have at least. etcd takes 1.5 MiB of an object; a Namespace, which
goes whole, may have 256 KiB of annotations among it, and each of their bytes up to six as JSON."""
HEADER_ROOM: Final = 8192
"""Bytes of a message that are kept for its headers: those that hold names are the longest."""

_FRAME: Final = len("NATS/1.0\r\n\r\n")
_LINE: Final = len(": \r\n")
_WRONG_LAST_SEQUENCE: Final = 10071
_UNAVAILABLE: Final = 503
_AUDIT_BYTES: Final = {
    "component": 64,
    "action": 64,
    "tenant": 256,
    "account": 512,
    "object": 2048,
    "cause": 1024,
    "message": 4096,
}
_LETTER_BYTES: Final = 65_536


def refuse_what_cuts_off(subject: str, data: bytes, headers: dict[str, str], max_payload: int) -> None:
    """Raise RefusedError for a message that the server answers by closing the connection; headers count as bytes."""
    if len(subject) > MAX_SUBJECT:
        raise RefusedError(f"a subject of {len(subject)} bytes is over {MAX_SUBJECT}: {shown(subject)}")
    size = len(data) + _FRAME
    size += sum(len(name) + len(value.encode(errors="replace")) + _LINE for name, value in headers.items())
    if size > max_payload:
        raise RefusedError(
            f"a message of {size} bytes on {shown(subject)} is over the server's max_payload of {max_payload}: "
            "raise max_payload"
        )


def raise_if_final(error: Exception, subject: str, expect_last: int | None) -> None:
    """Raise what another try of a publish cannot mend."""
    match error:
        case nats.js.errors.APIError() if error.err_code == _WRONG_LAST_SEQUENCE:
            raise WrongSequenceError(f"{shown(subject)} is not at sequence {expect_last}") from error
        case nats.js.errors.APIError() if error.code != _UNAVAILABLE:
            raise RefusedError(f"NATS refused a message on {shown(subject)}: {error.description}") from error
        case nats.errors.MaxPayloadError() | nats.errors.BadSubjectError() | nats.errors.BadHeaderError():
            raise RefusedError(f"NATS takes no such message on {shown(subject)}: {error}") from error
        case nats.errors.ConnectionClosedError() | nats.errors.ConnectionDrainingError():
            raise PublishError(f"the connection was closed before {shown(subject)} was published") from error


def audit_within(record: AuditRecord) -> AuditRecord:
    """Return the record with every text cut to the bytes that it may have, whoever wrote what it says."""
    cuts = {name: cut(getattr(record, name), size) for name, size in _AUDIT_BYTES.items()}
    changed = {name: text for name, text in cuts.items() if text is not getattr(record, name)}
    return msgspec.structs.replace(record, **changed) if changed else record


def letter_within(record: DeadLetter) -> DeadLetter:
    """Return the dead letter with the original cut, so that what was too much to handle can still be buried."""
    headers: dict[str, str] = {}
    room = _LETTER_BYTES
    for name, text in record.headers.items():
        room -= len(name) + len(text)
        if room < 0:
            break
        headers[name] = text
    return msgspec.structs.replace(
        record,
        key=cut(record.key, 4096),
        reason=cut(record.reason, 4096),
        subject=cut(record.subject, 4096),
        headers=headers,
        data=record.data[:_LETTER_BYTES],
    )
