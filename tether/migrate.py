"""``tether migrate``: takes the tenants over from capsule-addon-fluxcd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors

from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.errors import BusError, StartError
from eventcore.events import Mark, decode_body
from eventcore.keys import lane_consumer, mark_subject
from eventcore.kube import KubeClient
from eventcore.topology import OBJECTS, WORK
from tether.migrate_look import survey
from tether.migrate_plan import plan
from tether.migrate_steps import Migration
from tether.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventcore.settings import Settings
    from tether.migrate_look import Survey
    from workers.ownership import Account

FRESH: Final = 60.0
"""Seconds that the last sign of a watcher may be old."""
_WIDTH: Final = 9


async def migrate(
    settings: Settings, accounts: Sequence[Account], *, dry_run: bool, timeout_seconds: float, keep_home: bool
) -> bool:
    """Migrate these accounts, or all; print each step; tell whether nothing is left to do."""
    if settings.kubeconfig_suffix != "kubeconfig" or "kubeconfig" not in settings.kubeconfig_data_keys():
        raise StartError(
            "the addon's kubeconfigs are Secrets <account>-kubeconfig with a key kubeconfig, which Flux objects name: "
            "migrate with --kubeconfig-suffix kubeconfig and that key, and change them afterwards"
        )
    client = await KubeClient.connect(settings)
    try:
        found = await survey(client, settings, accounts)
        _check_known(found, accounts)
        if keep_home:
            kept = tuple(msgspec.structs.replace(one, member_of="") for one in found.found)
            found = msgspec.structs.replace(found, found=kept)
        concerned = [one for one in found.found if plan(one)]
        for name in found.orphans:
            _line(
                "note", f"GlobalTenantResource/{name}", "belongs to no enabled owner, so it is left: it holds a token"
            )
        if not concerned and not found.addons:
            say("nothing of capsule-addon-fluxcd is left")
            return True
        if dry_run:
            _print_plan(found)
            return True
        await check_tether_runs(settings, [one.account for one in concerned])
        migration = Migration(client, settings, _line, timeout=timeout_seconds, keep_home=keep_home)
        for namespace, name in found.addons:
            await migration.stop_addon(namespace, name)
        complete = True
        for one in concerned:
            say(f"{one.account}  (Tenant {', '.join(one.tenants)})")
            complete = await migration.account(one.account) and complete
        say("all is Tether's" if complete else "not all is done: mend what is said above, and run this again")
        return complete
    finally:
        await client.close()


def _check_known(found: Survey, accounts: Iterable[Account]) -> None:
    known = {one.account for one in found.found}
    for account in accounts:
        if account not in known:
            raise StartError(
                f"{account} is not migrated: it must have the annotation that enables it, and own a live Tenant"
            )


def _print_plan(found: Survey) -> None:
    for namespace, name in found.addons:
        _line("would", f"Deployment/{namespace}/{name}", "scale it to 0: the addon must make nothing anew")
    for one in found.found:
        steps = plan(one)
        if steps:
            say(f"{one.account}  (Tenant {', '.join(one.tenants)})")
        for step in steps:
            _line("blocked" if step.verb == "blocked" else "would", step.object, step.text)
    say("nothing was changed")


def _line(how: str, what: str, text: str) -> None:
    say(f"  {how:{_WIDTH}}{what}: {text}")


async def check_tether_runs(settings: Settings, accounts: Iterable[Account]) -> None:
    """Make sure that watchers and workers do their part before anything is touched; StartError."""
    bus = await Bus.connect(settings, "tether")
    try:
        last = await bus.last(OBJECTS, mark_subject("Secret"))
        age = (now() - decode_body(Mark, last.data).time).total_seconds() if last else None
        if age is None or age > FRESH:
            raise StartError(
                "no watcher has looked at the cluster for a while: start `tether watch`; nothing was changed"
            )
        for account in accounts:
            for worker in ("token", "kubeconfig"):
                consumer = lane_consumer(worker, account.key().lane())
                info = await bus.js.consumer_info(WORK, consumer)
                if not info.num_waiting and not info.num_ack_pending:
                    raise StartError(f"no `tether work {worker}` runs: start it; nothing was changed")
    except (nats.errors.Error, TimeoutError) as error:
        raise BusError(f"the bus cannot be read ({error}): run `tether topology diff`; nothing was changed") from error
    finally:
        await bus.close()
