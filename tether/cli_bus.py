"""Commands that work on the bus: topology, audit, replay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import click

from eventcore.keys import WORKERS
from tether.cli_settings import IN_HELP, with_settings
from tether.terminal import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.bus import Bus
    from eventcore.keys import WorkerName
    from eventcore.settings import Settings

R = TypeVar("R")


def on_bus(settings: Settings, action: Callable[[Bus], Awaitable[R]]) -> R:
    """Connect, run ``action``, disconnect."""
    from eventcore import logs  # noqa: PLC0415 - start-up time: `tether --help` needs none of it
    from eventcore.bus import Bus  # noqa: PLC0415 - as above

    async def run() -> R:
        bus = await Bus.connect(settings, "tether")
        try:
            return await action(bus)
        finally:
            await bus.close()

    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    return asyncio.run(run())


@click.group()
def topology() -> None:
    """Streams, consumers and bucket in NATS: compare with what is needed, correct."""


@topology.command("apply", epilog=IN_HELP)
@with_settings("nats", "work")
def topology_apply(*, settings: Settings) -> None:
    """Create what is missing and correct what differs. Messages stay as they are; running it again changes nothing."""
    _topology(settings, dry_run=False)


@topology.command("diff", epilog=IN_HELP)
@with_settings("nats", "work")
def topology_diff(*, settings: Settings) -> int:
    """Show what `apply` would change. Exits with 1 if there is anything."""
    return 1 if _topology(settings, dry_run=True) else 0


def _topology(settings: Settings, *, dry_run: bool) -> bool:
    from eventcore.topology import apply  # noqa: PLC0415 - as in on_bus

    differences = on_bus(settings, lambda bus: apply(bus, settings, dry_run=dry_run))
    for difference in differences:
        say(str(difference))
    if not differences:
        say("nothing differs")
    elif not dry_run:
        say(f"applied, differences that are gone: {len(differences)}")
    return bool(differences)


@click.group()
def audit() -> None:
    """What was granted, minted, rotated, revoked, written, refused, and why."""


@audit.command("tail", epilog=IN_HELP)
@click.option(
    "--follow/--no-follow", default=True, show_default=True, help="Wait for new records, or stop at the last."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every field.")
@with_settings("nats")
def audit_tail(*, settings: Settings, follow: bool, as_json: bool) -> None:
    """Print the audit records from the first one on.

    Each says when, which component, what was done to which object, for which account and tenant, and after the arrow
    its cause: the id of the event, or timer, sweep, replay.
    """
    from tether import audit_log  # noqa: PLC0415 - as in on_bus

    async def tail(bus: Bus) -> None:
        if not as_json:
            say(audit_log.HEADER)
        async for entry in audit_log.entries(bus, follow=follow):
            say(audit_log.as_json(entry) if as_json else audit_log.as_line(entry))

    on_bus(settings, tail)


@click.command(epilog=IN_HELP)
@click.option("--all", "everything", is_flag=True, help="Replay every key.")
@click.option("--worker", type=click.Choice(WORKERS), help="Only this reconciler's keys.")
@with_settings("nats", "kubernetes")
def replay(*, settings: Settings, everything: bool, worker: WorkerName | None) -> None:
    """Let the reconcilers look at every key again, from what OBJECTS holds.

    For example after the bucket `access` was lost: it is compiled anew without touching the cluster. Paced, so that
    present work is not pushed aside.
    """
    if not everything and worker is None:
        raise click.UsageError("say what to replay: --all, or --worker NAME")
    from workers.main import replay as replay_keys  # noqa: PLC0415 - as in on_bus

    workers, name = (worker,) if worker else WORKERS, settings.capsule_configuration_name
    flux = settings.flux_service_account
    count = on_bus(settings, lambda bus: replay_keys(bus, workers=workers, configuration=name, flux_account=flux))
    say(f"replayed {count} keys")
