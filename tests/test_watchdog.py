"""The watchdog of the tests sees who holds the event loop, and nobody else."""

from __future__ import annotations

import asyncio
import time
from types import CodeType
from typing import Any

import pytest

from tests.watchdog import LIMIT, ROOT, held

SOURCE = """
import time

def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

async def task(seconds):
    spin(seconds)

class Protocol:
    def ready(self, seconds):
        spin(seconds)
"""


def module(room: str) -> dict[str, Any]:
    """Return what a file of a room would hold."""
    code: CodeType = compile(SOURCE, str(ROOT / room / "example.py"), "exec")
    found: dict[str, Any] = {"__name__": f"{room}.example"}
    exec(code, found)  # noqa: S102 -- our own source
    return found


@pytest.mark.holds_the_loop("it is what this is about")
@pytest.mark.parametrize(
    ("room", "whose"), [("proxycore", True), ("workers", True), ("tests", False), ("tether", False)]
)
async def test_a_callback_of_the_product_that_spins_is_seen(room: str, whose: bool) -> None:
    example = module(room)
    loop = asyncio.get_running_loop()

    await asyncio.ensure_future(example["task"](2 * LIMIT))
    loop.call_soon(example["Protocol"]().ready, 2 * LIMIT)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    names = [name for name, _ in held()]
    assert names == ([f"{room}.example.task", f"{room}.example.Protocol"] if whose else [])
    assert all(took > LIMIT for _, took in held())


async def test_who_waits_holds_nobody() -> None:
    example = module("proxycore")

    time.sleep(2 * LIMIT)  # noqa: ASYNC251 -- it takes time and no CPU
    await asyncio.ensure_future(example["task"](LIMIT / 10))

    assert held() == []
