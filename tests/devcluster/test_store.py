"""The versioned store: what a write does to metadata, who conflicts, what is kept for watches and pages."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.objects import clone
from tether.devcluster.resources import CONFIG_MAPS, CRDS, NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from tether.devcluster.store import Store


def _store(**options: Any) -> Store:
    store = Store(**options)
    store.create(NAMESPACES, {"metadata": {"name": "oil"}})
    return store


def _config_map(name: str = "a", **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "oil"}, "data": data}


def _widgets(*, finalizers: bool = False) -> tuple[Store, Object]:
    store = _store()
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    spec = {
        "group": "example.org",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [version | {"subresources": {"status": {}}}],
    }
    store.create(CRDS, {"metadata": {"name": "widgets.example.org"}, "spec": spec})
    kind = store.resource("example.org", "widgets")
    assert kind is not None
    meta: Object = {"name": "w", "namespace": "oil"} | ({"finalizers": ["example.org/hold"]} if finalizers else {})
    return store, store.create(kind, {"metadata": meta, "spec": {"size": 1}, "status": {"seen": True}})


def test_a_created_object_carries_what_the_server_assigns() -> None:
    # given
    store = _store()
    # when
    made = store.create(CONFIG_MAPS, _config_map() | {"metadata": {"name": "a", "namespace": "oil", "uid": "mine"}})
    # then
    assert made["apiVersion"] == "v1"
    assert made["kind"] == "ConfigMap"
    assert made["metadata"]["uid"] not in {"", "mine"}
    assert made["metadata"]["resourceVersion"] == str(store.version)
    assert made["metadata"]["creationTimestamp"].endswith("Z")
    assert "generation" not in made["metadata"]


def test_versions_grow_by_one_over_all_kinds() -> None:
    # given
    store = _store()
    before = store.version
    # when
    store.create(CONFIG_MAPS, _config_map())
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "x", "namespace": "oil"}})
    store.delete(CONFIG_MAPS, "oil", "a")
    # then
    assert store.version == before + 3


def test_a_name_is_generated_from_its_prefix() -> None:
    # given
    store = _store()
    # when
    names = [
        store.create(CONFIG_MAPS, {"metadata": {"generateName": "job-", "namespace": "oil"}})["metadata"]["name"]
        for _ in range(20)
    ]
    # then
    assert len(set(names)) == 20
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


def test_a_second_object_of_that_name_already_exists() -> None:
    # given
    store = _store()
    store.create(CONFIG_MAPS, _config_map())
    # when
    with pytest.raises(ApiError) as caught:
        store.create(CONFIG_MAPS, _config_map())
    # then
    assert (caught.value.code, caught.value.reason) == (409, "AlreadyExists")
    assert caught.value.message == 'configmaps "a" already exists'


def test_an_update_from_an_old_version_conflicts() -> None:
    # given
    store = _store()
    first = store.create(CONFIG_MAPS, _config_map(k="1"))
    store.update(CONFIG_MAPS, clone(first) | {"data": {"k": "2"}})
    # when
    with pytest.raises(ApiError) as caught:
        store.update(CONFIG_MAPS, clone(first) | {"data": {"k": "3"}})
    # then
    assert (caught.value.code, caught.value.reason) == (409, "Conflict")
    assert "the object has been modified" in caught.value.message
    assert store.get(CONFIG_MAPS, "oil", "a") != first


def test_an_update_that_changes_nothing_is_no_change() -> None:
    # given
    store = _store()
    first = store.create(CONFIG_MAPS, _config_map(k="1"))
    # when
    again = store.update(CONFIG_MAPS, clone(first))
    # then
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert store.version == int(first["metadata"]["resourceVersion"])


def test_an_update_cannot_change_what_the_server_assigned() -> None:
    # given
    store = _store()
    first = store.create(CONFIG_MAPS, _config_map(k="1"))
    changed = clone(first) | {"data": {"k": "2"}}
    changed["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    # when
    second = store.update(CONFIG_MAPS, changed)
    # then
    assert second["metadata"]["creationTimestamp"] == first["metadata"]["creationTimestamp"]
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


def test_a_delete_with_a_precondition_that_does_not_hold_conflicts() -> None:
    # given
    store = _store()
    store.create(CONFIG_MAPS, _config_map())
    # when
    with pytest.raises(ApiError) as by_uid:
        store.delete(CONFIG_MAPS, "oil", "a", uid="other")
    with pytest.raises(ApiError) as by_version:
        store.delete(CONFIG_MAPS, "oil", "a", resource_version="1")
    # then
    assert (by_uid.value.code, by_version.value.code) == (409, 409)
    assert "UID in precondition: other" in by_uid.value.message
    assert "ResourceVersion in precondition: 1" in by_version.value.message
    assert store.get(CONFIG_MAPS, "oil", "a") is not None


def test_an_object_with_finalizers_waits_and_goes_with_the_last_of_them() -> None:
    # given
    store = _store()
    held = _config_map()
    held["metadata"]["finalizers"] = ["example.org/hold"]
    store.create(CONFIG_MAPS, held)
    # when
    marked = store.delete(CONFIG_MAPS, "oil", "a")
    # then
    assert marked["metadata"]["deletionTimestamp"]
    assert store.get(CONFIG_MAPS, "oil", "a") == marked
    # when
    freed = clone(marked)
    freed["metadata"]["finalizers"] = []
    store.update(CONFIG_MAPS, freed)
    # then
    assert store.get(CONFIG_MAPS, "oil", "a") is None


def test_a_namespace_terminates_until_it_is_finalized() -> None:
    # given
    store = _store()
    # when
    marked = store.delete(NAMESPACES, "", "oil")
    # then
    assert marked["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError) as caught:
        store.create(CONFIG_MAPS, _config_map())
    assert caught.value.code == 403
    assert (caught.value.details or {})["causes"][0]["reason"] == "NamespaceTerminating"
    # when
    store.update(NAMESPACES, clone(marked) | {"spec": {"finalizers": []}}, subresource="finalize")
    # then
    assert store.get(NAMESPACES, "", "oil") is None


def test_nothing_is_created_in_a_namespace_that_is_not_there() -> None:
    # given
    store = Store()
    # when
    with pytest.raises(ApiError) as caught:
        store.create(CONFIG_MAPS, _config_map())
    # then
    assert (caught.value.code, caught.value.message) == (404, 'namespaces "oil" not found')


def test_status_is_written_through_its_own_endpoint_alone() -> None:
    # given
    store, made = _widgets()
    kind = store.resource("example.org", "widgets")
    assert kind is not None
    assert "status" not in made
    # when
    by_status = store.update(kind, clone(made) | {"status": {"ready": True}, "spec": {"size": 9}}, subresource="status")
    # then
    assert by_status["status"] == {"ready": True}
    assert by_status["spec"] == {"size": 1}
    assert by_status["metadata"]["generation"] == 1
    # when
    by_main = store.update(kind, clone(by_status) | {"status": {"ready": False}, "spec": {"size": 2}})
    # then
    assert by_main["status"] == {"ready": True}
    assert by_main["spec"] == {"size": 2}
    assert by_main["metadata"]["generation"] == 2


def test_labels_do_not_count_as_a_new_generation() -> None:
    # given
    store, made = _widgets()
    kind = store.resource("example.org", "widgets")
    assert kind is not None
    labelled = clone(made)
    labelled["metadata"]["labels"] = {"a": "b"}
    # when
    changed = store.update(kind, labelled)
    # then
    assert changed["metadata"]["generation"] == 1
    assert changed["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]


def test_a_definition_that_goes_takes_its_objects_along() -> None:
    # given
    store, made = _widgets()
    kind = store.resource("example.org", "widgets")
    assert kind is not None
    # when
    store.delete(CRDS, "", "widgets.example.org")
    # then
    assert store.resource("example.org", "widgets") is None
    assert store.get(kind, "oil", made["metadata"]["name"]) is None
    assert store.get(CRDS, "", "widgets.example.org") is None


def test_a_definition_waits_for_an_object_with_finalizers() -> None:
    # given
    store, _ = _widgets(finalizers=True)
    kind = store.resource("example.org", "widgets")
    assert kind is not None
    # when
    store.delete(CRDS, "", "widgets.example.org")
    # then
    waiting = store.get(CRDS, "", "widgets.example.org")
    assert waiting is not None
    assert waiting["metadata"]["deletionTimestamp"]
    # when
    freed = clone(store.get(kind, "oil", "w"))
    freed["metadata"]["finalizers"] = []
    store.update(kind, freed)
    # then
    assert store.get(CRDS, "", "widgets.example.org") is None
    assert store.resource("example.org", "widgets") is None


def test_a_secrets_plain_data_is_folded_into_its_data() -> None:
    # given
    store = _store()
    # when
    made = store.create(SECRETS, {"metadata": {"name": "s", "namespace": "oil"}, "stringData": {"k": "v"}})
    # then
    assert made["data"] == {"k": "dg=="}
    assert made["type"] == "Opaque"
    assert "stringData" not in made


def test_a_dry_run_changes_nothing() -> None:
    # given
    store = _store()
    made = store.create(CONFIG_MAPS, _config_map(k="1"))
    before = store.version
    # when
    store.create(CONFIG_MAPS, _config_map("b"), dry_run=True)
    tried = store.update(CONFIG_MAPS, clone(made) | {"data": {"k": "2"}}, dry_run=True)
    store.delete(CONFIG_MAPS, "oil", "a", dry_run=True)
    # then
    assert tried["data"] == {"k": "2"}
    assert store.version == before
    assert store.get(CONFIG_MAPS, "oil", "a") == made


def test_a_list_has_one_namespace_in_order_of_names() -> None:
    # given
    store = _store()
    store.create(NAMESPACES, {"metadata": {"name": "oil-a"}})
    for namespace, name in [("oil", "b"), ("oil-a", "c"), ("oil", "a")]:
        store.create(CONFIG_MAPS, {"metadata": {"name": name, "namespace": namespace}})
    # when
    listed = [obj["metadata"]["name"] for obj in store.list(CONFIG_MAPS, "oil")]
    everything = [obj["metadata"]["name"] for obj in store.list(CONFIG_MAPS)]
    # then
    assert listed == ["a", "b"]
    assert everything == ["a", "b", "c"]


async def test_changes_come_in_order_from_the_call_on() -> None:
    # given
    store = _store()
    made = store.create(CONFIG_MAPS, _config_map(k="1"))
    changes = store.changes()
    # when
    store.update(CONFIG_MAPS, clone(made) | {"data": {"k": "2"}})
    store.delete(CONFIG_MAPS, "oil", "a")
    store.close()
    # then
    seen = [(change.type, change.resource_version) async for change in changes]
    assert seen == [("MODIFIED", store.version - 1), ("DELETED", store.version)]


async def test_a_reader_wakes_when_something_changes() -> None:
    # given
    store = _store()
    changes = store.changes()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    # when
    store.create(CONFIG_MAPS, _config_map())
    # then
    change = await waiting
    assert change.obj["metadata"]["name"] == "a"


async def test_a_watch_resumes_from_any_version_in_the_window() -> None:
    # given
    store = _store()
    start = store.version
    for at in range(5):
        store.create(CONFIG_MAPS, _config_map(f"a{at}"))
    # when
    pending = store.watch(CONFIG_MAPS, start + 2).pending()
    # then
    assert [change.resource_version for change in pending] == [start + 3, start + 4, start + 5]


@pytest.mark.parametrize("expire", [True, False])
async def test_a_watch_from_before_the_window_is_expired(expire: bool) -> None:
    # given
    store = _store(history=3)
    start = store.version
    for at in range(1 if expire else 4):
        store.create(CONFIG_MAPS, _config_map(f"a{at}"))
    if expire:
        store.expire_history()
    # when
    with pytest.raises(ApiError) as caught:
        store.watch(CONFIG_MAPS, start)
    # then
    assert (caught.value.code, caught.value.reason) == (410, "Expired")
    assert not store.watch(CONFIG_MAPS, store.version).pending()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "delete"])), max_size=25))
def test_every_version_in_the_window_can_be_listed_as_it_was(steps: list[tuple[str, str]]) -> None:
    # given
    store = _store()
    taken = {store.version: store.list(CONFIG_MAPS)}
    # when
    for at, (name, step) in enumerate(steps):
        old = store.get(CONFIG_MAPS, "oil", name)
        if step == "delete":
            if old is not None:
                store.delete(CONFIG_MAPS, "oil", name)
        elif old is None:
            store.create(CONFIG_MAPS, _config_map(name, k=str(at)))
        else:
            store.update(CONFIG_MAPS, clone(old) | {"data": {"k": str(at)}})
        taken[store.version] = store.list(CONFIG_MAPS)
    # then
    for version, items in taken.items():
        assert store.list_at(CONFIG_MAPS, "oil", version) == items


_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES
from tether.devcluster.store import Store
store = Store(Path(sys.argv[1]))
store.create(NAMESPACES, {"metadata": {"name": "oil"}})
for name in ("a", "gone"):
    store.create(CONFIG_MAPS, {"metadata": {"name": name, "namespace": "oil"}, "data": {"k": "1"}})
store.delete(CONFIG_MAPS, "oil", "gone")
print(store.version, store.get(CONFIG_MAPS, "oil", "a")["metadata"]["uid"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_store_comes_back_after_a_kill_as_it_was(tmp_path: Path) -> None:
    # given
    path = tmp_path / "objects.sqlite"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITE_AND_DIE, str(path), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    version, uid = out.decode().split()
    # when
    again = Store(path)
    # then
    assert again.version == int(version)
    assert [(obj["metadata"]["uid"], obj["data"]) for obj in again.list(CONFIG_MAPS)] == [(uid, {"k": "1"})]
    made = again.create(CONFIG_MAPS, _config_map("new"))
    assert made["metadata"]["resourceVersion"] == str(int(version) + 1)
    again.close()


def test_a_file_belongs_to_one_store_at_a_time(tmp_path: Path) -> None:
    # given
    first = Store(tmp_path / "objects.sqlite")
    # when
    with pytest.raises(OSError, match="another embedded API may be running on this folder"):
        Store(tmp_path / "objects.sqlite")
    # then
    first.close()
    Store(tmp_path / "objects.sqlite").close()


def test_custom_kinds_are_served_again_from_the_file(tmp_path: Path) -> None:
    # given
    path = tmp_path / "objects.sqlite"
    store = Store(path)
    source, _ = _widgets()
    definition = source.get(CRDS, "", "widgets.example.org")
    assert definition is not None
    store.create(CRDS, definition)
    store.close()
    # when
    again = Store(path)
    # then
    assert again.resource("example.org", "widgets") is not None
    again.close()
