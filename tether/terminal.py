"""The one way of every command to standard output and standard error: nothing foreign reaches a terminal raw.

A line is given as a line, so a line feed inside of it is not ours and is written out like every other character that
is not printable (eventcore/printable.py). Tables go through ``tether/tables.py``.
"""

from __future__ import annotations

import click

from eventcore.printable import printable


def say(*lines: str, err: bool = False, lead: str = "", colour: str | None = None) -> None:
    """Print each line, behind ``lead`` in its colour; no colours go into a pipe."""
    mark = click.style(printable(lead), fg=colour) if colour else printable(lead)
    for line in lines:
        click.echo(f"{mark}{printable(line)}", err=err)


def say_text(text: str, *, err: bool = False) -> None:
    """Print a text whose line feeds are ours, such as YAML, help, indented JSON."""
    say(*text.removesuffix("\n").split("\n"), err=err)
