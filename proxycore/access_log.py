"""One JSON line on stdout for each request, where ``--access-log`` asks for it.

The line tells who asked for what, what became of it and how long it took. The query is never in it, nor any header but
a request id; of a path only what names a resource, and everything that a client chose passes through `redact`. A thread
writes, so that a reader that is slow or gone never holds up a request: lines wait in a bounded queue, and what does not
fit is dropped and counted.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.clock import now
from eventcore.logs import redact
from eventcore.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxycore.accounting import Run
    from proxycore.measures import Measures
    from proxycore.plane.exchange import Request

WAITING: Final = 20_000
"""Lines that may wait to be written."""
TOGETHER: Final = 500
"""Lines that go out in one write."""
END_SECONDS: Final = 2.0
LONGEST: Final = 253
LONGEST_READ: Final = 4 * LONGEST
"""Characters of a name or a path that are written."""
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
_ID_HEADERS: Final = ("x-request-id", "audit-id")


class AccessLine(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``seconds`` are those of the whole; of ``identity``, ``decision`` and ``upstream`` its stages.

    ``code`` is 0 where the client went before it got an answer, and ``gone`` tells whether it went before the end of
    it. ``caller`` is who asked where it acts as somebody else. ``bytes`` are those of the answer's body; those of a
    tunnel are not counted.
    """

    time: str
    request: str
    peer: str
    user: str
    caller: str
    groups: int
    method: str
    verb: str
    resource: str
    namespace: str
    name: str
    path: str
    route: str
    code: int
    gone: bool
    bytes: int
    seconds: float
    identity: float
    decision: float
    upstream: float


def line_of(run: Run, *, gone: bool) -> AccessLine:
    """Return the line of a request that is over."""
    request, info, identity = run.request, run.info, run.identity
    return AccessLine(
        time=now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        request=_request_id(request) or (_sane(run.answer.value("audit-id")) if run.answer is not None else ""),
        peer=request.peer,
        user=_shown(identity.user) if identity is not None else "",
        caller=_shown(run.caller.user) if run.caller is not None and run.caller is not identity else "",
        groups=len(identity.groups) if identity is not None else 0,
        method=_shown(request.method),
        verb=_shown(info.verb),
        resource=_resource(run) if info.is_resource else "",
        namespace=_shown(info.namespace),
        name=_shown(info.name),
        path="" if info.is_resource else _shown(info.path),
        route=run.route,
        code=request.answer_code,
        gone=gone,
        bytes=request.sent,
        seconds=_rounded(run.total),
        identity=_rounded(run.identity_seconds),
        decision=_rounded(run.decision_seconds),
        upstream=_rounded(run.upstream_seconds),
    )


class AccessLog:
    """Takes lines without waiting and writes them from a thread of its own. Start it, and `close` it at the end."""

    def __init__(self, measures: Measures, write: Callable[[str], object] | None = None) -> None:
        self._dropped = measures.access_dropped
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._write = write if write is not None else _to_stdout
        self._encoder = msgspec.json.Encoder()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, run: Run, *, gone: bool) -> None:
        """Take the line of a request that is over."""
        try:
            self._lines.put_nowait(self._encoder.encode(line_of(run, gone=gone)))
        except queue.Full:
            self._dropped.inc()

    def close(self) -> None:
        """Write what still waits, if it can be written in END_SECONDS."""
        try:
            self._lines.put(None, timeout=END_SECONDS)
        except queue.Full:
            return  # nobody reads, and the thread ends with the process
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        over = False
        while not over:
            lines = [self._lines.get()]
            while len(lines) < TOGETHER and not self._lines.empty():
                lines.append(self._lines.get())
            over = None in lines
            found = [line for line in lines if line is not None]
            try:
                self._write("".join(f"{printable(line.decode())}\n" for line in found))
            except (OSError, ValueError):  # closed, or a full disk: the requests go on
                self._dropped.inc(len(found))


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _request_id(request: Request) -> str:
    return next((found for name in _ID_HEADERS if (found := _sane(request.value(name)))), "")


def _sane(text: str) -> str:
    """Return an id as it is, "" where it is none or might be something else."""
    return text if _ID.fullmatch(text) and redact(text) == text else ""


def _shown(text: str) -> str:
    return redact(text[:LONGEST_READ])[:LONGEST]


def _resource(run: Run) -> str:
    info = run.info
    resource = f"{info.resource}/{info.subresource}" if info.subresource else info.resource
    return _shown(f"{resource}.{info.group}" if info.group else resource)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
