"""Watches and lists over HTTP: where they start, what they show, when they end, and pages that stay consistent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tether.devcluster.contracts import Change, Object
from tether.devcluster.resources import CONFIG_MAPS
from tether.devcluster.selectors import label_matcher
from tether.devcluster.watching import seen

if TYPE_CHECKING:
    from tests.kubeapi import Client, Events
    from tether.devcluster.api import EmbeddedApi

CM = "/api/v1/namespaces/default/configmaps"
MINE = "mine"


def _config_map(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": {MINE: "1"} | labels}}


@asynccontextmanager
async def _watch(
    client: Client, path: str = CM, accept: str = "application/json", **params: str
) -> AsyncIterator[Events]:
    async with client.watch(path, accept, **({"labelSelector": MINE} | params)) as events:
        yield events


def _brief(event: Object) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"]["name"]


@pytest.mark.parametrize("version", ["", "0"])
async def test_a_watch_without_a_version_begins_with_what_is_there(client: Client, version: str) -> None:
    # given
    await client.post(CM, _config_map("a"))
    # when
    async with _watch(client, resourceVersion=version) as events:
        first = await events.next()
        await client.post(CM, _config_map("b"))
        second = await events.next()
    # then
    assert [_brief(first), _brief(second)] == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_watch_from_a_version_tells_all_that_came_after(client: Client) -> None:
    # given
    first = (await client.post(CM, _config_map("a"))).body
    await client.patch(f"{CM}/a", {"data": {"k": "1"}})
    await client.delete(f"{CM}/a")
    # when
    async with _watch(client, resourceVersion=first["metadata"]["resourceVersion"]) as events:
        told = [await events.next(), await events.next()]
    # then
    assert [_brief(event) for event in told] == [("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in told]
    assert versions == sorted(set(versions))
    assert told[0]["object"]["kind"] == "ConfigMap"


async def test_a_watch_follows_its_selector(client: Client) -> None:
    # given
    await client.post(CM, {"metadata": {"name": "a"}})
    async with _watch(client) as events:
        # when
        await client.patch(f"{CM}/a", {"metadata": {"labels": {MINE: "1"}}})
        entered = await events.next()
        await client.patch(f"{CM}/a", {"metadata": {"labels": {MINE: None}}, "data": {"k": "1"}})
        left = await events.next()
    # then
    assert [_brief(entered), _brief(left)] == [("ADDED", "a"), ("DELETED", "a")]
    assert left["object"]["metadata"]["labels"] == {MINE: "1"}
    assert int(left["object"]["metadata"]["resourceVersion"]) > int(entered["object"]["metadata"]["resourceVersion"])


def test_a_change_is_seen_by_selector_as_entering_staying_or_leaving() -> None:
    # given
    matcher = label_matcher("a=1")
    inside: Object = {"metadata": {"name": "x", "labels": {"a": "1"}}}
    outside: Object = {"metadata": {"name": "x", "labels": {}}}

    def change(kind: Any, old: Object | None, new: Object) -> list[str]:
        change = Change(type=kind, resource=CONFIG_MAPS, obj=new, old=old, resource_version=7)
        return [event for event, _ in seen(change, matcher)]

    # then
    assert change("ADDED", None, inside) == ["ADDED"]
    assert change("ADDED", None, outside) == []
    assert change("MODIFIED", outside, inside) == ["ADDED"]
    assert change("MODIFIED", inside, inside) == ["MODIFIED"]
    assert change("MODIFIED", inside, outside) == ["DELETED"]
    assert change("MODIFIED", outside, outside) == []
    assert change("DELETED", inside, inside) == ["DELETED"]
    assert change("DELETED", outside, outside) == []


async def test_a_watch_from_before_the_window_is_told_410_as_an_event(client: Client, api: EmbeddedApi) -> None:
    # given
    old = (await client.post(CM, _config_map("a"))).body["metadata"]["resourceVersion"]
    await client.post(CM, _config_map("b"))
    api.store.expire_history()
    # when
    async with _watch(client, resourceVersion=old) as events:
        event = await events.next()
        # then
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert event["object"]["message"].startswith(f"too old resource version: {old} (")
        assert await events.ended()


async def test_bookmarks_carry_the_version_that_a_quiet_watch_has_reached(client: Client) -> None:
    # given
    async with _watch(client, resourceVersion="0", allowWatchBookmarks="true") as events:
        # when
        elsewhere = (await client.post("/api/v1/namespaces", {"metadata": {"name": "x"}})).body
        reached = int(elsewhere["metadata"]["resourceVersion"])
        bookmark = await events.next(bookmarks=True)
        while int(bookmark["object"]["metadata"]["resourceVersion"]) < reached:
            bookmark = await events.next(bookmarks=True)
    # then
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["kind"] == "ConfigMap"


async def test_the_end_of_the_initial_events_is_marked(client: Client) -> None:
    # given
    await client.post(CM, _config_map("a"))
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    # when
    async with _watch(client, **options) as events:
        added, marked = await events.next(bookmarks=True), await events.next(bookmarks=True)
    # then
    assert _brief(added) == ("ADDED", "a")
    assert marked["type"] == "BOOKMARK"
    assert marked["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_ends_after_its_timeout(client: Client) -> None:
    # when
    async with _watch(client, timeoutSeconds="1") as events:
        # then
        assert await events.ended()


async def test_a_watch_ends_when_the_server_stops(client: Client, api: EmbeddedApi) -> None:
    # given
    async with _watch(client) as events:
        # when
        await api.stop()
        # then
        assert await events.ended()


async def test_a_watch_of_one_namespace_sees_no_other(client: Client) -> None:
    # given
    await client.post("/api/v1/namespaces", {"metadata": {"name": "x"}})
    async with _watch(client) as events:
        # when
        await client.post("/api/v1/namespaces/x/configmaps", _config_map("hidden"))
        await client.post(CM, _config_map("seen"))
        # then
        assert _brief(await events.next()) == ("ADDED", "seen")


async def test_a_watch_gives_tables_and_metadata_alone(client: Client) -> None:
    # given
    await client.post(CM, _config_map("a"))
    await client.post(CM, _config_map("b"))
    group = "v=v1;g=meta.k8s.io"
    # when
    async with _watch(client, accept=f"application/json;as=Table;{group}") as events:
        tables = [await events.next(), await events.next()]
    async with _watch(client, accept=f"application/json;as=PartialObjectMetadata;{group}") as events:
        partial = await events.next()
    # then
    assert [event["object"]["rows"][0]["cells"][0] for event in tables] == ["a", "b"]
    assert tables[0]["object"]["columnDefinitions"]
    assert not tables[1]["object"]["columnDefinitions"]
    assert partial["object"]["kind"] == "PartialObjectMetadata"
    assert set(partial["object"]) == {"kind", "apiVersion", "metadata"}


async def test_pages_show_the_state_of_the_first_one(client: Client) -> None:
    # given
    for name in "abcde":
        await client.post(CM, _config_map(name))
    params = {"labelSelector": MINE, "limit": "2"}
    # when
    first = (await client.get(CM, params=params)).body
    await client.delete(f"{CM}/c")
    await client.patch(f"{CM}/d", {"data": {"k": "new"}})
    await client.post(CM, _config_map("ca"))
    second = (await client.get(CM, params=params | {"continue": first["metadata"]["continue"]})).body
    third = (await client.get(CM, params=params | {"continue": second["metadata"]["continue"]})).body
    # then
    names = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert names == list("abcde")
    assert "data" not in second["items"][1]
    assert "continue" not in third["metadata"]
    assert len({page["metadata"]["resourceVersion"] for page in (first, second, third)}) == 1


async def test_the_rest_of_an_expired_page_can_be_had_inconsistently(client: Client, api: EmbeddedApi) -> None:
    # given
    for name in "abc":
        await client.post(CM, _config_map(name))
    params = {"labelSelector": MINE, "limit": "2"}
    first = (await client.get(CM, params=params)).body
    await client.post(CM, _config_map("d"))
    api.store.expire_history()
    # when
    expired = await client.get(CM, params=params | {"continue": first["metadata"]["continue"]})
    rest = await client.get(CM, params=params | {"continue": expired.body["metadata"]["continue"]})
    # then
    assert (expired.status, expired.body["reason"]) == (410, "Expired")
    assert [item["metadata"]["name"] for item in rest.body["items"]] == ["c", "d"]


async def test_the_count_of_what_remains_is_told_without_a_selector(client: Client) -> None:
    # when
    page = (await client.get("/api/v1/namespaces", params={"limit": "1"})).body
    everything = (await client.get("/api/v1/namespaces")).body
    # then
    assert page["metadata"]["remainingItemCount"] == len(everything["items"]) - 1


async def test_a_list_can_be_had_exactly_as_it_was(client: Client) -> None:
    # given
    version = (await client.post(CM, _config_map("a"))).body["metadata"]["resourceVersion"]
    await client.post(CM, _config_map("b"))
    params = {"labelSelector": MINE, "resourceVersion": version}
    # when
    exact = (await client.get(CM, params=params | {"resourceVersionMatch": "Exact"})).body
    newer = (await client.get(CM, params=params | {"resourceVersionMatch": "NotOlderThan"})).body
    # then
    assert [item["metadata"]["name"] for item in exact["items"]] == ["a"]
    assert [item["metadata"]["name"] for item in newer["items"]] == ["a", "b"]
