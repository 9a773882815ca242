"""What every reconciler stands on, and what each of them does first."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.consumer import Again, Done, Result, Retry
from eventcore.errors import LeaseLostError
from workers.cleaning import GOES_ON, UnfinishedError
from workers.entitlement import Entitlement, Judge, OutdatedError
from workers.options import Options, options
from workers.relations import Relations
from workers.revocations import RETRY, Revocations
from workers.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from eventcore.bus import Bus
    from eventcore.consumer import Reconcile, Run
    from eventcore.keys import Key
    from eventcore.kube import KubeClient
    from eventcore.metrics import Metrics
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
        self,
        bus: Bus,
        client: KubeClient,
        reader: Reader[ObjectsView, ObjectRecord],
        settings: Settings,
        metrics: Metrics | None = None,
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
        self.revocations = Revocations(metrics)
        self.unfinished: dict[Account, tuple[int, Existing]] = {}
        """By account the generation and the binding Secret of a token that the API server has refused."""
        reader.listen(self.relations.apply)


def asked(context: Context, entitlement: Entitlement, tenant: str = "") -> Options:
    """Return what holds for an account, in a namespace of one of its tenants, or with all of them at home."""
    names = [tenant] if tenant else entitlement.tenants
    tenants = [context.relations.tenants[name] for name in names if name in context.relations.tenants]
    return options(context.relations.accounts[entitlement.account], tenants, context.settings)


def guarded(
    context: Context, reconcile: Callable[[Run], Awaitable[Result]], whose: Callable[[Key], Account | None]
) -> Reconcile:
    """Return a reconciler that decides nothing on a view that may lack objects, and waits when the view is behind.

    ``whose`` tells whose key it is. Where that account may have nothing, what fails is tried again soon and for ever:
    no failure ends a revocation.
    """

    async def run(one: Run) -> Result:
        account = whose(one.key)
        try:
            if kind := await context.judge.missing():
                return Retry(f"no watcher has listed objects of kind {kind} yet: start `tether watch`")
            return await reconcile(one)
        except (LeaseLostError, TimeoutError):
            raise
        except UnfinishedError:
            # Not a Retry: all requests that wait for the key would each do as much before anybody else's turn.
            return Again(now() + timedelta(seconds=GOES_ON))
        except Exception as error:
            if account is not None and context.judge.look(account) is None:
                one.log.warning("revocation is not done yet", account=str(account), error=error)
                return Retry(str(error) or type(error).__name__, getattr(error, "retry_after", None), at_most=RETRY)
            if isinstance(error, OutdatedError):
                return Retry(str(error))
            raise

    return run


def until(*moments: datetime | None) -> Result:
    """Return Again at the earliest of these moments, Done without one."""
    known = [moment for moment in moments if moment is not None]
    return Again(min(known)) if known else Done()
