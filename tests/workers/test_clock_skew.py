"""A worker whose clock is wrong: tokens go by the API server's, and a person is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from eventcore import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.workers.conftest import Line

pytestmark = pytest.mark.slow

HOME, NAME = "oil-system", "gitops-reconciler"
ROTATIONS = 3
HOURS = 7200.0


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """Leave the next tests a process that knows nothing of the skew of these."""
    yield
    for one in (clock.KUBE, clock.NATS):
        one.forget()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("ahead", [HOURS, -HOURS], ids=["ahead", "behind"])
async def test_tokens_are_rotated_in_time_and_no_more_often_by_a_worker_whose_clock_is_wrong(
    line: Line, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    # given all of Tether on a machine whose clock is two hours off, and tokens that live for ten minutes
    monkeypatch.setattr(clock, "wall", lambda: time.time() + ahead)
    async with line.everything():
        await line.settle()
    async with line.everything(token_ttl=600.0, token_rotate_after=2.0, token_overlap=1.0):
        began = time.monotonic()
        async with line.reading("oil-production") as seen:

            async def rotated() -> bool:
                return len(seen.tokens) > ROTATIONS

            # when it rotates them, then it does so by timers
            await line.until(rotated, "rotations by timers")
            took = time.monotonic() - began
        # and whoever reads again is never refused, and no token is replaced before its time, which counts whole seconds
        assert seen.refused == 0
        assert took >= 0.9 * (len(seen.tokens) - 2)
        # and the account tells whose clock is wrong
        messages = [one["message"] for one in await line.all("Event", HOME) if one["reason"] == "ClockSkew"]
        assert len(messages) == 1
        assert ("ahead of" if ahead > 0 else "behind") in messages[0]
