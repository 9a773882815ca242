"""One connection to the API server: the request that goes out on it, and the answer that comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httptools

from eventcore.logs import get
from eventcore.sockets import keep_alive_of
from proxycore.plane.answers import Answered, StaleError
from proxycore.plane.chunks import chunk, last_chunk
from proxycore.plane.outgoing import Outgoing
from proxycore.statuses import RefusedError, bad_gateway, gateway_timeout, unavailable

if TYPE_CHECKING:
    import asyncio

    from proxycore.headers import Header
    from proxycore.plane.answers import Taker
    from proxycore.plane.client import Peer
    from proxycore.plane.exchange import Request
    from proxycore.plane.pool import Pool

log = get("proxy.upstream_connection")

CONTINUE_SECONDS: Final = 1.0
"""Seconds to wait for 100 Continue before a body is sent without it."""
LONGEST_HEAD: Final = 262_144
_SWITCHING: Final = 101
_CONTINUE: Final = 100
_FINAL: Final = 200


class UpstreamConnection(Outgoing):
    """One connection to the API server."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.turn)
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answered | None = None
        self._taker: Taker | None = None  # until the answer begins
        self._request: Request | None = None
        self._method = ""
        self._chunked = False
        self._body_sent = True
        self._waits = False  # for 100 Continue
        self._dirty = False  # bytes came that belong to no request
        self._used = False
        self._heard = False
        self._reason = b""
        self._fields: list[tuple[bytes, bytes]] = []  # of a head or of trailers, until they are complete
        self._bare = 0  # bytes that came since the last piece of a body, or since the head was complete
        self._interim = False
        self._over = False
        self._reusable = False
        self._peer: Peer | None = None
        self._stuck = False
        self._reads_not = False
        self.since = self._loop.time()

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent."""
        return not self.transport.is_closing() and self._answer is None and not self._dirty

    # Asking.

    def ask(
        self, head: bytes, method: str, taker: Taker, body: Request | None = None, *, chunked: bool = False
    ) -> None:
        """Send a request; its answer goes to the taker once that begins."""
        self._method, self._request, self._chunked = method, body, chunked
        self._body_sent = body is None
        self._heard = self._over = False
        self._bare = 0
        self._answer = Answered(self)
        self._taker = taker
        self.since = self._loop.time()
        self.write(head)
        if body is not None:
            if body.expects:
                self._waits = True
                self._loop.call_later(CONTINUE_SECONDS, self._go_on, self._answer)
            else:
                body.send_body_to(self)

    def body_piece(self, piece: bytes) -> None:
        self.since = self._loop.time()
        self.write(chunk(piece) if self._chunked else piece)

    def body_ended(self, trailers: list[Header]) -> None:
        self.since = self._loop.time()
        self._body_sent = True
        if self._chunked:
            self.write(last_chunk(self._pool.trailers(trailers)))

    def body_broke(self, error: RefusedError) -> None:
        self._fail(error)
        self.abort()

    def look(self, now: float) -> None:
        """Give up an answer that does not begin."""
        waiting = self._taker is not None and (self._body_sent or self._stuck)
        if waiting and now - self.since > self._pool.answer_seconds:
            self._fail(RefusedError(gateway_timeout("the API server did not answer in time")))
            self.abort()

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        keep_alive_of(transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._peer is not None:
            self._peer.write(data)
            return
        if self._answer is None:
            self._dirty = True
            self.abort()
            return
        self._heard = True
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as found:
            self._upgraded(data[found.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(type(error).__name__)
            return
        if self._over:
            self._settle()
        elif self._bare > LONGEST_HEAD:
            self._refuse("its head or its trailers are too large")

    def pause_writing(self) -> None:
        self._stuck = True
        if self._peer is not None:
            self._peer.pause()
        elif self._request is not None:
            self._request.hold_body(hold=True)

    def resume_writing(self) -> None:
        self._stuck = False
        if self._peer is not None:
            self._peer.resume()
        elif self._request is not None:
            self._request.hold_body(hold=False)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._pool.closed(self)
        if self._peer is not None:
            self._peer.hang_up()
            return
        answer = self._answer
        if answer is None:
            return
        if exc is None and answer.ends_with_connection and self._taker is None:
            self._over = True
            self._answer = None
            answer.ended()
            return
        if self._used and not self._heard:
            self._fail(StaleError())
        else:
            self._fail(RefusedError(unavailable("the API server cannot be reached; try again")))

    # A tunnel, and the source of an answer.

    def pause(self) -> None:
        self._reads_not = True
        self.transport.pause_reading()

    def resume(self) -> None:
        self._reads_not = False
        self.transport.resume_reading()

    def become_tunnel(self, other: Peer) -> None:
        """Send all that comes from now on to the other side."""
        self._peer = other
        self._answer = None
        if self._stuck:
            other.pause()
        self.resume()
        if self.transport.is_closing():
            other.hang_up()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    # From the parser.

    def on_message_begin(self) -> None:
        self._reason = b""
        self._fields.clear()
        self._interim = False
        if self._over or self._answer is None:
            self._dirty = True

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        answer, taker = self._answer, self._taker
        if self._over or answer is None or taker is None:
            self._dirty = True
            return
        if code < _FINAL and code != _SWITCHING:
            self._interim = True
            if code == _CONTINUE:
                self._go_on(answer)
            return
        self._waits = False
        self._reusable = self._parser.should_keep_alive()
        if self._method == "HEAD":
            self._over = True
        answer.begin(code, self._reason, self._fields, method=self._method)
        self._fields.clear()
        self._bare = 0
        self._taker = None
        taker.answer_begins(answer)

    def on_body(self, piece: bytes) -> None:
        self._bare = 0
        if self._over or self._answer is None:
            self._dirty = True
        else:
            self._answer.piece(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            return
        if self._answer is not None and self._fields:
            trailers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._fields]
            self._answer.trailers = trailers
        self._over = True

    # Ends.

    def _settle(self) -> None:
        answer, self._answer = self._answer, None
        request, self._request = self._request, None
        if request is not None:
            request.leave_body()
        reusable = self._reusable and not self._dirty and self._body_sent and not self._stuck
        if self._method == "HEAD":
            self._parser = httptools.HttpResponseParser(self)
        if reusable:
            self._used = True
            self.since = self._loop.time()
            if self._reads_not:
                self.resume()
            self._pool.give_back(self)
        else:
            self.transport.abort()
        if answer is not None:
            answer.ended()

    def _upgraded(self, rest: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._answer is None or self._answer.code != _SWITCHING:
            self._fail(_unusable())
            self.abort()
            return
        self._answer.rest = rest
        self.pause()  # until the other side of the tunnel is known

    def _go_on(self, answer: Answered) -> None:
        request = self._request
        if self._waits and answer is self._answer and request is not None and not self.transport.is_closing():
            self._waits = False
            request.go_on()
            request.send_body_to(self)

    def _refuse(self, why: str) -> None:
        log.warning("the API server's answer cannot be used", error=why)
        self._fail(_unusable())
        self.abort()

    def _fail(self, error: RefusedError | StaleError) -> None:
        answer, self._answer = self._answer, None
        request, self._request = self._request, None
        if request is not None:
            request.leave_body()
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.answer_failed(error)
        elif answer is not None:
            answer.broke()


def _unusable() -> RefusedError:
    return RefusedError(bad_gateway("the API server's answer cannot be used"))
