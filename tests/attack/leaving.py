"""Parts that are away for a while: NATS, the API server, a proxy at a time. Whoever works meanwhile goes on.

Nobody attacks here but time. Each case is done by an administrator, and the bystander's work is judged all through it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from tests.attack.cases import Attack, Case, Ground
from tests.attack.stage import ROLES, Stage
from tests.attack.victim import Victim
from tests.behaviour.conftest import Tenancy, eventually
from tether import dev_processes

_AWAY_SECONDS: Final = 12.0
_STARTED_SECONDS: Final = 4.0
_LOOK_SECONDS: Final = 0.5
_SETTLED_SECONDS: Final = 60.0


async def _deaf_proxies(stage: Stage, seconds: float) -> list[str]:
    """Look at the readiness of the proxies for a while; return what was wrong, once each."""
    wrong: dict[str, None] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in ("proxy-1", "proxy-2"):
            if ill := await stage.probe(name):
                wrong[f"{name} is out of its Service: {ill}"] = None
        await asyncio.sleep(_LOOK_SECONDS)
    return list(wrong)


async def nats_away(ground: Ground) -> AsyncIterator[None]:
    """NATS is gone for twelve seconds."""
    stage = ground.stage
    ground.later(stage.up)
    await stage.cluster.stop("nats")
    ground.found.stopped += await _deaf_proxies(stage, _AWAY_SECONDS)
    await stage.up()
    await _settled(ground)
    yield


async def nats_killed(ground: Ground) -> AsyncIterator[None]:
    """NATS is killed, and comes back at once."""
    stage = ground.stage
    ground.later(stage.up)
    dev_processes.send(stage.layout.load().processes["nats-1"], signal.SIGKILL)
    await dev_processes.ended(stage.layout.load().processes["nats-1"])
    await stage.up()
    await _settled(ground)
    yield


async def rolling(ground: Ground) -> AsyncIterator[None]:
    """The proxies are restarted one after the other, as a Deployment does it."""
    stage = ground.stage
    ground.later(stage.up)
    for name in ("proxy-1", "proxy-2"):
        await _end(stage, name)
        await stage.up()
    yield


def restarted(role: str) -> Attack:
    """Return the restart of both processes of a role, one after the other."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        ground.later(stage.up)
        for number in (1, 2):
            await _end(stage, f"{role}-{number}")
            await stage.up()
        yield

    return attack


async def _end(stage: Stage, name: str) -> None:
    ident = stage.layout.load().processes[name]
    dev_processes.send(ident, signal.SIGTERM)
    async with asyncio.timeout(40):
        await dev_processes.ended(ident)


def halted(process: str, seconds: float) -> Attack:
    """Return the stop of a process for some seconds; it answers nothing meanwhile, and is not gone."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        ident = stage.layout.load().processes[process]

        async def go_on() -> None:
            dev_processes.send(ident, signal.SIGCONT)
            await asyncio.sleep(0)

        ground.later(go_on)
        dev_processes.send(ident, signal.SIGSTOP)
        ground.found.stopped += await _deaf_proxies(stage, seconds)
        await go_on()
        await _settled(ground)
        yield

    return attack


def before_nats(role: str) -> Attack:
    """Return the start of a role before NATS is there: it waits, and is ready once NATS is."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage, name = ground.stage, f"{role}-1"
        ground.later(stage.up)
        ident = stage.layout.load().processes[name]
        command, environ = await asyncio.to_thread(_as_started, ident.pid)
        await stage.cluster.stop("nats")
        await _end(stage, name)
        early = dev_processes.start(command, environ=environ, log=stage.layout.log(f"{name}-early"))
        try:
            await asyncio.wait({asyncio.ensure_future(dev_processes.ended(early))}, timeout=_STARTED_SECONDS)
            if not early.alive:
                said = dev_processes.tail(stage.layout.log(f"{name}-early"), lines=1)[:200]
                ground.found.stopped.append(f"{role} ended, since NATS was not there yet: {said}")
        finally:
            await dev_processes.stop([early], grace=30)
        await stage.up()
        await _settled(ground)
        yield

    return attack


def _as_started(pid: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a process."""
    command, environ = (
        [part for part in Path(f"/proc/{pid}/{what}").read_bytes().decode().split("\0") if part]
        for what in ("cmdline", "environ")
    )
    return command, dict(one.split("=", 1) for one in environ)


async def _settled(ground: Ground) -> None:
    """Wait until all are ready and somebody's whole life went well: what was under way with NATS comes again first."""
    stage = ground.stage

    async def all_ready() -> bool:
        names = [name for name in stage.layout.load().processes if not name.startswith(("api", "nats"))]
        return not [ill for ill in [await stage.probe(name) for name in names] if ill]

    await eventually(all_ready)
    end = time.monotonic() + _SETTLED_SECONDS
    while time.monotonic() < end:
        victim = Victim(Tenancy(stage.cluster, stage.admin))
        await victim.live("annotation")
        if not victim.found:
            return
    ground.found.stopped.append(f"not as it was after {_SETTLED_SECONDS:g} s: {victim.found.lines()}")


def cases() -> Iterator[Case]:
    """All cases of this room."""
    yield _case("F25", "NATS is away for 12 s", nats_away, "nats", quick=True)
    yield _case("F25", "NATS is killed and comes back", nats_killed, "nats")
    yield _case("F25", "NATS stands still for 5 s", halted("nats-1", 5.0))
    yield _case("F26", "the proxies are restarted one after the other", rolling, "proxy", quick=True)
    for role in ("watcher", "router", "worker"):
        yield _case("F26", f"both processes of {role} are restarted", restarted(role), role)
    for role in ROLES:
        yield _case("F27", f"{role} starts before NATS", before_nats(role), role, "nats", quick=role == "router")


def _case(section: str, name: str, attack: Attack, *spares: str, quick: bool = False) -> Case:
    return Case(
        name=name,
        section=section,
        who="administrator",
        attack=attack,
        spares=frozenset(spares),
        quick=quick,
        long=True,
        alone=True,
    )
