"""The end of a pull: what the server had sent already is given back, and not left to rest for the whole of ack_wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore.events import WorkRequest
from eventcore.keys import key, lane_consumer
from eventcore.pulling import Pull, status_of

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from tests.conftest import MakeBus

ACCOUNT = key("oil-system", "gitops-reconciler")


async def test_a_message_that_is_on_its_way_when_a_pull_ends_goes_to_the_next_one(make_bus: MakeBus) -> None:
    leaving, staying = await make_bus("leaving"), await make_bus("staying")
    consumer = lane_consumer("rbac", ACCOUNT.lane())
    for _ in range(20):
        # given a worker waits for work
        ending = Pull(leaving, "WORK", consumer)
        await ending.request(batch=1, expires=20)
        await leaving.nc.flush()

        # when it stops while the server sends it some
        await staying.work("rbac", ACCOUNT, WorkRequest(reason="replay"))
        await ending.close_and_give_back()

        # then the next worker gets that, long before ack_wait is over
        await handle_next(staying, consumer)


async def handle_next(bus: Bus, consumer: str) -> None:
    pull = Pull(bus, "WORK", consumer)
    await pull.request(batch=1, expires=20)
    message = await pull.next(20)
    assert message is not None
    assert status_of(message) is None
    await message.ack_sync()
    await pull.close()
