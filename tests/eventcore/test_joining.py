"""A role that comes before NATS, or before the topology: it waits, says so once, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from eventcore import joining, topology
from eventcore.bus import Bus
from eventcore.errors import LoginRefusedError, NoJetStreamError
from eventcore.joining import join
from eventcore.logs import get
from eventcore.process import Role
from eventcore.settings import Settings
from eventcore.topology import ACCESS, OBJECTS
from tether.devcluster.nats import NatsServer

SECONDS = 30


def role_for(url: str, **settings: Any) -> Role:
    return Role(name="route", settings=Settings(nats_url=url, nats_connect_timeout=1.0, **settings), log=get("test"))


async def until_it_says(role: Role, words: str) -> None:
    async with asyncio.timeout(SECONDS):
        while words not in role.readiness.report():
            await asyncio.sleep(0.01)


@pytest.fixture
async def away(tmp_path: Path) -> NatsServer:
    """A nats-server that has a port and does not run."""
    async with NatsServer(tmp_path / "nats") as server:
        pass
    return server


@asynccontextmanager
async def started(server: NatsServer) -> AsyncIterator[None]:
    await server.start()
    try:
        yield
    finally:
        await server.stop()


async def test_nats_and_then_the_streams_are_waited_for_and_each_is_said_once(
    away: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "MOST_PAUSE", 0.3)
    role = role_for(away.url)
    with structlog.testing.capture_logs() as logged:
        task = asyncio.ensure_future(join(role, "router-1", [OBJECTS, ACCESS]))
        await until_it_says(role, "nats: waiting for NATS: no NATS server answers")
        assert not role.readiness.ready
        await asyncio.sleep(1)  # some more tries

        async with started(away):
            await until_it_says(
                role, "nats: waiting for the streams in NATS: stream OBJECTS does not exist: run `tether"
            )
            operator = await Bus.connect(role.settings, "operator")
            await operator.js.add_stream(topology.streams(role.settings)[0])
            await until_it_says(role, f"stream {ACCESS} does not exist")
            await topology.apply(operator, role.settings)
            async with asyncio.timeout(SECONDS):
                bus = await task

            assert bus is not None
            assert role.readiness.report() == "ok"
            assert (await bus.stream_state(OBJECTS)).messages == 0
            await bus.close()
            await operator.close()
    said = [line["event"] for line in logged if line["log_level"] in {"info", "warning"}]
    assert said == ["waiting for NATS", "waiting for the streams in NATS", "waiting is over: NATS has the streams"]


async def test_after_a_while_it_is_said_again(away: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SAY_AGAIN", 0.0)
    monkeypatch.setattr(joining, "MOST_PAUSE", 0.1)
    role = role_for(away.url)
    with structlog.testing.capture_logs() as logged:
        task = asyncio.ensure_future(join(role, "router-1", [OBJECTS]))
        async with asyncio.timeout(SECONDS):
            while sum(line["event"] == "waiting for NATS" for line in logged) < 3:
                await asyncio.sleep(0.01)
        role.stopping.set()
        assert await task is None


@pytest.mark.parametrize("runs", [False, True], ids=["without NATS", "without streams"])
async def test_told_to_stop_it_ends_at_once(away: NatsServer, monkeypatch: pytest.MonkeyPatch, *, runs: bool) -> None:
    monkeypatch.setattr(joining, "FIRST_PAUSE", 1000.0)
    role = role_for(away.url)
    if runs:
        await away.start()
    try:
        task = asyncio.ensure_future(join(role, "router-1", [OBJECTS]))
        await until_it_says(role, "waiting for")
        role.stopping.set()
        async with asyncio.timeout(SECONDS):
            assert await task is None
    finally:
        await away.stop()


async def test_a_server_that_takes_connections_and_says_nothing_is_waited_for(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        role = role_for(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        task = asyncio.ensure_future(join(role, "router-1", [OBJECTS]))
        await until_it_says(role, "waiting for NATS")
        role.stopping.set()
        assert await task is None


async def test_what_waiting_does_not_mend_ends_it(tmp_path: Path) -> None:
    users = 'authorization { users: [ {user: "worker", password: "right"} ] }'
    async with NatsServer(tmp_path / "a", extra_config=users) as server:
        (tmp_path / "password").write_text("wrong")
        role = role_for(server.url, nats_user="worker", nats_password_file=str(tmp_path / "password"))
        with pytest.raises(LoginRefusedError):
            await join(role, "worker-1", [OBJECTS])
    async with NatsServer(tmp_path / "b", jetstream=False) as server:
        with pytest.raises(NoJetStreamError):
            await join(role_for(server.url), "worker-1", [OBJECTS])
