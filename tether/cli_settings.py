"""The settings on the command line: each one a flag of the roles that use it, and the table of them all."""

from __future__ import annotations

import os
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eventcore import settings as settings_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.settings import SettingDoc, Settings

R = TypeVar("R")

IN_HELP = "Each setting is also a variable: --token-ttl is TETHER_TOKEN_TTL. A flag beats the environment."


def with_settings(*sections: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command a flag for every setting, and call it with ``settings`` loaded from flags and environment.

    ``--help`` shows those of the sections; the others are accepted too, since one set of variables and flags serves
    all roles.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @wraps(command)
        def run(**arguments: Any) -> R:
            flags = {doc.name: arguments.pop(doc.name) for doc in docs}
            return command(settings=load(flags), **arguments)

        for doc in reversed(docs):
            _add_option(run, doc, shown=doc.section in sections)
        return run

    docs = settings_module.describe()
    return decorate


def load(flags: dict[str, object] | None = None) -> Settings:
    """Return the settings of this environment and these flags; SettingsError."""
    return settings_module.load(os.environ, flags or {})


def _add_option(command: Callable[..., Any], doc: SettingDoc, *, shown: bool) -> None:
    text = f"{doc.description}  [{doc.default}]" if doc.default else doc.description
    option = click.option(doc.flag, doc.name, default=None, metavar="VALUE", help=text, hidden=not shown)
    option(command)


@click.command("settings")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def settings_command(*, as_json: bool) -> None:
    """Show every setting: flag, environment variable, default, what is allowed.

    A flag beats the environment, the environment beats the default.
    """
    docs = settings_module.describe()
    if as_json:
        import msgspec  # noqa: PLC0415 - only here; start-up time counts

        click.echo(msgspec.json.format(msgspec.json.encode(docs)))
        return
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table("setting", "default", "allowed", "what it is", box=None, pad_edge=False, header_style="bold")
    section = ""
    for doc in docs:
        if doc.section != section:
            section = doc.section
            table.add_row(f"[bold]{section}[/bold]")
        table.add_row(f"{doc.flag}\n[dim]{doc.variable}[/dim]", doc.default, doc.allowed, doc.description)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
