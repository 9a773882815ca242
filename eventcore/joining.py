"""How a role comes to the bus: it waits for NATS and for the streams that it reads, and says so once.

A role that ended instead would be started again and again by whatever runs it, with pauses that grow, and come up
minutes after NATS. A login that is refused is another matter: waiting mends no password, so that ends the process.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

import nats.errors

from eventcore.bus import Bus
from eventcore.errors import BusUnreachableError, StreamMissingError
from eventcore.waiting import end, pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.process import Role

CHECK: Final = "nats"
FIRST_PAUSE: Final = 0.25
MOST_PAUSE: Final = 5.0
"""Seconds between two tries at most."""
SAY_AGAIN: Final = 300.0
"""Seconds after which the log says again what is waited for."""


async def join(role: Role, name: str, streams: Sequence[str]) -> Bus | None:
    """Connect once NATS answers and has these streams; None when the role is told to stop before.

    Meanwhile the readiness check ``nats`` says what is missing. LoginRefusedError and NoJetStreamError, which waiting
    does not mend; SettingsError for credentials that cannot be read.
    """
    role.readiness.expect(CHECK)
    joining = asyncio.ensure_future(_join(role, name, streams))
    stopping = asyncio.ensure_future(role.stopping.wait())
    try:
        await asyncio.wait({joining, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not joining.done():
            return None
        bus = await joining
    finally:
        await end(joining, stopping)
    role.readiness.set(CHECK, ok=True)
    return bus


async def _join(role: Role, name: str, streams: Sequence[str]) -> Bus:
    waiting = _Waiting(role)
    while True:
        try:
            bus = await Bus.connect(role.settings, name, role.metrics)
            break
        except BusUnreachableError as error:
            await waiting.once_more(str(error), "waiting for NATS")
    try:
        for stream in streams:
            while why := await _missing(bus, stream):
                await waiting.once_more(why, "waiting for the streams in NATS")
    except BaseException:  # CancelledError too: that is how a stop ends the wait
        await bus.close()
        raise
    waiting.over()
    return bus


async def _missing(bus: Bus, stream: str) -> str:
    try:
        await bus.stream_state(stream)
    except StreamMissingError as error:
        return str(error)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        return f"stream {stream} cannot be asked for ({str(error) or type(error).__name__})"
    return ""


class _Waiting:
    """Says what is waited for: at once when it is something new, and again after a while."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._pause = FIRST_PAUSE
        self._said = ""
        self._again = 0.0

    async def once_more(self, why: str, what: str) -> None:
        self._role.readiness.set(CHECK, ok=False, why=f"{what}: {why}")
        if what != self._said or time.monotonic() >= self._again:
            self._role.log.warning(what, why=why)
            self._said, self._again = what, time.monotonic() + SAY_AGAIN
        await pause(self._role.stopping, self._pause * random.uniform(0.5, 1))  # noqa: S311 -- jitter
        self._pause = min(MOST_PAUSE, self._pause * 2)

    def over(self) -> None:
        if self._said:
            self._role.log.info("waiting is over: NATS has the streams")
