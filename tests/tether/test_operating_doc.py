"""docs/operating.md names every series but the proxy's own, with its type and labels, and every Event; and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from prometheus_client.metrics import MetricWrapperBase

from eventcore.metrics import Metrics
from watchers.metrics import WatchMetrics
from workers.writing import Transition

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operating.md").read_text()


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this name."""
    _, _, after = TEXT.partition(f"\n| {header} |")
    lines = after.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def test_every_series_stands_in_the_table_with_its_type_and_labels_and_no_other_does() -> None:
    metrics = Metrics()
    WatchMetrics(metrics)
    served = set()
    for metric in metrics.registry._collector_to_names:  # noqa: SLF001 -- only there stand the labels without a sample
        assert isinstance(metric, MetricWrapperBase)
        name = metric._name + ("_total" if metric._type == "counter" else "")  # noqa: SLF001 -- as above
        served.add((name, metric._type, metric._documentation, tuple(metric._labelnames)))  # noqa: SLF001 -- as above

    written = {
        (name.strip("`"), kind, what, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, what, _ in rows("Series")
    }

    assert written == served


def test_every_event_stands_in_the_table_and_no_other_does() -> None:
    told = set(get_args(Transition))
    for file in (ROOT / "workers").glob("*.py"):
        told |= set(re.findall(r'reason="([A-Z]\w+)"', file.read_text()))

    written = {reason for names, *_ in rows("Reason") for reason in re.findall(r"`(\w+)`", names)}

    assert written == told - {"OwnerIgnored"}
    assert "`OwnerIgnored`" in TEXT
