"""Who is let in: connections are counted from the moment that the kernel hands them over, in all and by network.

A connection takes a file, and a process has so many. So there is a limit in all, kept below what the process may open,
and no network gets more than its share. Where one is reached, the oldest connection that has not done anything yet
makes room, so that whoever only opens connections drives out its own, and a client that asks at once gets in.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from eventcore.logs import get
from eventcore.sockets import keep_alive
from proxycore.peers import network_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

log = get("proxy.accepting")

REASONS: Final = ("full", "peer", "evicted", "files")
"""Why a connection is refused: no room in all, or for its network; closed to make room for another; no file for it."""
RESERVED_FILES: Final = 256
"""Files for probes, NATS, and what the proxy itself asks the API server."""
LEAST: Final = 16
"""Connections that are taken however few files there are."""
AT_ONCE: Final = 64
"""Connections that are accepted in one turn of the event loop."""
PAUSE_SECONDS: Final = 0.25
"""Until accepting is tried again where the system had no file or no memory for a connection."""
SAID_SECONDS: Final = 10.0
"""Refusals are logged once in this time, with their number."""
_BACKLOG: Final = 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections there may be in all, and from one network.

    ``exempt`` tells of an address whether it stands for many clients, so that its share is everything.
    """

    most: int
    of_network: int
    exempt: Callable[[str], bool] = lambda _: False

    @classmethod
    def of(cls, most: int, share: float, *, files: int, exempt: Callable[[str], bool]) -> Limits:
        """Return the limits of a process that may have so many open files: each client may need another upstream."""
        room = max(LEAST, min(most, (files - RESERVED_FILES) // 2))
        return cls(most=room, of_network=max(1, int(room * share)), exempt=exempt)


class Client(Protocol):
    """The protocol of a connection, as far as it matters here."""

    @property
    def idle(self) -> bool:
        """Whether the connection has not done anything yet that is worth keeping it for."""

    def abort(self) -> None:
        """Close at once."""


class Accepted:
    """A connection from its acceptance to its end; ``client`` is None until it is open, behind its handshake."""

    __slots__ = ("client", "network", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.network = network_of(peer)
        self.client: Client | None = None

    @property
    def is_idle(self) -> bool:
        return self.client is None or self.client.idle

    def break_off(self) -> None:
        """Close at once."""
        if self.client is not None:
            self.client.abort()
            return
        try:
            self.sock.shutdown(socket.SHUT_RDWR)  # whoever makes the handshake sees the end of it
        except OSError:
            self.sock.close()


class Crowd:
    """The connections that there are. ``on_refused`` hears why one was refused or closed for another."""

    def __init__(self, limits: Limits, on_refused: Callable[[str], None]) -> None:
        self._limits = limits
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._all: set[Accepted] = set()
        self._networks: dict[str, int] = {}
        # By age. What did something is taken out when somebody looks for one to close.
        self._idle: dict[Accepted, None] = {}
        self._idle_of: dict[str, dict[Accepted, None]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._untold: dict[str, int] = {}
        self._told = float("-inf")

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Accepted]:
        return list(self._all)

    def admit(self, sock: socket.socket, peer: str) -> Accepted | None:
        """Count a connection; None, and it is closed, when there is no room for it."""
        one = Accepted(sock, peer)
        of_network = self._networks.get(one.network, 0)
        if of_network >= self._limits.of_network and not self._limits.exempt(peer):
            room = self._evict(self._idle_of.get(one.network, {}))
            reason = "peer"
        else:
            room = len(self._all) < self._limits.most or self._evict(self._idle)
            reason = "full"
        if not room:
            sock.close()
            self.refused(reason, peer)
            return None
        self._all.add(one)
        self._networks[one.network] = self._networks.get(one.network, 0) + 1
        self._idle[one] = None
        self._idle_of.setdefault(one.network, {})[one] = None
        self._empty.clear()
        return one

    def forget(self, one: Accepted) -> None:
        """Take note that a connection is over."""
        if one not in self._all:
            return
        self._all.discard(one)
        self._not_idle(one)
        self._networks[one.network] -= 1
        if not self._networks[one.network]:
            del self._networks[one.network]
        if not self._all:
            self._empty.set()

    async def empty(self) -> None:
        """Wait until no connection is left."""
        await self._empty.wait()

    def refused(self, reason: str, peer: str) -> None:
        """Count and, now and then, tell."""
        self._on_refused(reason)
        self._untold[reason] = self._untold.get(reason, 0) + 1
        now = self._loop.time()
        if now - self._told >= SAID_SECONDS:
            log.warning(
                "connections are refused", reason=reason, peer=peer, open=len(self._all), since_last_line=self._untold
            )
            self._untold, self._told = {}, now

    def _evict(self, idle: dict[Accepted, None]) -> bool:
        """Close the oldest that has not done anything; False when all have."""
        while idle:
            one = next(iter(idle))
            if one.is_idle:
                self.forget(one)
                one.break_off()
                self.refused("evicted", one.peer)
                return True
            self._not_idle(one)
        return False

    def _not_idle(self, one: Accepted) -> None:
        self._idle.pop(one, None)
        of_network = self._idle_of.get(one.network)
        if of_network is not None:
            of_network.pop(one, None)
            if not of_network:
                del self._idle_of[one.network]


class Acceptor:
    """Accepts at the addresses of a host.

    ``make`` makes the protocol of a connection once its handshake is over; that sets ``client``, and ends by `forget`.
    """

    def __init__(
        self,
        crowd: Crowd,
        make: Callable[[Accepted], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        *,
        handshake_seconds: float,
        shutdown_seconds: float,
    ) -> None:
        self._crowd = crowd
        self._make = make
        self._tls = tls
        self._times = (handshake_seconds, shutdown_seconds) if tls is not None else (None, None)
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port; OSError when an address cannot be had. Several processes may share it."""
        found = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, proto, _, address in dict.fromkeys(found):
                self._listening.append(_listening(family, proto, address))
        except OSError:
            self.stop()
            raise
        for sock in self._listening:
            self._loop.add_reader(sock, self._accept, sock)
        return int(self._listening[0].getsockname()[1])

    def stop(self) -> None:
        """Accept no more; what the kernel holds already is accepted first, since its client believes to be let in."""
        listening, self._listening = self._listening, []
        for sock in listening:
            self._loop.remove_reader(sock)
            self._accept(sock)
            sock.close()

    async def end(self) -> None:
        """Wait for handshakes whose sockets were broken off."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file or no memory: asked at once again, it would say the same
                self._crowd.refused("files", str(error.strerror))
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE_SECONDS, self._resume, listening)
                return
            sock.setblocking(False)  # noqa: FBT003 - the way of the standard library
            one = self._crowd.admit(sock, str(address[0]))
            if one is not None:
                task = self._loop.create_task(self._open(one))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    async def _open(self, one: Accepted) -> None:
        handshake, shutdown = self._times
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make(one),
                one.sock,
                ssl=self._tls,
                ssl_handshake_timeout=handshake,
                ssl_shutdown_timeout=shutdown,
            )
        except OSError as error:  # no TLS, too slow, or gone
            log.debug("connection is not opened", peer=one.peer, error=error)
        finally:
            if one.client is None:
                self._crowd.forget(one)


def _listening(family: int, proto: int, address: Iterable[object]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, proto)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the way of the standard library
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_alive(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(tuple(address))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
