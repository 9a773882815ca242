"""Cluster-scoped kinds in memory, each by one list and one watch, for as many clients as there are.

A kind is followed from the first that asks for it until some time after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from eventcore.errors import GoneError, KubeError, WatchInactiveError
from eventcore.kube import JSON
from eventcore.kube_watch import list_pages, watch
from eventcore.logs import get
from proxycore.kind_memory import KindMemory, record_of, version_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventcore.kube import KubeClient
    from proxycore.kind_memory import Record, Subscription

log = get("proxy.shared")

LINGER_SECONDS: Final = 120.0
"""A kind is followed for so long after the last that asked for it."""
STALE_SECONDS: Final = 15.0
"""Without a watch upstream for so long, memory is not used any more."""
FIRST_PAUSE: Final = 0.1
MOST_PAUSE: Final = 5.0


class SharedKind(KindMemory):
    """One kind in one version, followed from the moment that it is made; ``ended`` hears when no more.

    ``accept`` and ``params`` are how the API server is asked.
    """

    accept = JSON
    params: Mapping[str, str] = {}

    def __init__(self, client: KubeClient, path: str, ended: Callable[[SharedKind], None]) -> None:
        super().__init__()
        self.path = path
        self._client = client
        self._ended = ended
        self._loaded = asyncio.Event()
        self._open = False
        self._lost = float("-inf")  # when the last watch ended
        self._wanted_until = 0.0
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def fresh(self) -> bool:
        """Whether memory follows the API server, or did until a moment ago."""
        return self._open or time.monotonic() - self._lost < STALE_SECONDS

    async def loaded(self, seconds: float) -> bool:
        """Wait until memory is complete; False when it is not in time, or the API server says no."""
        self.want()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._loaded.wait()
        return self.fresh

    def want(self) -> None:
        """Follow for some time more."""
        self._wanted_until = time.monotonic() + LINGER_SECONDS

    def unsubscribe(self, subscription: Subscription) -> None:
        super().unsubscribe(subscription)
        self.want()

    def close(self) -> None:
        """Follow no more."""
        self._task.cancel()

    # From the API server.

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        relist = True
        try:
            while self._subscribers or time.monotonic() < self._wanted_until or not self._loaded.is_set():
                try:
                    if relist:
                        await self._list()
                        relist = False
                    await self._follow()
                    pause = FIRST_PAUSE
                except GoneError:
                    relist = True
                except WatchInactiveError:
                    continue
                except (KubeError, msgspec.DecodeError) as error:
                    log.warning("a kind cannot be followed", path=self.path, error=error)
                    relist = relist or not isinstance(error, KubeError)
                    if not self._loaded.is_set():
                        return  # whoever asked goes to the API server, and the next one tries again
                    await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
                    pause = min(MOST_PAUSE, 2 * pause)
        finally:
            self._open, self._lost = False, float("-inf")
            self._loaded.set()
            self._ended(self)
            self.wake()

    async def read(self, params: Mapping[str, str]) -> tuple[dict[str, Record], int]:
        """Return what a list upstream holds, and its version; KubeError, msgspec.DecodeError."""
        records: dict[str, Record] = {}
        version = 0
        async for page in list_pages(self._client, self.path, params=params):
            version = version_in(page.resource_version)
            records |= {record.seen.name: record for record in map(record_of, page.items)}
        return records, version

    async def _list(self) -> None:
        records, version = await self.read({})
        if not self.head:
            found = await self._client.get_as(_Kind, self.path, params={"limit": 1})
            self.name_kind(found.kind, found.api_version, found.items[0] if found.items else None)
        self.replace(records, version)
        self._lost = time.monotonic()  # as good as what a watch told until now
        self._loaded.set()

    async def _follow(self) -> None:
        version = str(self.version)
        events = watch(
            self._client,
            self.path,
            resource_version=version,
            params=self.params,
            accept=self.accept,
            opened=self._opened,
        )
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    self.take(event)
                    if not self._subscribers and time.monotonic() > self._wanted_until:
                        return
        finally:
            if self._open:
                self._open, self._lost = False, time.monotonic()

    def _opened(self) -> None:
        self._open = True


K = TypeVar("K", bound=SharedKind)


class SharedKinds:
    """The kinds that are followed now."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._kinds: dict[tuple[str, type[SharedKind]], SharedKind] = {}

    def of(self, path: str, made: type[K]) -> K:
        """Return a kind in a form, followed from now on if it was not."""
        found = self._kinds.get((path, made))
        if not isinstance(found, made):
            found = self._kinds[path, made] = made(self._client, path, self._ended)
        found.want()
        return found

    def all(self) -> list[SharedKind]:
        """Return those that are followed now."""
        return list(self._kinds.values())

    def close(self) -> None:
        """Follow nothing any more."""
        for kind in list(self._kinds.values()):
            kind.close()

    def _ended(self, kind: SharedKind) -> None:
        self._kinds.pop((kind.path, type(kind)), None)


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    api_version: str
    items: list[msgspec.Raw] = []
