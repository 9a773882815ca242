"""How many tokens that nobody knows may be asked about: each costs the API server a review.

A review is taken from the budget of the network that the token came from, and from that of all, and given back when the
token turns out to be good. So who sends good tokens spends nothing, and who sends garbage is told to come later. Where
many networks send garbage and spend what is there for all, one that seldom asks has a small budget apart.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from proxycore.peers import network_of

if TYPE_CHECKING:
    from collections.abc import Callable

BURST: Final = 10.0
"""Seconds' worth of failures that a network may have at once."""
NETWORKS: Final = 20.0
"""Failures of all networks together are limited to so many times those of one."""
APART: Final = 0.1
"""The part of its budget that a network may have once that of all is spent."""
NETWORKS_APART: Final = 10.0
"""What all have in this way is limited to so many times the budget of one, beside that of all."""
MOST_NETWORKS: Final = 10_000
_ROUNDING: Final = 1e-6


class _Budget:
    """So many seconds for one failure, and BURST seconds' worth at once, but always one."""

    __slots__ = ("due", "gap")

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.due = 0.0  # when the next failure would come if all came evenly; no later than BURST from now

    def wait(self, now: float) -> float:
        return max(self.due, now) - now - max(BURST - self.gap, 0.0)

    def take(self, now: float) -> None:
        self.due = max(self.due, now) + self.gap


class Taken(NamedTuple):
    """A review that may be asked for, or the seconds to ``wait`` when there is none; and where it was taken from."""

    wait: float
    budgets: tuple[_Budget, ...] = ()


class FailedTokens:
    """The budgets: ``rate`` failures a second for each network, 0 for no limit.

    ``exempt`` tells of an address whether it stands for many clients: it spends from the common budget alone.
    """

    def __init__(
        self,
        rate: float,
        *,
        exempt: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gap = 1 / rate if rate else 0.0  # seconds for one failure
        self._exempt = exempt
        self._clock = clock
        self._networks: OrderedDict[str, tuple[_Budget, _Budget]] = OrderedDict()  # the whole, and what is apart
        self._all = _Budget(self._gap / NETWORKS)
        self._all_apart = _Budget(self._gap / NETWORKS_APART)

    def take(self, peer: str) -> Taken:
        """Take one review of a token from this peer, if there is one to take."""
        if not self._gap:
            return Taken(0.0)
        now = self._clock()
        if self._exempt(peer):
            return _take(now, self._all)
        network = network_of(peer)
        own = self._networks.get(network) or (_Budget(self._gap), _Budget(self._gap / APART))
        taken = _take(now, own[0], self._all)
        if not taken.budgets and own[0].wait(now) <= _ROUNDING:
            taken = min(taken, _take(now, *own, self._all_apart), key=lambda one: one.wait)
        if taken.budgets:
            self._networks[network] = own
            self._networks.move_to_end(network)
            while len(self._networks) > MOST_NETWORKS:
                self._networks.popitem(last=False)
        return taken

    def give_back(self, taken: Taken) -> None:
        """Give back what was taken: the token is good, or nobody could tell."""
        for budget in taken.budgets:
            budget.due -= budget.gap


def _take(now: float, *budgets: _Budget) -> Taken:
    """Take from all of them, or from none."""
    wait = max(budget.wait(now) for budget in budgets)
    if wait > _ROUNDING:
        return Taken(wait)
    for budget in budgets:
        budget.take(now)
    return Taken(0.0, budgets)
