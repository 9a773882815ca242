"""An API server that says the same all the time, as fast as Python can: what a proxy is measured against."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OBJECT_BYTES: Final = 10_126
USER: Final = "system:serviceaccount:oil-system:gitops-reconciler"
OBJECT: Final = "/api/v1/namespaces/oil-0/configmaps/settings"


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _json(value: object) -> bytes:
    return _answer(msgspec.json.encode(value))


_OBJECT = _answer(
    msgspec.json.encode({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "x" * (OBJECT_BYTES - 60)}})
)
_REVIEWED = _json(
    {"status": {"authenticated": True, "user": {"username": USER, "groups": ["system:serviceaccounts:oil-system"]}}}
)
_LIST = _json({"kind": "NamespaceList", "apiVersion": "v1", "metadata": {"resourceVersion": "100"}, "items": []})
_VERSION = _json({"gitVersion": "v1.33.1"})


class Stub(asyncio.Protocol):
    """One connection; requests without a body need one look."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio types the base class only

    def data_received(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        while data:
            head, found, rest = data.partition(b"\r\n\r\n")
            length = 0
            if head.startswith(b"POST"):
                lower = head.lower()
                length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if not found or len(rest) < length:
                break
            data = rest[length:]
            self._transport.write(self._choose(head))
        self._pending = data

    def _choose(self, head: bytes) -> bytes:
        if b"/configmaps/" in head:
            return _OBJECT
        if head.startswith(b"POST"):
            return _REVIEWED
        return _LIST if b"/namespaces" in head else _VERSION


def serve(port_to: Connection, certificate: str, key: str) -> None:
    """Serve until killed; tells its port. Runs in a process of its own."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Stub, "127.0.0.1", 0, ssl=tls, backlog=1024)
        port_to.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())
