"""One connection of a client: requests one after the other, each answered before the next is looked at.

Nothing is read faster than it can be used: what a client sends ahead is held up to a small bound, then its socket is
left alone. A request whose body was not taken is answered with ``Connection: close``, and the rest is drained for a
moment so that the client can read why.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from eventcore.logs import get
from proxycore.plane.chunks import ChunkReader
from proxycore.plane.exchange import Request
from proxycore.plane.heads import LONGEST_HEAD, HeadReader, parse_head, timed_out, too_large
from proxycore.plane.outgoing import Outgoing
from proxycore.statuses import RefusedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from proxycore.headers import Header
    from proxycore.plane.accepting import Accepted
    from proxycore.plane.listener import Listener
    from proxycore.statuses import Status

log = get("proxy.client")

HEAD_SECONDS: Final = 10.0
"""Seconds in which a head must arrive, from its first byte, or from the opening of the connection."""
IDLE_SECONDS: Final = 75.0
BODY_SECONDS: Final = 60.0
"""Seconds without a byte of a body that is awaited."""
WRITE_SECONDS: Final = 60.0
"""A client that takes nothing for so long is disconnected."""
FIRST_SECONDS: Final = 2.0
"""What a new connection has to send its first request once the port closes."""
QUIET_SECONDS: Final = 0.25
"""A kept connection that is silent for so long is closed once the port closes; the next request of a busy one may be
on its way, and its answer says that it is the last."""
LINGER_SECONDS: Final = 2.0
"""What a client has to read why its body was not wanted."""
REFUSED_SECONDS: Final = 0.05
"""The same after what was no HTTP: long enough that the answer is not lost with what was still on its way."""
MOST_AHEAD: Final = 65_536
"""Bytes held of a body that nobody reads yet, or of requests after the one in hand."""
_USELESS: Final = frozenset({401, 429})
_HEAD_END: Final = b"\r\n\r\n"
_NEVER = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\x00")
"""What no head can hold, so that a client need not wait for the time-out to be told."""


class Peer(Protocol):
    """The other side of a tunnel, or what an answer comes from."""

    def write(self, data: bytes, /) -> None:
        """Send bytes on."""

    def pause(self) -> None:
        """Read no more for now."""

    def resume(self) -> None:
        """Read on."""

    def hang_up(self) -> None:
        """Close when all is sent."""


class ClientConnection(Outgoing):
    """Reads requests and hands each to the listener's handler."""

    def __init__(self, listener: Listener, accepted: Accepted) -> None:
        super().__init__(listener.turn)
        self.peer = accepted.peer
        self._accepted = accepted
        self._useful = False  # it had an answer that is no refusal of its credential
        self._listener = listener
        self._loop = listener.loop
        self._reader = HeadReader()
        self._buffer = bytearray()
        self._scanned = 0
        self._since = self._heard = self._loop.time()
        self._served = False
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._chunks: ChunkReader | None = None
        self._left = 0
        self._tunnel: Peer | None = None
        self._closing = False
        self._deaf = False  # what comes now has no meaning any more
        self._lingering = False  # the rest of a body is drained
        self._linger_until = 0.0
        self._ahead = self._slow_sink = self._reads_not = False
        self._stuck_since = 0.0

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.opened(self, self._accepted)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.write(data)
            return
        if self._deaf or (self._closing and not self._lingering):
            return
        self._heard = self._loop.time()
        request = self._request
        if request is not None and not request.body_over:
            self._feed(request, data)
            return
        if not self._buffer:
            self._since = self._heard
            if request is None and data.endswith(_HEAD_END) and data.find(_HEAD_END) == len(data) - len(_HEAD_END):
                self._begin(data)  # a head and no more, as nearly all that come
                return
        self._buffer += data
        if request is None:
            self._advance()
        elif len(self._buffer) > MOST_AHEAD:
            self._ahead = True
            self._read_or_not()
            request.body_is_ahead()

    def pause_writing(self) -> None:
        self._stuck_since = self._loop.time()
        if self._tunnel is not None:
            self._tunnel.pause()
        elif self._request is not None:
            self._request.writing_paused()

    def resume_writing(self) -> None:
        self._stuck_since = 0.0
        if self._tunnel is not None:
            self._tunnel.resume()
        elif self._request is not None:
            self._request.writing_resumed()

    def connection_lost(self, exc: BaseException | None) -> None:
        del exc
        self._closing = True
        self._listener.closed(self, self._accepted)
        if self._tunnel is not None:
            self._tunnel.hang_up()
        if self._request is not None:
            self._request.client_gone()
        if self._task is not None:
            self._task.cancel()

    # A tunnel.

    def pause(self) -> None:
        self.transport.pause_reading()

    def resume(self) -> None:
        self.transport.resume_reading()

    def become_tunnel(self, other: Peer) -> bytes:
        """Send all that comes from now on to the other side; return what has come already."""
        self._tunnel = other
        self._ahead = self._slow_sink = False
        early, self._buffer = bytes(self._buffer), bytearray()
        if self._stuck_since:
            other.pause()
        self._read_or_not()
        return early

    # For the request in hand.

    @property
    def idle(self) -> bool:
        """Whether it asked for nothing yet, or was refused, and so makes room for another where there is none."""
        return not self._useful and (self._request is None or self._deaf)

    @property
    def is_stuck(self) -> bool:
        """Whether the client takes less than is sent to it."""
        return bool(self._stuck_since)

    @property
    def is_last(self) -> bool:
        """Whether no further request will be answered on this connection."""
        return self._closing or self._listener.is_closing

    def hold_body(self, *, hold: bool) -> None:
        """Stop or go on reading a body, since who takes it is slow."""
        self._slow_sink = hold
        self._heard = self._loop.time()
        self._read_or_not()

    def body_wanted(self) -> None:
        """Go on reading: somebody takes the body now."""
        self._ahead = False
        self._heard = self._loop.time()
        self._read_or_not()

    @property
    def is_ahead(self) -> bool:
        """Whether so much of a body is held that no more is read."""
        return self._ahead

    def body_late(self, request: Request) -> None:
        """Take no more of a body that had its time."""
        if request is self._request and not (request.body_over or self._deaf):
            self._broken_body(request, RefusedError(timed_out()))

    def answered(self, request: Request, *, keeps: bool) -> None:
        """Go on to the next request, or close, now that this one has its answer."""
        if request is not self._request or self._closing:
            return
        self._served = True
        if not self._useful:
            self._useful = request.answer_code not in _USELESS
        if not keeps or self._listener.is_closing:
            if request.body_over:
                self._close()
            else:
                request.discard_body()
                self._lingering = True
                self._linger(LINGER_SECONDS)
            return
        self._request = self._task = None
        self._ahead = self._slow_sink = False
        self._since = self._loop.time()
        self._read_or_not()
        if self._buffer:
            # Not from here: a chain of pipelined requests must not grow the stack.
            self._loop.call_soon(self._advance)

    def abort(self) -> None:
        """Break the connection: what was sent is not whole."""
        self._closing = True
        self.send()
        self.transport.abort()

    def stop(self) -> None:
        """Close once it is quiet; until then a request that comes, or is half there, gets its answer, the last one.

        A connection that just opened has its first request on the way, and is given a moment for it.
        """
        if self._request is not None or self._closing or self._buffer:
            return  # what is in hand is the last; half a head has its own time limit
        quiet = QUIET_SECONDS if self._served else FIRST_SECONDS
        left = max(self._heard, self._since) + quiet - self._loop.time()
        if left <= 0:
            self._close()
        else:
            self._loop.call_later(left, self.stop)

    def look(self, now: float) -> None:
        """Act on what takes too long. Called about once a second."""
        if self._tunnel is not None or self.transport.is_closing():
            return
        if self._closing:
            if now > self._linger_until:
                self._close()
        elif self._stuck_since and now - self._stuck_since > WRITE_SECONDS:
            log.info("client is too slow")
            self.abort()
        elif self._request is None:
            self._look_idle(now)
        elif self._awaits_body(self._request) and now - self._heard > BODY_SECONDS:
            self._broken_body(self._request, RefusedError(timed_out()))

    def _awaits_body(self, request: Request) -> bool:
        return not (request.body_over or request.expects or self._ahead or self._slow_sink or self._deaf)

    def _look_idle(self, now: float) -> None:
        waited = now - self._since
        if self._buffer:
            if waited > HEAD_SECONDS:
                self._refuse(timed_out())
        elif waited > (IDLE_SECONDS if self._served else HEAD_SECONDS):
            self._close()

    # Reading.

    def _advance(self) -> None:
        if self._request is not None or self._closing:
            return
        end = self._buffer.find(_HEAD_END, self._scanned)
        if end < 0:
            if len(self._buffer) > LONGEST_HEAD:
                self._refuse(too_large())
            elif _NEVER.search(self._buffer, self._scanned):
                self._refuse_nonsense()
            self._scanned = max(0, len(self._buffer) - 3)
            return
        end += len(_HEAD_END)
        self._scanned = 0
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._begin(raw)

    def _begin(self, raw: bytes) -> None:
        if len(raw) > LONGEST_HEAD:
            self._refuse(too_large())
            return
        try:
            head = self._reader.read(raw)
        except RefusedError as error:
            self._refuse(error.status)
            return
        request = self._request = Request(self, head, self.peer, self._reader.remembered)
        if head.length != 0:
            self._chunks = ChunkReader() if head.length is None else None
            self._left = head.length or 0
            if self._buffer:
                early, self._buffer = bytes(self._buffer), bytearray()
                self._feed(request, early)
        if not self._closing:
            waits = self._listener.serve(request)
            if waits is not None:
                self.go_on_in_task(request, waits)

    def go_on_in_task(self, request: Request, waits: Coroutine[None, None, None]) -> None:
        """Let a task do what is left to do for a request; it is cancelled when the client goes away."""
        if request is self._request and not self.transport.is_closing():
            self._task = self._listener.run(request, waits)
        else:
            waits.close()

    def _feed(self, request: Request, data: bytes) -> None:
        trailers: list[Header] = []
        if self._chunks is not None:
            try:
                pieces = self._chunks.feed(data)
            except RefusedError as error:
                self._broken_body(request, error)
                return
            over, rest, trailers = self._chunks.over, self._chunks.rest, self._chunks.trailers
        else:
            pieces, rest = [data[: self._left]], data[self._left :]
            self._left -= len(pieces[0])
            over = not self._left
        for piece in pieces:
            request.body_piece(piece)
        if over:
            if rest:
                self._since = self._heard
                self._buffer += rest
            request.body_ended(trailers)
            if self._lingering:
                self._close()
        elif request.held_bytes > MOST_AHEAD:
            self._ahead = True
            self._read_or_not()
            request.body_is_ahead()

    def _broken_body(self, request: Request, error: RefusedError) -> None:
        log.info("body is refused", code=error.status.code)
        self._deaf = True
        request.body_broke(error)
        if self._task is None and not request.answer_begun:
            request.reply(error.status.code, error.status.encode())

    def _refuse_nonsense(self) -> None:
        try:
            parse_head(b"")
        except RefusedError as error:
            self._refuse(error.status)

    def _refuse(self, status: Status) -> None:
        log.info("request is refused before it is read", code=status.code)
        self._listener.refused(status.code)
        self._deaf = True
        self._request = Request.of_nobody(self)
        self._request.reply(status.code, status.encode())
        self._linger(REFUSED_SECONDS)

    def _linger(self, seconds: float) -> None:
        self._closing = True
        self._buffer.clear()
        self._ahead = self._slow_sink = False
        self._read_or_not()
        self._linger_until = self._loop.time() + seconds
        self._loop.call_later(seconds, self._close)

    def _close(self) -> None:
        self._closing = True
        self.hang_up()

    def _read_or_not(self) -> None:
        if (stops := self._ahead or self._slow_sink) == self._reads_not:
            return
        self._reads_not = stops
        if stops:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
