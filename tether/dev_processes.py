"""Processes that outlive the command that started them: start, recognise, wait for and stop them.

A process is known by its id and its start time together, since the kernel gives ids out again. Waiting goes through a
pidfd, which also tells of processes that are not our children.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STAT_STATE = 0  # fields of /proc/<pid>/stat after the name, which may hold anything
_STAT_FLAGS = 6
_STAT_STARTED = 19
_DEAD = frozenset("ZXx")
_EXITING = 0x4  # PF_EXITING
_KILL = 1 << (signal.SIGKILL - 1)


class Ident(msgspec.Struct, frozen=True):
    """Which process: its id, and its start in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Ident | None:
        """Return the identity of a live process; None when there is none, or it was killed, or only its remains."""
        try:
            # In this order: a signal that is not pending any more has had its effect.
            pending = Path(f"/proc/{pid}/status").read_text().partition("\nSigPnd:")[2].split()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[_STAT_STATE] in _DEAD:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # ours: nobody else would take its remains away
            return None
        if int(fields[_STAT_FLAGS]) & _EXITING or int(pending[0] if pending else "0", 16) & _KILL:
            return None
        return cls(pid, int(fields[_STAT_STARTED]))

    @property
    def alive(self) -> bool:
        """Tell whether this very process runs."""
        return Ident.of(self.pid) == self


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command of a module of ours in this interpreter, without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start(command: list[str], *, environ: Mapping[str, str], log: Path) -> Ident:
    """Start a process in a session of its own, stdin from nowhere, output appended to ``log``; OSError if it cannot."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        command,
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )
    # One that ended at once leaves remains to its parent, so its stat is still there.
    return Ident(pid, _started(pid))


def _started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_STAT_STARTED])


async def ended(ident: Ident) -> None:
    """Return when the process has ended; at once when it does not run.

    One that was killed is dead before the last of its threads is: until then its ports are taken.
    """
    try:
        descriptor = os.pidfd_open(ident.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        loop.add_reader(descriptor, over.set)
        # Asked after the descriptor is open, so that it stands for this process and no later one.
        with suppress(FileNotFoundError, ProcessLookupError):
            if _started(ident.pid) == ident.started:
                await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    Ident.of(ident.pid)


def send(ident: Ident, number: signal.Signals) -> None:
    """Signal this very process; nothing happens when it is gone."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(ident.pid)
        try:
            if ident.alive:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


async def stop(idents: Iterable[Ident], *, grace: float) -> list[Ident]:
    """End processes together with SIGTERM, and with SIGKILL those that live after ``grace`` seconds; return these."""
    waits = {asyncio.ensure_future(ended(ident)): ident for ident in idents}
    if not waits:
        return []
    for ident in waits.values():
        send(ident, signal.SIGTERM)
    _, late = await asyncio.wait(waits, timeout=grace)
    for wait in late:
        send(waits[wait], signal.SIGKILL)
    if late:
        await asyncio.wait(late)
    return [waits[wait] for wait in late]


def tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log, at most a few kilobytes; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
