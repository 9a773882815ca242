"""How long a cluster took until it was as it should be after a change, and the longest of a run.

A measure for the reader, never an assertion: a test waits up to its bound, and the end of the run tells the longest
wait by name. What a test measured travels in its report, so it arrives from the processes of pytest-xdist too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import monotonic
from typing import Any

import pytest

PROPERTY = "convergence"


@pytest.fixture
def converging(request: pytest.FixtureRequest) -> Callable[[str], AbstractContextManager[None]]:
    """Return a block, by name, that holds a change and the wait for what must follow."""
    return partial(measuring, request.node)


@contextmanager
def measuring(node: pytest.Item, name: str) -> Iterator[None]:
    """Measure what the block takes, if it ends well."""
    began = monotonic()
    yield
    node.user_properties.append((PROPERTY, [name, monotonic() - began]))


def longest(reports: Iterable[Any]) -> tuple[float, str] | None:
    """Return the longest measured time in seconds with its name, None when nothing was measured."""
    measured = [
        value
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in getattr(report, "user_properties", ())
        if key == PROPERTY
    ]
    return max(((float(seconds), str(name)) for name, seconds in measured), default=None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the longest convergence of the run."""
    found = longest(report for reports in terminalreporter.stats.values() for report in reports)
    if found is not None:
        terminalreporter.write_line(f"longest convergence: {found[0]:.2f} s ({found[1]})")
