"""Reading AUDIT: every record from the first one on, and the new ones as they come, for people or for programs."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from eventcore.bus import RETRY_PAUSE
from eventcore.errors import EventError, StreamMissingError
from eventcore.events import AuditRecord, decode_body
from eventcore.pulling import Pull, message_of, status_of
from eventcore.topology import AUDIT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nats.aio.msg import Msg

    from eventcore.bus import Bus

_BATCH = 256
_EXPIRES_SECONDS = 30.0
_HEARTBEAT_SECONDS = 2.0


class AuditEntry(msgspec.Struct, frozen=True):
    """A record and its place in AUDIT."""

    sequence: int
    record: AuditRecord


class _ReadAgainError(Exception):
    """The consumer is gone; another one goes on where it stopped."""


async def entries(bus: Bus, *, follow: bool) -> AsyncGenerator[AuditEntry, None]:
    """Yield the records of AUDIT in order; without ``follow`` those that are there now.

    What cannot be understood is told as a record of outcome ``failed``. StreamMissingError while there is no AUDIT;
    other trouble with NATS is waited out.
    """
    last = 0
    while True:
        try:
            async for message in _messages(bus, start=last + 1, follow=follow):
                last = message.metadata.sequence.stream
                yield _entry(message)
        except (_ReadAgainError, TimeoutError, nats.errors.Error):
            await asyncio.sleep(RETRY_PAUSE)
        else:
            return


async def _messages(bus: Bus, *, start: int, follow: bool) -> AsyncGenerator[Msg, None]:
    consumer = f"audit-{secrets.token_hex(8)}"
    config = ConsumerConfig(
        name=consumer,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_EXPIRES_SECONDS,
        mem_storage=True,
        num_replicas=1,
    )
    try:
        info = await bus.js.add_consumer(AUDIT, config)
    except NotFoundError as error:
        raise StreamMissingError(f"stream {AUDIT} does not exist: run `tether topology apply`") from error
    pull = Pull(bus, AUDIT, consumer)
    try:
        while follow or info.num_pending:
            await pull.request(batch=_BATCH, expires=_EXPIRES_SECONDS, heartbeat=_HEARTBEAT_SECONDS)
            async for message in _answers(pull):
                yield message
                if not follow and not message.metadata.num_pending:
                    return
    finally:
        await pull.close()
        with suppress(TimeoutError, nats.errors.Error):
            await bus.js.delete_consumer(AUDIT, consumer)


async def _answers(pull: Pull) -> AsyncGenerator[Msg, None]:
    """Yield what one pull brings, until it is served or over."""
    for _ in range(_BATCH):
        message = await _next(pull)
        if message is None:
            return
        yield message


async def _next(pull: Pull) -> Msg | None:
    while True:
        message = await pull.next(2 * _HEARTBEAT_SECONDS + 0.5)
        if message is None:  # woken
            continue
        match status_of(message):
            case None:
                return message
            case "100":
                continue
            case "408":
                return None
            case status:
                raise _ReadAgainError(status)


def _entry(message: Msg) -> AuditEntry:
    found = message_of(message)
    try:
        record = decode_body(AuditRecord, found.data)
    except EventError as error:
        record = AuditRecord(
            time=found.time, component="audit", action="read", outcome="failed", message=f"{found.subject}: {error}"
        )
    return AuditEntry(found.sequence, record)


def as_json(entry: AuditEntry) -> str:
    """Return one line of JSON with every field, also the empty ones."""
    fields: dict[str, Any] = {"sequence": entry.sequence}
    fields |= {name: getattr(entry.record, name) for name in AuditRecord.__struct_fields__}
    return msgspec.json.encode(fields).decode()


HEADER = f"{'TIME':12}  {'COMPONENT':10}  {'ACTION':12}  {'OUTCOME':8}  {'ACCOUNT':32}  OBJECT"


def as_line(entry: AuditEntry) -> str:
    """Return a line for people, under ``HEADER``; the cause and the message stand behind the object."""
    record = entry.record
    when = record.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    rest = " ".join(part for part in (record.object, f"({record.message})" if record.message else "") if part)
    cause = f"  <- {record.cause}" if record.cause else ""
    account = record.account or (f"tenant {record.tenant}" if record.tenant else "")
    columns = f"{when:12}  {record.component:10}  {record.action:12}  {record.outcome:8}  {account:32}"
    return f"{columns}  {rest}{cause}".rstrip()
