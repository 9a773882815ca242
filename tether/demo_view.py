"""How the demo shows itself: a live view in a terminal, plain lines elsewhere, nothing but the result for a program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import msgspec

from tether.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.live import Live
    from rich.table import Table


class StepResult(msgspec.Struct, kw_only=True):
    """One step: its name, what it checks, whether it held, how long it took, and what was seen."""

    name: str
    title: str
    ok: bool = False
    milliseconds: float = 0.0
    detail: str = ""


class View(Protocol):
    """Told of every step as it begins and ends, and of the end."""

    def begin(self, step: StepResult) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self, step: StepResult) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """A line for each step when it ends."""

    def begin(self, step: StepResult) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def end(self, step: StepResult) -> None:
        mark = "ok  " if step.ok else "FAIL"
        say(f"{mark} {step.name:<11} {step.milliseconds:7.0f} ms  {step.title}")
        if step.detail:
            say(*step.detail.split("\n"), lead=f"{'':29}")
        sys.stdout.flush()

    def close(self) -> None:
        pass


class SilentView(PlainView):
    """Nothing: the result is printed by itself."""

    def end(self, step: StepResult) -> None:
        pass


class LiveView:
    """A table that grows, with a spinner at the step under way."""

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - only in a terminal

        from tether.tables import Console  # noqa: PLC0415 - as above

        self._steps: list[StepResult] = []
        self._under_way = False
        self._note = ""
        self._live: Live = Live(self._table(), console=Console(), refresh_per_second=10)
        self._live.start()

    def begin(self, step: StepResult) -> None:
        self._steps.append(step)
        self._under_way, self._note = True, ""
        self._live.update(self._table())

    def note(self, text: str) -> None:
        self._note = text
        self._live.update(self._table())

    def end(self, step: StepResult) -> None:
        self._steps[-1] = step
        self._under_way = False
        self._live.update(self._table())

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Table:
        from rich.spinner import Spinner  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415 - as above

        table = Table(box=None, show_header=False, pad_edge=False)
        for column in ("left", "left", "right", "left"):
            table.add_column(justify="right" if column == "right" else "left", vertical="top")
        for number, step in enumerate(self._steps):
            if self._under_way and number == len(self._steps) - 1:
                what = Text(step.title) + Text(f"\n{self._note}" if self._note else "", style="dim")
                table.add_row(Spinner("dots", style="cyan"), Text(step.name, style="bold"), "", what)
                continue
            mark = Text("✔", style="green") if step.ok else Text("✘", style="red")
            what = Text(step.title) + Text(f"\n{step.detail}" if step.detail else "", style="dim" if step.ok else "red")
            table.add_row(mark, Text(step.name, style="bold"), f"{step.milliseconds:.0f} ms", what)
        return table


def choose(*, as_json: bool) -> View:
    """Return the view for this standard output."""
    if as_json:
        return SilentView()
    return LiveView() if sys.stdout.isatty() else PlainView()


def as_lines(pairs: Sequence[tuple[str, str]]) -> str:
    """Return two aligned columns, indented."""
    width = max(len(left) for left, _ in pairs)
    return "".join(f"  {left:<{width}}  {right}\n" for left, right in pairs)
