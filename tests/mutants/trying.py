"""Tries mutants: each in a process of its own, forked where everything is imported already.

First the tests are collected once, and it is learned which of them enter which function. A mutant of a function is then
one fork: the function gets the changed code, and the tests that enter it run, the quick ones first, until one fails.
That tells nothing of what is changed outside of functions, and little of a function that was entered before the first
test. So such a mutant, if not killed, is tried from the beginning: in a process that has imported nothing of ours, all
tests of the module run with the changed module.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final

import hypothesis
import msgspec
import pytest

from tests.mutants.mutations import Mutant

BUSY = 60
"""Seconds of processor time after which a mutant counts as killed: it goes round in a circle."""
IDLE = 600.0
"""The same in seconds of the clock, for what waits for something that never comes; on a busy machine too."""
SERVERS = frozenset({"nats_server", "world", "line", "control_plane"})
"""Fixtures that start servers. Tests with them are too slow to run for every mutant."""
_REWRITES = "ignore::pytest.PytestAssertRewriteWarning"  # of what every fork has imported already
# Generated examples are the same for every mutant, and few: what decides has an example of its own.
hypothesis.settings.register_profile(
    "mutants", max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
_ARGUMENTS = (
    "-x",
    "-q",
    "-m",
    "not slow",
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=",
    "-W",
    _REWRITES,
)

KILLED, SURVIVED, UNSURE = "killed", "survived", "unsure"
Report = Callable[[int, str], None]
"""Takes the place of a mutant and what became of it."""
_UNCHANGED: Final = 71
"""Exit code of a process in which no function has the change."""


def arguments(tests: Sequence[str]) -> list[str]:
    """Return what pytest is called with."""
    return [*_ARGUMENTS, "--import-mode=importlib", "--hypothesis-profile=mutants", *tests]


def started(work: Callable[[], int], output: str = os.devnull) -> int:
    """Start a function in a process of its own, what it prints going to a file; return the process."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        to = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(to, stream)
        code = work()
    except BaseException:  # noqa: BLE001 -- whatever it is, it must not go on in what was the parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int, seconds: float | None = None) -> int | None:
    """Return the exit code of a process; None when it takes longer, and then it is ended."""
    handle = os.pidfd_open(child)
    try:
        in_time, _, _ = select.select([handle], [], [], seconds)
    finally:
        os.close(handle)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None


def from_the_beginning(mutant: Mutant, tests: Sequence[str]) -> str:
    """Return what becomes of a mutant that is in the module from its import on."""

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (BUSY, BUSY))
        sys.meta_path.insert(0, _Finder(_Changed(mutant)))
        return int(pytest.main(arguments(tests), plugins=[WithoutServers()]))

    return SURVIVED if ended(started(work), IDLE) == pytest.ExitCode.OK else KILLED


class _Changed(SourceFileLoader):
    """Loads a module with a change in it."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(module_name(mutant.path), str(Path(mutant.path).resolve()))
        self._source = mutant.source()

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 -- it has one
        return compile(self._source, self.path, "exec")


class _Finder(MetaPathFinder):
    """Finds that module before anything else does."""

    def __init__(self, loader: _Changed) -> None:
        self._loader = loader

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self._loader.name:
            return None
        return spec_from_file_location(fullname, self._loader.path, loader=self._loader)


def module_name(path: str) -> str:
    """Return the dotted name of a module."""
    return path.removesuffix(".py").replace("/", ".")


class WithoutServers:
    """A plugin that leaves out tests which need servers."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [one for one in items if SERVERS.isdisjoint(getattr(one, "fixturenames", ()))]


class InFunctions(WithoutServers):
    """A plugin: in place of the tests, each mutant's tests in a fork of this process."""

    def __init__(self, path: str, mutants: Sequence[tuple[int, Mutant]], report: Report) -> None:
        self._path = path
        self._file = str(Path(path).resolve())
        self._mutants = mutants
        self._report = report
        self._failed = False
        self._early: set[str] = set()

    def pytest_sessionstart(self) -> None:
        sys.setprofile(self._entering(self._early.add))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        sys.setprofile(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        entered = self._entered(session.items)
        for place, mutant in self._mutants:
            items = [session.items[number] for number in entered.get(mutant.function, ())]
            code = ended(started(partial(self._try, mutant, items)), IDLE)
            unsure = code == _UNCHANGED or (code == 0 and mutant.function in self._early)
            self._report(place, UNSURE if unsure else SURVIVED if code == 0 else KILLED)
        return True

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item]) -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (BUSY, BUSY))
        return self._run(items) if self._change(mutant) else _UNCHANGED

    def _run(self, items: Sequence[pytest.Item]) -> int:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                return 1
        return 0

    def _change(self, mutant: Mutant) -> bool:
        """Give the live function the changed code; False where its code is not what changed."""
        old = sys.modules[module_name(self._path)]
        code = _codes(compile(mutant.source(), self._file, "exec")).get(mutant.function)
        for kept in vars(old).values():
            if hasattr(kept, "cache_clear"):
                kept.cache_clear()
        function = _function(old, mutant.function)
        if code is None or function is None or code == function.__code__:
            return False
        function.__code__ = code
        return True

    def _entered(self, items: Sequence[pytest.Item]) -> dict[str, list[int]]:
        """Return the tests that enter each function, the quick ones first. All of them must pass."""
        reading, writing = os.pipe()
        child = started(partial(self._learn, items, writing))
        os.close(writing)
        with open(reading, "rb") as answer:  # noqa: PTH123 -- a descriptor
            learned = answer.read()
        if ended(child) != 0:
            raise pytest.UsageError("the tests fail without a change, so they tell nothing: run them alone")
        return msgspec.json.decode(learned, type=dict[str, list[int]])

    def _learn(self, items: Sequence[pytest.Item], writing: int) -> int:
        by_function: dict[str, set[int]] = {}
        seconds: dict[int, float] = {}
        current = 0

        sys.setprofile(self._entering(lambda name: by_function.setdefault(name, set()).add(current)))
        for current, item in enumerate(items):
            begun = time.perf_counter()
            if self._run([item]):
                return 1
            seconds[current] = time.perf_counter() - begun
        sys.setprofile(None)
        ordered = {name: sorted(found, key=seconds.__getitem__) for name, found in by_function.items()}
        with open(writing, "wb") as answer:
            answer.write(msgspec.json.encode(ordered))
        return 0

    def _entering(self, note: Callable[[str], object]) -> Callable[[FrameType, str, object], None]:
        def enter(frame: FrameType, event: str, _: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename == self._file:
                note(code.co_qualname.partition(".<")[0])

        return enter


def _codes(code: CodeType) -> dict[str, CodeType]:
    """Return the code of every function of a module by qualified name."""
    return dict(_walked(code))


def _walked(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from _walked(inner)


def _function(module: ModuleType, name: str) -> Any:
    """Return the live function of a qualified name, past what decorates it."""
    holder, _, last = name.rpartition(".")
    found = vars(getattr(module, holder) if holder else module).get(last)
    for attribute in ("fget", "__func__", "func", "__wrapped__"):
        found = getattr(found, attribute, None) or found
    return found if hasattr(found, "__code__") else None
