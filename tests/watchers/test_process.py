"""The watcher as a process of its own: how it starts, stops and says what is wrong."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from eventcore.keys import ObjectKey

if TYPE_CHECKING:
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
PROGRAM = """
import os, sys
from eventcore.process import run_role
from eventcore.settings_reading import load
from watchers.main import watch
sys.exit(run_role("watch", load(os.environ, {}), watch))
"""


async def start(world: World, **variables: str) -> asyncio.subprocess.Process:
    environ = {
        "TETHER_NATS_URL": world.settings.nats_url,
        "TETHER_KUBECONFIG": world.settings.kubeconfig,
        "TETHER_HTTP_PORT": "0",
        "TETHER_MARK_INTERVAL": "100ms",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        env=environ | variables,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_a_watcher_told_to_stop_finishes_what_is_in_flight_and_ends_with_zero(world: World) -> None:
    process = await start(world)
    await world.api.until_asked("WATCH", NAMESPACES)
    for number in range(50):
        await world.api.put(NAMESPACES, f"ns-{number:02}")
    await world.objects.until_many(ObjectKey("Namespace", "", "ns-00"), 1)

    process.send_signal(signal.SIGTERM)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 0, stderr.decode()
    async with world.reader() as reader:
        names = sorted(record.key.name for record in reader.view.all("Namespace"))
    assert names == [f"ns-{number:02}" for number in range(len(names))]  # nothing in the middle was dropped
    assert b"example-token" not in stderr
    assert b"Traceback" not in stderr


@pytest.mark.slow
async def test_a_killed_watcher_is_made_up_for_by_the_next_one(world: World) -> None:
    process = await start(world)
    await world.api.until_asked("WATCH", NAMESPACES)
    await world.api.put(NAMESPACES, "oil")
    await world.api.put(NAMESPACES, "gas")
    await world.objects.until_many(ObjectKey("Namespace", "", "oil"), 1)

    process.kill()
    await process.communicate()
    await world.api.delete(NAMESPACES, "oil")
    await world.api.put(NAMESPACES, "air")

    process = await start(world)
    await world.objects.until_many(ObjectKey("Namespace", "", "air"), 1)
    async with world.reader() as reader, asyncio.timeout(20):
        while reader.view.get("Namespace", "", "oil") is not None:
            await reader.wait_for(reader.view.sequence + 1, 20)
        assert sorted(record.key.name for record in reader.view.all("Namespace")) == ["air", "gas"]
    process.terminate()
    await process.communicate()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"TETHER_KUBECONFIG": "/nowhere/kubeconfig"}, "there is no kubeconfig at /nowhere/kubeconfig"),
    ],
)
async def test_what_keeps_a_watcher_from_starting_is_one_clear_line(
    world: World, variables: dict[str, str], says: str
) -> None:
    process = await start(world, **variables)

    _, stderr = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    plain = [line for line in stderr.decode().splitlines() if not line.startswith("{")]
    assert len(plain) == 1
    assert plain[0].startswith("tether watch: ")
    assert says in plain[0]
