"""API servers that say the same all the time: what a proxy is measured against.

nginx with one worker where it is installed, since it is faster than anything in Python; and one in Python, which also
counts what it is asked and has a watch of Nodes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection
    from pathlib import Path

OBJECT_BYTES: Final = 10_126
USER: Final = "system:serviceaccount:oil-system:gitops-reconciler"
OBJECT: Final = "/api/v1/namespaces/oil-0/configmaps/settings"
CONFIGMAPS: Final = "/api/v1/namespaces/oil-0/configmaps"
NODES: Final = "/api/v1/nodes"
CLUSTER: Final = 10_000
"""Namespaces in the cluster."""


def namespace(number: int) -> dict[str, Any]:
    """Return a Namespace of the cluster."""
    labels = {"capsule.clastix.io/tenant": "oil", "kubernetes.io/metadata.name": f"oil-{number}"}
    meta = {"name": f"oil-{number}", "uid": f"u{number}", "resourceVersion": str(number + 1), "labels": labels}
    created = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta | created, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}


def _listed(kind: str, items: list[dict[str, Any]]) -> bytes:
    head = {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": str(CLUSTER)}}
    return msgspec.json.encode(head | {"items": items})


def _tabled(items: list[dict[str, Any]]) -> bytes:
    """Return the same list as the Table that kubectl asks for."""
    partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    columns = [{"name": name, "type": "string", "format": "", "description": "", "priority": 0} for name in _COLUMNS]
    rows = [
        {"cells": [item["metadata"]["name"], "Active", "5d"], "object": partial | {"metadata": item["metadata"]}}
        for item in items
    ]
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": str(CLUSTER)}}
    return msgspec.json.encode(head | {"columnDefinitions": columns, "rows": rows})


_COLUMNS: Final = ("Name", "Status", "Age")
_REVIEW = {"authenticated": True, "user": {"username": USER, "groups": ["system:serviceaccounts:oil-system"]}}
BODIES: Final = {
    "object": msgspec.json.encode({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "x" * (OBJECT_BYTES - 60)}}),
    "reviewed": msgspec.json.encode({"status": _REVIEW}),
    "created": msgspec.json.encode({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}}),
    "one": _listed("NamespaceList", [namespace(0)]),
    "ten": _listed("NamespaceList", [namespace(number) for number in range(10)]),
    "version": msgspec.json.encode({"gitVersion": "v1.33.1"}),
}


# nginx.

_FRAME: Final = """
worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log stderr error;
{user}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  {http}
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {folder}/tls.crt;
    ssl_certificate_key {folder}/tls.key;
    ssl_session_tickets off;
    {server}
  }}
}}
"""
_HTTP: Final = """
  open_file_cache max=100 inactive=1h;
  default_type application/json;
  map $http_accept $form {{ default ""; "~as=Table" -table; }}
  client_body_temp_path {folder}/body;
"""
_SERVER: Final = """
    root {folder};
    location / {{ return 404 '{{}}'; }}
    location = {object} {{ rewrite ^ /object break; }}
    location = {configmaps} {{ return 201 '{created}'; }}
    location = /apis/authentication.k8s.io/v1/tokenreviews {{ return 201 '{reviewed}'; }}
    location = /api/v1/namespaces {{
      set $list /all;
      if ($arg_labelSelector) {{ set $list /ten; }}
      if ($arg_limit) {{ set $list /one; }}
      rewrite ^ $list$form break;
      root {folder};
    }}
    location = /version {{ return 200 '{version}'; }}
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def has_nginx() -> bool:
    """Tell whether nginx can be run."""
    return shutil.which("nginx", path=_PATH) is not None


_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[str]:
    """Run nginx as an API server; yields its URL."""
    (folder / "object").write_bytes(BODIES["object"])
    for name, count in (("one", 1), ("ten", 10), ("all", CLUSTER)):
        items = [namespace(number) for number in range(count)]
        (folder / name).write_bytes(_listed("NamespaceList", items))
        (folder / f"{name}-table").write_bytes(_tabled(items))
    text = {name: BODIES[name].decode() for name in ("created", "reviewed", "version")}
    server = _SERVER.format(folder=folder, object=OBJECT, configmaps=CONFIGMAPS, **text)
    async with run_nginx(folder, "nginx", http=_HTTP.format(folder=folder), server=server) as url:
        yield url


@asynccontextmanager
async def run_nginx(folder: Path, name: str, *, http: str, server: str) -> AsyncIterator[str]:
    """Run nginx with one worker and tls.crt and tls.key of the folder; yields its URL.

    ``http`` and ``server`` are what these blocks of its configuration hold beside what is in every one.
    """
    port, file = free_port(), folder / f"{name}.conf"
    user = "user root;" if os.getuid() == 0 else ""  # else its worker could not read the folder
    file.write_text(_FRAME.format(folder=folder, name=name, user=user, port=port, http=http, server=server))
    command = ["nginx", "-p", str(folder), "-c", str(file)]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PATH": _PATH}, stdin=subprocess.DEVNULL
    )
    try:
        await _listening(port, process)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError("nginx ended; it says above why")


# Python.


def _answer(body: bytes, code: str = "200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (code.encode(), len(body))
    return head + body


_ANSWERS: Final = {name: _answer(body) for name, body in BODIES.items()}
_CREATED: Final = _answer(BODIES["created"], "201 Created")
_STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def _node(version: int, sent: float = 0.0) -> dict[str, Any]:
    meta = {"name": "node-0", "uid": "n", "resourceVersion": str(version), "labels": {"pool": "oil"}}
    # A Node of a real cluster has some kilobytes, most of them names of images.
    status = {"images": [{"names": [f"registry/image-{number}" * 4], "sizeBytes": 1} for number in range(40)]}
    return {"metadata": meta | {"annotations": {"sent": f"{sent:.6f}"}}, "status": status}


class Stub(asyncio.Protocol):
    """One connection; requests without a body need one look. ``counts``: requests, reviews and watches so far."""

    def __init__(self, counts: list[int], watchers: set[Stub]) -> None:
        self.transport: asyncio.Transport
        self._counts = counts
        self._watchers = watchers
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio types the base class only

    def connection_lost(self, exc: BaseException | None) -> None:
        del exc
        self._watchers.discard(self)

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
            self._counts[0] += 1
            self.transport.write(self._choose(head.split(b"\r\n", 1)[0]))
        self._pending = data

    def _choose(self, line: bytes) -> bytes:
        if b"tokenreviews" in line:
            self._counts[1] += 1
            return _ANSWERS["reviewed"]
        if b"/configmaps" in line:
            return _CREATED if line.startswith(b"POST") else _ANSWERS["object"]
        if b"/nodes" in line:
            if b"watch=" not in line:
                return _answer(_listed("NodeList", [_node(1)]))
            self._counts[2] += 1
            self._watchers.add(self)
            return _STREAM
        if b"/namespaces" in line:
            return _ANSWERS["one" if b"limit=1" in line else "ten"]
        return _ANSWERS["version"]

    def tell(self, version: int) -> None:
        """Send an event."""
        node = {"kind": "Node", "apiVersion": "v1", **_node(version, time.monotonic())}
        line = msgspec.json.encode({"type": "MODIFIED", "object": node}) + b"\n"
        self.transport.write(b"%x\r\n%b\r\n" % (len(line), line))


def serve(pipe: Connection, certificate: str, key: str) -> None:
    """Serve until killed, in a process of its own.

    Tells its port; then answers each number with the counts, and sends an event of that version if it is not 0.
    """
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    counts, watchers = [0, 0, 0], set[Stub]()

    def asked() -> None:
        if version := pipe.recv():
            for watcher in watchers:
                watcher.tell(version)
        pipe.send(tuple(counts))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Stub(counts, watchers), "127.0.0.1", 0, ssl=tls, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        loop.add_reader(pipe.fileno(), asked)
        await server.serve_forever()

    asyncio.run(run())
