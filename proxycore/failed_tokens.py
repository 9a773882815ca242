"""How many tokens that nobody knows may be asked about: each costs the API server a review.

A review is taken from the budget of the network that the token came from, and from that of all, and given back when the
token turns out to be good. So who sends good tokens spends nothing, and who sends garbage is told to come later.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from proxycore.peers import network_of

if TYPE_CHECKING:
    from collections.abc import Callable

BURST: Final = 10.0
"""Seconds' worth of failures that a network may have at once."""
NETWORKS: Final = 20.0
"""Failures of all networks together are limited to so many times those of one."""
MOST_NETWORKS: Final = 10_000
_ROUNDING: Final = 1e-6


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
        # When the next failure would come if all came evenly; no later than BURST from now.
        self._due: OrderedDict[str, float] = OrderedDict()
        self._due_of_all = 0.0

    def take(self, peer: str) -> float:
        """Take one review of a token from this peer; return 0, or the seconds to wait when there is none to take."""
        if not self._gap:
            return 0.0
        now = self._clock()
        common = max(self._due_of_all, now)
        wait = common - now - (BURST - self._gap / NETWORKS)
        if not self._exempt(peer):
            network = network_of(peer)
            due = max(self._due.get(network, 0.0), now)
            wait = max(wait, due - now - (BURST - self._gap))
            if wait <= _ROUNDING:
                self._due[network] = due + self._gap
                self._due.move_to_end(network)
                while len(self._due) > MOST_NETWORKS:
                    self._due.popitem(last=False)
        if wait > _ROUNDING:
            return wait
        self._due_of_all = common + self._gap / NETWORKS
        return 0.0

    def give_back(self, peer: str) -> None:
        """Give back what was taken: the token is good, or nobody could tell."""
        if not self._gap:
            return
        self._due_of_all -= self._gap / NETWORKS
        network = network_of(peer)
        if not self._exempt(peer) and network in self._due:
            self._due[network] -= self._gap
