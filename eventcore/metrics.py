"""What a process counts, in the Prometheus format.

Names that operators know from controller-runtime are kept; our own begin with ``tether_``. One `Metrics` belongs to one
process (one registry), so nothing leaks between tests. Labels are words of ours (controller, kind, verb), never names
of objects: those are without bound and belong in logs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from eventcore.clock import KUBE, NATS
from eventcore.keys import WORKERS

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RESULTS = ("success", "requeue", "requeue_after", "error", "terminal")
"""How a reconcile ends: Done, coalesced or retried, Done-and-again-at, Retry, Terminal."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECONCILE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0)

_REVOCATION = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0, 3600.0)

# A creation time beside each series doubles them, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves this one function without types


class Metrics:
    """The series of one process; each attribute is a prometheus_client metric, its labels in the comment."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        of = self.registry

        # Workers.
        self.reconciles = Counter(  # controller, result
            "controller_runtime_reconcile", "Reconciles by result", ["controller", "result"], registry=of
        )
        self.reconcile_errors = Counter(  # controller
            "controller_runtime_reconcile_errors", "Reconciles that failed", ["controller"], registry=of
        )
        self.reconcile_seconds = Histogram(  # controller
            "controller_runtime_reconcile_time_seconds",
            "Length of a reconcile",
            ["controller"],
            buckets=_RECONCILE,
            registry=of,
        )
        self.active_workers = Gauge(  # controller
            "controller_runtime_active_workers", "Reconciles that run now", ["controller"], registry=of
        )
        self.queue_depth = Gauge(  # controller
            "workqueue_depth", "Requests that wait in WORK", ["controller"], registry=of
        )
        self.queue_oldest = Gauge(  # controller
            "tether_work_oldest_seconds",
            "Age of the oldest request that is not finished; 0 without any",
            ["controller"],
            registry=of,
        )
        self.audit_bytes = Gauge("tether_audit_bytes", "Bytes of the audit records that are kept", registry=of)
        self.queue_retries = Counter(  # controller
            "workqueue_retries", "Retries that were scheduled", ["controller"], registry=of
        )
        self.coalesced = Counter(  # controller
            "tether_work_coalesced", "Requests acknowledged without work: already seen", ["controller"], registry=of
        )
        self.redeliveries = Counter(  # controller
            "tether_work_redeliveries", "Requests that came again", ["controller"], registry=of
        )
        self.overruns = Counter(  # controller
            "tether_work_overruns", "Reconciles cut off at their time limit", ["controller"], registry=of
        )
        self.dead_letters = Counter(  # controller
            "tether_dlq", "Requests put into the DLQ", ["controller"], registry=of
        )
        self.routed = Counter(  # controller
            "tether_router_requests", "Reconcile requests published by the router", ["controller"], registry=of
        )
        self.set_aside = Counter(  # controller, why
            "tether_router_set_aside",
            "Requests that cannot be published and RoleBindings with too many subjects: nothing is granted for them",
            ["controller", "why"],
            registry=of,
        )

        # What the accounts have, by what a worker sees of the whole cluster.
        self.accounts = Gauge("tether_accounts", "Accounts that are enabled and may have a token", registry=of)
        self.accounts_refused = Gauge(
            "tether_accounts_refused",
            "Enabled owners that get nothing, for their home is another tenant's",
            registry=of,
        )
        self.accounts_without_token = Gauge(
            "tether_accounts_without_token", "Accounts that should have a token and have none", registry=of
        )
        self.token_age = Gauge(  # mode
            "tether_token_age_seconds", "Age of the oldest current token; 0 without any", ["mode"], registry=of
        )
        self.token_expiry = Gauge(
            "tether_token_expiry_timestamp_seconds",
            "When the first of the current tokens expires, in Unix time; 0 without any",
            registry=of,
        )
        self.tokens_overdue = Gauge(
            "tether_tokens_overdue", "Current tokens that should have been rotated", registry=of
        )
        self.kubeconfigs = Gauge("tether_kubeconfigs", "Kubeconfigs that should be there", registry=of)
        self.kubeconfigs_out_of_date = Gauge(
            "tether_kubeconfigs_out_of_date",
            "Kubeconfigs that are missing, hold another token than the current one, or do not belong where they are",
            registry=of,
        )

        self.revocation_seconds = Histogram(  # where
            "tether_revocation_seconds",
            "Time from the change that led to a revocation until it is done",
            ["where"],
            buckets=_REVOCATION,
            registry=of,
        )
        for where in ("proxy", "apiserver"):
            self.revocation_seconds.labels(where)
        self.revocation_oldest = Gauge(
            "tether_revocation_oldest_seconds",
            "For how long an account is seen to have what it may not have any more; 0 without any",
            registry=of,
        )

        # The bus.
        self.publishes = Counter(  # stream
            "tether_bus_publishes", "Messages that NATS acknowledged", ["stream"], registry=of
        )
        self.publish_seconds = Histogram(  # stream
            "tether_bus_publish_seconds", "Time to an acknowledged publish", ["stream"], buckets=_FAST, registry=of
        )
        self.publish_errors = Counter(  # stream
            "tether_bus_publish_errors", "Publishes given up after retries", ["stream"], registry=of
        )
        self.publish_conflicts = Counter(  # stream
            "tether_bus_publish_conflicts", "Publishes refused: another last sequence", ["stream"], registry=of
        )
        self.connected = Gauge("tether_bus_connected", "1 while NATS is connected", registry=of)
        self.reconnects = Counter("tether_bus_reconnects", "Times that NATS was connected again", registry=of)

        # Views.
        self.view_age = Gauge(  # kind
            "tether_view_age_seconds", "Age of what memory holds, by the last mark", ["kind"], registry=of
        )
        self.view_sequence = Gauge(  # view
            "tether_view_applied_sequence", "Last stream sequence that a view applied", ["view"], registry=of
        )
        self.view_objects = Gauge("tether_view_objects", "Objects in memory", ["view"], registry=of)  # view
        self.view_rebuilds = Counter(  # view
            "tether_view_rebuilds", "Views built anew after NATS lost or replaced the stream", ["view"], registry=of
        )

        # Watchers.
        self.relists = Counter("tether_watch_relists", "Full lists", ["kind"], registry=of)  # kind
        self.watch_restarts = Counter(  # kind, why
            "tether_watch_restarts", "Watches opened again", ["kind", "why"], registry=of
        )
        self.tombstones = Counter("tether_watch_tombstones", "Objects buried", ["kind"], registry=of)  # kind
        self.mass_deletes = Gauge(  # kind
            "tether_watch_mass_delete_stopped", "1 while a pass waits for an operator", ["kind"], registry=of
        )

        # The Kubernetes client.
        self.kube_requests = Counter(  # verb, code
            "tether_kube_requests", "Requests to the API server", ["verb", "code"], registry=of
        )

        # The event loop.
        self.loop_held = Histogram(
            "tether_loop_held_seconds",
            "By how much a heartbeat of the event loop came late, ten times a second",
            buckets=_FAST,
            registry=of,
        )

        # Clocks.
        self.clock_skew = Gauge(  # server
            "tether_clock_skew_seconds",
            "Seconds that the clock of this machine is surely ahead of a server's; below 0: behind",
            ["server"],
            registry=of,
        )

        self._start_at_zero()

    def _start_at_zero(self) -> None:
        # A series that begins at its first error has no rate at that moment, and an alert misses it.
        for controller in WORKERS:
            for result in RESULTS:
                self.reconciles.labels(controller, result)
            for metric in (self.reconcile_errors, self.queue_retries, self.coalesced, self.redeliveries):
                metric.labels(controller)
            for metric in (self.overruns, self.dead_letters, self.routed):
                metric.labels(controller)
            self.reconcile_seconds.labels(controller)
            self.active_workers.labels(controller)
            self.queue_depth.labels(controller)
            self.queue_oldest.labels(controller)
        for stream in ("OBJECTS", "WORK", "AUDIT", "DLQ", "access"):
            for metric in (self.publishes, self.publish_errors, self.publish_conflicts):
                metric.labels(stream)
            self.publish_seconds.labels(stream)
        for mode in ("bound", "static"):
            self.token_age.labels(mode)
        for clock in (KUBE, NATS):
            self.clock_skew.labels(clock.server).set_function(partial(getattr, clock, "skew"))

    def expect_kinds(self, kinds: Iterable[str]) -> None:
        """Start the series of these watched kinds at zero."""
        for kind in kinds:
            self.relists.labels(kind)
            self.tombstones.labels(kind)
            self.mass_deletes.labels(kind)

    def render(self) -> bytes:
        """Return all series in the text format, see `CONTENT_TYPE`."""
        return generate_latest(self.registry)
