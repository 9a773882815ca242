"""``tether route``, ``tether work`` and ``tether replay``: the processes of this package."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from eventcore.consumer import run_worker
from eventcore.dead_letters import move
from eventcore.depth import measure
from eventcore.joining import join
from eventcore.kube import KubeClient
from eventcore.reading import Reader
from eventcore.topology import ACCESS, OBJECTS
from eventcore.waiting import pause
from workers import access, kubeconfig, rbac, token
from workers.context import Context
from workers.observing import observe
from workers.replaying import replay
from workers.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eventcore.consumer import Reconcile
    from eventcore.keys import WorkerName
    from eventcore.process import Role

__all__ = ["RECONCILERS", "replay", "route", "work"]

RECONCILERS: Final[Mapping[WorkerName, Callable[[Context], Reconcile]]] = {
    "rbac": rbac.make,
    "token": token.make,
    "kubeconfig": kubeconfig.make,
    "access": access.make,
}
READY_LOOK: Final = 0.2
"""Seconds between looks at whether the views are complete."""


async def route(role: Role) -> None:
    """Route until ``role.stopping`` is set. Ready once everything found at the start was asked for.

    Raises LoginRefusedError and NoJetStreamError at start; NATS and its streams are waited for.
    """
    role.readiness.expect("view", "start")
    bus = await join(role, _name("router"), [OBJECTS, ACCESS])
    if bus is None:
        return
    try:
        objects, grants = Reader.objects(bus, role.metrics), Reader.access(bus, role.metrics)
        router = Router(bus, objects, grants, role.settings, role.metrics)
        # The readers end after the router, which may still publish.
        reading_stops = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for reader in (objects, grants):
                group.create_task(reader.run(reading_stops))
            group.create_task(_report(role, objects, grants))
            group.create_task(_report_start(role, router))
            await router.run(role.stopping)
            reading_stops.set()
    finally:
        await bus.close()


async def work(role: Role, names: Sequence[WorkerName]) -> None:
    """Run these workers in one process, on one view, until ``role.stopping`` is set; then finish what is in hand.

    Raises LoginRefusedError, NoJetStreamError and StartError at start; NATS and its streams are waited for.
    """
    role.readiness.expect("view")
    async with AsyncExitStack() as stack:
        client = await KubeClient.connect(role.settings, role.metrics)
        stack.push_async_callback(client.close)
        bus = await join(role, _name("worker"), [OBJECTS])
        if bus is None:
            return
        stack.push_async_callback(bus.close)
        reader = Reader.objects(bus, role.metrics)
        context = Context(bus, client, reader, role.settings, role.metrics)
        stack.push_async_callback(context.writer.close)
        reading_stops = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.run(reading_stops))
            group.create_task(_report(role, reader))
            group.create_task(move(bus, role.metrics, role.stopping))
            group.create_task(measure(bus, role.metrics, role.stopping))
            group.create_task(observe(context, role.metrics, role.stopping))
            async with asyncio.TaskGroup() as working:
                for name in dict.fromkeys(names):
                    reconcile = RECONCILERS[name](context)
                    working.create_task(
                        run_worker(bus, reader, name, reconcile, role.settings, role.metrics, role.stopping)
                    )
            reading_stops.set()


def _name(what: str) -> str:
    return f"{what}-{socket.gethostname()}-{os.getpid()}"


async def _report(role: Role, *readers: Reader[Any, Any]) -> None:
    while not role.stopping.is_set():
        missing = next((reader.missing for reader in readers if not reader.ready), "")
        role.readiness.set("view", not missing, missing)
        await pause(role.stopping, READY_LOOK)


async def _report_start(role: Role, router: Router) -> None:
    while not role.stopping.is_set():
        role.readiness.set("start", router.started.is_set(), "what was found is not asked for yet")
        await pause(role.stopping, READY_LOOK)
