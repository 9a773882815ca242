"""The bystander at work, and the probes of every process, all the time: who is stopped for a moment is seen."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import aiohttp

from eventcore.kube import api_path
from tests.attack.judging import HOLD_SECONDS, Beat, of_list

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from tests.attack.judging import Found
    from tests.attack.stage import Stage
    from tests.kubeapi import Client

_EVERY_SECONDS: Final = 0.2
_PROBE_EVERY_SECONDS: Final = 1.0
_GIVE_UP_SECONDS: Final = 10.0
_NAMESPACES: Final = api_path("", "v1", "namespaces")


class Pulse:
    """What the bystander and the probes got since `take` was called last."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._beats: list[Beat] = []
        self._running: dict[str, float] = {}
        self.leaked: list[str] = []
        self.spared: Collection[str] = ()

    def take(self) -> list[Beat]:
        """Return what happened, also what is still waiting for an answer."""
        beats, self._beats = self._beats, []
        now = time.monotonic()
        waiting = [Beat(what, 0, now - since, "no answer yet") for what, since in self._running.items()]
        return beats + [beat for beat in waiting if beat.seconds > HOLD_SECONDS]

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Go on for as long as the block lasts."""
        async with self._stage.cluster.wire(self._stage.bystander_token) as kept:
            work = [
                self._again(_EVERY_SECONDS, "bystander lists over a new connection", self._list),
                self._again(_EVERY_SECONDS, "bystander is forwarded", lambda: self._forward(kept)),
                *(self._again(_PROBE_EVERY_SECONDS, f"{name} /healthz", self._healthz(name)) for name in self._names()),
            ]
            tasks = [asyncio.create_task(one) for one in work]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with suppress(asyncio.CancelledError):
                        await task

    def _names(self) -> list[str]:
        return [name for name in self._stage.layout.load().processes if not name.startswith(("api", "nats"))]

    def _healthz(self, name: str) -> Callable[[], Awaitable[tuple[int, str]]]:
        async def ask() -> tuple[int, str]:
            if name.rpartition("-")[0] in self.spared:
                return 200, ""
            ill = await self._stage.probe(name, "healthz")
            return (503, ill) if ill else (200, "")

        return ask

    async def _again(self, pause: float, what: str, ask: Callable[[], Awaitable[tuple[int, str]]]) -> None:
        while True:
            began = time.monotonic()
            self._running[what] = began
            try:
                async with asyncio.timeout(_GIVE_UP_SECONDS):
                    status, why = await ask()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, why = 0, type(error).__name__
            finally:
                self._running.pop(what, None)
            self._beats.append(Beat(what, status, time.monotonic() - began, why))
            await asyncio.sleep(pause)

    async def _list(self) -> tuple[int, str]:
        async with self._stage.cluster.wire(self._stage.bystander_token) as client:
            answer = await client.get(_NAMESPACES)
        if answer.status == 200:
            shown = {item["metadata"]["name"] for item in answer.body["items"]}
            self.leaked += of_list(shown, {self._stage.foreign} | self._stage.shared).leaked
            if self._stage.foreign not in shown:
                return 404, "its own namespace is missing"
        return answer.status, _why(answer.body)

    async def _forward(self, client: Client) -> tuple[int, str]:
        answer = await client.get(api_path("", "v1", "configmaps", namespace=self._stage.foreign))
        return answer.status, _why(answer.body)


def _why(body: object) -> str:
    return str(body.get("message", ""))[:200] if isinstance(body, dict) else ""


def leaks(pulse: Pulse, found: Found) -> None:
    """Move what the bystander saw of others into what was found."""
    found.leaked += pulse.leaked
    pulse.leaked = []
