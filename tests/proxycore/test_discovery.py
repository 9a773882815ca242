"""What the API server serves is asked when it is needed, once for all who wait, and not again and again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from eventcore.errors import KubeUnreachableError, NotFoundError
from proxycore.discovery import BELIEVED, PAUSE, Discovery
from proxycore.statuses import RefusedError

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

    async def get_as(self, kind: Any, path: str) -> Any:
        self.asked.append(path)
        await asyncio.sleep(0.01)
        if self.down:
            raise KubeUnreachableError("down")
        if path == "/apis":
            groups = [
                {"name": name, "versions": [{"version": one} for one in versions]}
                for name, versions in self.groups.items()
            ]
            return msgspec.convert({"groups": groups}, kind)
        if path not in self.resources:
            raise NotFoundError("not there")
        return msgspec.convert({"resources": self.resources[path]}, kind)

    def serve(self, plural: str, *, namespaced: bool = False) -> None:
        self.groups["example.com"] = ["v2", "v1"]
        self.resources["/apis/example.com/v1"] = [row(plural, namespaced=namespaced)]


def row(name: str, *, namespaced: bool = False, verbs: tuple[str, ...] = ("get", "list")) -> dict[str, Any]:
    return {"name": name, "namespaced": namespaced, "verbs": list(verbs)}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def discovery(server: Server) -> Discovery:
    return Discovery(cast("Any", server))


async def test_only_what_can_be_read_in_the_whole_cluster_is_found(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")

    assert await discovery.version_of("", "v1", "nodes") == "v1"
    assert await discovery.version_of("example.com", "", "widgets") == "v1"
    for resource in ("pods", "bindings", "nodes/status", "absent"):
        assert await discovery.version_of("", "*", resource) == "", resource
    assert await discovery.version_of("example.com", "v3", "widgets") == ""
    assert await discovery.version_of("apps", "v1", "deployments") == ""


async def test_a_definition_that_comes_is_seen_after_a_moment(server: Server, discovery: Discovery) -> None:
    assert await discovery.version_of(*WIDGETS) == ""
    server.serve("widgets")
    assert await discovery.version_of(*WIDGETS) == ""

    await asyncio.sleep(PAUSE)

    assert await discovery.version_of(*WIDGETS) == "v1"


async def test_a_kind_that_moves_into_namespaces_is_seen_as_such_in_time(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")
    assert await discovery.version_of(*WIDGETS) == "v1"
    server.serve("widgets", namespaced=True)

    await asyncio.sleep(BELIEVED)

    assert await discovery.version_of(*WIDGETS) == ""


async def test_many_questions_at_once_are_one_reading(server: Server, discovery: Discovery) -> None:
    server.serve("widgets")

    found = await asyncio.gather(*(discovery.version_of(*WIDGETS) for _ in range(50)))

    assert set(found) == {"v1"}
    assert server.asked == ["/apis", "/apis/example.com/v1"]


async def test_names_that_are_made_up_cost_one_reading_a_second(server: Server, discovery: Discovery) -> None:
    for number in range(200):
        assert await discovery.version_of(f"g{number}.example", "v1", "x") == ""
        assert await discovery.version_of("", "v1", f"x{number}") == ""

    seconds = asyncio.get_running_loop().time()
    assert len(server.asked) <= 2 * (seconds / PAUSE + 1)


async def test_what_cannot_be_read_is_refused_and_not_asked_at_once_again(server: Server, discovery: Discovery) -> None:
    server.down = True

    for _ in range(20):
        with pytest.raises(RefusedError) as caught:
            await discovery.version_of(*WIDGETS)
        assert caught.value.status.code == 503
    assert server.asked == ["/apis"]

    server.down = False
    server.serve("widgets")
    await asyncio.sleep(PAUSE)
    assert await discovery.version_of(*WIDGETS) == "v1"


async def test_what_was_read_long_ago_does_not_count_while_the_server_is_away(
    server: Server, discovery: Discovery
) -> None:
    server.serve("widgets")
    assert await discovery.version_of(*WIDGETS) == "v1"
    server.down = True
    assert await discovery.version_of(*WIDGETS) == "v1"

    await asyncio.sleep(BELIEVED)

    with pytest.raises(RefusedError):
        await discovery.version_of(*WIDGETS)
