"""Watches of cluster-scoped kinds from memory: one upstream for all, and each client ends up with exactly its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import eventcore.kube_watch
from eventcore.errors import GoneError, KubeUnreachableError
from eventcore.kube_watch import WatchEvent
from proxycore import shared, table_memory
from proxycore import watches as answering
from proxycore.filtered import FilteredKinds
from proxycore.listquery import parse_query
from proxycore.shared_watch import fields_of
from proxycore.table_memory import SharedTable
from tests.proxycore.conftest import TABLE
from tests.proxycore.test_rules_kinds import (
    LIST,
    METADATA,
    STORAGE,
    TENANTS,
    VOLUMES,
    chosen,
    kinds,
    names,
    owner_of,
    put,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxycore.kind_memory import Record
    from tests.proxycore.conftest import Tenant, Watching, World

__all__ = ["kinds"]


@pytest.mark.parametrize(
    ("query", "known"),
    [
        ("includeObject=None", True),
        ("watch=1", True),
        ("watch=1&fieldSelector=metadata.name%3Da", True),
        ("watch=1&fieldSelector=spec.unschedulable%3Dfalse", False),
        ("watch=1&somethingNew=1", False),
    ],
)
def test_what_memory_does_not_know_is_asked_of_the_api_server(query: str, *, known: bool) -> None:
    found = fields_of(parse_query(query, fields=None))

    assert (found is not None) == known


# On a running proxy.


async def watchers(world: World) -> Tenant:
    owner = await owner_of(
        world,
        choices={"StorageClasses": chosen(**{"for": "oil"})},
        operations={"oil": {"StorageClasses": LIST}}["oil"],
    )
    await put(world, STORAGE, "one", {"for": "oil"}, provisioner="x")
    await put(world, STORAGE, "other", {"for": "gas"}, provisioner="x")
    return owner


async def test_many_watches_and_lists_at_version_0_cost_the_api_server_one_watch(kinds: World) -> None:
    owner = await watchers(kinds)
    version = (await owner.get(f"{STORAGE}?resourceVersion=0")).version
    before = watches(kinds)

    async with asyncio.timeout(30):
        async with AsyncExitStack() as stack:
            target = f"{STORAGE}?watch=true&resourceVersion={version}"
            events = [await stack.enter_async_context(watching(owner, target)) for _ in range(20)]
            for name, tenant in (("two", "oil"), ("three", "gas"), ("four", "oil")):
                await put(kinds, STORAGE, name, {"for": tenant}, provisioner="x")
            for one in events:
                assert [await one.named() for _ in range(2)] == [("ADDED", "two"), ("ADDED", "four")]
    assert watches(kinds) == before == 1
    for accept in ("application/json", METADATA):
        assert await names(owner, f"{STORAGE}?resourceVersion=0", headers={"Accept": accept}) == ["four", "one", "two"]


def watches(world: World) -> int:
    """Return how many kinds are followed upstream for all clients."""
    return len(world.service.kinds.followed)


ACCEPTS = {"json": "application/json", "metadata": METADATA.replace("MetadataList", "Metadata"), "table": TABLE}


@pytest.mark.parametrize("target", [STORAGE, f"{STORAGE}/one"], ids=["list", "get"])
@pytest.mark.parametrize(
    ("form", "include"), [("json", ""), ("metadata", ""), ("table", ""), ("table", "None"), ("table", "Metadata")]
)
async def test_what_is_read_from_memory_is_what_the_api_server_says(
    kinds: World, monkeypatch: pytest.MonkeyPatch, target: str, form: str, include: str
) -> None:
    # given
    owner = await watchers(kinds)
    accept = METADATA if (form, target) == ("metadata", STORAGE) else ACCEPTS[form]
    shaped = f"&includeObject={include}" if include else ""
    there = await owner.get(f"{target}?x=y{shaped}", headers={"Accept": accept})

    # when nobody may be asked
    monkeypatch.setattr(FilteredKinds, "_ask", None)
    here = await owner.get(f"{target}?resourceVersion=0{shaped}", headers={"Accept": accept})

    # then
    assert (here.status, told_without_age(here.body)) == (200, told_without_age(there.body))


def told_without_age(body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what two of them may differ in: a list's version, and the age in a row."""
    if "items" in body or len(body.get("rows", [])) != 1 or not body["rows"][0].get("object"):
        body["metadata"] = body["metadata"] | {"resourceVersion": ""}
    for row in body.get("rows", []):
        row["cells"][-1] = ""
    return body


async def test_what_is_not_the_callers_is_not_read_from_memory(kinds: World) -> None:
    owner = await watchers(kinds)
    for accept in ACCEPTS.values():
        for name in ("other", "missing"):
            found = await owner.get(f"{STORAGE}/{name}?resourceVersion=0", headers={"Accept": accept})
            assert (found.status, found.body["reason"]) == (403, "Forbidden")
    # one that leaves is not shown any more either
    async with watching(owner, f"{STORAGE}?watch=true") as events:
        assert await events.named() == ("ADDED", "one")
        await kinds.admin.merge_patch(f"{STORAGE}/one", {"metadata": {"labels": {"for": "gas"}}})
        assert await events.named() == ("DELETED", "one")
        assert (await owner.get(f"{STORAGE}/one?resourceVersion=0")).status == 403


@pytest.mark.parametrize(
    ("form", "include"), [("json", ""), ("metadata", ""), ("table", ""), ("table", "None"), ("table", "Metadata")]
)
async def test_an_event_from_memory_is_the_event_of_the_api_server(kinds: World, form: str, include: str) -> None:
    owner, accept = await watchers(kinds), ACCEPTS[form]
    version = await remembered(kinds, owner, accept)
    target = f"{STORAGE}?watch=true&resourceVersion={version}" + (f"&includeObject={include}" if include else "")
    async with (
        watching(owner, target, accept) as here,
        # What memory does not know is the API server's own watch, judged event by event.
        watching(owner, f"{target}&fieldSelector=metadata.namespace%3D", accept) as there,
    ):
        await put(kinds, STORAGE, "two", {"for": "oil"}, provisioner="x")
        await kinds.admin.delete(f"{STORAGE}/two")
        for _ in range(2):
            assert await here.event() == await there.event()


async def remembered(world: World, owner: Tenant, accept: str) -> str:
    """Return the version of a list from which watches in a form are served from memory."""
    version = (await owner.get(STORAGE)).version
    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}", accept):
        assert watches(world) == 1  # memory is loaded for the next one, or began soon enough for this one
    return (await owner.get(STORAGE)).version


def from_memory(world: World) -> tuple[int, int]:
    """Return how many watches are open that memory serves, and how many are the API server's own."""
    sample = world.role.metrics.registry.get_sample_value
    found = [sample("tether_proxy_watches", {"source": source}) or 0 for source in ("memory", "filtered")]
    return int(found[0]), int(found[1])


@pytest.mark.parametrize("form", ["json", "metadata", "table"])
async def test_a_watch_from_before_memory_began_tells_all_that_came_since(kinds: World, form: str) -> None:
    # given a client whose list is older than memory, and a cluster that went on
    owner, accept = await watchers(kinds), ACCEPTS[form]
    for name in ("dies", "leaves", "anew"):
        await put(kinds, STORAGE, name, {"for": "oil"}, provisioner="x")
    version = (await owner.get(STORAGE)).version
    await put(kinds, STORAGE, "comes", {"for": "oil"}, provisioner="x")
    for name, tenant in (("one", "oil"), ("other", "oil"), ("leaves", "gas")):
        labels = {"for": tenant, "new": "1"}
        await kinds.admin.merge_patch(f"{STORAGE}/{name}", {"metadata": {"labels": labels}})
    for name in ("dies", "anew"):
        await kinds.admin.delete(f"{STORAGE}/{name}")
    await put(kinds, STORAGE, "anew", {"for": "oil"}, provisioner="x")
    await kinds.settle()

    # when it goes on from its list
    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}", accept) as events:
        found = sorted([await told(events) for _ in range(7)])
        await put(kinds, STORAGE, "last", {"for": "oil"}, provisioner="x")

        # then it hears what became of each, and what comes, from memory
        assert await told(events) == ("last", "ADDED")
        assert from_memory(kinds) == (1, 0)
    assert found == [
        ("anew", "ADDED"),
        ("anew", "DELETED"),
        ("comes", "ADDED"),
        ("dies", "DELETED"),
        ("leaves", "DELETED"),
        ("one", "MODIFIED"),
        ("other", "ADDED"),
    ]


async def told(events: Watching) -> tuple[str, str]:
    """Return (name, type) of the next event."""
    type_, obj = await events.event()
    name = obj["rows"][0]["cells"][0] if obj["kind"] == "Table" else obj["metadata"]["name"]
    return name, type_


async def test_a_watch_from_before_the_history_is_told_to_list_again(
    kinds: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await watchers(kinds)
    version = (await owner.get(STORAGE)).version
    await put(kinds, STORAGE, "two", {"for": "oil"}, provisioner="x")

    async def history(_: object, params: dict[str, str]) -> None:
        assert params["resourceVersionMatch"] == "Exact"
        raise GoneError("history", status=410, reason="Expired")

    async with watching(owner, f"{STORAGE}?watch=true"):
        monkeypatch.setattr(shared.SharedKind, "read", history)
        async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}") as events:
            type_, status = await events.event()
            assert (type_, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
            assert await events.end() == b""


async def test_a_watch_of_tables_may_begin_with_all_that_there_is(kinds: World) -> None:
    owner = await watchers(kinds)
    initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    for since in ("", "&resourceVersion=0", f"&{initial}"):
        async with watching(owner, f"{STORAGE}?watch=true{since}", TABLE) as events:
            assert await told(events) == ("one", "ADDED")
            if initial in since:
                type_, mark = await events.event()
                assert (type_, mark["kind"], mark["rows"]) == ("BOOKMARK", "Table", [])
                assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
            assert from_memory(kinds) == (1, 0)


async def test_rows_of_all_that_there_is_tell_the_ages_of_now_and_are_printed_once_a_second(
    kinds: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await watchers(kinds)
    printed = 0
    read = SharedTable.read

    async def later(self: SharedTable, params: Mapping[str, str]) -> tuple[dict[str, Record], int]:
        # Rows as they look some time later; one of them is of an object that changed since.
        nonlocal printed
        records, version = await read(self, params)
        if params:
            printed += 1
            rows = {
                name: msgspec.structs.replace(one, body=one.body.replace(b'"x"', b'"y"'))
                for name, one in records.items()
            }
            rows["new"] = msgspec.structs.replace(rows["new"], version=rows["new"].version + 1)
            return rows, version
        return records, version

    await put(kinds, STORAGE, "new", {"for": "oil"}, provisioner="x")
    monkeypatch.setattr(SharedTable, "read", later)
    for _ in range(3):
        async with watching(owner, f"{STORAGE}?watch=true", TABLE) as events:
            rows = [(await events.event())[1]["rows"][0]["cells"][:2] for _ in range(2)]
            assert rows == [["new", "x"], ["one", "y"]]
    assert printed == 1
    monkeypatch.setattr(table_memory, "PRINTED_SECONDS", 0.0)
    async with watching(owner, f"{STORAGE}?watch=true", TABLE) as events:
        assert await told(events) == ("new", "ADDED")
    assert printed == 2


async def test_many_watches_of_tables_cost_the_api_server_one_watch(kinds: World) -> None:
    owner = await watchers(kinds)
    version = await remembered(kinds, owner, TABLE)
    async with asyncio.timeout(30), AsyncExitStack() as stack:
        target = f"{STORAGE}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"
        events = [await stack.enter_async_context(watching(owner, target, TABLE)) for _ in range(20)]
        sample = kinds.role.metrics.registry.get_sample_value
        assert sample("tether_proxy_watches", {"source": "memory"}) == len(events)
        await put(kinds, STORAGE, "two", {"for": "oil"}, provisioner="x")
        await kinds.admin.merge_patch(f"{STORAGE}/other", {"metadata": {"labels": {"for": "oil"}}})
        secret = {"labels": {"for": "gas"}, "annotations": {"secret": "x"}}
        await kinds.admin.merge_patch(f"{STORAGE}/one", {"metadata": secret})
        for watch in events:
            tables = [await watch.event() for _ in range(3)]
            rows = [(type_, table["rows"][0]["cells"][0]) for type_, table in tables]
            assert rows == [("ADDED", "two"), ("ADDED", "other"), ("DELETED", "one")]
            assert [table["columnDefinitions"] is None for _, table in tables] == [False, True, True]
            # what it is by now is not the caller's
            assert b"secret" not in msgspec.json.encode(tables[2])
            assert len(tables[2][1]["rows"][0]["cells"]) == len(tables[0][1]["rows"][0]["cells"])
    assert watches(kinds) == 1


async def test_tables_of_volumes_are_from_memory_and_show_their_metadata_alone(kinds: World) -> None:
    owner = await owner_of(kinds, operations={"PersistentVolumes": LIST}, namespaces=("oil-1",))
    version = (await owner.get(VOLUMES)).version
    target = f"{VOLUMES}?watch=true&resourceVersion={version}"
    async with watching(owner, target, TABLE), watching(owner, target, TABLE) as events:
        for name, claim in (("theirs", "gas-1"), ("mine", "oil-1")):
            await put(kinds, VOLUMES, name, spec={"claimRef": {"namespace": claim, "name": "data"}})
        type_, table = await events.event()
        (row,) = table["rows"]
        assert (type_, row["cells"][0], row["object"]["kind"]) == ("ADDED", "mine", "PartialObjectMetadata")
        assert "spec" not in row["object"]

        # when somebody else claims it, nothing of that is told
        claimed = {"spec": {"claimRef": {"namespace": "gas-1", "name": "secret"}}}
        await kinds.admin.merge_patch(f"{VOLUMES}/mine", claimed)
        type_, table = await events.event()
        assert (type_, table["rows"][0]["cells"][0]) == ("DELETED", "mine")
        assert b"gas-1" not in msgspec.json.encode(table)
    assert watches(kinds) == 1


async def test_a_client_that_lists_by_watching_costs_no_watch_upstream(kinds: World) -> None:
    owner = await watchers(kinds)
    version = (await owner.get(f"{STORAGE}?resourceVersion=0")).version
    lists = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    for since in ("", "&resourceVersion=0", f"&resourceVersion={version}"):
        async with watching(owner, f"{STORAGE}?{lists}{since}") as events:
            # what is the caller's comes first, then the bookmark that says so, then what happens
            type_, first = await events.event()
            assert (type_, first["metadata"]["name"]) == ("ADDED", "one")
            type_, mark = await events.event()
            assert (type_, mark["kind"]) == ("BOOKMARK", "StorageClass")
            assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
            assert int(mark["metadata"]["resourceVersion"]) >= int(first["metadata"]["resourceVersion"])
            await put(kinds, STORAGE, "new", {"for": "oil"}, provisioner="x")
            assert await events.named() == ("ADDED", "new")
            await kinds.admin.delete(f"{STORAGE}/new")
            assert await events.named() == ("DELETED", "new")
    assert watches(kinds) == 1


async def test_initial_events_without_bookmarks_are_events_alone(kinds: World) -> None:
    owner = await watchers(kinds)
    lists = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    async with watching(owner, f"{STORAGE}?{lists}") as events:
        assert (await events.event())[0] == "ADDED"
        await put(kinds, STORAGE, "new", {"for": "oil"}, provisioner="x")
        assert (await events.event())[0] == "ADDED"


async def test_a_watch_of_tenants_is_from_memory_too(kinds: World) -> None:
    owner = await owner_of(kinds)
    async with watching(owner, f"{TENANTS}?watch=true") as events:
        await put(kinds, TENANTS, "gas", spec={"owners": []})
        await put(kinds, TENANTS, "oil", spec={"owners": []})
        type_, tenant = await events.event()

    assert (type_, tenant["kind"], tenant["metadata"]["name"]) == ("ADDED", "Tenant", "oil")
    assert watches(kinds) == 1


class Faults:
    """Stands before the watch upstream and breaks it on demand."""

    def __init__(self) -> None:
        self.error: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opened = 0

    async def watch(self, *arguments: Any, **options: Any) -> AsyncGenerator[WatchEvent, None]:
        error, self.opened = self.error, self.opened + 1
        async with aclosing(eventcore.kube_watch.watch(*arguments, **options)) as events:
            while True:
                coming: asyncio.Future[Any] = asyncio.ensure_future(anext(events))
                try:
                    await asyncio.wait([coming, error], return_when=asyncio.FIRST_COMPLETED)
                    if error.done():
                        error.result()
                    event = await coming
                finally:
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait([coming])
                yield event

    def break_with(self, error: Exception) -> None:
        broken, self.error = self.error, asyncio.get_running_loop().create_future()
        broken.set_exception(error)


@pytest.mark.parametrize("error", [KubeUnreachableError("gone"), GoneError("history", status=410, reason="Expired")])
async def test_nothing_is_lost_when_the_watch_upstream_breaks_or_is_history(
    kinds: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    faults = Faults()
    monkeypatch.setattr(shared, "watch", faults.watch)
    owner = await watchers(kinds)
    await put(kinds, STORAGE, "dies", {"for": "oil"}, provisioner="x")
    version = (await owner.get(f"{STORAGE}?resourceVersion=0")).version
    async with watching(owner, f"{STORAGE}?watch=true&resourceVersion={version}") as events:
        for number in range(2):
            faults.break_with(error)
            await put(kinds, STORAGE, f"new-{number}", {"for": "oil"}, provisioner="x")
            assert await events.named() == ("ADDED", f"new-{number}")
        faults.break_with(error)
        await kinds.admin.delete(f"{STORAGE}/dies")
        assert await events.named() == ("DELETED", "dies")
    assert faults.opened >= 4


async def test_a_watch_ends_when_memory_is_no_longer_followed(kinds: World, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    monkeypatch.setattr(shared, "watch", faults.watch)
    monkeypatch.setattr(shared, "FIRST_PAUSE", 60.0)  # it does not come back soon
    owner = await watchers(kinds)
    async with watching(owner, f"{STORAGE}?watch=true") as events:
        assert await events.named() == ("ADDED", "one")
        monkeypatch.setattr(shared, "STALE_SECONDS", 0.0)
        faults.break_with(KubeUnreachableError("gone"))
        assert await events.end() == b""


async def test_a_kind_that_nobody_wants_is_followed_no_more(kinds: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LINGER_SECONDS", 0.0)
    owner = await watchers(kinds)
    async with watching(owner, f"{STORAGE}?watch=true") as events:
        assert await events.named() == ("ADDED", "one")
        assert watches(kinds) == 1
    async with asyncio.timeout(15):
        while watches(kinds):
            await put(kinds, STORAGE, f"x-{id(object())}", provisioner="x")  # it looks when something comes
            await asyncio.sleep(0.02)


async def test_a_client_that_takes_nothing_is_told_to_list_again_and_ended(
    kinds: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "WRITE_SECONDS", 0.3)
    owner = await watchers(kinds)
    big = "x" * 200_000
    async with watching(owner, f"{STORAGE}?watch=true") as events:
        assert await events.named() == ("ADDED", "one")
        ended = asyncio.Event()
        async with asyncio.timeout(30):
            number = 0
            while not ended.is_set():  # until more is sent than sockets and buffers hold
                number += 1
                body = {"metadata": {"name": f"big-{number}", "labels": {"for": "oil"}, "annotations": {"a": big}}}
                await kinds.admin.create(STORAGE, body | {"provisioner": "x"})
                (kind,) = kinds.service.kinds.followed
                if not kind.followers:
                    ended.set()
        lines = (await events.end()).splitlines()
    last = msgspec.json.decode(lines[-1])
    assert (last["type"], last["object"]["code"], last["object"]["reason"]) == ("ERROR", 410, "Expired")
