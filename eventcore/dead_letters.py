"""The mover: a request that was delivered too often goes to DLQ, and only then leaves WORK.

When ``max_deliver`` is reached the lane goes on, but the message stays in WORK for ever; the server says so once, in
an advisory. DLQ keeps the advisories; a durable consumer, shared by all workers, turns each into a dead letter. What is
no advisory is told and acknowledged, so that it stops neither the mover nor the worker around it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import nats.errors
import nats.js.errors

from eventcore.clock import now
from eventcore.errors import BusError, EventError
from eventcore.events import DeadLetter, decode_body
from eventcore.foreign import shown
from eventcore.keys import parse_work_subject
from eventcore.logs import get
from eventcore.pulling import Pull, no_answer, status_of
from eventcore.topology import DLQ, MOVER, WORK
from eventcore.waiting import pause

if TYPE_CHECKING:
    import asyncio

    from nats.aio.msg import Msg

    from eventcore.bus import Bus
    from eventcore.metrics import Metrics

log = get("dead_letters")

EXPIRES: Final = 10.0


class _Advisory(msgspec.Struct, frozen=True):
    stream: str
    consumer: str
    stream_seq: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    deliveries: int = 0


async def move(bus: Bus, metrics: Metrics, stopping: asyncio.Event) -> None:
    """Move exhausted requests until told to stop."""
    pull = Pull(bus, DLQ, MOVER)
    try:
        with pull.waking(stopping):
            while not stopping.is_set():
                try:
                    await pull.request(batch=1, expires=EXPIRES)
                    message = await pull.next(EXPIRES + 1)
                    if message is None:
                        await pull.close_and_give_back()
                    elif (status := status_of(message)) is None:
                        await _move_one(bus, metrics, message)
                    elif status not in {"404", "408"}:
                        # Nobody answers yet, or there is no such consumer: asked again, but not at once.
                        log.warning("mover waits for its consumer", error=no_answer(status, message))
                        await pull.close_and_give_back()
                        await pause(stopping, 1.0)
                except (BusError, nats.errors.Error, TimeoutError, OSError) as error:
                    log.warning("mover waits for the bus", error=str(error) or type(error).__name__)
                    await pull.close_and_give_back()
                    await pause(stopping, 1.0)
    finally:
        await pull.close_and_give_back()


async def _move_one(bus: Bus, metrics: Metrics, message: Msg) -> None:
    try:
        advisory = decode_body(_Advisory, message.data)
    except EventError as error:
        log.error("message among the advisories is none, set aside", subject=shown(message.subject), error=str(error))
        await message.ack_sync()
        return
    try:
        original = await bus.js.get_msg(WORK, seq=advisory.stream_seq)
    except nats.js.errors.NotFoundError:
        await message.ack_sync()  # already moved, or handled after all
        return
    subject = original.subject or ""
    try:
        worker, _, key = parse_work_subject(subject)
        named = (worker, str(key))
    except EventError:
        named = (advisory.consumer, subject)
    await bus.dead_letter(
        DeadLetter(
            time=now(),
            worker=named[0],
            key=named[1],
            reason=f"delivered {advisory.deliveries} times without an answer",
            subject=subject,
            headers=dict(original.headers or {}),
            data=original.data or b"",
            deliveries=advisory.deliveries,
            sequence=advisory.stream_seq,
        )
    )
    metrics.dead_letters.labels(named[0]).inc()
    with suppress(nats.js.errors.NotFoundError):
        await bus.js.delete_msg(WORK, advisory.stream_seq)
    await message.ack_sync()
    log.error("request moved to the dead letters", worker=named[0], key=shown(named[1]), deliveries=advisory.deliveries)
