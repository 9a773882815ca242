"""What the API server serves is asked when it is needed, once for all who wait, and not again and again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from eventcore.errors import KubeError, KubeUnreachableError, NotFoundError
from proxycore.discovery import BELIEVED, PAUSE, Discovery

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

WIDGETS = ("example.com", "v1", "widgets")


class Server:
    """The discovery of an API server, and how often each document was read."""

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {"apps": ["v1"]}
        self.resources: dict[str, list[dict[str, Any]]] = {
            "/api/v1": [
                row("nodes"),
                row("nodes/status"),
                row("pods", namespaced=True),
                row("bindings", verbs=("create",)),
            ]
        }
        self.asked: list[str] = []
        self.down = False

    async def get(self, path: str, /) -> bytes:
        self.asked.append(path)
        await asyncio.sleep(0.01)
        if self.down:
            raise KubeUnreachableError("down")
        if path == "/apis":
            groups = [
                {"name": name, "versions": [{"version": one} for one in versions]}
                for name, versions in self.groups.items()
            ]
            return msgspec.json.encode({"groups": groups})
        if path not in self.resources:
            raise NotFoundError("not there")
        return msgspec.json.encode({"resources": self.resources[path]})

    def serve(self, plural: str, *, namespaced: bool = False) -> None:
        self.groups["example.com"] = ["v2", "v1"]
        self.resources["/apis/example.com/v1"] = [row(plural, namespaced=namespaced)]


def row(name: str, *, namespaced: bool = False, verbs: tuple[str, ...] = ("get", "list")) -> dict[str, Any]:
    return {"name": name, "kind": name.title(), "namespaced": namespaced, "verbs": list(verbs)}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def discovery(server: Server) -> Discovery:
    return Discovery(server, clock=lambda: asyncio.get_running_loop().time())


async def served(discovery: Discovery, group: str, version: str, resource: str) -> bool:
    return await discovery.find(group, version, resource) is not None


async def test_what_is_served_is_found_with_its_scope(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")

    widgets, nodes, pods = [await discovery.find(*one) for one in (WIDGETS, ("", "v1", "nodes"), ("", "v1", "pods"))]

    assert (widgets and widgets.kind, nodes and nodes.namespaced, pods and pods.namespaced) == ("Widgets", False, True)
    assert await discovery.versions("example.com") == ("v2", "v1")
    assert await discovery.versions("") == ("v1",)
    for missing in (("", "v1", "absent"), ("example.com", "v3", "widgets"), ("apps", "v1", "deployments")):
        assert not await served(discovery, *missing), missing
    assert await discovery.versions("absent") == ()


async def test_a_definition_that_comes_is_seen_after_a_moment(server: Server, discovery: Discovery) -> None:
    assert not await served(discovery, *WIDGETS)
    server.serve("widgets")
    assert not await served(discovery, *WIDGETS)

    await asyncio.sleep(PAUSE)

    assert await served(discovery, *WIDGETS)


async def test_a_kind_that_moves_into_namespaces_is_seen_as_such_in_time(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")
    assert await served(discovery, *WIDGETS)
    server.serve("widgets", namespaced=True)

    await asyncio.sleep(BELIEVED)

    found = await discovery.find(*WIDGETS)
    assert found is not None
    assert found.namespaced


async def test_many_questions_at_once_are_one_reading(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")

    found = await asyncio.gather(*(served(discovery, *WIDGETS) for _ in range(50)))

    assert all(found)
    assert server.asked == ["/apis", "/apis/example.com/v1"]


async def test_names_that_are_made_up_cost_one_reading_a_second(server: Server, discovery: Discovery) -> None:
    for number in range(200):
        assert not await served(discovery, f"g{number}.example", "v1", "x")
        assert not await served(discovery, "", "v1", f"x{number}")

    seconds = asyncio.get_running_loop().time()
    assert len(server.asked) <= 2 * (seconds / PAUSE + 1)


async def test_what_cannot_be_read_is_an_error_and_not_asked_at_once_again(
    server: Server, discovery: Discovery
) -> None:
    server.down = True

    for _ in range(20):
        with pytest.raises(KubeError):
            await discovery.find(*WIDGETS)
    assert server.asked == ["/apis"]

    server.down = False
    server.serve("widgets")
    await asyncio.sleep(PAUSE)
    assert await served(discovery, *WIDGETS)


async def test_what_was_read_long_ago_does_not_count_while_the_server_is_away(
    server: Server, discovery: Discovery
) -> None:
    server.serve("widgets")
    assert await served(discovery, *WIDGETS)
    server.down = True
    assert await served(discovery, *WIDGETS)

    await asyncio.sleep(BELIEVED)

    with pytest.raises(KubeError):
        await discovery.find(*WIDGETS)
