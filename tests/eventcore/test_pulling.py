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
    missed = 0
    for _ in range(20):
        # given a worker waits for work
        ending = Pull(leaving, "WORK", consumer)
        await ending.request(batch=1, expires=20)
        await leaving.nc.flush()

        # when it stops while the server sends it some
        await staying.work("rbac", ACCOUNT, WorkRequest(reason="replay"))
        await ending.close_and_give_back()

        # then the next worker gets that, long before ack_wait is over
        missed += not await handles_next(staying, consumer)

    # The server may send one that it had chosen the pull for after it has heard of the end: that one waits.
    assert missed <= 1


async def handles_next(bus: Bus, consumer: str) -> bool:
    pull = Pull(bus, "WORK", consumer)
    await pull.request(batch=1, expires=5)
    try:
        message = await pull.next(5)
    except TimeoutError:
        return False
    else:
        assert message is not None
        if status_of(message) is not None:
            return False
        await message.ack_sync()
        return True
    finally:
        await pull.close()
