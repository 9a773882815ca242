"""Which revocations are under way: accounts that may have nothing and still have something. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from eventcore.keys import ObjectKey
from tether.cluster_relations import entitled
from workers.ownership import Account, is_enabled
from workers.revocations import BOUND
from workers.routing import account_grant_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from eventcore.keys import Key
    from eventcore.views import ObjectsView
    from workers.relations import Relations


class Asked(msgspec.Struct, frozen=True):
    """A request that waits: for which account, and when the change happened that led to it."""

    account: str
    since: datetime | None


class Revoking(msgspec.Struct, frozen=True, kw_only=True):
    """An account that may have nothing. ``has``: what it still has; ``since``: when it lost its right, if it is known.

    ``late``: it has had it for longer than a revocation may take, or nobody knows for how long.
    """

    account: str
    tenants: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    since: datetime | None = None
    late: bool = False


def revoking(
    view: ObjectsView,
    relations: Relations,
    granted: Collection[Key],
    asked: Iterable[Asked],
    time: datetime,
) -> Iterator[Revoking]:
    """Yield the revocations that are not done, in order of the accounts."""
    began: dict[str, datetime] = {}
    for one in asked:
        if one.since is not None:
            began[one.account] = min(one.since, began.get(one.account, one.since))
    rightful = entitled(relations)
    keys = (one.parts for one in granted)
    accounts = {Account(*parts[1:]) for parts in keys if parts[0] == "account" and len(parts) == len("abc")}
    for account in sorted((accounts | relations.interesting()) - set(rightful)):
        has = tuple(_has(relations, account, granted))
        if not has:
            continue
        since = began.get(str(account)) or _switched_off(view, relations, account)
        late = since is None or (time - since).total_seconds() > BOUND["apiserver"]
        tenants = tuple(relations.remembered_tenants(account))
        yield Revoking(account=str(account), tenants=tenants, has=has, since=since, late=late)


def _has(relations: Relations, account: Account, granted: Collection[Key]) -> Iterator[str]:
    if account_grant_key(account) in granted:
        yield "its grant at the proxy"
    counts: dict[str, int] = {}
    for one in relations.objects_of(account):
        counts[one.key.kind] = counts.get(one.key.kind, 0) + 1
    for kind, count in sorted(counts.items()):
        yield f"{count} {kind}{'' if count == 1 else 's'}"


def _switched_off(view: ObjectsView, relations: Relations, account: Account) -> datetime | None:
    """Return when an account that is not enabled changed last: that is what ended its right."""
    found = relations.accounts.get(account)
    if found is not None and is_enabled(found):
        return None
    last = view.last(ObjectKey("ServiceAccount", account.namespace, account.name))
    return last.time if last is not None else None
