"""What happens to an object in the cluster happens on OBJECTS, once and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from eventcore.events import OBJECT_CHANGED, OBJECT_DELETED
from eventcore.keys import ObjectKey

if TYPE_CHECKING:
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
OIL = ObjectKey("Namespace", "", "oil-production")


async def test_a_created_changed_and_deleted_object_reaches_objects_once_each(world: World) -> None:
    async with world.watcher():
        await world.api.until_asked("WATCH", NAMESPACES)

        await world.api.put(NAMESPACES, "oil-production", metadata={"labels": {"step": "1"}})
        await world.api.put(NAMESPACES, "oil-production", metadata={"labels": {"step": "2"}})
        await world.objects.until_many(OIL, 2)
        changes = world.objects.of(OIL)
        await world.api.delete(NAMESPACES, "oil-production")
        await world.objects.until_many(OIL, 3)

    bodies = [msgspec.json.decode(message.data) for message in world.objects.of(OIL)]
    assert [body["metadata"].get("labels") for body in bodies] == [{"step": "1"}, {"step": "2"}, {"step": "2"}]
    assert [message.headers["ce-type"] for message in world.objects.of(OIL)] == [
        OBJECT_CHANGED,
        OBJECT_CHANGED,
        OBJECT_DELETED,
    ]
    assert [message.headers["Nats-Msg-Id"] for message in changes] == ["default:uid-1:101", "default:uid-1:102"]
