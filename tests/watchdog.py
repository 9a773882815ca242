"""No callback of the product holds the event loop longer than 50 ms: each one is measured in every test.

In CPU time of the thread, since other processes make the wall clock of a test say anything. What the tests themselves
and the embedded cluster do in the same loop is not counted, nor is a collection of garbage of the whole test process.
"""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT: Final = 0.05
ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("eventcore", "watchers", "workers", "proxycore")
_run: Final = asyncio.Handle._run  # noqa: SLF001 -- the one place that every callback goes through
_held: list[tuple[str, float]] = []
_collecting = [0.0, 0.0]  # when a collection began, and the seconds of all


def _measured(handle: asyncio.Handle) -> None:
    begun, collected = time.thread_time(), _collecting[1]
    _run(handle)
    took = time.thread_time() - begun
    if took > LIMIT:
        took -= _collecting[1] - collected
        if took > LIMIT and (whose := _ours(handle)):
            _held.append((whose, took))


def held() -> list[tuple[str, float]]:
    """Return who held the loop in this test, and for how many seconds."""
    return list(_held)


def _ours(handle: asyncio.Handle) -> str:
    """Return what of the product a callback is, "" for anything else."""
    callback: Any = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine: Any = owner.get_coro()
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "ag_code", None)
        file = Path(code.co_filename) if code is not None else ROOT
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts) if file.is_relative_to(ROOT) else ""
        return _named(module, getattr(coroutine, "__qualname__", ""))
    for part in ("_protocol", "_app_protocol", "_ssl_protocol"):
        owner = getattr(owner, part, owner)
    owner = getattr(owner, "_app_protocol", owner)
    found = _named(type(owner).__module__, type(owner).__qualname__)
    return found or _named(getattr(callback, "__module__", "") or "", getattr(callback, "__qualname__", ""))


def _named(module: str, name: str) -> str:
    # What a role's main does by itself is its start: certificates and settings, read once before anybody is served.
    ours = module.partition(".")[0] in ROOMS and not module.endswith(".main")
    return f"{module}.{name}" if ours else ""


def _collects(phase: str, _: dict[str, int]) -> None:
    if phase == "start":
        _collecting[0] = time.thread_time()
    else:
        _collecting[1] += time.thread_time() - _collecting[0]


asyncio.Handle._run = _measured  # type: ignore[method-assign, assignment]  # noqa: SLF001 -- as above
gc.callbacks.append(_collects)


@pytest.fixture(autouse=True)
def nothing_holds_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which a callback held the loop; ``holds_the_loop(why)`` marks one that may."""
    _held.clear()
    yield
    found = held()
    if found and request.node.get_closest_marker("holds_the_loop") is None:
        told = ", ".join(f"{whose} {took * 1000:.0f} ms" for whose, took in found)
        pytest.fail(f"the event loop was held longer than {LIMIT * 1000:.0f} ms of CPU: {told}")
