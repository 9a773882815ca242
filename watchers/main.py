"""``tether watch``: follow the kinds of the cluster and keep OBJECTS true. Any number of watchers run side by side."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.joining import join
from eventcore.kube import KubeClient
from eventcore.reading import Reader
from eventcore.topology import OBJECTS
from watchers.kinds import rows
from watchers.metrics import WatchMetrics
from watchers.watching import KindWatcher, Tools

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.process import Role
    from eventcore.views import Change, ObjectRecord, ObjectsView

READY_LOOK: Final = 1.0
"""Seconds between looks at whether the view is complete."""


async def watch(role: Role) -> None:
    """Watch until ``role.stopping`` is set, then finish what is in flight.

    Ready when the view is complete and every kind that needs no CustomResourceDefinition was listed once. Raises
    LoginRefusedError, NoJetStreamError and StartError at start; NATS and its streams are waited for.
    """
    role.readiness.expect("view", "kinds")
    name = f"watcher-{socket.gethostname()}-{os.getpid()}"
    client = await KubeClient.connect(role.settings, role.metrics)
    try:
        bus = await join(role, name, [OBJECTS])
        if bus is None:
            return
        try:
            await _follow(role, name, bus, client)
        finally:
            await bus.close()
    finally:
        await client.close()


async def _follow(role: Role, name: str, bus: Bus, client: KubeClient) -> None:
    all_rows = rows(role.settings)
    counters = WatchMetrics(role.metrics)
    for metrics in (role.metrics, counters):
        metrics.expect_kinds(row.kind for row in all_rows)
    reader = Reader.objects(bus, role.metrics)
    tools = Tools(
        name=name,
        bus=bus,
        reader=reader,
        client=client,
        settings=role.settings,
        metrics=role.metrics,
        counters=counters,
    )
    waiting = {row.kind for row in all_rows if not row.optional}

    def listed(kind: str) -> None:
        waiting.discard(kind)
        role.readiness.set("view", reader.ready, reader.missing)
        role.readiness.set("kinds", not waiting, f"not listed yet: {', '.join(sorted(waiting))}")

    watchers = {row.kind: KindWatcher(row, tools, on_listed=partial(listed, row.kind)) for row in all_rows}

    def lost(change: Change[ObjectRecord]) -> None:
        """List a kind again when OBJECTS does not hold any more what it held: made anew, or from a backup."""
        old, new = change.old, change.new
        if old is None or old.key.kind not in watchers:
            return
        # A tombstone that expired is no loss.
        if (not old.deleted) if new is None else new.sequence < old.sequence:
            watchers[old.key.kind].relist()

    reader.listen(lost)
    # The reader outlives the kinds: what is in flight at a stop may need it.
    reading_stops = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(reader.run(reading_stops))
        group.create_task(_report_view(role, reader))
        async with asyncio.TaskGroup() as kinds:
            for watcher in watchers.values():
                kinds.create_task(watcher.run(role.stopping))
        reading_stops.set()


async def _report_view(role: Role, reader: Reader[ObjectsView, ObjectRecord]) -> None:
    while not role.stopping.is_set():
        role.readiness.set("view", reader.ready, reader.missing)
        with suppress(TimeoutError):
            await asyncio.wait_for(role.stopping.wait(), READY_LOOK)
