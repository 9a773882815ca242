"""One request as the handler sees it: what was asked, the body as it comes, and the answer as it goes out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from eventcore.logs import get
from proxycore.plane.chunks import LAST, chunk, last_chunk
from proxycore.plane.heads import Remembered, RequestHead, answer_fields, status_line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from proxycore.headers import Header
    from proxycore.plane.answers import Answered
    from proxycore.plane.client import ClientConnection
    from proxycore.statuses import RefusedError

log = get("proxy.exchange")

JSON: Final = "application/json"
SERVER: Final = "tether-proxy"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    406: "Not Acceptable",
    408: "Request Timeout",
    410: "Gone",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_NOBODY: Final = RequestHead(method="", target="", headers=[], keeps=False)
_CLOSE: Final = b"Connection: close\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


class BodySink(Protocol):
    """Takes the body of a request."""

    def body_piece(self, piece: bytes, /) -> None:
        """Take a piece."""

    def body_ended(self, trailers: list[Header], /) -> None:
        """The body is whole."""

    def body_broke(self, error: RefusedError, /) -> None:
        """The rest will never come; the error says why."""


class Source(Protocol):
    """Where an answer comes from."""

    def pause(self) -> None:
        """Send no more for now."""

    def resume(self) -> None:
        """Go on."""


class Request:
    """One request. ``target`` is as it came; ``headers`` hold every field in order, values decoded from UTF-8.

    ``remembered`` is shared by the requests of a connection whose headers are the same. ``on_gone`` is called when the
    client goes away before its answer is whole and no task works on it.
    """

    # What most requests never change is the class's.
    answer_begun = False
    answer_code = 0
    answer_over = False
    held_bytes = 0
    sent = 0  # bytes of the answer's body, before they are framed
    on_gone: Callable[[], None] | None = None
    _trailers: tuple[Header, ...] | list[Header] = ()
    _broke: RefusedError | None = None
    _ahead: asyncio.Future[None] | None = None
    _sink: BodySink | None = None
    _discard = False
    _source: Source | None = None
    _writable: asyncio.Future[None] | None = None
    _tunnel_over: asyncio.Future[None] | None = None
    _framing = ""  # of the answer: chunks, length, close, none
    _owed = 0

    def __init__(self, connection: ClientConnection, head: RequestHead, peer: str, remembered: Remembered) -> None:
        self.method = head.method
        self.target = head.target
        self.headers = head.headers
        self.length = head.length
        self.expects = head.expects
        self.peer = peer
        self.remembered = remembered
        self.body_over = head.length == 0
        self._connection = connection
        self._keeps = head.keeps
        self._chunks = head.chunks
        self._held: list[bytes] = []

    @classmethod
    def of_nobody(cls, connection: ClientConnection) -> Request:
        """Return what stands for a request that could not be read, so that it can be answered."""
        return cls(connection, _NOBODY, "", Remembered())

    def value(self, name: str) -> str:
        """Return the first value of a header, "" without one; the name in lower case."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def certificate(self) -> bytes | None:
        """The certificate (DER) whose key the client proved to hold, None without one. Not judged yet."""
        tls = self._connection.transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    @property
    def has_body(self) -> bool:
        return self.length != 0

    # The body.

    def send_body_to(self, sink: BodySink) -> None:
        """Hand over what has come of the body, and all that comes."""
        self._sink = sink
        held, self._held, self.held_bytes = self._held, [], 0
        for piece in held:
            sink.body_piece(piece)
        if self._broke is not None:
            sink.body_broke(self._broke)
        elif self.body_over:
            sink.body_ended([*self._trailers])
        else:
            self._connection.body_wanted()

    async def body_ahead(self) -> None:
        """Wait until the body is whole, or nothing more of it is read ahead; RefusedError when it broke."""
        if not (self.body_over or self.expects or self._broke or self._connection.is_ahead):
            self._ahead = asyncio.get_running_loop().create_future()
            await self._ahead
        if self._broke is not None:
            raise self._broke

    def body_is_ahead(self) -> None:
        """Nothing more is read ahead."""
        if self._ahead is not None and not self._ahead.done():
            self._ahead.set_result(None)

    def body_late(self) -> None:
        """Refuse what has not come of the body."""
        self._connection.body_late(self)

    def leave_body(self) -> None:
        """Hand over no more: who took the body is done."""
        self._sink = None
        self.discard_body()

    def discard_body(self) -> None:
        """Throw away the rest of the body."""
        self._discard = True
        self._held, self.held_bytes = [], 0

    def hold_body(self, *, hold: bool) -> None:
        """Let the client wait, or go on, with the body."""
        if not self.body_over:
            self._connection.hold_body(hold=hold)

    def body_piece(self, piece: bytes) -> None:
        if self._sink is not None:
            self._sink.body_piece(piece)
        elif not self._discard:
            self._held.append(piece)
            self.held_bytes += len(piece)

    def body_ended(self, trailers: list[Header]) -> None:
        self.body_over = True
        self._trailers = trailers
        self.body_is_ahead()
        if self._sink is not None:
            self._sink.body_ended(trailers)

    def body_broke(self, error: RefusedError) -> None:
        self._broke = error
        self.body_is_ahead()
        if self._sink is not None:
            self._sink.body_broke(error)

    def go_on(self) -> None:
        """Tell a client that waits for it to send the body."""
        if self.expects and not self.answer_begun:
            self.expects = False
            self._connection.write(CONTINUE)

    # The answer.

    def reply(self, code: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Answer with a body of the proxy's own: JSON unless the headers say otherwise."""
        own = [("Cache-Control", "no-cache, private"), ("Server", SERVER), *headers]
        if not any(name == "Content-Type" for name, _ in own):
            own.append(("Content-Type", JSON))
        self.begin(code, _REASONS.get(code, "Answer"), answer_fields(own), length=len(body))
        self.write(body)
        self.finish()

    def begin(self, code: int, reason: str, fields: bytes, *, length: int | None = None) -> None:
        """Begin an answer; ``fields`` are whole header lines, without those that frame; ``length`` None: unknown."""
        if self.answer_begun:
            raise RuntimeError("an answer has begun already")
        self.answer_begun = True
        self.answer_code = code
        framing = b""
        if self.method == "HEAD" or code in _BODILESS:
            self._framing = "none"
            if length is not None and code != 204:  # noqa: PLR2004 - No Content has no length either
                framing = b"Content-Length: %d\r\n" % length
        elif length is not None:
            self._framing, self._owed = "length", length
            framing = b"Content-Length: %d\r\n" % length
        elif self._chunks:
            self._framing, framing = "chunks", _CHUNKED
        else:
            self._framing, self._keeps = "close", False
        if not self.body_over or self._connection.is_last:
            self._keeps = False
        close = b"" if self._keeps else _CLOSE
        self._connection.write(b"%b%b%b%b\r\n" % (status_line(code, reason), fields, framing, close))

    def write(self, piece: bytes) -> None:
        """Send a piece of the body. It may go faster than the client reads: see `drain`, and `feed_from`."""
        if not piece or self._framing == "none":
            return
        self.sent += len(piece)
        if self._framing == "chunks":
            piece = chunk(piece)
        elif self._framing == "length":
            self._owed -= len(piece)
            if self._owed < 0:
                self.break_off()
                return
        self._connection.write(piece)

    @property
    def takes_more(self) -> bool:
        """Whether there is nothing for `drain` to wait for, or to complain of."""
        return not self._connection.is_stuck and not self._connection.transport.is_closing()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent; ConnectionError when it is gone."""
        if self._connection.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if self._connection.is_stuck:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def finish(self, trailers: Iterable[Header] = ()) -> None:
        """End the answer."""
        if self.answer_over:
            return
        if self._framing == "length" and self._owed > 0:
            self.break_off()
            return
        self.answer_over = True
        if self._framing == "chunks":
            self._connection.write(last_chunk(trailers, "latin-1") if trailers else LAST)
        self._source = None
        self._connection.answered(self, keeps=self._keeps)

    def break_off(self) -> None:
        """Break the connection: only so does the client learn that an answer is not whole."""
        self.answer_over = True
        self._connection.abort()

    def go_on_in_task(self, waits: Coroutine[None, None, None]) -> None:
        """Await the rest of what is to do; cancelled when the client goes away."""
        self._connection.go_on_in_task(self, waits)

    def feed_from(self, source: Source) -> None:
        """Let the source wait whenever the client is slow."""
        self._source = source
        if self._connection.is_stuck:
            source.pause()

    async def tunnel(self, upstream: Answered, fields: bytes) -> None:
        """Answer 101 and carry bytes both ways until a side closes."""
        self.answer_begun = self.answer_over = True
        self.answer_code = upstream.code
        self._tunnel_over = asyncio.get_running_loop().create_future()
        line = status_line(upstream.code, upstream.reason)
        self._connection.write(b"%b%b\r\n%b" % (line, fields, upstream.rest))
        other = upstream.tunnel_to(self._connection)
        if early := self._connection.become_tunnel(other):
            other.write(early)
        await self._tunnel_over

    # From the connection.

    def writing_paused(self) -> None:
        if self._source is not None:
            self._source.pause()

    def writing_resumed(self) -> None:
        if self._source is not None:
            self._source.resume()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def client_gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone()
        if self._tunnel_over is not None and not self._tunnel_over.done():
            self._tunnel_over.set_result(None)
