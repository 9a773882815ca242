"""What every socket of ours has in common: it notices a peer that is gone without a word, and the files it may take.

A machine that loses its power, a node that is cut off, a middlebox that forgets a connection: nothing ever comes, so a
connection that only listens, a watch for instance, stands for ever. Keep-alive asks, and the user time-out ends what
was sent and never acknowledged. Connections to NATS need none of it: its client asks every 5 s by itself.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import asyncio

IDLE_SECONDS: Final = 15
"""Silence after which the peer is asked."""
INTERVAL_SECONDS: Final = 15
PROBES: Final = 9
"""So many unanswered questions in a row end a connection: 150 s after the last sign of life."""
UNANSWERED_SECONDS: Final = IDLE_SECONDS + INTERVAL_SECONDS * PROBES
"""What was sent and is not acknowledged for so long ends a connection too."""
MOST_FILES: Final = 1_048_576
_OPTIONS: Final = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", IDLE_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", INTERVAL_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", PROBES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNANSWERED_SECONDS * 1000),
)


class Sock(Protocol):
    """A socket, or what an event loop shows of one."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        """Set an option."""


def keep_alive(sock: Sock) -> None:
    """Let a TCP socket notice that its peer is gone. What a listening one accepts has the same from it (Linux)."""
    for level, name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:  # other systems have other ones
            with contextlib.suppress(OSError):  # closed meanwhile, or no TCP
                sock.setsockopt(level, option, value)


def keep_alive_of(transport: asyncio.BaseTransport) -> None:
    """Do the same for the socket of a transport."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        keep_alive(sock)


def tcp_socket(found: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address, as ``getaddrinfo`` describes it, that notices when its peer is gone."""
    family, kind, proto = found[:3]
    made = socket.socket(family, kind, proto)
    keep_alive(made)
    return made


def raise_file_limit() -> int:
    """Let this process open as many files as it may; return how many. Connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may say no
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return file_limit()


def file_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)
