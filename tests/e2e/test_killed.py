"""Any role may die at any time: killed in the midst of the demo and started again, every check still holds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

TETHER = (sys.executable, "-P", "-m", "tether.cli")
# What a killed worker held goes to another after ack_wait; the default of 30 s would only make the test longer.
ENVIRON = {"TETHER_ACK_WAIT": "6s", "TETHER_PULL_EXPIRY": "1s", "TETHER_RECONCILE_TIMEOUT": "3s"}


async def _dev(verb: str, folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *TETHER,
        "dev",
        verb,
        "--dir",
        str(folder),
        env={**os.environ, **ENVIRON},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


@pytest.mark.parametrize("role", ["watcher", "router", "worker", "proxy"])
async def test_the_demo_ends_with_every_check_true_when_a_role_is_killed_and_started_again(
    role: str, tmp_path: Path
) -> None:
    # Given a demo that has just begun to work
    demo = await asyncio.create_subprocess_exec(
        *TETHER,
        "demo",
        "--dir",
        str(tmp_path),
        env={**os.environ, **ENVIRON},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert demo.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(60):
            while not (lines and lines[-1].split()[:2] == ["ok", "apply"]):
                line = await demo.stdout.readline()
                assert line, "".join(lines)
                lines.append(line.decode())

        # When both processes of a role are killed, and started again
        for number in (1, 2):
            os.kill(int((tmp_path / "pids" / f"{role}-{number}.pid").read_text()), signal.SIGKILL)
        await _dev("up", tmp_path)

        # Then the demo ends with every check true
        rest, _ = await asyncio.wait_for(demo.communicate(), 80)
        lines.append(rest.decode())
        assert demo.returncode == 0, "".join(lines)
        assert "Every check held." in "".join(lines)
    finally:
        if demo.returncode is None:
            demo.terminate()
            await demo.wait()
        await _dev("down", tmp_path)
