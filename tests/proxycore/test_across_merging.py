"""The merging of watches against a model: whatever comes late and wherever it breaks, a client ends up with what is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.grants import CapsuleUserRef, ConfigGrant, SubjectGrant, TenantGrant
from proxycore import across_watch
from proxycore.across import read
from proxycore.across_streams import MOST_LINES, MOST_NAMESPACES
from proxycore.across_watch import AcrossWatch
from proxycore.feed import Subscription
from proxycore.identities import Identity
from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError, bad_gateway
from tests.proxycore.acrossmodel import Grants, Reviews, crossing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

NAMESPACES = ("a-1", "a-2", "a-3")
FIRST = 10
DANA = Identity(user="dana")
OWNER = SubjectGrant(subject_kind="User", name="dana", tenants=("a",))
CONFIG = ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),))
Write = tuple[str, str, bool]
"""(namespace, name, whether it is deleted): the version is its place."""


class Stream:
    """A watch of one namespace. ``lags``: how often others go first before each line."""

    code = 200

    def __init__(self, lines: list[dict[str, Any]], lags: list[int], *, ends: bool) -> None:
        self._lines = lines
        self._lags = lags
        self._ends = ends
        self.given = 0
        self.released = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        for number, line in enumerate(self._lines):
            for _ in range(self._lags[number % len(self._lags)] if self._lags else 0):
                await asyncio.sleep(0)
            self.given += 1
            yield msgspec.json.encode(line) + b"\n"
        if not self._ends:
            await asyncio.Event().wait()

    def release(self) -> None:
        self.released = True


class Api:
    """Holds what was written, and lets clients watch it. ``final``: whether a bookmark tells how far it goes."""

    def __init__(
        self, writes: list[Write], lags: dict[str, list[int]], *, final: bool = True, ends: bool = False
    ) -> None:
        self.writes = writes
        self.lags = lags
        self.final = final
        self.ends = ends
        self.streams: list[Stream] = []

    @property
    def version(self) -> int:
        return FIRST + len(self.writes)

    async def send(self, target: str, _: str) -> Any:
        split = urlsplit(target)
        namespace = split.path.split("/")[4]
        since = int(parse_qs(split.query)["resourceVersion"][0])
        lines = []
        alive = {
            name
            for at, (ns, name, gone) in enumerate(self.writes)
            if ns == namespace and FIRST + at < since and not gone
        }
        for number, (ns, name, gone) in enumerate(self.writes, FIRST + 1):
            if ns == namespace and number > since:
                type_ = "DELETED" if gone else "MODIFIED" if name in alive else "ADDED"
                lines.append(event(type_, number, {"name": name, "namespace": ns}))
        if self.final:
            lines.append(event("BOOKMARK", self.version, {}))
        self.streams.append(Stream(lines, self.lags.get(namespace, []), ends=self.ends))
        return self.streams[-1]

    def state(self) -> set[str]:
        found: set[str] = set()
        for namespace, name, gone in self.writes:
            (found.discard if gone else found.add)(f"{namespace}/{name}")
        return found


def event(type_: str, version: int, meta: dict[str, Any]) -> dict[str, Any]:
    obj = {"kind": "Pod", "apiVersion": "v1", "metadata": meta | {"resourceVersion": str(version)}}
    return {"type": type_, "object": obj}


class Feed:
    """Stands for the feed of Namespaces, in which nothing happens."""

    def subscribe(self) -> Subscription:
        return Subscription()

    def unsubscribe(self, subscription: Subscription) -> None:
        assert not subscription.grants

    async def settled(self, seconds: float) -> bool:
        return seconds > 0

    def oldest(self, identity: Identity) -> int:
        return len(identity.groups)

    def version(self) -> int:
        return FIRST


def watch(api: Api, query: str, write: Callable[[bytes], Awaitable[None]], names: tuple[str, ...] = NAMESPACES) -> Any:
    grants = Grants(CONFIG, OWNER, TenantGrant(name="a", uid="a", namespaces=names))
    feed: Any = Feed()
    decision = read(parse("GET", f"/api/v1/pods?watch=true&{query}"), "Pod")
    found = crossing(grants, Reviews({("dana", name) for name in names}))
    return AcrossWatch(found, feed, DANA, decision, "application/json", api.send, write=write, good=lambda: True)


class Client:
    """Lists by watching: it remembers what it heard, and goes on from the last line that reached it."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.version = FIRST

    async def connect(self, api: Api, *, pieces: int | None) -> None:
        """Watch until so many pieces have come, or until all that was written is known to have come."""
        stopping, count = asyncio.Event(), 0

        async def write(piece: bytes) -> None:
            nonlocal count
            for line in piece.splitlines():
                self.take(msgspec.json.decode(line))
            count += 1
            if pieces is not None and count >= pieces:
                raise ConnectionResetError
            if self.version >= api.version:
                stopping.set()

        found = watch(api, f"allowWatchBookmarks=true&resourceVersion={self.version}", write)
        await found.open()
        try:
            async with asyncio.timeout(20):
                await found.run(stopping)
        except ConnectionResetError:
            pass
        assert all(stream.released for stream in api.streams)

    def take(self, line: dict[str, Any]) -> None:
        meta = line["object"]["metadata"]
        assert line["type"] != "ERROR", line
        self.version = int(meta["resourceVersion"])
        if line["type"] != "BOOKMARK":
            name = f"{meta['namespace']}/{meta['name']}"
            (self.known.discard if line["type"] == "DELETED" else self.known.add)(name)


writes = st.lists(st.tuples(st.sampled_from(NAMESPACES), st.sampled_from("pq"), st.booleans()), max_size=12)
lags = st.fixed_dictionaries({name: st.lists(st.integers(0, 6), max_size=4) for name in NAMESPACES})


@given(writes, lags, st.lists(st.integers(1, 3), max_size=4))
def test_a_client_ends_up_with_what_is_wherever_its_watches_broke(
    written: list[Write], late: dict[str, list[int]], breaks: list[int]
) -> None:
    api, client = Api(written, late), Client()

    async def live() -> None:
        for pieces in breaks:
            if client.version < api.version:
                await client.connect(api, pieces=pieces)
        if client.version < api.version:
            await client.connect(api, pieces=None)

    asyncio.run(live())

    assert client.known == api.state()


async def ended(api: Api, query: str) -> list[str]:
    """Return the types of what a watch sends until the API server ends it."""
    lines: list[bytes] = []

    async def write(piece: bytes) -> None:
        lines.extend(piece.splitlines())

    found = watch(api, f"resourceVersion={FIRST}{query}", write, NAMESPACES[:2])
    await found.open()
    await found.run(asyncio.Event())
    types = [msgspec.json.decode(line) for line in lines]
    return [
        f"{one['type']} {one['object'].get('code', one['object']['metadata'].get('resourceVersion'))}" for one in types
    ]


async def test_who_takes_no_bookmarks_lists_again_where_a_watch_ends_too_early() -> None:
    one: list[Write] = [("a-1", "p", False)]

    assert await ended(Api(one, {}, final=False, ends=True), "") == ["ADDED 11", "ERROR 410"]
    assert await ended(Api(one, {}, ends=True), "") in (["ADDED 11"], ["ADDED 11", "ERROR 410"])
    assert await ended(Api(one, {}, final=False, ends=True), "&allowWatchBookmarks=true") == ["ADDED 11", "BOOKMARK 10"]
    assert await ended(Api([], {}, final=False, ends=True), "") == []


async def test_a_quiet_watch_says_now_and_then_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(across_watch, "BOOKMARK_INTERVAL", 0.0)
    monkeypatch.setattr(across_watch, "LOOK_INTERVAL", 0.0)
    stopping, bookmarks = asyncio.Event(), 0

    async def write(piece: bytes) -> None:
        nonlocal bookmarks
        bookmarks += piece.count(b'"BOOKMARK"')
        if bookmarks == 3:
            stopping.set()

    found = watch(Api([], {}), f"resourceVersion={FIRST}&allowWatchBookmarks=true", write)
    await found.open()

    async with asyncio.timeout(20):
        await found.run(stopping)


async def test_an_error_of_the_api_server_is_the_last_line() -> None:
    class Failing(Api):
        async def send(self, target: str, accept: str) -> Any:
            await super().send(target, accept)
            gone = {"type": "ERROR", "object": {"kind": "Status", "metadata": {}, "code": 410, "reason": "Expired"}}
            return Stream([gone], [], ends=True)

    assert await ended(Failing([], {}), "&allowWatchBookmarks=true") == ["ERROR 410"]


async def test_what_is_no_event_ends_the_watch() -> None:
    class Broken(Api):
        async def send(self, target: str, accept: str) -> Any:
            await super().send(target, accept)
            return Stream([{"type": "WHAT"}], [], ends=True)

    assert await ended(Broken([], {}), "") == ["ERROR 410"]


async def test_too_many_namespaces_are_refused_before_anything_is_opened() -> None:
    async def never(_: bytes) -> None:
        raise AssertionError

    api = Api([], {})
    found = watch(api, f"resourceVersion={FIRST}", never, tuple(f"n{number}" for number in range(MOST_NAMESPACES + 1)))
    with pytest.raises(RefusedError) as caught:
        await found.open()

    assert caught.value.status.code == 503
    assert api.streams == []


async def test_one_watch_that_cannot_be_opened_closes_the_others() -> None:
    class Away(Api):
        async def send(self, target: str, accept: str) -> Any:
            if "/a-2/" in target:
                raise RefusedError(bad_gateway("away"))
            return await super().send(target, accept)

    async def never(_: bytes) -> None:
        raise AssertionError

    api = Away([], {})
    found = watch(api, f"resourceVersion={FIRST}", never)
    with pytest.raises(RefusedError, match="away"):
        await found.open()

    assert len(api.streams) == 2
    assert all(stream.released for stream in api.streams)


async def test_behind_a_slow_client_few_lines_wait_and_then_the_api_server() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: bytes) -> None:
        entered.set()
        await go_on.wait()
        raise TimeoutError  # as the server does when a client takes nothing for too long

    api = Api([("a-1", f"n{number}", False) for number in range(1000)], {})
    found = watch(api, f"resourceVersion={FIRST}", slow)
    await found.open()
    running = asyncio.ensure_future(found.run(asyncio.Event()))
    await entered.wait()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert sum(stream.given for stream in api.streams) <= 2 * MOST_LINES + len(NAMESPACES)

    go_on.set()
    with pytest.raises(TimeoutError):
        await running
    assert all(stream.released for stream in api.streams)
