"""Answers of the proxy's own that may be large: with their media type, and compressed where the client takes that.

As kube-apiserver does it: gzip at its fastest level from 128 KiB on. In a thread, since a megabyte takes milliseconds.
"""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Final

from proxycore.protobuf import MAGIC, MEDIA_TYPE
from proxycore.representations import quality_of, ranges

if TYPE_CHECKING:
    from proxycore.headers import Header
    from proxycore.plane.exchange import Request

THRESHOLD: Final = 131_072
"""Bytes from which a body is compressed."""
_FASTEST: Final = 1
_OK: Final = 200


def compresses(request: Request, body: bytes) -> bool:
    """Tell whether a body is worth it and the client takes gzip."""
    if len(body) < THRESHOLD:
        return False
    offered = [part.partition(";") for part in ranges(request.value("accept-encoding"))]
    return any(name.strip().lower() == "gzip" and quality_of(rest) > 0 for name, _, rest in offered)


async def reply(request: Request, body: bytes) -> None:
    """Answer 200 with a whole body, in protobuf or in JSON."""
    headers: list[Header] = [("Content-Type", MEDIA_TYPE)] if body.startswith(MAGIC) else []
    if compresses(request, body):
        body = await asyncio.to_thread(gzip.compress, body, _FASTEST, mtime=0)
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    request.reply(_OK, body, headers)
