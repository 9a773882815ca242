"""Tables on a terminal: what is foreign in them is laid out, never obeyed.

rich passes some controls on, ESC among them, and by itself reads ``[red]`` or ``[link=...]`` in a name as markup.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import rich.console
from rich.segment import Segment

from eventcore.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

S = TypeVar("S", bound=msgspec.Struct)

_WIDTH = 160
"""Columns where the output is no terminal."""


class Console(rich.console.Console):
    """Standard output for tables: without markup, and without raw controls but the layout's own line feeds."""

    def __init__(self, **options: Any) -> None:
        width = None if sys.stdout.isatty() else _WIDTH
        super().__init__(**{"width": width, "markup": False, "emoji": False, "highlight": False, **options})

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            text = one.text
            yield one if one.control else Segment("\n".join(map(printable, text.split("\n"))), one.style)


def cleaned(picture: S) -> S:
    """Return a Struct with every text in it printable: so a column is as wide as what is shown in it, and a row a row.

    TypeError where it holds what JSON cannot.
    """
    return msgspec.convert(_cleaned(msgspec.to_builtins(picture)), type(picture))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(inner) for key, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value
