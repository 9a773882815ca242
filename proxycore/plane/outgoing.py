"""The side of a connection that sends: what is written in one turn of the event loop goes out at the end of the turn.

A write wakes whoever reads at the other end. Between two callbacks of a busy loop that reader falls asleep again, and
waking it costs more than the write; what a turn has for all connections, sent in a row, finds it awake. And the pieces
that one connection was given in a turn are one TLS record.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HIGH_WATER: Final = 262_144
"""Bytes that wait for the other end before whoever writes is told to pause."""
MOST_HELD: Final = 65_536
"""Bytes that wait for the end of the turn: some TLS records, so that no more would be gained by waiting."""


class Turn:
    """The connections that have something to send at the end of this turn. ``call_soon`` is the event loop's."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._waiting: list[Outgoing] = []

    def add(self, connection: Outgoing) -> None:
        """Send what this connection holds once the callbacks of this turn are through."""
        if not self._waiting:
            self._call_soon(self._end)
        self._waiting.append(connection)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.send()


class Outgoing(asyncio.Protocol):
    """A connection that is written to by `write` alone, so that all of it leaves in the order in which it came."""

    transport: asyncio.Transport
    _held = b""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio types the base class only
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def write(self, data: bytes) -> None:
        """Send bytes at the end of the turn, or now if they are many; nothing on a connection that is closed."""
        if self._held:
            data = self._held + data
        else:
            self._turn.add(self)
        self._held = data
        if len(data) > MOST_HELD:
            self.send()

    def send(self) -> None:
        """Send now what was written."""
        held, self._held = self._held, b""
        if held and not self.transport.is_closing():
            self.transport.write(held)

    def hang_up(self) -> None:
        """Close once all that was written is sent."""
        self.send()
        self.transport.close()
