"""What every reconciler stands on, and what each of them does first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventcore.consumer import Again, Done, Result, Retry
from workers.entitlement import Entitlement, Judge, OutdatedError
from workers.options import Options, options
from workers.relations import Relations
from workers.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from eventcore.bus import Bus
    from eventcore.consumer import Reconcile, Run
    from eventcore.kube import KubeClient
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from workers.existing import Existing
    from workers.ownership import Account

SOON: Final = 0.2
"""Seconds until a look again at what another worker or watcher is just bringing about."""


class Context:
    """One set for all reconcilers of a process. Make it before the reader runs, so that it hears every change."""

    def __init__(
        self, bus: Bus, client: KubeClient, reader: Reader[ObjectsView, ObjectRecord], settings: Settings
    ) -> None:
        self.bus = bus
        self.client = client
        self.reader = reader
        self.settings = settings
        self.relations = Relations(
            settings.capsule_configuration_name,
            settings.flux_service_account,
            settings.kubeconfig_namespace_selector,
        )
        self.judge = Judge(client, reader, self.relations, settings)
        self.writer = Writer(bus, client, self.relations)
        self.unfinished: dict[Account, tuple[int, Existing]] = {}
        """By account the generation and the binding Secret of a token that the API server has refused."""
        reader.listen(self.relations.apply)


def asked(context: Context, entitlement: Entitlement, tenant: str = "") -> Options:
    """Return what holds for an account, in a namespace of one of its tenants, or with all of them at home."""
    names = [tenant] if tenant else entitlement.tenants
    tenants = [context.relations.tenants[name] for name in names if name in context.relations.tenants]
    return options(context.relations.accounts[entitlement.account], tenants, context.settings)


def guarded(context: Context, reconcile: Callable[[Run], Awaitable[Result]]) -> Reconcile:
    """Return a reconciler that decides nothing on a view that may lack objects, and waits when the view is behind."""

    async def run(one: Run) -> Result:
        if kind := await context.judge.missing():
            return Retry(f"no watcher has listed objects of kind {kind} yet: start `tether watch`")
        try:
            return await reconcile(one)
        except OutdatedError as error:
            return Retry(str(error))

    return run


def until(*moments: datetime | None) -> Result:
    """Return Again at the earliest of these moments, Done without one."""
    known = [moment for moment in moments if moment is not None]
    return Again(min(known)) if known else Done()
