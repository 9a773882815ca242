"""Pulling from a consumer: one outstanding pull, its messages and statuses, and a clean end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import nats.errors

from eventcore.bus import Bus, BusMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription


class Pull:
    """A pull consumer's messages, over an inbox of its own.

    ``nats-py``'s fetch may hand out a message that an earlier, timed-out pull was given; here each message belongs to
    the pull that is outstanding, so :attr:`sent` (monotonic seconds) is never later than its delivery.
    """

    def __init__(self, bus: Bus, stream: str, consumer: str) -> None:
        self._bus = bus
        self.consumer = consumer
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._subscription: Subscription | None = None
        self._delivered: deque[Msg] = deque()
        self._awake = asyncio.Event()
        self.sent = 0.0

    async def request(self, *, batch: int, expires: float, heartbeat: float = 0.0) -> None:
        """Send a pull for up to ``batch`` messages, open for ``expires`` seconds."""
        if self._subscription is None:
            self._subscription = await self._bus.nc.subscribe(self._bus.nc.new_inbox(), cb=self._take)
        body: dict[str, int] = {"batch": batch, "expires": int(expires * 1e9)}
        if heartbeat:
            body["idle_heartbeat"] = int(heartbeat * 1e9)
        self.sent = time.monotonic()
        await self._bus.nc.publish(self._subject, msgspec.json.encode(body), reply=self._subscription.subject)

    async def next(self, timeout: float) -> Msg | None:  # noqa: ASYNC109 -- read at the call, cleaned up here
        """Return the next message or status of the pull, None when :meth:`wake` was called; TimeoutError."""
        if not self._delivered:
            async with asyncio.timeout(timeout):
                await self._awake.wait()
        self._awake.clear()
        return self._delivered.popleft() if self._delivered else None

    def wake(self) -> None:
        """Let :meth:`next` return."""
        self._awake.set()

    @contextmanager
    def waking(self, stopping: asyncio.Event) -> Iterator[None]:
        """Wake when the connection came back, whose old pulls nobody answers, and when ``stopping`` is set."""
        stop = asyncio.ensure_future(stopping.wait())
        stop.add_done_callback(lambda _: self.wake())
        self._bus.on_reconnect.append(self.wake)
        try:
            yield
        finally:
            self._bus.on_reconnect.remove(self.wake)
            stop.cancel()

    async def close_and_give_back(self) -> None:
        """Unsubscribe first, then give back what was delivered and not taken: the server delivers it elsewhere."""
        for message in await self.close():
            with suppress(nats.errors.Error):
                await message.nak()

    async def close(self) -> list[Msg]:
        """Unsubscribe, and return the messages that had been delivered and nobody took.

        With a round trip, where there is a connection: what the server sent before it heard of the end is delivered
        too. Dropped, it would rest until the ack_wait of its consumer is over, and hold up a lane for so long.
        """
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(nats.errors.Error):
                if self._bus.connected:
                    await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py gives it no types
                else:
                    await subscription.unsubscribe()
        left = [message for message in self._delivered if status_of(message) is None]
        self._delivered.clear()
        return left

    async def _take(self, message: Msg) -> None:
        self._delivered.append(message)
        self._awake.set()


def status_of(message: Msg) -> str | None:
    """Return the status of a pull's answer ("404", "408", "409", "503", "100" for a heartbeat), None for a message."""
    if message.data or not message.headers or message.reply.startswith("$JS.ACK"):
        return None
    return message.headers.get("Status")


def no_answer(status: str, message: Msg) -> str:
    """Return what a status means that is neither a message nor the end of a pull, and what to do, for a log line."""
    description = (message.headers or {}).get("Description", "").partition("\n")[0].strip()
    answer = f"NATS answers {status} {description}".strip()
    if status == "409" and "deleted" not in description.lower():
        return f"{answer}: waiting for it"
    return f"{answer}: waiting for it; if JetStream is there, run `tether topology apply`"


def message_of(message: Msg) -> BusMessage:
    """Return a delivered message as a BusMessage."""
    metadata = message.metadata
    return BusMessage(
        subject=message.subject,
        sequence=metadata.sequence.stream,
        time=metadata.timestamp,
        headers=dict(message.headers or {}),
        data=message.data,
    )
