"""What the proxy counts beyond what every process counts; docs/proxy.md has a row for each series.

No label holds a name of the cluster's: a route class, a verb, a code, a stage, a pattern of paths. What is counted for
each request is kept in plain numbers, which the event loop alone touches, and made into series when these are read:
locks and label look-ups would cost a request more than its decision. Sizes are asked for at that moment too.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from proxycore.plane.accepting import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from eventcore.metrics import Metrics

STAGES: Final = ("identity", "decision", "upstream")
WATCHES: Final = ("memory", "filtered", "forwarded")
IDENTITIES: Final = ("local", "cached", "reviewed", "certificate", "xfcc", "anonymous", "refused", "limited", "failed")
CACHES: Final = ("objects", "access", "identities", "impersonations", "lists")
_FIRST_BYTE: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
_WHOLE: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Spread:
    """How values spread over upper bounds: a histogram of one set of labels."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Take a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Add what was taken to a family of series."""
        below, buckets = 0, []
        for bound, count in zip((*(str(one) for one in self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(labels, buckets, self._sum)


class Spreads(dict[str, Spread]):
    """A spread for each value of one label, made when it is first asked for."""

    def __init__(self, bounds: tuple[float, ...], *labels: str) -> None:
        super().__init__({label: Spread(bounds) for label in labels})
        self._bounds = bounds

    def __missing__(self, label: str) -> Spread:
        found = self[label] = Spread(self._bounds)
        return found


class Tally(Collector):
    """The numbers of requests. Whoever adds to them does so from the event loop's thread."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str, str, str], int] = {}  # route, verb, code, path
        self.identities = dict.fromkeys(IDENTITIES, 0)
        self.first_byte = Spreads(_FIRST_BYTE)  # route
        self.stages = Spreads(_STAGE, *STAGES)
        self.paths = Spreads(_WHOLE)  # path

    def collect(self) -> Iterator[Metric]:
        """Yield the series as they are now."""
        requests = CounterMetricFamily(
            "tether_proxy_requests", "Requests by route class, verb and answer", labels=["route", "verb", "code"]
        )
        # Under the names that capsule-proxy documents, so that dashboards made for it go on.
        paths = CounterMetricFamily(
            "capsule_proxy_requests", "Requests by path pattern and answer", labels=["path", "status"]
        )
        by_route: dict[tuple[str, ...], int] = {}
        by_path: dict[tuple[str, ...], int] = {}
        for (route, verb, code, path), count in self.answers.items():
            by_route[route, verb, code] = by_route.get((route, verb, code), 0) + count
            by_path[path, code] = by_path.get((path, code), 0) + count
        for family, counts in ((requests, by_route), (paths, by_path)):
            for labels, count in counts.items():
                family.add_metric(list(labels), count)
            yield family
        identities = CounterMetricFamily(
            "tether_proxy_identity", "Credentials by how they were decided", labels=["result"]
        )
        for result, count in self.identities.items():
            identities.add_metric([result], count)
        yield identities
        for name, text, label, spreads in (
            ("tether_proxy_request_seconds", "Time to the first byte of an answer", "route", self.first_byte),
            ("tether_proxy_stage_seconds", "Time of a request by stage", "stage", self.stages),
            ("capsule_proxy_response_time_seconds", "Time to the end of an answer by path pattern", "path", self.paths),
        ):
            histogram = HistogramMetricFamily(name, text, labels=[label])
            for value, spread in spreads.items():
                spread.add_to(histogram, [value])
            yield histogram


class Measures:
    """The proxy's series: `tally`, and metrics of prometheus_client with their labels in the comment."""

    def __init__(self, metrics: Metrics) -> None:
        of = metrics.registry
        self.tally = Tally()
        of.register(self.tally)
        self.in_flight = Gauge("tether_proxy_requests_in_flight", "Requests that run now", registry=of)
        self.cache_age = Gauge(
            "tether_proxy_cache_age_seconds", "Age of the grants and Namespaces that decide", registry=of
        )
        self.stale = Gauge(
            "tether_proxy_stale", "1 while memory is too old and filtered answers are refused", registry=of
        )
        self.api_up = Gauge("tether_proxy_api_up", "1 while the API server answers the proxy itself", registry=of)
        self.cache_entries = Gauge("tether_proxy_cache_entries", "Entries in memory", ["cache"], registry=of)  # cache
        self.watches = Gauge(  # source
            "tether_proxy_watches", "Open watches by what feeds them", ["source"], registry=of
        )
        self.tunnels = Gauge("tether_proxy_tunnels", "Upgraded connections: exec, attach, port-forward", registry=of)
        self.connections = Gauge("tether_proxy_connections", "Open connections of clients", registry=of)
        self.connections_most = Gauge(
            "tether_proxy_connections_most", "Connections of clients that this process takes", registry=of
        )
        self.connections_refused = Counter(  # reason
            "tether_proxy_connections_refused",
            "Connections that were not taken, or closed for others",
            ["reason"],
            registry=of,
        )
        self.audit_dropped = Counter(
            "tether_proxy_audit_dropped", "Audit records that could not be published", registry=of
        )
        self.audit_summed = Counter(
            "tether_proxy_audit_summed", "Refusals that are not records of their own but counted in one", registry=of
        )
        self.access_dropped = Counter(
            "tether_proxy_access_lines_dropped", "Access lines that nobody took in time", registry=of
        )
        self.certificate_loads = Counter(  # result
            "tether_proxy_certificate_loads", "Serving certificates loaded again", ["result"], registry=of
        )
        self.certificate_expiry = Gauge(
            "tether_proxy_certificate_expiry_timestamp_seconds", "When the serving certificate expires", registry=of
        )
        for source in WATCHES:
            self.watches.labels(source)
        for reason in REASONS:
            self.connections_refused.labels(reason)
        for result in ("loaded", "refused"):
            self.certificate_loads.labels(result)

    def watch_size(self, cache: str, size: Callable[[], int]) -> None:
        """Show the size of one of CACHES, asked for when the series are read."""
        self.cache_entries.labels(cache).set_function(lambda: float(size()))
