"""Watches across namespaces: merged, following the rights, and never losing an event."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxycore import across_watch
from tests.proxycore.conftest import TABLE, Tenant, Watching, World
from tests.proxycore.test_across_lists import (
    CONFIGMAPS,
    USER,
    across,
    allow,
    found,
    oil,
    put,
    withdraw,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["across"]

PATH = "/api/v1/namespaces"


@asynccontextmanager
async def watching(client: Tenant, query: str = "", accept: str = "application/json") -> AsyncIterator[Watching]:
    headers = {"Authorization": f"Bearer {client.token}", "Accept": accept}
    target = f"{client.url}{CONFIGMAPS}?watch=true{'&' if query else ''}{query}"
    async with client.session.get(target, headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Watching(response)


async def told(watch: Watching, count: int) -> list[str]:
    """Return the next events that are no bookmarks, each as ``type namespace/name``."""
    events: list[str] = []
    while len(events) < count:
        type_, obj = await watch.event()
        if type_ == "BOOKMARK":
            continue
        assert type_ != "ERROR", obj
        meta = obj["rows"][0]["object"]["metadata"] if obj["kind"] == "Table" else obj["metadata"]
        if meta["name"] != "kube-root-ca.crt":
            events.append(f"{type_} {meta['namespace']}/{meta['name']}")
    return events


async def failed(watch: Watching) -> Any:
    """Return the Status that ends the watch."""
    while True:
        type_, obj = await watch.event()
        if type_ == "ERROR":
            assert await watch.end() == b""
            return obj


async def delete(world: World, namespace: str, name: str) -> None:
    await world.admin.delete(f"{PATH}/{namespace}/configmaps/{name}")


async def test_events_of_all_namespaces_come_as_one_watch(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "before")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await put(across, "gas-1", "hidden")
        await put(across, "oil-1", "a")
        await put(across, "oil-2", "b")
        await delete(across, "oil-1", "a")
        events = await told(watch, 3)

    assert sorted(events) == ["ADDED oil-1/a", "ADDED oil-2/b", "DELETED oil-1/a"]


async def test_a_watch_without_a_version_begins_with_what_is_there(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a", app="web")
    await put(across, "oil-2", "b", app="web")
    await put(across, "oil-2", "c", app="db")

    async with watching(owner, "labelSelector=app%3Dweb") as watch:
        assert sorted(await told(watch, 2)) == ["ADDED oil-1/a", "ADDED oil-2/b"]
        await put(across, "oil-1", "d", app="web")
        assert await told(watch, 1) == ["ADDED oil-1/d"]


async def test_a_table_names_its_columns_once(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}", TABLE) as watch:
        await put(across, "oil-1", "a")
        await put(across, "oil-2", "b")
        columns = [obj["columnDefinitions"] for _, obj in (await watch.event(), await watch.event())]

    assert columns[0]
    assert columns[1] is None


async def test_a_bookmark_is_never_above_what_all_namespaces_have_reached(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    version = int((await owner.get(CONFIGMAPS)).version)

    async with watching(owner, f"resourceVersion={version}&allowWatchBookmarks=true") as watch:
        await put(across, "oil-1", "a")
        now = across.api.store.version
        marks: list[int] = []
        while not marks or marks[-1] < now:
            type_, obj = await watch.event()
            if type_ == "BOOKMARK":
                assert (obj["kind"], obj["apiVersion"]) == ("ConfigMap", "v1")
                marks.append(int(obj["metadata"]["resourceVersion"]))

    assert all(version <= mark <= across.api.store.version for mark in marks)
    assert marks == sorted(marks)


async def test_a_list_by_watch_ends_its_beginning_once(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    await put(across, "oil-1", "a", of="us")
    await put(across, "oil-2", "b", of="us")
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=of%3Dus"

    async with watching(owner, query) as watch:
        begun, ends = set(), 0
        while not ends:
            type_, obj = await watch.event()
            if type_ == "BOOKMARK":
                assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
                ends += 1
            else:
                begun.add(f"{type_} {obj['metadata']['namespace']}/{obj['metadata']['name']}")
        await put(across, "oil-2", "c", of="us")
        assert await told(watch, 1) == ["ADDED oil-2/c"]

    assert begun == {"ADDED oil-1/a", "ADDED oil-2/b"}


async def test_a_namespace_that_joins_the_tenant_is_added_with_its_objects(across: World) -> None:
    owner = await oil(across, "oil-1")
    await across.namespace("oil-2")
    await put(across, "oil-2", "old")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await allow(across, "oil-2")
        await across.tenant("oil", "oil-1", "oil-2")
        assert await told(watch, 1) == ["ADDED oil-2/old"]
        await put(across, "oil-2", "new")
        assert await told(watch, 1) == ["ADDED oil-2/new"]


async def test_a_right_that_comes_adds_the_objects_of_its_namespace(across: World) -> None:
    owner = await across.owner("oil", "oil-1", "oil-2")
    await put(across, "oil-2", "old")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await allow(across, "oil-2")
        assert await told(watch, 1) == ["ADDED oil-2/old"]


async def test_a_right_that_goes_ends_the_watch_with_410(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await withdraw(across, "oil-2")
        status = await failed(watch)

    assert (status["code"], status["reason"]) == (410, "Expired")


async def test_without_watchers_of_the_rights_a_right_that_goes_still_ends_the_watch(
    across: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(across_watch, "LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(across_watch, "UNFOLLOWED_SECONDS", 0.2)
    owner = await oil(across, "oil-1", "oil-2")
    assert across.service.crossing is not None
    across.service.crossing.rights.limit = 0.5
    version = (await owner.get(CONFIGMAPS)).version
    async with watching(owner, f"resourceVersion={version}") as watch:
        across.unfollow("rbac.authorization.k8s.io", "rolebindings")
        await withdraw(across, "oil-2")
        assert (await failed(watch))["code"] == 410

    await put(across, "oil-2", "hidden")
    assert found(await owner.get(CONFIGMAPS)) == []


async def test_a_namespace_that_leaves_the_tenant_ends_the_watch_before_another_event_of_it(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await across.tenant("oil", "oil-1")
        await across.service.access.barrier(15)
        await put(across, "oil-2", "secret")
        status = await failed(watch)

    assert status["code"] == 410


async def test_who_stops_being_an_owner_is_cut_off(across: World) -> None:
    owner = await oil(across, "oil-1")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}") as watch:
        await across.owns("ServiceAccount", USER)
        status = await failed(watch)

    assert status["code"] == 410
    assert (await owner.get(f"{CONFIGMAPS}?watch=true&resourceVersion={version}")).status == 403


async def test_a_watch_from_before_a_change_of_rights_lists_again(across: World) -> None:
    owner = await oil(across, "oil-1")
    version = int((await owner.get(f"{PATH}/oil-1/configmaps")).version)
    await across.namespace("oil-2")
    await across.tenant("oil", "oil-1", "oil-2")
    await allow(across, "oil-2")
    await across.settle()
    await across.move_on()

    reply = await owner.get(f"{CONFIGMAPS}?watch=true&resourceVersion={version}")
    assert (reply.status, reply.body["reason"]) == (410, "Expired")

    # from now on it goes on, also at another proxy, which knows nothing of this list
    version = int((await owner.get(CONFIGMAPS)).version)
    async with across.proxy(proxy_all_namespaced=True) as service:
        across.service = service
        await across.settle()
        async with watching(across.client(owner.token), f"resourceVersion={version}") as watch:
            await put(across, "oil-2", "a")
            assert await told(watch, 1) == ["ADDED oil-2/a"]


async def test_what_a_list_did_not_hold_is_added_by_the_watch_from_its_version(across: World) -> None:
    owner = await across.owner("oil", "oil-1", "oil-2")
    await allow(across, "oil-1")
    await put(across, "oil-2", "old")
    await across.settle()
    version = (await owner.get(CONFIGMAPS)).version
    # RBAC may let the caller in at a version that the list had: the API server hears of a right with delay
    await allow(across, "oil-2")
    await across.settle()

    async with watching(owner, f"resourceVersion={version}") as watch:
        assert await told(watch, 1) == ["ADDED oil-2/old"]


async def test_what_may_be_listed_and_not_watched_is_said(across: World) -> None:
    owner = await across.owner("oil", "oil-1")
    rule = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    await across.admin.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterroles", {"metadata": {"name": "lists"}, "rules": rule}
    )
    await allow(across, "oil-1", role="lists")
    await across.settle()
    version = (await owner.get(CONFIGMAPS)).version

    reply = await owner.get(f"{CONFIGMAPS}?watch=true&resourceVersion={version}")

    assert (reply.status, reply.body["reason"]) == (403, "Forbidden")
    assert 'cannot watch resource "configmaps"' in reply.body["message"]


async def test_an_old_version_is_gone_and_the_old_spelling_is_a_watch(across: World) -> None:
    owner = await oil(across, "oil-1")
    version = (await owner.get(CONFIGMAPS)).version
    async with owner.session.get(
        f"{owner.url}/api/v1/watch/configmaps?resourceVersion={version}",
        headers={"Authorization": f"Bearer {owner.token}"},
    ) as response:
        await put(across, "oil-1", "a")
        assert await told(Watching(response), 1) == ["ADDED oil-1/a"]
    across.api.store.expire_history()

    async with watching(owner, f"resourceVersion={version}") as watch:
        assert (await failed(watch))["code"] == 410


async def test_an_owner_without_namespaces_watches_and_hears_of_the_first(across: World) -> None:
    owner = await across.owner("oil")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}&allowWatchBookmarks=true") as watch:
        await across.tenant("oil", "oil-1")
        await put(across, "oil-1", "a")
        await allow(across, "oil-1")
        assert await told(watch, 1) == ["ADDED oil-1/a"]


async def test_a_watch_ends_when_its_time_is_over(across: World) -> None:
    owner = await oil(across, "oil-1")
    version = (await owner.get(CONFIGMAPS)).version

    async with watching(owner, f"resourceVersion={version}&timeoutSeconds=1&allowWatchBookmarks=true") as watch:
        lines = (await watch.end()).splitlines()

    assert all(b'"BOOKMARK"' in line for line in lines)


async def test_nothing_stays_open_when_clients_are_gone(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2")
    version = (await owner.get(CONFIGMAPS)).version
    async with watching(owner, f"resourceVersion={version}"):
        assert across.service.crossing is not None
        assert across.service.crossing.streams == 2

    async with asyncio.timeout(10):
        while across.service.crossing.streams:
            await asyncio.sleep(0.01)


async def test_a_client_that_lists_and_watches_knows_what_is_there(across: World) -> None:
    owner = await oil(across, "oil-1", "oil-2", "oil-3")

    async def write(namespace: str) -> None:
        for number in range(8):
            await put(across, namespace, f"n{number}")
            if number % 3 == 0:
                await delete(across, namespace, f"n{number}")

    writing = asyncio.gather(*(write(f"oil-{number}") for number in (1, 2, 3)))
    listed = await owner.get(CONFIGMAPS)
    known, version = set(found(listed)), listed.version
    # the last of each namespace stays, so with these everything has been written
    wanted = {f"oil-{ns}/n{number}" for ns in (1, 2, 3) for number in range(8) if number % 3}
    while known != wanted:
        # the connection breaks after every few lines, and the client goes on from the last one
        async with watching(owner, f"resourceVersion={version}&allowWatchBookmarks=true") as watch:
            for _ in range(4):
                type_, obj = await watch.event()
                assert type_ != "ERROR", obj
                version = obj["metadata"]["resourceVersion"]
                if type_ == "BOOKMARK" or obj["metadata"]["name"] == "kube-root-ca.crt":
                    continue
                name = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
                (known.discard if type_ == "DELETED" else known.add)(name)
                if known == wanted:
                    break
    await writing
