"""Every role as a process that starts before NATS: it lives, tells its probes, goes on, and ends when it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from eventcore import topology
from eventcore.bus import Bus
from eventcore.settings import Settings
from tests.tether.test_cli import KUBECONFIG
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

ROLES = (["watch"], ["route"], ["work"], ["proxy"])
SECONDS = 60


class Process:
    """One role, its log so far, and its probes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, object]] = []
        self.port: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if "http_port" in self.lines[-1] and not self.port.done():
                self.port.set_result(self.lines[-1]["http_port"])

    async def probe(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{await self.port}/{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def until_ready_says(self, words: str, *, not_this: bool = False) -> None:
        async with asyncio.timeout(SECONDS):
            while (words in (await self.probe("readyz"))[1]) == not_this:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, url: str) -> AsyncIterator[list[Process]]:
    (folder / "kubeconfig").write_text(KUBECONFIG)
    files = ClusterPki.load_or_create(None).issue_serving(["localhost"])
    for name, text in zip(("tls.crt", "tls.key"), files, strict=True):
        (folder / name).write_text(text)
    environ = {
        "TETHER_NATS_URL": url,
        "TETHER_KUBECONFIG": str(folder / "kubeconfig"),
        "TETHER_HTTP_PORT": "0",
        "TETHER_PROXY_PORT": "0",
        "TETHER_PROXY_TLS_CERT": str(folder / "tls.crt"),
        "TETHER_PROXY_TLS_KEY": str(folder / "tls.key"),
    }
    processes = [
        Process(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "tether.cli", *command),
                env={**os.environ, **environ},
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        )
        for command in ROLES
    ]
    try:
        yield processes
    finally:
        for one in processes:
            if one.process.returncode is None:
                one.process.kill()
            await one.process.wait()
            await one.reading


@pytest.mark.timeout(150)
@pytest.mark.slow
async def test_roles_that_come_before_nats_wait_for_it_and_for_the_topology(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server:
        pass  # has a port now
    async with running(tmp_path, server.url) as processes:
        for one in processes:
            await one.until_ready_says("nats: waiting for NATS: no NATS server answers")
            assert (await one.probe("healthz"))[0] == 200

        await server.start()
        try:
            for one in processes:
                await one.until_ready_says("nats: waiting for the streams in NATS: stream OBJECTS does not exist")
            operator = await Bus.connect(Settings(nats_url=server.url), "operator")
            await topology.apply(operator, Settings())
            await operator.close()
            for one in processes:
                await one.until_ready_says("nats: ", not_this=True)
            # The router needs nothing else.
            await processes[1].until_ready_says("ok")

            for one in processes:
                one.process.send_signal(signal.SIGTERM)
            for one in processes:
                assert await asyncio.wait_for(one.process.wait(), SECONDS) == 0
        finally:
            await server.stop()
    for one in processes:
        said = [line["event"] for line in one.lines if str(line["event"]).startswith("waiting")]
        assert said == ["waiting for NATS", "waiting for the streams in NATS", "waiting is over: NATS has the streams"]
        assert not [line for line in one.lines if "view cannot be read" in str(line["event"])]


@pytest.mark.timeout(150)
@pytest.mark.slow
async def test_a_role_that_waits_ends_at_once_when_it_is_told_to(tmp_path: Path) -> None:
    async with running(tmp_path, "nats://127.0.0.1:1") as processes:
        for one in processes:
            await one.until_ready_says("waiting for NATS")
            one.process.send_signal(signal.SIGTERM)
        for one in processes:
            assert await asyncio.wait_for(one.process.wait(), SECONDS) == 0
            await one.reading
            assert [line["event"] for line in one.lines][-2:] == ["stopping", "process stopped"]
