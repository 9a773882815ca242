"""Several processes on one port: ``tether proxy --workers N`` starts them, starts them again, and speaks for them.

The workers share the port for tenants by SO_REUSEPORT: the kernel gives each new connection to one of them. Probes and
metrics of them all are on the one ``--http-port``: ready once all were, and as long as one is, and each series with the
worker's number.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from eventcore.errors import SettingsError, StartError
from eventcore.logs import get
from eventcore.process import EXIT_SETTINGS, Role, run_role
from proxycore.fleet_metrics import merged
from proxycore.main import new_loop, proxy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from eventcore.settings import Settings

log = get("proxy.fleet")

FIRST_PAUSE: Final = 0.5
MOST_PAUSE: Final = 30.0
"""Seconds before a worker that ended is started again; doubled each time, unless it ran for a while."""
STEADY_SECONDS: Final = 60.0
LOOK_INTERVAL: Final = 0.5
ANSWER_SECONDS: Final = 2.0
MARGIN_SECONDS: Final = 2.0
"""What a worker has less than the whole fleet to finish what is in hand."""
_OK: Final = 200


class Worker:
    """One process.

    ``http_port`` is that of its own probes, 0 until it told; ``ready``: they said so once, ``why`` what they last said.
    """

    def __init__(self, settings: Settings, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe(duplex=False)
        self.number = number
        self.http_port = 0
        self.ready = False
        self.why = "starting"
        self._told: Connection = ours
        self._process: SpawnProcess = spawn.Process(target=_work, args=(settings, number, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    async def ended(self) -> int:
        """Return its exit code once it ends; a signal is a negative one."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._told, self._hear)
        loop.add_reader(self._process.sentinel, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
            loop.remove_reader(self._told)
        self._process.join()
        self._told.close()
        self.http_port, self.ready = 0, False
        return self._process.exitcode or 0

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def _hear(self) -> None:
        try:
            self.http_port = self._told.recv()
        except EOFError:  # it ends, or has nothing more to tell
            asyncio.get_running_loop().remove_reader(self._told)


class Fleet:
    """Keeps ``settings.workers`` processes running until the role is told to stop."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._workers: dict[int, Worker] = {}
        self._served = False  # whether any worker was ever ready
        self._whole = False  # whether all were at a time
        self._settings = msgspec.structs.replace(
            role.settings,
            workers=1,
            http_host="127.0.0.1",
            http_port=0,
            shutdown_grace=max(1.0, role.settings.shutdown_grace - MARGIN_SECONDS),
        )

    async def run(self) -> None:
        """Run; StartError when a worker ends before one could serve: its own line says why."""
        numbers = range(self._role.settings.workers)
        self._role.readiness.expect("workers")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session:
            self._role.metrics_text = lambda: self._metrics(session)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in numbers:
                        tasks.create_task(self._keep(number))
                    looking = tasks.create_task(self._look(session))
                    stopping = tasks.create_task(self._stop())
                    await self._role.stopping.wait()
                    await stopping
                    looking.cancel()
            finally:
                self._role.metrics_text = None
                for worker in self._workers.values():
                    worker.send(signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """Start a worker, and start it again whenever it ends."""
        stopping, pause = self._role.stopping, FIRST_PAUSE
        while not stopping.is_set():
            begun = time.monotonic()
            worker = self._workers[number] = Worker(self._settings, number)
            log.info("worker started", worker=number, pid=worker.pid)
            code = await worker.ended()
            worker.why = "not running"
            self._report()
            if stopping.is_set():
                return
            if not self._served:
                error = SettingsError if code == EXIT_SETTINGS else StartError
                raise error(f"worker {number} ended with code {code} before it could serve; it says above why")
            if time.monotonic() - begun >= STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.error("worker ended and is started again", worker=number, code=code, seconds=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause = min(MOST_PAUSE, pause * 2)

    async def _stop(self) -> None:
        """Let all finish what is in hand once the role stops; those that do not end in time are killed."""
        await self._role.stopping.wait()
        running = [worker for worker in self._workers.values() if worker.pid]
        for worker in running:
            worker.send(signal.SIGTERM)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        while True:
            for number, worker in list(self._workers.items()):
                ready, why = await self._ask(session, worker)
                if ready and not worker.ready:
                    log.info("worker is ready", worker=number, pid=worker.pid)
                # One that is too busy to answer still serves; one that ended is found out by its end.
                worker.ready |= ready and bool(worker.http_port)
                worker.why = why
            self._report()
            await asyncio.sleep(LOOK_INTERVAL)

    def _report(self) -> None:
        """Say whether the port is served: by all at first, then by any: one that ended gets no connection."""
        ready = [worker.ready for worker in self._workers.values()]
        self._served |= any(ready)
        self._whole |= len(ready) == self._role.settings.workers and all(ready)
        missing = "; ".join(f"{number}: {one.why}" for number, one in self._workers.items() if not one.ready)
        self._role.readiness.set("workers", ok=self._whole and any(ready), why=missing)

    async def _ask(self, session: aiohttp.ClientSession, worker: Worker) -> tuple[bool, str]:
        if not worker.http_port:
            return False, "starting"
        try:
            async with session.get(f"http://127.0.0.1:{worker.http_port}/readyz") as found:
                return found.status == _OK, "; ".join((await found.text()).split("\n")).strip("; ")
        except (aiohttp.ClientError, TimeoutError):
            return False, "does not answer"

    async def _metrics(self, session: aiohttp.ClientSession) -> bytes:
        texts: dict[int, str] = {}
        for number, worker in list(self._workers.items()):
            if worker.http_port:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"http://127.0.0.1:{worker.http_port}/metrics") as found:
                        texts[number] = await found.text()
        up = {number: number in texts for number in range(self._role.settings.workers)}
        return merged(texts, up).encode()


async def fleet(role: Role, not_heeded: Sequence[str] = ()) -> None:
    """Serve tenants in several processes until ``role.stopping``; ``not_heeded`` as in `proxy`."""
    for line in not_heeded:
        role.log.warning(line)
    if not role.settings.proxy_port:
        raise SettingsError("--workers shares one port among processes: set --proxy-port to another one than 0")
    await Fleet(role).run()


def _work(settings: Settings, number: int, tell: Connection) -> None:
    """Be a worker. It ends when its parent does, however that happens."""
    os.setpgrp()  # Ctrl-C goes to the parent alone, which tells its workers
    parent = multiprocessing.parent_process()

    async def main(role: Role) -> None:
        tell.send(role.http_port)
        tell.close()
        if parent is not None:
            asyncio.get_running_loop().add_reader(parent.sentinel, role.stopping.set)
        try:
            await proxy(role)
        finally:
            if parent is not None:
                asyncio.get_running_loop().remove_reader(parent.sentinel)

    sys.exit(run_role(f"proxy-{number}", settings, main, new_loop=new_loop))
