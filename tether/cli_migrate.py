"""``tether migrate`` on the command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from tether.cli_settings import IN_HELP, with_settings

if TYPE_CHECKING:
    from eventcore.settings import Settings


@click.command(epilog=IN_HELP)
@click.argument("accounts", nargs=-1, metavar="[NAMESPACE/NAME]...")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option(
    "--timeout",
    "timeout_seconds",
    default=120.0,
    show_default=True,
    help="Seconds to wait for Tether's and Capsule's part.",
)
@click.option("--keep-home", is_flag=True, help="Leave home namespaces in their Tenant, where they are members.")
@with_settings("kubernetes", "nats", "token", "work")
def migrate(
    *, settings: Settings, accounts: tuple[str, ...], dry_run: bool, timeout_seconds: float, keep_home: bool
) -> int:
    """Take over from capsule-addon-fluxcd, step by step, without a moment in which a tenant's Flux stops working.

    For every enabled account that owns a Tenant, or for those that are named. Run it as a cluster-admin, with Tether
    running. Each kubeconfig first moves to a second token, then Tether replaces the addon's token, and the second one
    is removed at the end; in between it waits --token-overlap. Interrupted or refused, run it again: it goes on where
    it stopped. Exits with 1 while something is left to do.
    """
    from eventcore import logs  # noqa: PLC0415 - start-up time: `tether --help` needs none of it
    from tether import migrate as migration  # noqa: PLC0415 - as above
    from workers.ownership import Account  # noqa: PLC0415 - as above

    chosen: list[Account] = []
    for text in accounts:
        account = Account.of_text(text)
        if account is None:
            raise click.UsageError(f"{text!r} is not an account: write NAMESPACE/NAME")
        chosen.append(account)
    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    complete = asyncio.run(
        migration.migrate(settings, chosen, dry_run=dry_run, timeout_seconds=timeout_seconds, keep_home=keep_home)
    )
    return 0 if complete else 1
