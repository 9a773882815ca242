"""Watches: where they begin, what they show, when they end."""

from __future__ import annotations

import time

import pytest

from tests.kubeapi import Client

pytestmark = pytest.mark.xdist_group("contract")

MINE = {"labelSelector": "mine"}
END = "k8s.io/initial-events-end"


@pytest.fixture
def config_maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


async def _make(admin: Client, path: str, name: str, **labels: str) -> str:
    made = await admin.post(path, {"metadata": {"name": name, "labels": {"mine": "1"} | labels}})
    version: str = made.body["metadata"]["resourceVersion"]
    return version


@pytest.mark.parametrize("version", ["", "0"])
async def test_a_watch_without_a_version_begins_with_what_is_there(
    admin: Client, config_maps: str, version: str
) -> None:
    # given
    await _make(admin, config_maps, "a")
    # when
    async with admin.watch(config_maps, resourceVersion=version, **MINE) as events:
        first = await events.brief()
        await _make(admin, config_maps, "b")
        second = await events.brief()
    # then
    assert [first, second] == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_watch_from_a_version_tells_all_that_came_after(admin: Client, config_maps: str) -> None:
    # given
    version = await _make(admin, config_maps, "a")
    await admin.patch(f"{config_maps}/a", {"data": {"k": "1"}})
    await admin.delete(f"{config_maps}/a")
    # when
    async with admin.watch(config_maps, resourceVersion=version, **MINE) as events:
        told = [await events.next() for _ in range(2)]
    # then
    assert [event["type"] for event in told] == ["MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in told]
    assert int(version) < versions[0] < versions[1]
    assert told[1]["object"]["data"] == {"k": "1"}


async def test_a_watch_tells_only_what_it_selects(admin: Client, config_maps: str) -> None:
    # given
    version = await _make(admin, config_maps, "a", tier="x")
    async with admin.watch(config_maps, resourceVersion=version, labelSelector="tier=y") as events:
        # when
        await admin.patch(f"{config_maps}/a", {"metadata": {"labels": {"tier": "y"}}})
        await admin.patch(f"{config_maps}/a", {"data": {"k": "1"}})
        await admin.patch(f"{config_maps}/a", {"metadata": {"labels": {"tier": "x"}}})
        told = [await events.next() for _ in range(3)]
    # then
    assert [event["type"] for event in told] == ["ADDED", "MODIFIED", "DELETED"]
    assert told[2]["object"]["metadata"]["labels"]["tier"] == "y"  # as it was when it was selected
    assert int(told[2]["object"]["metadata"]["resourceVersion"]) > int(told[1]["object"]["metadata"]["resourceVersion"])


async def test_one_object_is_watched_by_its_name(admin: Client, config_maps: str) -> None:
    # given
    version = await _make(admin, config_maps, "a")
    async with admin.watch(config_maps, resourceVersion=version, fieldSelector="metadata.name=b") as events:
        # when
        await admin.patch(f"{config_maps}/a", {"data": {"k": "1"}})
        await _make(admin, config_maps, "b")
        # then
        assert await events.brief() == ("ADDED", "b")


async def test_initial_events_end_with_a_bookmark_that_says_so(admin: Client, config_maps: str) -> None:
    # given
    await _make(admin, config_maps, "a")
    asked = {
        "sendInitialEvents": "true",
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    # when
    async with admin.watch(config_maps, **asked, **MINE) as events:
        first, second = await events.next(bookmarks=True), await events.next(bookmarks=True)
        await _make(admin, config_maps, "b")
        third = await events.brief()
    # then
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "a")
    assert (second["type"], second["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
    assert second["object"]["metadata"]["annotations"] == {END: "true"}
    assert int(second["object"]["metadata"]["resourceVersion"]) > 0
    assert third == ("ADDED", "b")


async def test_initial_events_without_their_match_are_invalid(admin: Client, config_maps: str) -> None:
    # when
    refused = await admin.get(config_maps, params={"watch": "true", "sendInitialEvents": "true"})
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")


async def test_a_bookmark_tells_a_version_to_go_on_from(admin: Client, config_maps: str) -> None:
    # given: kube-apiserver sends one shortly before the time is over, to those that asked and were told of something
    version = await _make(admin, config_maps, "a")
    asked = {"allowWatchBookmarks": "true", "timeoutSeconds": "4"}
    # when
    async with admin.watch(config_maps, resourceVersion=version, **asked, **MINE) as events:
        version = await _make(admin, config_maps, "new")
        assert await events.brief() == ("ADDED", "new")
        bookmark = await events.next(bookmarks=True)
    # then
    assert (bookmark["type"], bookmark["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
    go_on = bookmark["object"]["metadata"]["resourceVersion"]
    assert int(go_on) >= int(version)
    async with admin.watch(config_maps, resourceVersion=go_on, **MINE) as events:
        await _make(admin, config_maps, "b")
        assert await events.brief() == ("ADDED", "b")


async def test_a_watch_ends_after_the_time_that_was_asked_for(admin: Client, config_maps: str) -> None:
    # when
    start = time.monotonic()
    async with admin.watch(config_maps, timeoutSeconds="1", resourceVersion="0", **MINE) as events:
        ended = await events.ended()
    # then
    assert ended
    assert time.monotonic() - start >= 0.9


async def test_a_watch_from_before_the_history_is_told_that_it_is_gone(admin: Client) -> None:
    # given: Tenants are known since their definition came, later than the first version
    tenants = "/apis/capsule.clastix.io/v1beta2/tenants"
    # when
    async with admin.watch(tenants, resourceVersion="1") as events:
        event = await events.next()
        ended = await events.ended()
    # then
    assert event["type"] == "ERROR"
    assert (event["object"]["kind"], event["object"]["code"], event["object"]["reason"]) == ("Status", 410, "Expired")
    assert "too old resource version" in event["object"]["message"]
    assert ended


async def test_the_end_of_a_namespace_is_told_from_its_beginning(admin: Client, namespace: str) -> None:
    # given
    version = (await admin.get("/api/v1/namespaces")).body["metadata"]["resourceVersion"]
    # when
    async with admin.watch("/api/v1/namespaces", resourceVersion=version) as events:
        await admin.delete(f"/api/v1/namespaces/{namespace}")
        told: list[tuple[str, str]] = []
        while not told or told[-1] != ("DELETED", namespace):
            one = await events.brief()
            if one[1] == namespace:
                told.append(one)
    # then
    assert told[0] == ("MODIFIED", namespace)
