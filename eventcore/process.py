"""How a role runs as a process: logs, probes, signals, and an exit code that says what happened.

    0   stopped as asked, or done
    1   cannot do its work here: one line on stderr says what is wrong and what to do
    2   a setting is wrong
    70  a bug: one line in the log, with the traceback at --log-level debug

Heavy libraries (Kubernetes, cryptography) are not imported here: the first event is handled soon after start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventcore import logs
from eventcore.errors import SettingsError, StartError, TetherError
from eventcore.health import HealthServer, Readiness
from eventcore.heartbeat import beat
from eventcore.metrics import Metrics
from eventcore.printable import printable
from eventcore.sockets import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from eventcore.settings import Settings

EXIT_OK = 0
EXIT_CANNOT = 1
EXIT_SETTINGS = 2
EXIT_BUG = 70

_CANCEL_WAIT = 2.0


@dataclass(kw_only=True)
class Role:
    """What a role's main function gets: who it is, and how it is told to stop."""

    name: str
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    readiness: Readiness = field(default_factory=Readiness)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    log: FilteringBoundLogger
    http_port: int = 0
    """The port of probes and metrics, once they are served."""
    metrics_text: Callable[[], Awaitable[bytes]] | None = None
    """What is served as metrics instead of this process's own."""

    async def text(self) -> bytes:
        """Return the metrics of the role."""
        return self.metrics.render() if self.metrics_text is None else await self.metrics_text()


def run_role(
    name: str,
    settings: Settings,
    main: Callable[[Role], Awaitable[None]],
    *,
    delay: float = 0.0,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run ``main`` until it ends or SIGTERM or SIGINT comes, and return the exit code.

    On a signal the process is not ready any more, ``role.stopping`` is set, and ``main`` has ``shutdown_grace`` seconds
    to return; then it is cancelled. A second signal cancels it at once. After SIGTERM all goes on for ``delay`` seconds
    first, in which those who send work here learn that it leaves; a signal ends them. ``new_loop`` makes another event
    loop than asyncio's.
    """
    logs.configure(settings.log_level, settings.log_format, name)
    raise_file_limit()
    role = Role(name=name, settings=settings, log=logs.get(f"tether.{name}"))
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            return runner.run(_run(role, main, delay))
        except KeyboardInterrupt:
            # SIGINT before the handlers stood.
            return EXIT_OK
        except Exception as error:  # noqa: BLE001 - the end of the process: every error becomes a line and a code
            return report(name, error)


def report(name: str, error: BaseException) -> int:
    """Tell a person or the log about an error that ends a process; return the exit code.

    A group of errors, as a TaskGroup raises it, counts as its first unexpected one, else its first.
    """
    first = next((leaf for leaf in _leaves(error) if not isinstance(leaf, TetherError)), None)
    if first is not None:
        logs.get("eventcore.process").error("process failed on an unexpected error", role=name, error=first)
        return EXIT_BUG
    known = next(_leaves(error))
    logs.get("eventcore.process").debug("process cannot go on", role=name, error=known)
    sys.stderr.write(f"tether {name}: {printable(logs.redact(' '.join(str(known).split())))}\n")
    return EXIT_SETTINGS if isinstance(known, SettingsError) else EXIT_CANNOT


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _run(role: Role, main: Callable[[Role], Awaitable[None]], delay: float) -> int:
    loop = asyncio.get_running_loop()
    logs.watch_loop(loop)
    health = HealthServer(
        role.settings.http_host, role.settings.http_port, readiness=role.readiness, metrics=role.metrics, text=role.text
    )
    role.http_port = await health.start()
    heart = asyncio.ensure_future(beat(role.metrics))
    work = asyncio.ensure_future(main(role))
    try:
        with _signals(loop, role, work, delay):
            role.log.info("process started", http_port=role.http_port)
            return await _until_done(role, work)
    finally:
        heart.cancel()
        await health.stop()


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, role: Role, work: asyncio.Future[None], delay: float) -> Iterator[None]:
    leaving: asyncio.TimerHandle | None = None

    def on_signal(received: signal.Signals) -> None:
        nonlocal leaving
        if role.stopping.is_set():
            role.log.warning("second signal, stopping at once", signal=received.name)
            work.cancel()
            return
        role.readiness.set("process", ok=False, why="stopping")
        if leaving is None and delay and received == signal.SIGTERM:
            role.log.info("leaving", signal=received.name, seconds=delay)
            leaving = loop.call_later(delay, stop, received)
        else:
            stop(received)

    def stop(received: signal.Signals) -> None:
        role.log.info("stopping", signal=received.name)
        role.stopping.set()

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, on_signal, one)
    try:
        yield
    finally:
        if leaving is not None:
            leaving.cancel()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)


async def _until_done(role: Role, work: asyncio.Future[None]) -> int:
    told: asyncio.Future[bool] = asyncio.ensure_future(role.stopping.wait())
    either: set[asyncio.Future[Any]] = {work, told}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=role.settings.shutdown_grace)
    finally:
        told.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work}, timeout=_CANCEL_WAIT)
        raise StartError("did not finish its work in --shutdown-grace; what was in hand is done again by another")
    if work.cancelled():
        role.log.info("process stopped before its work was finished")
        return EXIT_CANNOT
    work.result()
    role.log.info("process stopped")
    return EXIT_OK
