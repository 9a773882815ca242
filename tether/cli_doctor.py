"""``tether doctor`` on the command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from tether.cli_settings import IN_HELP, with_settings
from tether.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.settings import Settings
    from tether.doctor_snapshot import Finding, Severity, Snapshot

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
_INDENT = " " * 9


@click.command(epilog=IN_HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option("--problems", "only_problems", is_flag=True, help="Leave out what is right.")
@click.option(
    "--namespace", default="capsule-system", show_default=True, help="Where the ServiceAccounts of Tether's roles are."
)
@with_settings("kubernetes", "nats", "token")
def doctor(*, settings: Settings, as_json: bool, only_problems: bool, namespace: str) -> int:
    """Look at a cluster and say, line by line, what is right, what is wrong and how to mend it.

    Changes nothing. Run it as a cluster-admin, with the settings of the roles; run by a role's own account it asks
    after that account's rights alone. Exits with 0 when nothing is wrong, 3 with warnings, 4 with errors, 1 when it
    cannot look.
    """
    from eventcore import logs  # noqa: PLC0415 - start-up time: `tether --help` needs none of it
    from eventcore.kube import KubeClient  # noqa: PLC0415 - as above
    from tether import doctor_findings, doctor_look  # noqa: PLC0415 - as above

    async def look() -> Snapshot:
        client = await KubeClient.connect(settings)
        try:
            return await doctor_look.look(client, settings, namespace=namespace)
        finally:
            await client.close()

    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    found = doctor_findings.findings(asyncio.run(look()))
    severity = doctor_findings.worst(found)
    shown = [finding for finding in found if not only_problems or finding.severity != "ok"]
    if as_json:
        say(json_text(shown, severity))
    else:
        print_lines(shown)
        say(summary(found))
    return doctor_findings.EXIT_CODES[severity]


def json_text(found: Iterable[Finding], severity: Severity) -> str:
    """Return ``{"severity": ..., "findings": [{severity, check, object, message, remedy}]}``."""
    import msgspec  # noqa: PLC0415 - as in doctor

    return msgspec.json.encode({"severity": severity, "findings": list(found)}).decode()


def print_lines(found: Iterable[Finding]) -> None:
    """Print one line for each finding, and below it how to mend it."""
    for finding in found:
        lead, colour = f"{finding.severity:{len(_INDENT)}}", _COLOURS[finding.severity]
        say(f"{finding.object}: {finding.message}", lead=lead, colour=colour)
        if finding.remedy:
            say(f"-> {finding.remedy}", lead=_INDENT)


def summary(found: Iterable[Finding]) -> str:
    """Return the last line: how many of each."""
    counts = dict.fromkeys(("error", "warning", "note", "ok"), 0)
    for finding in found:
        counts[finding.severity] += 1
    return ", ".join(f"{count} {name}{'' if count == 1 or name == 'ok' else 's'}" for name, count in counts.items())
