"""How long revocations take, from the change that led to them until they are done, and which are under way.

A revocation is done in two places: at the proxy when the grant is gone, at the API server when that is gone to which a
token is bound, or which binds the rights. Beyond that the proxy applies the deletion within milliseconds, and an API
server believes for up to 10 s in a token that it has just seen.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal

from eventcore.clock import now

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from eventcore.consumer import Run
    from eventcore.metrics import Metrics
    from workers.ownership import Account

Where = Literal["proxy", "apiserver"]

BOUND: Final[dict[Where, float]] = {"proxy": 5.0, "apiserver": 20.0}
"""Seconds that a revocation may take while NATS, API server, a router and the workers run."""
RETRY: Final = 5.0
"""Seconds, at most, between two tries of a revocation."""
_REMEMBERED: Final = 10_000


class Revocations:
    """Times revocations of one process. What began in a run that failed is remembered for the next one."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._since: OrderedDict[tuple[str, Account], datetime] = OrderedDict()

    def begin(self, run: Run, account: Account) -> None:
        """Note when what led to a revocation happened, if that is known and not noted yet."""
        if run.request.since is not None:
            self._since.setdefault((run.worker, account), run.request.since)
            if len(self._since) > _REMEMBERED:
                self._since.popitem(last=False)

    def reached(self, run: Run, account: Account, where: Where) -> None:
        """A part of a revocation is done, at one place."""
        since = self._since.get((run.worker, account))
        if since is not None and self._metrics is not None:
            self._metrics.revocation_seconds.labels(where).observe(max(0.0, (now() - since).total_seconds()))

    def end(self, run: Run, account: Account, *where: Where) -> None:
        """A revocation is done; without ``where`` there was nothing to revoke, or it is not this worker's to count."""
        for place in where:
            self.reached(run, account, place)
        self._since.pop((run.worker, account), None)


class UnderWay:
    """Which accounts still have what they should not, and since when that is seen here. Times are the caller's."""

    def __init__(self) -> None:
        self._first: dict[Account, datetime] = {}

    def oldest(self, accounts: Iterable[Account], moment: datetime) -> float:
        """Return for how many seconds the first of these has been seen so, 0 without any."""
        self._first = {account: self._first.get(account, moment) for account in accounts}
        return max(((moment - first).total_seconds() for first in self._first.values()), default=0.0)
