"""An answer of the API server: its head at once, its body as it comes, to one taker."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final, Protocol

from eventcore.logs import get
from proxycore.statuses import RefusedError, bad_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from proxycore.headers import Header
    from proxycore.plane.client import Peer
    from proxycore.plane.exchange import Request
    from proxycore.plane.upstream_connection import UpstreamConnection

log = get("proxy.answers")

MOST_HELD: Final = 262_144
"""Bytes held until somebody takes the body."""
LARGEST: Final = 256 * 2**20
"""Bytes of a body that is read as a whole: a list that is filtered here."""
MOST_KEPT: Final = 32
LONGEST_KEPT: Final = 1024
"""Headers, and bytes of their names, of an answer whose names are remembered."""
_BODILESS: Final = frozenset({204, 304})


class Heading:
    """The names of an answer's headers, read once for all answers that have the same.

    ``length``: the place of Content-Length, None without one. ``connection``: the places of Connection.
    ``lines`` is for whoever renders them: what it makes of these names.
    """

    def __init__(self, names: tuple[bytes, ...]) -> None:
        keys = [name.lower() for name in names]
        self.names = names
        self.length = max((place for place, key in enumerate(keys) if key == b"content-length"), default=None)
        self.chunked = b"transfer-encoding" in keys
        self.connection = tuple(place for place, key in enumerate(keys) if key == b"connection")
        self.lines: tuple[bytes, tuple[int, ...]] | None = None


_kept = functools.lru_cache(1024)(Heading)
_NONE: Final = Heading(())


class StaleError(Exception):
    """A kept connection was closed before anything of the answer came."""


class Taker(Protocol):
    """Waits for an answer."""

    def answer_begins(self, answer: Answered, /) -> None:
        """Take its head; the body goes to whoever `Answered.send_to` names."""

    def answer_failed(self, error: RefusedError | StaleError, /) -> None:
        """No answer will come."""


class Sink(Protocol):
    """Takes the body of an answer."""

    def piece(self, data: bytes, /) -> None:
        """Take a piece."""

    def ended(self, trailers: list[Header], /) -> None:
        """The body is whole."""

    def broke(self) -> None:
        """The rest will never come."""


class Answered:
    """One answer. Its headers are as they came, also those that frame the body: ``values`` by place in ``heading``.

    ``length``: of the body, None when only its end tells. ``rest``: what came right after a 101.
    """

    # What most answers never change is the class's.
    code = 0
    reason = ""
    heading = _NONE
    length: int | None = None
    ends_with_connection = False
    rest = b""
    _size = 0
    _over = False
    _broke = False
    _sink: Sink | None = None

    def __init__(self, connection: UpstreamConnection) -> None:
        self.values: tuple[bytes, ...] = ()
        self.trailers: list[Header] = []
        self._connection = connection
        self._held: list[bytes] = []

    def begin(self, code: int, reason: bytes, fields: list[tuple[bytes, bytes]], *, method: str) -> None:
        """Take the head."""
        names, values = zip(*fields, strict=True) if fields else ((), ())
        self.code = code
        self.reason = reason.decode("latin-1")
        # What is long is not an API server's own, and could be another one each time.
        make = _kept if len(names) <= MOST_KEPT and sum(map(len, names)) <= LONGEST_KEPT else Heading
        heading = self.heading = make(names)
        self.values = values
        if heading.chunked:
            return
        if heading.length is not None:
            self.length = int(values[heading.length])
        elif method != "HEAD" and code not in _BODILESS:
            self.ends_with_connection = True

    def value(self, name: str) -> str:
        """Return the first value of a header, "" without one; the name in lower case."""
        key = name.encode()
        pairs = zip(self.heading.names, self.values, strict=True)
        return next((value.decode("latin-1") for found, value in pairs if found.lower() == key), "")

    def piece(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.piece(data)
            return
        self._held.append(data)
        self._size += len(data)
        if self._size > MOST_HELD:
            self._connection.pause()

    def ended(self) -> None:
        self._over = True
        # Let go of, also below: whoever takes the body holds the answer, and a cycle waits for the garbage collector.
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.ended(self.trailers)

    def broke(self) -> None:
        self._broke = True
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.broke()

    def send_to(self, sink: Sink) -> None:
        """Hand over what has come of the body, and all that comes."""
        self._sink = sink
        held, self._held, size, self._size = self._held, [], self._size, 0
        if held:
            sink.piece(held[0] if len(held) == 1 else b"".join(held))
        if self._broke:
            self.broke()
        elif self._over:
            self.ended()
        elif size > MOST_HELD:
            self._connection.resume()

    async def relay(self, request: Request, *, stop: asyncio.Future[Any] | None = None) -> None:
        """Send the body to a client, no faster than it reads, until it ends; or until ``stop``, cleanly."""
        relay = _Relay(request)
        self.send_to(relay)
        if relay.over.done():
            return
        if not self._over:
            request.feed_from(self._connection)
        try:
            if stop is None:
                await relay.over
            else:
                await asyncio.wait([relay.over, stop], return_when=asyncio.FIRST_COMPLETED)
                if not relay.over.done():
                    relay.over.cancel()
                    request.finish()
        finally:
            self.release()

    async def read(self) -> bytes:
        """Return the whole body; RefusedError (502) when it breaks off or is too large."""
        whole = _Whole(self._connection)
        self.send_to(whole)
        try:
            return await whole.done
        finally:
            self.release()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, no faster than it is taken; RefusedError (502) when it breaks off."""
        pieces = _Pieces(self._connection)
        self.send_to(pieces)
        try:
            while piece := await pieces.take():
                yield piece
        finally:
            self.release()

    def release(self) -> None:
        """Want no more of it."""
        if not self._over and not self._broke:
            self._broke = True
            self._connection.abort()

    def tunnel_to(self, other: Peer) -> UpstreamConnection:
        """Make the connection one half of a tunnel and return it."""
        self._over = True
        self._connection.become_tunnel(other)
        return self._connection


class _Relay:
    """Between an answer and a client. ``over`` is done once there is no more to send."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def piece(self, data: bytes) -> None:
        if not self._request.answer_over:
            self._request.write(data)

    def ended(self, trailers: list[Header]) -> None:
        if not self._request.answer_over:
            self._request.finish(trailers)
        self._done()

    def broke(self) -> None:
        log.info("upstream answer broke off")
        if not self._request.answer_over:
            self._request.break_off()
        self._done()

    def _done(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Pieces:
    """Holds a body until it is taken, and lets the API server wait when much is held."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self._held: list[bytes] = []
        self._size = 0
        self._over = False
        self._error: RefusedError | None = None
        self._some = asyncio.Event()

    def piece(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        self._some.set()
        if self._size > MOST_HELD:
            self._connection.pause()

    def ended(self, _: list[Header]) -> None:
        self._over = True
        self._some.set()

    def broke(self) -> None:
        self._error = RefusedError(bad_gateway("the API server's answer broke off"))
        self._some.set()

    async def take(self) -> bytes:
        """Return what is held as soon as there is something, b"" at the end."""
        await self._some.wait()
        held, self._held, size, self._size = self._held, [], self._size, 0
        if held:
            if not self._over and self._error is None:
                self._some.clear()
                if size > MOST_HELD:
                    self._connection.resume()
            return b"".join(held)
        if self._error is not None:
            raise self._error
        return b""


class _Whole:
    """Gathers a body."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0

    def piece(self, data: bytes) -> None:
        self._size += len(data)
        self._pieces.append(data)
        if self._size > LARGEST:
            self._connection.abort()
            self.broke()

    def ended(self, _: list[Header]) -> None:
        if not self.done.done():
            self.done.set_result(b"".join(self._pieces))

    def broke(self) -> None:
        if not self.done.done():
            self.done.set_exception(RefusedError(bad_gateway("the API server's answer broke off")))
