"""Detached processes: known by id and start time, waited for by event, stopped within their grace."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tether import dev_processes
from tether.dev_processes import Ident

Start = Callable[[list[str]], Awaitable[Ident]]
SLEEPER = [sys.executable, "-P", "-c", "import signal; print('up', flush=True); signal.pause()"]
DEAF = [
    sys.executable,
    "-P",
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()",
]

THREADS = """
import signal, threading
for _ in range(200):
    threading.Thread(target=signal.pause, daemon=True).start()
print('up', flush=True)
signal.pause()
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Start a process and return when it says that it is up; what is left at the end of the test is killed."""
    log = tmp_path / "fifo"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    idents: list[Ident] = []

    async def start(command: list[str]) -> Ident:
        idents.append(dev_processes.start(command, environ=dict(os.environ), log=log))
        up = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, up.set)
        await up.wait()
        asyncio.get_running_loop().remove_reader(reader)
        return idents[-1]

    yield start
    for ident in idents:
        dev_processes.send(ident, signal.SIGKILL)
    os.close(reader)


async def test_a_started_process_has_a_session_of_its_own(started: Start) -> None:
    ident = await started(SLEEPER)

    session = os.getsid(ident.pid)
    await dev_processes.stop([ident], grace=10)

    assert session == ident.pid


async def test_its_output_goes_to_the_log_and_is_appended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-P", "-c", "import sys; print('out', flush=True); print('err', file=sys.stderr)"]

    for _ in range(2):
        await dev_processes.ended(dev_processes.start(command, environ=dict(os.environ), log=log))

    assert log.read_text().split() == ["out", "err", "out", "err"]
    assert log.stat().st_mode & 0o077 == 0


async def test_a_process_that_was_killed_is_not_alive_though_it_has_not_ended_yet(started: Start) -> None:
    ident = await started([*SLEEPER[:-1], THREADS])

    os.kill(ident.pid, signal.SIGKILL)

    assert not ident.alive
    await dev_processes.ended(ident)


async def test_the_end_of_a_killed_process_is_noticed_and_it_is_not_alive(started: Start) -> None:
    ident = await started(SLEEPER)
    waiting = asyncio.ensure_future(dev_processes.ended(ident))

    os.kill(ident.pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, 10)

    assert not ident.alive


async def test_waiting_for_a_process_that_is_long_gone_returns_at_once(tmp_path: Path) -> None:
    ident = dev_processes.start([sys.executable, "-P", "-c", ""], environ=dict(os.environ), log=tmp_path / "log")
    await dev_processes.ended(ident)

    await asyncio.wait_for(dev_processes.ended(ident), 10)


async def test_a_process_that_was_given_a_used_id_is_taken_for_another(started: Start) -> None:
    later = await started(SLEEPER)
    gone = Ident(later.pid, later.started - 1)

    late = await dev_processes.stop([gone], grace=10)

    assert not gone.alive
    assert late == []
    assert later.alive, "a process that only shares the id was signalled"
    await dev_processes.stop([later], grace=10)


async def test_sigterm_ends_a_process_within_its_grace(started: Start) -> None:
    ident = await started(SLEEPER)

    killed = await dev_processes.stop([ident], grace=10)

    assert killed == []
    assert not ident.alive


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(started: Start) -> None:
    ident = await started(DEAF)

    killed = await dev_processes.stop([ident], grace=0.2)

    assert killed == [ident]
    assert not ident.alive


def test_a_command_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dev_processes.start(["/no/such/command"], environ={}, log=tmp_path / "log")


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))

    assert dev_processes.tail(log, 2) == "line 998\nline 999"
    assert dev_processes.tail(tmp_path / "none") == ""
