"""What a watcher does when the API server refuses, vanishes, goes silent or forgets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import structlog
from aiohttp import web

from eventcore.keys import ObjectKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import EventDict

    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
TENANTS = "/apis/capsule.clastix.io/v1beta2/tenants"
OIL = ObjectKey("Namespace", "", "oil")


@pytest.fixture
def said() -> Iterator[list[EventDict]]:
    """What is logged while the test runs."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def lines(said: list[EventDict], kind: str, why: str) -> list[EventDict]:
    """Return the lines about a trouble of a kind that an operator sees."""
    return [
        line for line in said if line.get("kind") == kind and line.get("why") == why and line["log_level"] != "debug"
    ]


async def test_expired_versions_lead_to_a_new_list(world: World) -> None:
    # Given a watcher that lists, and a server that has forgotten that version when it comes to watch
    world.api.oldest = 10**9
    async with world.watcher():
        await world.api.until_asked("LIST", NAMESPACES, 2)
        world.api.oldest = 0

        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)


async def test_a_broken_connection_is_opened_again_and_what_was_missed_is_there(world: World) -> None:
    async with world.watcher():
        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)

        # When all watches break, and the server is changed before anybody watches again
        await world.api.put(NAMESPACES, "gas")
        await world.objects.until_many(ObjectKey("Namespace", "", "gas"), 1)
        await world.api.cut_watches()
        world.api.forget(NAMESPACES, "oil")

        await world.objects.until(lambda: world.objects.of(OIL)[-1].headers["ce-type"].endswith("object.deleted.v1"))


async def test_a_watch_that_the_server_ends_goes_on_from_the_last_version_without_a_list(world: World) -> None:
    async with world.watcher():
        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)
        lists = world.api.asked("LIST", NAMESPACES)

        await world.api.end_watches()
        await world.api.put(NAMESPACES, "oil", metadata={"labels": {"a": "b"}})
        await world.objects.until_many(OIL, 2)

    watches = [query for verb, path, query in world.api.requests if (verb, path) == ("WATCH", NAMESPACES)]
    assert watches[-1]["resourceVersion"] == "101"
    assert watches[-1]["allowWatchBookmarks"] == "true"
    assert world.api.asked("LIST", NAMESPACES) == lists


async def test_a_silent_connection_is_taken_for_dead(world: World) -> None:
    # Given watches that send nothing, as through a socket that is open on one side only
    world.api.silent.add(NAMESPACES)
    async with world.watcher(watch_inactivity=0.2):
        await world.api.until_asked("WATCH", NAMESPACES)
        await world.api.put(NAMESPACES, "oil")

        await world.objects.until_many(OIL, 1)

    assert world.api.asked("LIST", NAMESPACES) > 1


async def test_a_missing_kind_is_waited_for_said_once_and_then_followed(world: World, said: list[EventDict]) -> None:
    # Given a cluster without Capsule
    missing = {path: world.api.served.pop(path) for path in list(world.api.served) if "capsule.clastix.io" in path}
    async with world.watcher() as role:
        await world.api.until_asked("LIST", TENANTS, 3)
        await world.objects.until(lambda: any(m.subject == "marks.CASecret" for m in world.objects.messages))
        async with asyncio.timeout(10):
            while not role.readiness.ready:
                await asyncio.sleep(0.02)  # readiness is read by a probe, which asks again and again too

        # When its kinds are installed
        world.api.served.update(missing)
        await world.api.put(TENANTS, "oil", spec={})
        await world.objects.until_many(ObjectKey("Tenant", "", "oil"), 1)

    [line] = lines(said, "Tenant", "missing")
    assert line["log_level"] == "info"


async def test_a_missing_right_is_named_and_tried_again(world: World, said: list[EventDict]) -> None:
    refusals = [world.api.status(403, "Forbidden", "namespaces is forbidden: User cannot list") for _ in range(2)]
    world.api.answers["LIST", NAMESPACES] += refusals
    await world.api.put(NAMESPACES, "oil")

    async with world.watcher() as role:
        await world.api.until_asked("LIST", NAMESPACES, 1)
        assert not role.readiness.ready
        await world.objects.until_many(OIL, 1)

    [line] = lines(said, "Namespace", "forbidden")
    assert line["log_level"] == "error"
    assert line["grant"] == "get, list and watch on namespaces"


async def test_refused_credentials_are_said_and_tried_again(world: World, said: list[EventDict]) -> None:
    world.api.answers["LIST", NAMESPACES] += [world.api.status(401, "Unauthorized", "Unauthorized") for _ in range(4)]
    await world.api.put(NAMESPACES, "oil")

    async with world.watcher():
        await world.objects.until_many(OIL, 1)

    [line] = lines(said, "Namespace", "unauthorized")
    assert "example-token" not in str(said)
    assert "credentials" in line["event"]


async def test_a_watch_from_a_version_that_the_server_does_not_know_yet_leads_to_a_new_list(world: World) -> None:
    # Given a server that was replaced by one with lower versions, which answers as such a server does
    world.api.answers["WATCH", NAMESPACES].append(world.api.status(504, "Timeout", "Too large resource version"))
    async with world.watcher():
        await world.api.until_asked("LIST", NAMESPACES, 2)

        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)


async def test_a_watch_that_ends_at_once_again_and_again_does_not_spin(world: World, said: list[EventDict]) -> None:
    world.api.answers["WATCH", NAMESPACES] += [web.Response(text="") for _ in range(4)]
    async with world.watcher():
        await world.api.until_asked("WATCH", NAMESPACES, 5)
        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)

    refused = [line["wait"] for line in said if line.get("kind") == "Namespace" and line.get("why") == "refused"]
    assert len(refused) == 4


@pytest.mark.parametrize(
    ("code", "reason", "why"), [(429, "TooManyRequests", "busy"), (503, "ServiceUnavailable", "refused")]
)
async def test_the_time_that_the_server_asks_for_is_waited(
    world: World, said: list[EventDict], code: int, reason: str, why: str
) -> None:
    refusal: web.Response = world.api.status(code, reason, "slow down", {"Retry-After": "1"})
    world.api.answers["LIST", NAMESPACES].append(refusal)
    await world.api.put(NAMESPACES, "oil")

    async with world.watcher():
        await world.api.until_asked("LIST", NAMESPACES, 1)
        began = asyncio.get_running_loop().time()
        await world.api.until_asked("LIST", NAMESPACES, 2)
        waited = asyncio.get_running_loop().time() - began
        await world.objects.until_many(OIL, 1)

    assert waited > 0.9
    [line] = lines(said, "Namespace", why)
    assert line["wait"] >= 1


async def test_a_watcher_started_before_its_api_server_lists_when_it_is_there(world: World) -> None:
    port = world.api.port
    await world.api.stop()
    await world.api.put(NAMESPACES, "oil")
    async with world.watcher() as role:
        async with asyncio.timeout(10):
            while not role.metrics.watch_restarts.labels("Namespace", "broken")._value.get():  # noqa: SLF001 - the library shows a counter only in its text form
                await asyncio.sleep(0.02)  # nothing tells of a refused connection

        await world.api.start(port)
        await world.objects.until_many(OIL, 1)


async def test_a_restart_of_nats_while_watching_loses_nothing(world: World) -> None:
    async with world.watcher():
        await world.api.put(NAMESPACES, "oil")
        await world.objects.until_many(OIL, 1)
        await world.nats.stop()
        for number in range(100):
            await world.api.put(NAMESPACES, f"ns-{number:03}")
        await world.api.delete(NAMESPACES, "oil")
        await world.nats.start()

        # Everything arrives: far more than may be in flight at once
        async with world.reader() as reader, asyncio.timeout(20):
            while len(list(reader.view.all("Namespace"))) != 100 or reader.view.get("Namespace", "", "oil"):
                await reader.wait_for(reader.view.sequence + 1, 20)
