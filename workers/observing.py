"""What the accounts have, as numbers for an operator: how old tokens are, how many kubeconfigs are not as they should.

Counted from the view, for the whole cluster: every worker process tells the same, so look at the highest.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.clock import now
from eventcore.waiting import pause
from workers.context import asked
from workers.desired import ANNOTATION_DIGEST, Token
from workers.names import token_name
from workers.revocations import UnderWay
from workers.token import rotation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from eventcore.metrics import Metrics
    from eventcore.settings import Settings
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.ownership import Account

INTERVAL: Final = 10.0
"""Seconds between counts."""
AT_ONCE: Final = 100
"""Accounts that are counted before anything else has its turn."""
LATE: Final = timedelta(minutes=2)
"""A rotation that is overdue by less is on its way."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one account has. ``wanted`` kubeconfigs should be there; so many of all are ``out_of_date``."""

    entitled: bool = False
    refused: bool = False
    token: Token | None = None
    wanted: int = 0
    out_of_date: int = 0


async def observe(context: Context, metrics: Metrics, stopping: asyncio.Event, *, interval: float = INTERVAL) -> None:
    """Keep the numbers up to date until told to stop."""
    under_way = UnderWay()
    while not stopping.is_set():
        if context.reader.ready:
            holdings, late = [], []
            for at, account in enumerate(sorted(context.relations.interesting())):
                if at % AT_ONCE == 0:
                    await asyncio.sleep(0)
                holdings.append(holding(context, account))
                if has_more(context, account):
                    late.append(account)
            metrics.revocation_oldest.set(under_way.oldest(late, now()))
            tell(metrics, holdings, context.settings, now())
        await pause(stopping, interval)


def has_more(context: Context, account: Account) -> bool:
    """Tell whether an account that may have nothing still has a token, rights or a kubeconfig of ours, by the view."""
    return bool(context.relations.objects_of(account)) and context.judge.look(account) is None


def holding(context: Context, account: Account) -> Holding:
    """Return what an account has, by the view."""
    entitlement = context.judge.look(account)
    token = _token(context, account)
    digest = token.digest if token else None
    places = _places(context, entitlement) if entitlement else set()
    copies = [
        (one.key.namespace, one.metadata.annotations.get(ANNOTATION_DIGEST))
        for one in context.relations.objects_of(account, "kubeconfig")
        if one.key.kind == "Secret" and one.metadata.deletion_timestamp is None
    ]
    current = {namespace for namespace, held in copies if held == digest and namespace in places}
    return Holding(
        entitled=entitlement is not None,
        refused=context.judge.refused(account) is not None,
        token=token if entitlement else None,
        wanted=len(places),
        out_of_date=len(places - current) + sum(1 for namespace, _ in copies if namespace not in places),
    )


def _token(context: Context, account: Account) -> Token | None:
    for one in context.relations.objects_of(account, "token"):
        if one.key.name == token_name(account):
            return Token.of_annotations(one.metadata.annotations)
    return None


def _places(context: Context, entitlement: Entitlement) -> set[str]:
    if asked(context, entitlement).config_map == "instead":
        return set()
    places = context.relations.targets(entitlement.account, set(entitlement.tenants))
    found = {name: context.relations.namespaces.get(name) for name in places}
    return {name for name, namespace in found.items() if namespace is not None and not namespace.terminating}


def tell(metrics: Metrics, holdings: Iterable[Holding], settings: Settings, moment: datetime) -> None:
    """Put the numbers into the metrics."""
    found = list(holdings)
    entitled = [one for one in found if one.entitled]
    tokens = [one.token for one in entitled if one.token]
    bound = [token for token in tokens if token.mode == "bound"]
    metrics.accounts.set(len(entitled))
    metrics.accounts_refused.set(sum(1 for one in found if one.refused))
    metrics.accounts_without_token.set(len(entitled) - len(tokens))
    for mode in ("bound", "static"):
        ages = ((moment - token.minted).total_seconds() for token in tokens if token.mode == mode)
        metrics.token_age.labels(mode).set(max(0.0, max(ages, default=0.0)))
    metrics.token_expiry.set(min((token.expires.timestamp() for token in bound), default=0.0))
    metrics.tokens_overdue.set(sum(1 for token in bound if rotation(token, settings) + LATE < moment))
    metrics.kubeconfigs.set(sum(one.wanted for one in found))
    metrics.kubeconfigs_out_of_date.set(sum(one.out_of_date for one in found))
