"""``tether demo``: a development cluster, the guide's example, and a check of every step."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from eventcore import logs
from eventcore.bus import Bus
from eventcore.errors import StartError, TetherError
from eventcore.kube import KubeClient
from eventcore.settings import Settings
from tether import demo_view, dev
from tether.demo_sightings import Sightings
from tether.demo_steps import Steps
from tether.demo_view import StepResult
from tether.dev_layout import Layout
from tether.terminal import say, say_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tether.demo_view import View

T = TypeVar("T")

STEP_SECONDS = 120.0
"""Longer than it takes another worker to get what a killed one held (--ack-wait)."""

EXIT_OK = 0
EXIT_FAILED = 1

_STEPS = (
    ("start", "NATS, a Kubernetes API with Capsule's part, two each of watcher, router, worker, proxy"),
    ("apply", "the example: tenants oil and gas, their accounts, Capsule's configuration"),
    ("annotate", "the administrator marks the accounts"),
    ("rbac", "the accounts get their rights"),
    ("token", "and a token each, minted and bound"),
    ("kubeconfig", "and a kubeconfig at home"),
    ("namespaces", "each account makes two namespaces, through its kubeconfig and the proxy"),
    ("distribute", "the kubeconfig follows into each of them"),
    ("list", "through the proxy oil lists exactly its own namespaces"),
    ("direct", "the API server refuses the same account with the same token"),
    ("isolation", "gas sees only gas; neither reaches the other"),
    ("audit", "each grant, mint, write and refusal is in the audit stream with its cause"),
)


class Result(msgspec.Struct, kw_only=True):
    """What ``--json`` prints."""

    ok: bool
    steps: list[StepResult]
    times: dict[str, float | int | None]
    dir: str = ""  # with --keep: where it still runs


def main(folder: Path | None, *, keep: bool, as_json: bool) -> int:
    """Run the demo and return the exit code. Interrupted, it ends what it started first."""
    if folder is not None and Layout(folder).exists():
        raise StartError(f"--dir {folder} holds a development cluster already: give the demo a folder of its own")
    logs.configure("error", "console", "demo")
    where = folder or Path(tempfile.mkdtemp(prefix="tether-demo-"))
    try:
        result = asyncio.run(_run_until_told(where, keep=keep, as_json=as_json))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # SIGTERM, told as Ctrl-C is
    finally:
        left = [name for name, ident in Layout(where).load().processes.items() if ident.alive]
        if left and not keep:  # interrupted twice
            say(f"tether: {', '.join(left)} still run; end them with: tether dev down --dir {where}", err=True)
        elif folder is None and not keep:
            shutil.rmtree(where, ignore_errors=True)
    if as_json:
        say(msgspec.json.encode(result).decode())
    else:
        say_text(_farewell(result, where))
    return EXIT_OK if result.ok else EXIT_FAILED


async def _run_until_told(folder: Path, *, keep: bool, as_json: bool) -> Result:
    task = asyncio.current_task()
    if task is not None:
        # As Ctrl-C does: what was started is ended before we go.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    demo = _Demo(folder, demo_view.choose(as_json=as_json))
    finished = False
    try:
        result = await demo.run()
        finished = True
        return msgspec.structs.replace(result, dir=str(folder) if keep else "")
    finally:
        if not (keep and finished) and Layout(folder).exists():
            await dev.down(folder)


class _Demo:
    def __init__(self, folder: Path, view: View) -> None:
        self._folder = folder
        self._view = view
        self._results: list[StepResult] = []
        self._last_note = ""

    async def run(self) -> Result:
        times: dict[str, float | int | None] = {}
        try:
            async with AsyncExitStack() as stack:
                steps = await self._step(0, lambda: self._start(stack))
                if steps is not None:
                    await self._steps(steps)
                    times = steps.times()
        finally:
            self._view.close()
        done = len(self._results) == len(_STEPS)
        for name, title in _STEPS[len(self._results) :]:
            self._results.append(StepResult(name=name, title=title, detail="not reached"))
        return Result(ok=done and all(one.ok for one in self._results), steps=self._results, times=times)

    async def _start(self, stack: AsyncExitStack) -> Steps:
        addresses = await dev.up(self._folder, say=self._note)
        tenants = self._folder / "tenants"
        tenants.mkdir(mode=0o700, exist_ok=True)
        admin = await KubeClient.connect(Settings(kubeconfig=str(addresses.admin_kubeconfig)))
        stack.push_async_callback(admin.close)
        bus = await Bus.connect(Settings(nats_url=addresses.nats_url), "tether-demo")
        stack.push_async_callback(bus.close)
        sightings = Sightings(admin)
        following = asyncio.create_task(sightings.run())
        stack.push_async_callback(_end, following)
        return Steps(addresses=addresses, admin=admin, bus=bus, sightings=sightings, folder=tenants, note=self._note)

    async def _steps(self, steps: Steps) -> None:
        actions: tuple[Callable[[], Awaitable[str]], ...] = (
            steps.apply,
            steps.annotate,
            steps.rbac,
            steps.token,
            steps.home_kubeconfig,
            steps.create_namespaces,
            steps.distribute,
            steps.list_own,
            steps.direct,
            steps.isolation,
            steps.audit,
        )
        for number, action in enumerate(actions, start=1):
            await self._step(number, action)
            if not self._results[-1].ok:
                return

    async def _step(self, number: int, action: Callable[[], Awaitable[T]]) -> T | None:
        """Do one step within its time; record and show how it went. None when it failed."""
        name, title = _STEPS[number]
        result = StepResult(name=name, title=title)
        self._last_note = ""
        self._view.begin(result)
        began = time.monotonic()
        value: T | None = None
        try:
            async with asyncio.timeout(STEP_SECONDS if number else None):  # the start has a deadline of its own
                value = await action()
        except TimeoutError:
            result.detail = f"not within {STEP_SECONDS:g} s: {self._last_note or 'no answer'}"
        except TetherError as error:
            result.detail = "\n".join((str(error), *getattr(error, "__notes__", ())))
        else:
            result.ok, result.detail = True, value if isinstance(value, str) else ""
        result.milliseconds = round((time.monotonic() - began) * 1000, 1)
        self._results.append(result)
        self._view.end(result)
        return value

    def _note(self, text: str) -> None:
        self._last_note = text
        self._view.note(text)


def _farewell(result: Result, folder: Path) -> str:
    """Return what to say at the end: whether all held, the two times, and what to try next."""
    times = result.times
    lines = ["\n"]
    if times.get("annotation_to_kubeconfig_ms") is not None and times.get("namespace_to_kubeconfig_ms") is not None:
        lines.append(
            f"annotation to kubeconfig at home: {times['annotation_to_kubeconfig_ms']:.0f} ms median, "
            f"{times['annotation_to_kubeconfig_max_ms']:.0f} ms at most\n"
            f"new namespace to kubeconfig in it: {times['namespace_to_kubeconfig_ms']:.0f} ms median, "
            f"{times['namespace_to_kubeconfig_max_ms']:.0f} ms at most\n\n"
        )
    if result.ok:
        lines.append("Every check held.\n\n")
    else:
        failed = next(step for step in result.steps if not step.ok)
        lines.append(f"FAILED at {failed.name}: {failed.detail}\n\n")
    if result.dir:
        tenant = folder / "tenants" / "oil.kubeconfig"
        pairs = [
            (f"kubectl --kubeconfig {tenant} get namespaces", "as oil's account, through the proxy"),
            (f"kubectl --kubeconfig {folder / 'admin.kubeconfig'} get tenants", "as the administrator"),
            (f". {folder / 'env.sh'} && tether audit tail", "what was done, and why"),
            (f"kill -9 $(cat {folder / 'pids'}/worker-1.pid)", "the other worker takes over;"),
            (f"tether dev up --dir {folder}", "brings it back"),
            (f"tether dev down --dir {folder}", "ends all of it"),
        ]
        lines.append("It runs on. Try:\n" + demo_view.as_lines(pairs))
    else:
        pairs = [
            ("tether demo --keep", "leave it running, and use kubectl with it"),
            ("tether dev up --dir DIR", "an empty cluster with Tether, for your own tenants"),
            ("tether --help", "everything else"),
        ]
        lines.append("Next:\n" + demo_view.as_lines(pairs))
    return "".join(lines)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
