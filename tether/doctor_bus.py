"""Looking at NATS for `tether doctor`: is it there, is the topology right, does anybody watch and work."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import nats.errors

from eventcore import topology
from eventcore.bus import KV_PREFIX
from eventcore.bus import Bus as Connection
from eventcore.clock import KUBE, NATS, now
from eventcore.errors import BusError, EventError, SettingsError, StreamMissingError
from eventcore.events import Mark, decode_body
from eventcore.keys import LANES, WORKERS, Key, lane_consumer
from eventcore.logs import redact
from eventcore.topology import consumers_of
from tether.doctor_snapshot import Bus
from tether.set_aside import read_set_aside
from tether.status_read import read_all
from watchers.kinds import rows
from workers.ownership import Account

if TYPE_CHECKING:
    from eventcore.settings import Settings


async def look_at_bus(settings: Settings) -> Bus:
    """Return what NATS says; that it cannot be reached is a finding too."""
    url = redact(settings.nats_url)
    try:
        connection = await Connection.connect(settings, "tether")
    except (BusError, SettingsError) as error:
        return Bus(url=url, error=redact(str(error)))
    try:
        differences = tuple(str(d) for d in await topology.apply(connection, settings, dry_run=True))
        return Bus(
            url=url,
            differences=differences,
            ages=await _ages(connection, settings),
            idle=await _idle(connection),
            max_payload=connection.max_payload,
            set_aside=await read_set_aside(connection, now()),
            dead_letters=await _dead_letters(connection),
            audit_fill=await _audit_fill(connection, settings),
            skew=await _skew(connection),
            former=await _former(connection),
        )
    except (BusError, nats.errors.Error, TimeoutError) as error:
        return Bus(url=url, error=f"answers, but cannot be read: {str(error) or type(error).__name__}")
    finally:
        await connection.close()


async def _ages(connection: Connection, settings: Settings) -> dict[str, float]:
    """Return the ages of the kinds that are watched; marks of a kind that a setting switched off stay behind."""
    watched = {row.kind for row in rows(settings)}
    try:
        marks = [decode_body(Mark, m.data) async for m in read_all(connection, topology.OBJECTS, "marks.*", last=True)]
    except StreamMissingError:
        return {}
    return {mark.kind: max(0.0, (now() - mark.time).total_seconds()) for mark in marks if mark.kind in watched}


async def _skew(connection: Connection) -> float:
    """Return how many seconds the clock of NATS is ahead of the API server's."""
    try:
        await connection.stream_state(topology.OBJECTS)
    except StreamMissingError:
        return 0.0
    return NATS.offset - KUBE.offset


async def _former(connection: Connection) -> tuple[Account, ...]:
    """Return the accounts whose grant was taken back: a deleted key of the bucket stays as such."""
    prefix = KV_PREFIX
    try:
        messages = [m async for m in read_all(connection, topology.ACCESS, f"{prefix}account.>", last=True)]
    except StreamMissingError:
        return ()
    found = []
    for message in messages:
        with suppress(EventError):
            parts = Key.of_token(message.subject.removeprefix(prefix)).parts
            if "KV-Operation" in message.headers and len(parts) == len("abc"):
                found.append(Account(*parts[1:]))
    return tuple(sorted(found))


async def _idle(connection: Connection) -> tuple[str, ...]:
    found = {info.name: info for info in await consumers_of(connection, topology.WORK)}
    idle = []
    for worker in WORKERS:
        lanes = [found[name] for lane in range(LANES) if (name := lane_consumer(worker, lane)) in found]
        if lanes and not any(lane.num_waiting or lane.num_ack_pending for lane in lanes):
            idle.append(worker)
    return tuple(idle)


async def _dead_letters(connection: Connection) -> int:
    try:
        return len([1 async for _ in read_all(connection, topology.DLQ, "dlq.>")])
    except StreamMissingError:
        return 0


async def _audit_fill(connection: Connection, settings: Settings) -> float:
    try:
        return (await connection.stream_state(topology.AUDIT)).size / settings.audit_max_bytes
    except StreamMissingError:
        return 0.0
