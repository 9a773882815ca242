"""Reading what stands in a stream now, without taking anything from it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from eventcore.bus import BusMessage
from eventcore.errors import BusError, StreamMissingError
from eventcore.pulling import Pull, message_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from eventcore.bus import Bus

_BATCH: Final = 256
_EXPIRES: Final = 5.0
_DIRECT_BATCH: Final = 512


async def read_all(
    bus: Bus, stream: str, subject: str, *, last: bool = False, headers_only: bool = False
) -> AsyncGenerator[BusMessage, None]:
    """Yield the messages of a subject that are there now, in order; with ``last`` only the last of each subject.

    Not for WORK, where a second reader is not allowed: see :func:`peek`. StreamMissingError, BusError.
    """
    consumer = f"read-{secrets.token_hex(8)}"
    config = ConsumerConfig(
        name=consumer,
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if last else DeliverPolicy.ALL,
        ack_policy=AckPolicy.NONE,
        filter_subject=subject,
        headers_only=headers_only or None,
        inactive_threshold=30.0,
        mem_storage=True,
        num_replicas=1,
    )
    try:
        info = await bus.js.add_consumer(stream, config)
    except NotFoundError as error:
        raise StreamMissingError(f"stream {stream} does not exist: run `tether topology apply`") from error
    except APIError as error:
        raise BusError(f"stream {stream} cannot be read: {error.description}") from error
    left = info.num_pending or 0
    pull = Pull(bus, stream, consumer)
    try:
        while left:
            await pull.request(batch=_BATCH, expires=_EXPIRES)
            for _ in range(_BATCH):
                message = await pull.next(_EXPIRES + 1)
                if message is None:
                    continue
                if (status := status_of(message)) is not None:
                    if status not in {"404", "408"}:
                        raise BusError(f"stream {stream} cannot be read: its consumer answered {status}")
                    left = 0 if status == "404" else left
                    break
                left = message.metadata.num_pending or 0
                yield message_of(message)
                if not left:
                    break
    finally:
        await pull.close()
        with suppress(TimeoutError, nats.errors.Error):
            await bus.js.delete_consumer(stream, consumer)


async def peek(bus: Bus, stream: str, subject: str) -> AsyncGenerator[BusMessage, None]:
    """Yield the messages of a subject one by one, by direct gets, so that nothing is consumed. BusError.

    The stream must allow direct gets.
    """
    sequence = 1
    while True:
        try:
            raw = await bus.js.get_msg(stream, seq=sequence, subject=subject, direct=True, next=True)
        except NotFoundError:
            return
        except APIError as error:
            raise BusError(f"stream {stream} cannot be read: {error.description}") from error
        sequence = (raw.seq or sequence) + 1
        if raw.time is not None:
            yield BusMessage(
                subject=raw.subject or subject,
                sequence=raw.seq or 0,
                time=raw.time,
                headers=dict(raw.headers or {}),
                data=raw.data or b"",
            )
