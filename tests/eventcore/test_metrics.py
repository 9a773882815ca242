"""Metrics: names that operators know, series from zero, nothing shared between two processes."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from eventcore.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_known_series_stand_at_zero_before_anything_happened() -> None:
    values = samples(Metrics())
    for name, labels in [
        ("controller_runtime_reconcile_total", {"controller": "rbac", "result": "error"}),
        ("controller_runtime_reconcile_errors_total", {"controller": "token"}),
        ("controller_runtime_reconcile_time_seconds_count", {"controller": "kubeconfig"}),
        ("controller_runtime_active_workers", {"controller": "access"}),
        ("workqueue_depth", {"controller": "rbac"}),
        ("workqueue_retries_total", {"controller": "rbac"}),
        ("tether_dlq_total", {"controller": "rbac"}),
        ("tether_bus_publish_conflicts_total", {"stream": "OBJECTS"}),
    ]:
        assert values[name, frozenset(labels.items())] == 0.0


def test_what_is_counted_is_rendered() -> None:
    metrics = Metrics()
    metrics.reconciles.labels("rbac", "success").inc()
    metrics.view_age.labels("Namespace").set_function(lambda: 1.5)
    metrics.expect_kinds(["Tenant"])
    values = samples(metrics)
    done = frozenset({("controller", "rbac"), ("result", "success")})
    assert values["controller_runtime_reconcile_total", done] == 1.0
    assert values["tether_view_age_seconds", frozenset({("kind", "Namespace")})] == 1.5
    assert values["tether_watch_tombstones_total", frozenset({("kind", "Tenant")})] == 0.0


def test_two_sets_of_metrics_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.reconciles.labels("rbac", "success").inc()
    key = ("controller_runtime_reconcile_total", frozenset({("controller", "rbac"), ("result", "success")}))
    assert (samples(one)[key], samples(other)[key]) == (1.0, 0.0)


def test_no_series_tells_creation_times() -> None:
    assert b"_created" not in Metrics().render()
