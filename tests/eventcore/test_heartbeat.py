"""A process tells by how much its event loop was late."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from eventcore import heartbeat
from eventcore.metrics import Metrics


def value(metrics: Metrics, series: str) -> float:
    found = metrics.registry.get_sample_value(series)
    return 0.0 if found is None else found


async def test_a_loop_that_is_held_shows_in_the_metric_and_in_the_log(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a heart that beats
    monkeypatch.setattr(heartbeat, "TOLD", 0.2)
    heart = asyncio.ensure_future(heartbeat.beat(metrics, interval=0.01))
    while value(metrics, "tether_loop_held_seconds_count") < 2:
        await asyncio.sleep(0.01)
    before = value(metrics, "tether_loop_held_seconds_sum")

    # when somebody holds the loop
    time.sleep(0.3)  # noqa: ASYNC251 -- that is what is looked for
    beats = value(metrics, "tether_loop_held_seconds_count")
    while value(metrics, "tether_loop_held_seconds_count") == beats:
        await asyncio.sleep(0.01)

    # then the metric and the log tell
    assert value(metrics, "tether_loop_held_seconds_sum") - before >= 0.25
    assert "the event loop was held" in capsys.readouterr().out
    heart.cancel()
    with suppress(asyncio.CancelledError):
        await heart
