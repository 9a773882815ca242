"""What only a watcher counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.metrics import Metrics

WHY: Final = ("undecodable", "oversized", "name")
"""It does not decode, it is over max_payload, or its name is too long for a subject."""


class WatchMetrics:
    """The series of a watcher, in the registry of its process."""

    def __init__(self, metrics: Metrics) -> None:
        self.refused = Counter(  # kind, why
            "tether_watch_refused_objects",
            "Objects that could not be published",
            ["kind", "why"],
            registry=metrics.registry,
        )

    def expect_kinds(self, kinds: Iterable[str]) -> None:
        """Start the series of these kinds at zero."""
        for kind in kinds:
            for why in WHY:
                self.refused.labels(kind, why)
