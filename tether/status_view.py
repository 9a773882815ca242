"""How `tether status` looks in a terminal: tables of what is fresh, what there is, what waits and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eventcore.settings_reading import format_duration
from tether.status_model import STALE
from tether.tables import cleaned

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from tether.status_model import AccountStatus, Lane, Status, Waiting

WAITING: Final = 15
"""Requests that are shown."""
_SHOWN: Final = 3


def render(status: Status) -> RenderableType:
    """Return the whole picture."""
    status = cleaned(status)
    parts: list[RenderableType] = [_fresh(status), _workers(status), _tenants(status), _accounts(status)]
    if status.revoking:
        parts.append(_revoking(status))
    if status.waiting:
        parts.append(_waiting(status))
    if status.set_aside:
        parts.append(_set_aside(status))
    if status.failures:
        parts.append(_failures(status))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        *columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for column in table.columns:
        column.overflow = "fold"
    return table


def _fresh(status: Status) -> RenderableType:
    table = _table("FRESH", "kind", "objects", "seen")
    for kind in status.kinds:
        age = kind.age
        fresh = age is not None and age <= STALE
        seen = "never" if age is None else f"{_span(age)} ago"
        table.add_row(kind.kind, str(kind.objects), Text(seen, style="green" if fresh else "red"))
    if not status.kinds:
        table.add_row(Text("no watcher has ever looked: start `tether watch`", style="red"))
    return table


def _workers(status: Status) -> RenderableType:
    table = _table("\nWORK", "worker", "waiting", "in hand", "scheduled", "")
    for worker in status.workers:
        table.add_row(
            worker.worker, str(worker.pending), str(worker.in_hand), str(worker.scheduled), _listening(worker)
        )
    return table


def _listening(worker: Lane) -> Text:
    return Text("runs", style="green") if worker.listening else Text("nobody runs it", style="red")


def _tenants(status: Status) -> RenderableType:
    table = _table("\nTENANTS", "tenant", "state", "owners", "namespaces", "proxy")
    for tenant in status.tenants:
        known = Text("knows", style="green") if tenant.granted else Text("does not know yet", style="yellow")
        owners = ", ".join(owner.removeprefix("ServiceAccount ") for owner in tenant.owners) or "none"
        table.add_row(tenant.name, tenant.state or "-", owners, ", ".join(tenant.namespaces) or "-", known)
    return table


def _accounts(status: Status) -> RenderableType:
    table = _table("\nACCOUNTS", "account", "tenants", "token", "expires", "kubeconfigs", "proxy")
    for account in status.accounts:
        token = "-" if account.generation is None else str(account.generation)
        known = Text("knows", style="green") if account.granted else Text("does not know", style="yellow")
        table.add_row(account.account, _why_not(account), token, _end(account, status.time), _copies(account), known)
    return table


def _why_not(account: AccountStatus) -> Text:
    if not account.enabled:
        return Text("not enabled", style="yellow")
    if account.home_of:
        return Text(f"lives in {account.home_of}", style="red")
    return Text(", ".join(account.tenants)) if account.tenants else Text("owns none", style="yellow")


def _end(account: AccountStatus, time: datetime) -> str:
    return "never, static" if account.mode == "static" else _until(account.expires, time)


def _copies(account: AccountStatus) -> Text:
    text = f"{account.current} of {account.wanted}"
    if not account.behind:
        return Text(text, style="green")
    named = ", ".join(account.behind[:_SHOWN]) + (", ..." if len(account.behind) > _SHOWN else "")
    return Text(f"{text}; not in {named}", style="yellow")


def _revoking(status: Status) -> RenderableType:
    table = _table("\nREVOKES", "account", "still has", "for", "")
    for one in status.revoking:
        span = "an unknown time" if one.since is None else _span((status.time - one.since).total_seconds())
        late = Text("longer than it should take", style="red") if one.late else Text("under way", style="yellow")
        table.add_row(one.account, ", ".join(one.has), span, late)
    return table


def _waiting(status: Status) -> RenderableType:
    # A timer that is not a retry is the ordinary course of things: the next rotation of a token, for example.
    urgent = [one for one in status.waiting if one.due is None or one.reason == "retry"]
    rest = [one for one in status.waiting if one not in urgent]
    shown = [*urgent, *rest][:WAITING]
    table = _table("\nWAITS", "worker", "key", "why", "when")
    for one in shown:
        table.add_row(one.worker, one.key, _reason(one), _when(one, status.time))
    if len(status.waiting) > len(shown):
        table.add_row("", Text(f"and {len(status.waiting) - len(shown)} more", style="dim"))
    return table


def _reason(one: Waiting) -> Text:
    if one.reason == "retry":
        return Text(f"retry after {one.attempt} failure{'' if one.attempt == 1 else 's'}", style="yellow")
    return Text(one.reason)


def _when(one: Waiting, time: datetime) -> str:
    return f"for {_span((time - one.since).total_seconds())}" if one.due is None else _until(one.due, time)


def _set_aside(status: Status) -> RenderableType:
    table = _table("\nSET ASIDE, GRANTS NOTHING", "since", "object", "why")
    for one in status.set_aside[:WAITING]:
        ago = f"{_span((status.time - one.since).total_seconds())} ago"
        table.add_row(ago, Text(one.object, style="red"), Text(one.message))
    if len(status.set_aside) > WAITING:
        table.add_row("", Text(f"and {len(status.set_aside) - WAITING} more", style="dim"))
    return table


def _failures(status: Status) -> RenderableType:
    table = _table("\nFAILED", "when", "what", "by", "object", "why")
    for one in status.failures:
        ago = f"{_span((status.time - one.time).total_seconds())} ago"
        table.add_row(ago, Text(one.what, style="red"), one.worker, one.object or one.account, one.message)
    return table


def _until(moment: datetime | None, time: datetime) -> str:
    if moment is None:
        return "-"
    left = (moment - time).total_seconds()
    return f"in {_span(left)}" if left >= 0 else f"{_span(-left)} ago"


def _span(seconds: float) -> str:
    """Return a duration to the second, from an hour on to the minute."""
    whole = max(0, round(seconds))
    return format_duration(whole - whole % 60 if whole >= 3600 else whole)  # noqa: PLR2004 -- an hour
