"""What the strategy makes goes through the pure parts of watcher and router: nothing raises, and all is bounded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventcore.bus import BusMessage
from eventcore.clock import now
from eventcore.events import object_event
from eventcore.keys import MAX_SUBJECT, work_subject
from eventcore.objects import KINDS
from eventcore.settings import Settings
from eventcore.views import ObjectsView
from tests.hostile_objects import hostile_object
from watchers.answers import read
from watchers.kinds import KindRow, rows
from workers.relations import Relations
from workers.routing import all_routes, route

SETTINGS = Settings(
    enable_reflector=True, proxy_all_namespaced=True, proxy_ca_namespace="p", kubeconfig_configmaps=True
)
ROWS = {row.kind: row for row in rows(SETTINGS)}


def message(row: KindRow, obj: dict[str, Any], sequence: int, limit: int) -> BusMessage | None:
    """Return what a watcher publishes for an object, None where it sets it aside."""
    obj["metadata"] |= {"uid": f"uid-{sequence}", "resourceVersion": str(sequence)}
    answer = read(row, msgspec.json.encode(obj))
    if not answer.key.fits:
        return None
    said = answer.say(limit)
    assert len(said.body) <= limit
    event = object_event("c", answer.key, uid="u", resource_version=str(sequence), withheld=said.withheld)
    subject, headers = answer.key.subject(), event.headers()
    assert len(subject) <= MAX_SUBJECT
    assert sum(len(text.encode()) for text in headers.values()) < 8000
    assert all(text.isprintable() and text.isascii() for text in headers.values())
    return BusMessage(subject=subject, sequence=sequence, time=now(), headers=headers, data=said.body)


@pytest.mark.parametrize("kind", sorted(set(ROWS) & set(KINDS)))
@settings(max_examples=10, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_object_of_any_kind_is_read_routed_and_set_aside_without_an_error(kind: str, data: st.DataObject) -> None:
    view, relations = ObjectsView(), Relations("default", "kustomize-controller")
    for sequence, limit in enumerate((1_000_000, 10_000), start=1):
        found = message(ROWS[kind], data.draw(hostile_object(kind)), sequence, limit)
        if found is None:
            continue
        change = view.apply(found)
        assert change is not None
        routes = route(change, relations) | all_routes(relations)
        for worker, key in routes:
            if key.fits:
                assert len(work_subject(worker, key)) <= MAX_SUBJECT
