"""The settings on the command line: each one a flag of the roles that use it, and the table of them all."""

from __future__ import annotations

import os
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eventcore import settings_reading
from tether.terminal import say_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eventcore.settings import Settings
    from eventcore.settings_reading import SettingDoc
    from tether.proxy_flags import Row

    Translate = Callable[[Mapping[str, str], Mapping[str, object], Mapping[str, str]], dict[str, object]]

R = TypeVar("R")

IN_HELP = "Each setting is also a variable: --token-ttl is TETHER_TOKEN_TTL. A flag beats the environment."


def with_settings(
    *sections: str, rows: Sequence[Row] = (), translate: Translate | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command a flag for every setting, and call it with ``settings`` loaded from flags and environment.

    ``rows`` are further flags, which ``translate`` turns into settings.

    ``--help`` shows those of the sections; the others are accepted too, since one set of variables and flags serves
    all roles.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @wraps(command)
        def run(**arguments: Any) -> R:
            flags = {doc.name: _joined(arguments.pop(doc.name)) for doc in docs}
            given = {row.name: _joined(arguments.pop(_argument(row))) for row in rows}
            if translate is not None:
                said = {name: str(value) for name, value in given.items() if value is not None}
                flags |= translate(said, flags, os.environ)
            return command(settings=load(flags), **arguments)

        for row in reversed(rows):
            _add(run, row.name, _argument(row), row.help, repeats=row.repeats, boolean=row.boolean)
        for doc in reversed(docs):
            _add_option(run, doc, shown=doc.section in sections)
        return run

    docs = settings_reading.describe()
    return decorate


def _joined(given: object) -> object:
    """Return what the flags of a list say together; None when there is none."""
    if isinstance(given, tuple):
        return ",".join(given) if given else None
    return given


def load(flags: dict[str, object] | None = None) -> Settings:
    """Return the settings of this environment and these flags; SettingsError."""
    return settings_reading.load(os.environ, flags or {})


def _add_option(command: Callable[..., Any], doc: SettingDoc, *, shown: bool) -> None:
    text = f"{doc.description}  [{doc.default}]" if doc.default else doc.description
    boolean = doc.allowed == "true or false"
    _add(command, doc.flag, doc.name, text, repeats=doc.repeats, boolean=boolean, shown=shown)


def _add(
    command: Callable[..., Any], flag: str, name: str, text: str, *, repeats: bool, boolean: bool, shown: bool = True
) -> None:
    more: dict[str, Any] = {"multiple": True} if repeats else {"default": None}
    if boolean:
        more |= {"is_flag": False, "flag_value": "true"}  # --enable-ssl and --enable-ssl=false, as Go has it
    click.option(flag, name, metavar="VALUE", help=text, hidden=not shown, **more)(command)


def _argument(row: Row) -> str:
    return f"row_{row.setting}"


@click.command("settings")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def settings_command(*, as_json: bool) -> None:
    """Show every setting: flag, environment variable, default, what is allowed.

    A flag beats the environment, the environment beats the default.
    """
    docs = settings_reading.describe()
    if as_json:
        import msgspec  # noqa: PLC0415 - only here; start-up time counts

        say_text(msgspec.json.format(msgspec.json.encode(docs)).decode())
        return
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    from tether.tables import Console  # noqa: PLC0415 - as above

    table = Table("setting", "default", "allowed", "what it is", box=None, pad_edge=False, header_style="bold")
    section = ""
    for doc in docs:
        if doc.section != section:
            section = doc.section
            table.add_row(Text(section, style="bold"))
        name = Text(f"{doc.flag}\n").append(doc.variable, style="dim")
        table.add_row(name, doc.default, doc.allowed, doc.description)
    Console().print(table)
