"""``tether status`` on the command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from tether.cli_settings import IN_HELP, with_settings
from tether.terminal import say

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from eventcore.settings import Settings
    from tether.status_model import Status


@click.command(epilog=IN_HELP)
@click.argument("tenant", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of tables.")
@click.option("--watch", "follow", is_flag=True, help="Show it again every second, until Ctrl-C.")
@with_settings("nats")
def status(*, settings: Settings, tenant: str, as_json: bool, follow: bool) -> None:
    """Show what is there, what is fresh, what waits, and what failed and why; of all, or of one TENANT.

    Reads the bus alone, so it works where the cluster cannot be reached. Changes nothing.
    """
    from eventcore import logs  # noqa: PLC0415 - start-up time: `tether --help` needs none of it
    from tether import status as status_module  # noqa: PLC0415 - as above

    async def show() -> None:
        pictures = status_module.pictures(settings, tenant, watch=follow)
        try:
            if as_json:
                async for picture in pictures:
                    say(json_line(picture))
            else:
                await _tables(pictures, live=follow)
        finally:
            await pictures.aclose()

    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        if not follow:
            raise  # with --watch it is how one ends


def json_line(picture: Status) -> str:
    """Return one line of JSON with every field."""
    import msgspec  # noqa: PLC0415 - as in status

    return msgspec.json.encode(picture).decode()


async def _tables(pictures: AsyncGenerator[Status, None], *, live: bool) -> None:
    from rich.live import Live  # noqa: PLC0415 - as in status

    from tether.status_view import render  # noqa: PLC0415 - as in status
    from tether.tables import Console  # noqa: PLC0415 - as in status

    console = Console()
    if not (live and console.is_terminal):
        async for picture in pictures:
            console.print(render(picture))
        return
    with Live(console=console, screen=True, auto_refresh=False) as display:
        async for picture in pictures:
            display.update(render(picture), refresh=True)
