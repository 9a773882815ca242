"""Fixtures of the command line: a clean environment, and `tether` as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import pytest

# looptime asks for the current loop even in tests that have none, and Python 3.11 would make one that nobody closes.
asyncio.set_event_loop(None)


Tether = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TETHER_") or name == "KUBECONFIG":
            monkeypatch.delenv(name)


@pytest.fixture
def tether() -> Tether:
    """Run ``tether`` as a person does: as a process; keyword arguments are variables of its environment.

    Returns exit code, output and errors.
    """

    async def run(*arguments: str, **environ: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "tether.cli",
            *arguments,
            env={**os.environ, **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    return run
