"""Bodies in chunks (RFC 9112, 7.1): read strictly, written plainly. Pure.

Extensions of chunks are refused: no client of Kubernetes sends them, and servers disagree where they end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from proxycore.plane.heads import read_fields
from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxycore.headers import Header

LAST: Final = b"0\r\n\r\n"
LONGEST_TRAILER: Final = 16_384
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LONGEST_SIZE: Final = 17
_END: Final = b"\r\n"


class ChunkReader:
    """Takes bytes as they come. After the last chunk ``over`` is true, with ``trailers`` and the ``rest`` behind it."""

    def __init__(self) -> None:
        self.over = False
        self.trailers: list[Header] = []
        self.rest = b""
        self._pending = b""
        self._left = 0
        self._state = "size"  # size, data, end of data, trailers

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body in these bytes; RefusedError (400) when they are no chunks."""
        data = self._pending + data if self._pending else data
        at, pieces = 0, []
        while not self.over:
            before = at
            match self._state:
                case "size":
                    at = self._size(data, at)
                case "data":
                    if piece := data[at : at + self._left]:
                        pieces.append(piece)
                        at += len(piece)
                        self._left -= len(piece)
                    if not self._left:
                        self._state = "end of data"
                        continue
                case "end of data":
                    at = self._end_of_data(data, at)
                case _:
                    at = self._trailers(data, at)
            if at == before:
                break
        if self.over:
            self.rest = data[at:]
        self._pending = b"" if self.over else data[at:]
        return pieces

    def _size(self, data: bytes, at: int) -> int:
        end = data.find(_END, at, at + _LONGEST_SIZE)
        line = data[at : at + _LONGEST_SIZE] if end < 0 else data[at:end]
        if end < 0 and len(line) < _LONGEST_SIZE:
            if line.removesuffix(b"\r") and not _SIZE.fullmatch(line.removesuffix(b"\r")):
                raise _broken()
            return at
        if end < 0 or not _SIZE.fullmatch(line):
            raise _broken()
        self._left = int(line, 16)
        self._state = "data" if self._left else "trailers"
        return end + len(_END)

    def _end_of_data(self, data: bytes, at: int) -> int:
        found = data[at : at + 2]
        if not _END.startswith(found):
            raise _broken()
        if found != _END:
            return at
        self._state = "size"
        return at + len(_END)

    def _trailers(self, data: bytes, at: int) -> int:
        if data.startswith(_END, at):
            self.over = True
            return at + len(_END)
        end = data.find(_END + _END, at, at + LONGEST_TRAILER)
        if end < 0:
            if len(data) - at >= LONGEST_TRAILER:
                raise _broken()
            return at
        try:
            self.trailers = read_fields(data[at : end + len(_END)].decode())
        except UnicodeDecodeError:
            raise _broken() from None
        self.over = True
        return end + 2 * len(_END)


def chunk(piece: bytes) -> bytes:
    """Return one chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def last_chunk(trailers: Iterable[Header], encoding: str = "utf-8") -> bytes:
    """Return what ends a body in chunks."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return b"0\r\n%b\r\n" % lines.encode(encoding) if lines else LAST


def _broken() -> RefusedError:
    return RefusedError(bad_request("the body is not in chunks as RFC 9112 has it"))
