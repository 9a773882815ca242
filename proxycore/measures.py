"""What the proxy counts beyond what every process counts; docs/proxy.md has a row for each series.

No label holds a name of the cluster's: a route class, a verb, a code, a stage, a pattern of paths. What the size of
something is (``watch_size``) is asked for when the series are read, and costs nothing in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.metrics import Metrics

STAGES: Final = ("identity", "decision", "upstream")
WATCHES: Final = ("memory", "filtered", "forwarded")
CACHES: Final = ("objects", "access", "identities", "impersonations", "lists")
_STAGE_BUCKETS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
_RESPONSE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """The proxy's series; each attribute is a prometheus_client metric, its labels in the comment."""

    def __init__(self, metrics: Metrics) -> None:
        of = metrics.registry
        self.requests = metrics.proxy_requests  # route, verb, code
        self.seconds = metrics.proxy_seconds  # route
        self.in_flight = metrics.proxy_in_flight
        self.stages = Histogram(  # stage
            "tether_proxy_stage_seconds", "Time of a request by stage", ["stage"], buckets=_STAGE_BUCKETS, registry=of
        )
        self.cache_age = Gauge(
            "tether_proxy_cache_age_seconds", "Age of the grants and Namespaces that decide", registry=of
        )
        self.cache_entries = Gauge(  # cache
            "tether_proxy_cache_entries", "Entries in memory", ["cache"], registry=of
        )
        self.watches = Gauge("tether_proxy_watches", "Open watches by what feeds them", ["source"], registry=of)
        self.tunnels = Gauge("tether_proxy_tunnels", "Upgraded connections: exec, attach, port-forward", registry=of)
        self.connections = Gauge("tether_proxy_connections", "Open connections of clients", registry=of)
        self.audit_dropped = Counter(
            "tether_proxy_audit_dropped", "Audit records that could not be published", registry=of
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
        # Under the names that capsule-proxy documents, so that dashboards made for it go on.
        self.path_requests = Counter(  # path, status
            "capsule_proxy_requests", "Requests by path pattern and answer", ["path", "status"], registry=of
        )
        self.path_seconds = Histogram(  # path
            "capsule_proxy_response_time_seconds",
            "Time to the end of an answer by path pattern",
            ["path"],
            buckets=_RESPONSE_BUCKETS,
            registry=of,
        )
        for stage in STAGES:
            self.stages.labels(stage)
        for source in WATCHES:
            self.watches.labels(source)
        for result in ("loaded", "refused"):
            self.certificate_loads.labels(result)

    def watch_size(self, cache: str, size: Callable[[], int]) -> None:
        """Show the size of one of CACHES, asked for when the series are read."""
        self.cache_entries.labels(cache).set_function(lambda: float(size()))
