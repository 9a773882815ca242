"""What a connection sends: all of it, in order, as little by little as possible."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from proxycore.plane.outgoing import HIGH_WATER, MOST_HELD, Outgoing, Turn

if TYPE_CHECKING:
    from collections.abc import Callable


class Wire(asyncio.Transport):
    """Takes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.high: int | None = None
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self.high = high

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Loop:
    """Ends a turn when it is told to."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self.turn = Turn(self._calls.append)

    def end_turn(self) -> None:
        calls, self._calls[:] = self._calls[:], []
        for call in calls:
            call()

    def connection(self) -> tuple[Outgoing, Wire]:
        wire = Wire()
        connection = Outgoing(self.turn)
        connection.connection_made(wire)
        return connection, wire


def test_what_is_written_in_one_turn_leaves_at_its_end_in_one_piece() -> None:
    loop = Loop()
    one, wire = loop.connection()
    other, other_wire = loop.connection()
    one.write(b"head ")
    other.write(b"another's")
    one.write(b"body")
    assert wire.written == other_wire.written == []

    loop.end_turn()

    assert (wire.written, other_wire.written) == ([b"head body"], [b"another's"])
    assert wire.high == HIGH_WATER


def test_a_later_turn_sends_what_came_after_the_first() -> None:
    loop = Loop()
    connection, wire = loop.connection()
    connection.write(b"first")
    loop.end_turn()
    loop.end_turn()
    connection.write(b"second")

    loop.end_turn()

    assert wire.written == [b"first", b"second"]


def test_much_is_sent_at_once_so_that_a_slow_reader_is_noticed_within_the_turn() -> None:
    connection, wire = Loop().connection()
    connection.write(b"head")

    connection.write(bytes(MOST_HELD))

    assert wire.written == [b"head" + bytes(MOST_HELD)]


def test_a_connection_hangs_up_after_what_was_written_and_takes_nothing_more() -> None:
    loop = Loop()
    connection, wire = loop.connection()
    connection.write(b"last words")

    connection.hang_up()

    assert (wire.written, wire.closed) == ([b"last words"], True)
    connection.write(b"too late")
    loop.end_turn()
    assert wire.written == [b"last words"]


def test_a_connection_that_the_other_side_closed_within_the_turn_stops_no_other() -> None:
    loop = Loop()
    gone, closed = loop.connection()
    stays, open_ = loop.connection()
    gone.write(b"to nobody")
    stays.write(b"to somebody")
    closed.close()

    loop.end_turn()

    assert (closed.written, open_.written) == ([], [b"to somebody"])


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.one_of(st.none(), st.integers(0, MOST_HELD + 1)))))
def test_each_connection_gets_its_own_bytes_in_order_however_turns_fall(steps: list[tuple[int, int | None]]) -> None:
    loop = Loop()
    made = [loop.connection() for _ in range(3)]
    expected = [b""] * 3
    for number, (which, size) in enumerate(steps):
        if size is None:
            loop.end_turn()
        else:
            data = bytes([number % 256]) * size
            made[which][0].write(data)
            expected[which] += data

    loop.end_turn()

    assert [b"".join(wire.written) for _, wire in made] == expected
    assert all(piece for _, wire in made for piece in wire.written)
