"""What is known of one request while it runs: what it asks for and as whom, and what its metrics and audit need."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxycore.requestinfo import RequestInfo

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from eventcore.metrics import Metrics
    from proxycore.authentication import Caller
    from proxycore.headers import Header
    from proxycore.identities import Identity
    from proxycore.impersonating import Acting
    from proxycore.plane.exchange import Request

_VERBS: Final = frozenset({"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"})


class Counts:
    """The counters of requests. Finding one by its labels costs more than counting, so each is found once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[tuple[str, str, str], Counter] = {}
        self._seconds: dict[str, Histogram] = {}
        self.running = metrics.proxy_in_flight

    def answered(self, route: str, verb: str, code: str) -> None:
        """Count a request; the labels have few values each, so what is kept is bounded."""
        labels = route, verb, code
        if (counter := self._requests.get(labels)) is None:
            counter = self._requests[labels] = self._metrics.proxy_requests.labels(*labels)
        counter.inc()

    def began(self, route: str, seconds: float) -> None:
        """Note the time to the first byte of an answer."""
        if (histogram := self._seconds.get(route)) is None:
            histogram = self._seconds[route] = self._metrics.proxy_seconds.labels(route)
        histogram.observe(seconds)


class Run:
    """One request."""

    def __init__(self, counts: Counts, method: str) -> None:
        self.info = RequestInfo(method=method, target="", path="", query="", verb="")
        self.identity: Identity | None = None
        self.route = "refused"
        self._counts = counts
        self._begun = time.monotonic()
        self._first_byte = False

    def began(self) -> None:
        """Note that the answer begins."""
        if not self._first_byte:
            self._first_byte = True
            self._counts.began(self.route, time.monotonic() - self._begun)

    def done(self, code: str) -> None:
        """Count the request."""
        self.began()
        verb = self.info.verb if self.info.verb in _VERBS else "other"
        self._counts.answered(self.route, verb, code)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request with all that is known of it when it is decided. ``passed``: its headers that go upstream.

    ``passes``: it goes to the API server as its caller whatever the grants say, and so does the answer back.
    """

    request: Request
    run: Run
    info: RequestInfo
    passed: list[Header]
    caller: Caller
    acting: Acting
    token: str
    passes: bool = False
