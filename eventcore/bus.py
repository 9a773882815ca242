"""The bus: one connection to NATS, publishes that are timed out and retried, compare-and-set, schedules, pulls.

What nats-py leaves open is decided here once: nothing waits for ever, a publish is retried under the same Msg-Id, a
fetch is never merely cancelled (a message delivered to a cancelled fetch is swallowed for ``ack_wait``), and a reader
learns at once that the connection was lost.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

import msgspec
import nats.errors
import nats.js.errors

from eventcore import events
from eventcore.bus_credentials import LoginClient, credentials, expect_jetstream, is_refusal, log_in
from eventcore.bus_limits import audit_within, letter_within, raise_if_final, refuse_what_cuts_off
from eventcore.clock import KUBE, NATS, now
from eventcore.errors import (
    PublishError,
    StreamMissingError,
    WrongSequenceError,
)
from eventcore.foreign import shown
from eventcore.grants import BUCKET
from eventcore.keys import Key, audit_subject, dead_letter_subject, encode, kv_subject, timer_subject, work_subject
from eventcore.logs import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client

    from eventcore.metrics import Metrics
    from eventcore.settings import Settings

log = get("bus")

ATTEMPT_TIMEOUT: Final = 2.0
PUBLISH_TIMEOUT: Final = 15.0
"""Seconds until a publish that nobody acknowledged is given up: longer than a restart of the server."""
RETRY_PAUSE: Final = 0.25
"""Seconds between attempts while no JetStream answers (NATS ADR-22)."""
KV_PREFIX: Final = f"$KV.{BUCKET}."

_NO_MESSAGE: Final = 10037
_STREAM_NOT_FOUND: Final = 10059


class BusMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a stream. ``time`` is when the server stored it."""

    subject: str
    sequence: int
    time: datetime
    headers: dict[str, str]
    data: bytes


class PubAck(msgspec.Struct, frozen=True):
    """The server stored it under this sequence, or had it already."""

    sequence: int
    duplicate: bool = False


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream holds. Another ``created`` means another stream under the same name."""

    created: str
    last_sequence: int
    messages: int
    subjects: int = 0
    size: int = 0  # bytes


class KvEntry(msgspec.Struct, frozen=True):
    """A key of the bucket: revision for compare-and-set, and the value (empty after a delete).

    ``last``: after a delete the value before it, if whoever deleted it left that.
    """

    revision: int
    value: bytes
    last: bytes = b""


class _State(msgspec.Struct, frozen=True):
    last_seq: int = 0
    messages: int = 0
    num_subjects: int = 0
    bytes: int = 0


class _ApiError(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _StreamInfo(msgspec.Struct, frozen=True):
    created: str = ""
    ts: datetime | None = None  # the server's time
    state: _State = _State()
    error: _ApiError | None = None


class Bus:
    """A connection to NATS with JetStream. Make it with :meth:`connect`."""

    def __init__(self, client: Client, name: str, metrics: Metrics | None = None) -> None:
        self.nc = client
        self._metrics = metrics
        self.js = client.jetstream(timeout=ATTEMPT_TIMEOUT)
        self.name = name
        self.on_reconnect: list[Callable[[], None]] = []
        self._refusal: Exception | None = None  # why there is no login, since the last one

    @classmethod
    async def connect(cls, settings: Settings, name: str, metrics: Metrics | None = None) -> Self:
        """Connect and make sure that JetStream answers.

        Raises BusUnreachableError, LoginRefusedError or NoJetStreamError, SettingsError for unreadable credentials.
        Later losses of the connection are retried for ever.
        """
        bus = cls(LoginClient(settings), name, metrics)
        inbox = f"_INBOX_{encode(name.split('-', maxsplit=1)[0])}"
        heard = {"error_cb": bus._on_error, "disconnected_cb": bus._on_disconnect, "reconnected_cb": bus._on_reconnect}
        options = credentials(settings) | heard | {"name": name, "inbox_prefix": inbox}
        try:
            await log_in(bus.nc, settings, lambda: bus._refusal, options)
            bus.nc.options["max_reconnect_attempts"] = -1
            bus.nc.options["reconnect_time_wait"] = RETRY_PAUSE
            await expect_jetstream(bus.js, settings)
        except BaseException:  # CancelledError too: a start that is stopped leaves no connection
            await _close_quietly(bus.nc)
            raise
        bus._tell_connected(connected=True)
        return bus

    def _tell_connected(self, *, connected: bool) -> None:
        if self._metrics is not None:
            self._metrics.connected.set(connected)

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if self._refusal is None and is_refusal(error):
            self._refusal = error
            if not self.nc.is_connecting:
                log.warning("there is no login to NATS; tried again until there is", error=text)
        log.debug("nats error", error=text)

    async def _on_disconnect(self) -> None:
        if not self.nc.is_closed:
            log.warning("nats connection lost")
            self._tell_connected(connected=False)

    async def _on_reconnect(self) -> None:
        log.info("nats connection is back")
        self._refusal = None
        self._tell_connected(connected=True)
        if self._metrics is not None:
            self._metrics.reconnects.inc()
        for listener in list(self.on_reconnect):
            listener()

    @property
    def connected(self) -> bool:
        return self.nc.is_connected

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message that the server takes."""
        return self.nc.max_payload

    async def close(self) -> None:
        """Flush what was published and close."""
        with suppress(TimeoutError, nats.errors.Error):
            await self.nc.flush(timeout=2)
        await _close_quietly(self.nc)

    async def publish(
        self,
        subject: str,
        data: bytes,
        event: events.Event | None = None,
        *,
        msg_id: str = "",
        expect_last: int | None = None,
        rollup: bool = False,
        ttl: float | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = PUBLISH_TIMEOUT,  # noqa: ASYNC109 -- the whole of several attempts, each timed out by itself
    ) -> PubAck:
        """Publish and wait until the server stored it.

        RefusedError, at once, for what the server will never take: over its limit in bytes, or against a rule of the
        stream. Without an answer it is published again under the same Msg-Id until ``timeout`` seconds are over
        (PublishError: it may or may not be stored). ``expect_last`` is the sequence that must be the subject's last
        (0: none); otherwise WrongSequenceError, also for the second try of a publish whose first was stored: the
        server checks it before the Msg-Id. ``ttl`` is in whole seconds, at least 1.
        """
        all_headers = dict(headers or {})
        if event is not None:
            all_headers |= event.headers()
        if msg_id:
            all_headers["Nats-Msg-Id"] = msg_id
        if expect_last is not None:
            all_headers["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        if rollup:
            all_headers["Nats-Rollup"] = "sub"
        if ttl is not None:
            all_headers["Nats-TTL"] = str(max(1, int(ttl)))
        refuse_what_cuts_off(subject, data, all_headers, self.max_payload)
        deadline = time.monotonic() + timeout
        while True:
            try:
                ack = await self.js.publish(subject, data, timeout=ATTEMPT_TIMEOUT, headers=all_headers or None)
            except (TimeoutError, nats.errors.Error) as error:
                raise_if_final(error, subject, expect_last)
                if time.monotonic() >= deadline:
                    missing = isinstance(error, nats.js.errors.NoStreamResponseError) and self.connected
                    hint = "run `tether topology apply`" if missing else "look at the NATS server"
                    raise PublishError(f"no stream acknowledged {shown(subject)} in {timeout:g} s: {hint}") from error
            else:
                return PubAck(ack.seq, bool(ack.duplicate))
            await asyncio.sleep(RETRY_PAUSE)

    async def last(self, stream: str, subject: str) -> BusMessage | None:
        """Return the last message of a subject, or None."""
        try:
            raw = await self.js.get_last_msg(stream, subject)
        except nats.js.errors.APIError as error:
            if error.err_code == _NO_MESSAGE or isinstance(error, nats.js.errors.NotFoundError):
                if error.err_code == _STREAM_NOT_FOUND:
                    raise _missing(stream) from error
                return None
            raise
        return BusMessage(
            subject=raw.subject or subject,
            sequence=raw.seq or 0,
            time=raw.time or datetime.now(UTC),
            headers=dict(raw.headers or {}),
            data=raw.data or b"",
        )

    async def stream_state(self, stream: str) -> StreamState:
        """Return what a stream holds now; StreamMissingError, or TimeoutError and nats errors while away."""
        sent = time.monotonic()
        reply = await self.nc.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=ATTEMPT_TIMEOUT)
        received = time.monotonic()
        info = msgspec.json.decode(reply.data, type=_StreamInfo)
        if info.ts is not None:
            NATS.hear(info.ts.timestamp(), sent=sent, received=received)
        if info.error is not None:
            if info.error.err_code == _STREAM_NOT_FOUND:
                raise _missing(stream)
            raise StreamMissingError(f"stream {stream}: {info.error.description}")
        return StreamState(
            created=info.created,
            last_sequence=info.state.last_seq,
            messages=info.state.messages,
            subjects=info.state.num_subjects,
            size=info.state.bytes,
        )

    async def work(self, worker: str, target: Key, request: events.WorkRequest, *, msg_id: str = "") -> PubAck:
        """Ask a worker to reconcile a key."""
        subject = work_subject(worker, target)
        event = self._event(events.WORK, str(target), msg_id)
        return await self.publish(subject, events.encode_body(request), event, msg_id=msg_id)

    async def schedule(self, worker: str, target: Key, at: datetime, request: events.WorkRequest) -> None:
        """Ask a worker to reconcile a key at a time. There is one timer per worker and key: the earliest time wins.

        The time is the cluster's, as `eventcore.clock.now` returns it; NATS obeys its own clock.

        Only the holder of the key's lane calls this. No Msg-Id: a replacement with the same one would be swallowed.
        """
        subject = timer_subject(worker, target)
        while True:
            resting = await self.last("WORK", subject)
            due = at.astimezone(UTC) + timedelta(seconds=NATS.offset - KUBE.offset)
            if resting is not None:
                with suppress(ValueError):
                    due = min(
                        due, datetime.fromisoformat(resting.headers.get("Nats-Schedule", "").removeprefix("@at "))
                    )
            headers = {
                "Nats-Schedule": f"@at {due.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
                "Nats-Schedule-Target": work_subject(worker, target),
            }
            try:
                await self.publish(
                    subject,
                    events.encode_body(request),
                    self._event(events.WORK, str(target)),
                    expect_last=resting.sequence if resting else 0,
                    headers=headers,
                )
            except WrongSequenceError:
                continue  # it fired meanwhile, or our own first try was stored
            return

    async def audit(self, record: events.AuditRecord) -> None:
        """Append a record to AUDIT, its texts cut to a length that AUDIT takes."""
        record = audit_within(record)
        event = self._event(events.AUDIT, record.object or record.account)
        subject = audit_subject(record.component, record.tenant, record.action)
        await self.publish(subject, events.encode_body(record), event, msg_id=event.id)

    async def dead_letter(self, record: events.DeadLetter) -> None:
        """Put what could not be handled into DLQ, of a message that is too long its beginning."""
        record = letter_within(record)
        event = self._event(events.DEAD_LETTER, record.key)
        subject = dead_letter_subject(record.worker, record.key)
        msg_id = f"dlq:{record.sequence}" if record.sequence else event.id
        await self.publish(subject, events.encode_body(record), event, msg_id=msg_id)

    async def kv_get(self, target: Key) -> KvEntry | None:
        """Read a key of the bucket ``access`` with its revision; None if it was never written."""
        message = await self.last(f"KV_{BUCKET}", kv_subject(BUCKET, target))
        if message is None:
            return None
        if "KV-Operation" in message.headers:
            return KvEntry(message.sequence, b"", message.data)
        return KvEntry(message.sequence, message.data)

    async def kv_put(self, target: Key, value: bytes, *, revision: int) -> int:
        """Write a key if its revision is still this one (0: never written); WrongSequenceError otherwise."""
        return (await self.publish(kv_subject(BUCKET, target), value, expect_last=revision)).sequence

    async def kv_delete(self, target: Key, *, revision: int, last: bytes = b"") -> None:
        """Delete a key if its revision is still this one, leaving the last value; WrongSequenceError otherwise."""
        await self.publish(kv_subject(BUCKET, target), last, expect_last=revision, headers={"KV-Operation": "DEL"})

    def _event(self, type_: str, subject: str, id_: str = "") -> events.Event:
        return events.Event(
            id=id_ or self.nc._nuid.next().decode(),  # noqa: SLF001 -- nats-py's own generator of unique ids
            source=f"/tether/{self.name}",
            type=type_,
            subject=subject,
            time=now(),
        )


async def _close_quietly(client: Client) -> None:
    with suppress(TimeoutError, nats.errors.Error, OSError):
        await client.close()


def _missing(stream: str) -> StreamMissingError:
    return StreamMissingError(f"stream {stream} does not exist: run `tether topology apply`")
