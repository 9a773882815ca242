"""``tether status``: reads the bus once, or follows it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import nats.errors

from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.errors import BusError, StartError, StreamMissingError
from eventcore.reading import Reader
from eventcore.topology import AUDIT, DLQ, WORK, consumers_of
from eventcore.waiting import end
from tether.set_aside import read_set_aside
from tether.status_model import Queues, Status, assemble, of_tenant
from tether.status_read import peek, read_all
from watchers.kinds import rows
from workers.relations import Relations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from eventcore.bus import BusMessage
    from eventcore.settings import Settings

LOAD_TIMEOUT: Final = 30.0
"""Seconds for reading OBJECTS and the grants."""
REFRESH: Final = 1.0
"""Seconds between two pictures while it follows: ages grow without an event."""


class Looker:
    """Keeps the views beside the bus and takes pictures of all of it."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self._bus = bus
        self._watched = {row.kind for row in rows(settings)}
        self._objects, self._access = Reader.objects(bus), Reader.access(bus)
        self._relations = Relations(
            settings.capsule_configuration_name, selector=settings.kubeconfig_namespace_selector
        )
        self._objects.listen(self._relations.apply)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the streams for the length of the block; BusError when they cannot be read at all."""
        stopping = asyncio.Event()
        tasks = [asyncio.ensure_future(reader.run(stopping)) for reader in (self._objects, self._access)]
        try:
            await self._bus.stream_state(WORK)  # says what is missing, before anything is waited for
            try:
                await self._objects.wait_for(0, LOAD_TIMEOUT)
                await self._access.wait_for(0, LOAD_TIMEOUT)
            except TimeoutError:
                raise BusError(
                    f"OBJECTS and the grants cannot be read within {LOAD_TIMEOUT:g} s: look at NATS"
                ) from None
            yield
        finally:
            stopping.set()
            await end(*tasks)

    async def look(self, tenant: str = "") -> Status:
        """Return the present state, of one tenant if it is named; StartError for one that is not there."""
        try:
            queues = await self._queues()
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"the bus cannot be read: {str(error) or type(error).__name__}") from error
        objects, grants = self._objects.view, self._access.view.all()
        whole = assemble(objects, self._relations, grants, queues, now(), watched=self._watched)
        if not tenant:
            return whole
        found = of_tenant(whole, tenant)
        if found is None:
            names = ", ".join(one.name for one in whole.tenants) or "none at all"
            raise StartError(f"the bus knows no Tenant {tenant}; it knows {names}")
        return found

    async def _queues(self) -> Queues:
        infos = {info.name: info for info in await consumers_of(self._bus, WORK)}
        in_hand: dict[str, int] = {}
        for name, info in infos.items():
            worker = name.rpartition("-")[0]
            in_hand[worker] = in_hand.get(worker, 0) + (info.num_ack_pending or 0)
        return Queues(
            work=tuple([message async for message in peek(self._bus, WORK, ">")]),
            dead=await self._stream(DLQ, "dlq.>"),
            audit=await self._stream(AUDIT, "audit.>", last=True),
            set_aside=await read_set_aside(self._bus, now()),
            in_hand=in_hand,
            listening=frozenset(
                name.rpartition("-")[0] for name, info in infos.items() if info.num_waiting or info.num_ack_pending
            ),
        )

    async def _stream(self, stream: str, subject: str, *, last: bool = False) -> tuple[BusMessage, ...]:
        try:
            return tuple([message async for message in read_all(self._bus, stream, subject, last=last)])
        except StreamMissingError:
            return ()


async def pictures(settings: Settings, tenant: str, *, watch: bool) -> AsyncGenerator[Status, None]:
    """Yield the state once, or with ``watch`` again and again until the caller stops. BusError, StartError.

    While it follows, trouble with NATS is waited out; what is shown last then grows old.
    """
    bus = await Bus.connect(settings, "tether")
    try:
        looker = Looker(bus, settings)
        async with looker.following():
            yield await looker.look(tenant)
            while watch:
                await asyncio.sleep(REFRESH)
                try:
                    picture = await looker.look(tenant)
                except BusError:
                    continue
                yield picture
    finally:
        await bus.close()
