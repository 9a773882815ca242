"""Lists by page and watches by line: what the API server sends, split and framed, and nothing decided.

The watchers build their loop on it: when to list, from where to watch, and how long to wait are theirs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import msgspec

from eventcore.errors import KubeError, KubeUnreachableError, WatchInactiveError
from eventcore.kube import JSON
from eventcore.kube_errors import error_of_event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    import aiohttp

    from eventcore.kube import KubeClient

EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]

_ONLY_FIRST_PAGE = frozenset({"resourceVersion", "resourceVersionMatch"})
_TIMEOUT_MARGIN = 15.0


class ListPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list. The items are views into one buffer: keep ``bytes(item)``, not the item."""

    items: list[msgspec.Raw]
    resource_version: str  # of the whole list, the same on each page
    continue_token: str  # "" on the last page
    remaining: int | None = None  # how many items follow, if the server says so


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch; ``object`` is its JSON."""

    type: EventType
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_events = msgspec.json.Decoder(WatchEvent)


class LineSplitter:
    """Cuts a stream into lines, wherever its chunks break, in time linear in its length."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next chunk and return the lines that are now whole, without their newline and without empty ones."""
        first, *more = chunk.split(b"\n")
        self._pieces.append(first)
        if not more:
            return []
        lines = [b"".join(self._pieces), *more[:-1]]
        self._pieces = [more[-1]]
        return [line for line in lines if line.strip()]

    def rest(self) -> bytes:
        """Return what came after the last newline."""
        return b"".join(self._pieces)


async def list_pages(
    client: KubeClient,
    path: str,
    *,
    params: Mapping[str, str | int | bool] | None = None,
    page_size: int = 500,
    accept: str = JSON,
) -> AsyncGenerator[ListPage, None]:
    """Yield the pages of a list; all belong to one snapshot.

    GoneError when the snapshot of a later page has expired: the whole list is then void.
    """
    query = {**(params or {}), "limit": page_size}
    while True:
        answer = await client.get_as(_List, path, params=query, accept=accept)
        meta = answer.metadata
        yield ListPage(
            items=answer.items or [],
            resource_version=meta.resource_version,
            continue_token=meta.continue_,
            remaining=meta.remaining_item_count,
        )
        if not meta.continue_:
            return
        # The token carries the version, and the server refuses both together.
        query = {key: value for key, value in query.items() if key not in _ONLY_FIRST_PAGE}
        query["continue"] = meta.continue_


async def watch(
    client: KubeClient,
    path: str,
    *,
    resource_version: str,
    params: Mapping[str, str | int | bool] | None = None,
    timeout: float = 290.0,  # noqa: ASYNC109 - how long the server keeps the watch open, not a limit on this call
    inactivity: float = 90.0,
    accept: str = JSON,
    opened: Callable[[], None] = lambda: None,
) -> AsyncGenerator[WatchEvent, None]:
    """Yield each event after ``resource_version``, bookmarks too, until the server ends the watch after ``timeout``.

    WatchInactiveError after ``inactivity`` seconds without a byte; GoneError when the version is history (list again);
    another KubeError for what the server refuses; KubeUnreachableError when the connection breaks. Leave it early
    inside ``contextlib.aclosing``, which closes its connection. ``opened`` is called once the server began to answer.
    """
    query: dict[str, str | int | bool] = {
        **(params or {}),
        "watch": True,
        "allowWatchBookmarks": True,
        "resourceVersion": resource_version,
        "timeoutSeconds": max(round(timeout), 1),
    }
    request = f"WATCH {path}"
    splitter = LineSplitter()
    deadline = asyncio.get_running_loop().time() + timeout + _TIMEOUT_MARGIN
    async with client.stream(path, params=query, accept=accept) as content:
        opened()
        while chunk := await _read(content, inactivity, request):
            for line in splitter.feed(chunk):
                yield _event(line, request)
            if asyncio.get_running_loop().time() > deadline:
                return  # the server forgot its promise; versions go on where this ends
    if splitter.rest().strip():
        raise KubeUnreachableError(f"the watch at {client.server_url} broke in the middle of an event ({request})")


async def _read(content: aiohttp.StreamReader, inactivity: float, request: str) -> bytes:
    try:
        async with asyncio.timeout(inactivity):
            return await content.readany()
    except TimeoutError as error:
        raise WatchInactiveError(
            f"nothing from the API server for {inactivity:g} s: the connection is taken for dead ({request})"
        ) from error


def _event(line: bytes, request: str) -> WatchEvent:
    try:
        event = _events.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KubeError(f"a line of the watch is not an event: {error} ({request})") from error
    if event.type == "ERROR":
        raise error_of_event(event.object, request=request)
    return event
