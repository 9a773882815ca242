"""What is set aside is told by `tether status` and `tether doctor` while it stands, and no longer."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from eventcore.clock import now
from eventcore.events import AuditRecord, object_event
from eventcore.keys import ObjectKey
from eventcore.publishable import tombstone, withheld
from tether.doctor_bus import look_at_bus
from tether.set_aside import SetAside, read_set_aside
from tether.status_model import Status
from tether.status_view import render

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.events import Outcome
    from eventcore.settings import Settings

LONG = "RoleBinding/dev/aaa... (5000 characters)"


async def put(bus: Bus, name: str, version: int, *, why: str = "", deleted: bool = False) -> None:
    """Publish a version of a Tenant as a watcher does, or the mark in its place."""
    target, uid = ObjectKey("Tenant", "", name), f"u-{name}"
    body = msgspec.json.encode({"metadata": {"name": name, "uid": uid}})
    if why:
        body = withheld("Tenant", name, "", uid, str(version))
    elif deleted:
        body = tombstone("Tenant", body)
    event = object_event("c", target, uid=uid, resource_version=str(version), withheld=why, deleted=deleted)
    await bus.publish(target.subject(), body, event)


async def record(bus: Bus, component: str, action: str, about: str, message: str, outcome: Outcome = "failed") -> None:
    await bus.audit(
        AuditRecord(time=now(), component=component, action=action, outcome=outcome, object=about, message=message)
    )


async def test_what_stands_now_is_told_and_nothing_else(bus: Bus, settings: Settings) -> None:
    # given objects that were withheld, and one that still is; names that are too long, and one that still is
    await put(bus, "mended", 1, why="oversized")
    await put(bus, "mended", 2)
    await put(bus, "gone", 1, why="undecodable")
    await put(bus, "gone", 2, deleted=True)
    await put(bus, "whole", 1)
    await put(bus, "large", 1)
    await put(bus, "large", 2, why="oversized")
    for about in (LONG, "RoleBinding/dev/bbb... (5000 characters)"):
        await record(bus, "watcher", "refused", about, "name: too long")
    await record(bus, "watcher", "restored", "RoleBinding/dev/bbb... (5000 characters)", "gone", outcome="done")
    await record(bus, "watcher", "mass-delete-stopped", "Tenant", "many", outcome="refused")
    await record(bus, "router", "refused", "access/subject/User/ccc... (6000 characters)", "key: too long")
    await bus.publish("audit.watcher._.refused", b"nonsense")
    await bus.publish("objects.Tenant._.=zz", b"nonsense", headers={"ce-withheld": "oversized"})

    # when the bus is looked at
    found = await read_set_aside(bus, now())

    # then each that stands is there with its reason
    assert [(one.object, one.why) for one in found] == [
        (LONG, "name"),
        ("Tenant/large", "oversized"),
        ("access/subject/User/ccc... (6000 characters)", "key"),
    ]
    # and what the router told long ago counts no more, which tells it again while it is so
    later = await read_set_aside(bus, now() + timedelta(days=2))
    assert [one.why for one in later] == ["name", "oversized"]
    # and the doctor sees the same, and how much the server takes
    seen = await look_at_bus(settings)
    assert not seen.error
    assert seen.set_aside == found
    assert seen.max_payload == bus.max_payload == 4 * 1024 * 1024


async def test_a_bus_without_streams_has_set_nothing_aside(bus: Bus) -> None:
    await bus.js.delete_stream("OBJECTS")
    await bus.js.delete_stream("AUDIT")

    assert await read_set_aside(bus, now()) == ()


def test_status_shows_it_and_how_many_more() -> None:
    since = now() - timedelta(minutes=5)
    many = tuple(SetAside(object=f"Tenant/t{number:02}", why="oversized", since=since) for number in range(20))
    console = Console(width=160, record=True, file=io.StringIO())

    console.print(render(Status(time=now(), set_aside=many)))

    text = console.export_text()
    assert "SET ASIDE" in text
    assert "Tenant/t00" in text
    assert "raise max_payload" in text
    assert "and 5 more" in text
