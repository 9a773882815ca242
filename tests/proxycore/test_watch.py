"""Watches of Namespaces follow the Namespaces and the grants, and go on from where they were or say no."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from eventcore.keys import key
from tests.proxycore.conftest import TABLE

if TYPE_CHECKING:
    from tests.proxycore.conftest import World

NAMESPACES = "/api/v1/namespaces"
OWNER = key("subject", "ServiceAccount", "system:serviceaccount:oil-system:gitops-reconciler")


async def test_a_watch_begins_with_what_the_tenant_owns(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    await world.tenant("gas", "gas-production")
    await world.settle()

    async with owner.watch() as watch:
        begun = [await watch.named(), await watch.named()]

    assert begun == [("ADDED", "oil-development"), ("ADDED", "oil-production")]


async def test_a_namespace_that_joins_appears_and_one_that_leaves_disappears(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.namespace("oil-development")
    await world.settle()

    async with owner.watch("allowWatchBookmarks=true") as watch:
        assert await watch.named() == ("ADDED", "oil-production")

        await world.tenant("oil", "oil-production", "oil-development")
        joined = await watch.named()
        after_join = await watch.event()
        await world.tenant("oil", "oil-development")
        type_, left = await watch.event()
        after_leave = await watch.event()

    assert joined == ("ADDED", "oil-development")
    assert (type_, left["metadata"]["name"]) == ("DELETED", "oil-production")
    assert (after_join[0], after_leave[0]) == ("BOOKMARK", "BOOKMARK")
    # The last state of the object under a version of now, and a bookmark that does not lead back.
    assert left["kind"] == "Namespace"
    assert left["metadata"]["uid"]
    assert int(left["metadata"]["resourceVersion"]) <= int(after_leave[1]["metadata"]["resourceVersion"])


async def test_ownership_that_ends_empties_the_watch(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")

    async with owner.watch() as watch:
        await watch.named()
        await watch.named()
        await world.withdraw(OWNER)

        assert {await watch.named(), await watch.named()} == {
            ("DELETED", "oil-development"),
            ("DELETED", "oil-production"),
        }


async def test_a_watch_tells_of_changes_and_deletions_and_of_nobody_elses(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.tenant("gas", "gas-production")
    await world.settle()

    async with owner.watch() as watch:
        assert await watch.named() == ("ADDED", "oil-production")
        await world.admin.merge_patch(f"{NAMESPACES}/gas-production", {"metadata": {"labels": {"a": "b"}}})
        await world.admin.merge_patch(f"{NAMESPACES}/oil-production", {"metadata": {"labels": {"a": "b"}}})
        changed = await watch.named()
        await world.admin.delete(f"{NAMESPACES}/oil-production")
        seen = [await watch.named()]
        while seen[-1][0] != "DELETED":
            seen.append(await watch.named())

    assert changed == ("MODIFIED", "oil-production")
    assert {name for _, name in seen} == {"oil-production"}


async def test_a_namespace_that_enters_or_leaves_the_clients_selector_is_added_or_deleted(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")

    async with owner.watch("labelSelector=stage") as watch:
        await world.admin.merge_patch(f"{NAMESPACES}/oil-production", {"metadata": {"labels": {"stage": "1"}}})
        entered = await watch.named()
        await world.admin.merge_patch(f"{NAMESPACES}/oil-production", {"metadata": {"labels": {"stage": None}}})
        left = await watch.named()

    assert entered == ("ADDED", "oil-production")
    assert left == ("DELETED", "oil-production")


async def test_a_watch_of_one_name_shows_that_one_only_if_it_is_owned(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")

    async with owner.watch("fieldSelector=metadata.name%3Doil-production") as watch:
        assert await watch.named() == ("ADDED", "oil-production")
    async with owner.watch("fieldSelector=metadata.name%3Dkube-system&timeoutSeconds=1") as watch:
        assert await watch.end() == b""
    legacy = await owner.get("/api/v1/watch/namespaces/kube-system?timeoutSeconds=1")

    assert (legacy.status, legacy.body) == (200, b"")


async def test_tables_are_watched_as_kubectl_does(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async with owner.watch("allowWatchBookmarks=true", accept=TABLE) as watch:
        type_, table = await watch.event()
        await world.tenant("oil")
        _, left = await watch.event()
        _, bookmark = await watch.event()

    assert type_ == "ADDED"
    assert [table["kind"], left["kind"], bookmark["kind"]] == ["Table"] * 3
    assert table["rows"][0]["cells"][:2] == ["oil-production", "Active"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Status", "Age"]


async def test_a_watch_goes_on_from_the_version_of_a_list(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    for target in (NAMESPACES, f"{NAMESPACES}?resourceVersion=0"):
        listed = await owner.get(target)
        async with owner.watch(f"resourceVersion={listed.version}&timeoutSeconds=1") as watch:
            assert await watch.end() == b"", "nothing changed, so nothing is told again"

    listed = await owner.get(NAMESPACES)
    await world.admin.merge_patch(f"{NAMESPACES}/oil-production", {"metadata": {"labels": {"n": "1"}}})
    await world.admin.merge_patch(f"{NAMESPACES}/oil-production", {"metadata": {"labels": {"n": "2"}}})
    await world.settle()
    async with owner.watch(f"resourceVersion={listed.version}") as watch:
        type_, obj = await watch.event()

    assert (type_, obj["metadata"]["labels"]["n"]) == ("MODIFIED", "2")


async def test_a_deletion_between_list_and_watch_is_told(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    listed = await owner.get(NAMESPACES)
    await world.admin.delete(f"{NAMESPACES}/oil-production")

    async with owner.watch(f"resourceVersion={listed.version}") as watch:
        seen = [await watch.named()]
        while seen[-1][0] != "DELETED":
            seen.append(await watch.named())

    assert seen[-1] == ("DELETED", "oil-production")


async def test_a_watch_from_before_a_change_of_its_grants_gets_410(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    listed = await owner.get(NAMESPACES)
    await world.namespace("anything")  # so that the version of the grants' change is a later one
    await world.tenant("oil", "oil-production")
    await world.settle()

    async with owner.watch(f"resourceVersion={listed.version}") as watch:
        type_, status = await watch.event()
        rest = await watch.end()

    assert (type_, status["code"], status["reason"], rest) == ("ERROR", 410, "Expired", b"")
    again = await owner.get(NAMESPACES)
    async with owner.watch(f"resourceVersion={again.version}&timeoutSeconds=1") as watch:
        assert b"ERROR" not in await watch.end(), "a new list leads out of it, also in a cluster where nothing moves"


async def test_a_change_of_somebody_elses_grants_does_not_expire_a_watch(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    listed = await owner.get(NAMESPACES)
    await world.tenant("gas", "gas-production")
    await world.owns("User", "dana", "gas")
    await world.settle()

    async with owner.watch(f"resourceVersion={listed.version}&timeoutSeconds=1") as watch:
        assert await watch.end() == b""


async def test_in_a_quiet_cluster_one_version_can_mean_two_sets_and_the_watch_makes_both_right(world: World) -> None:
    owner = await world.owner("oil", "oil-production", "oil-development")
    await world.tenant("oil", "oil-production")
    await world.settle()
    listed = await owner.get(NAMESPACES)
    # The grants change and the version of the cluster does not.
    await world.tenant("oil", "oil-development")
    await world.settle()
    assert (await owner.get(NAMESPACES)).version == listed.version

    async with owner.watch(f"resourceVersion={listed.version}") as watch:
        told = {await watch.named(), await watch.named()}

    assert told == {("ADDED", "oil-development"), ("DELETED", "oil-production")}


async def test_a_version_from_before_the_proxy_began_gets_410(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async with owner.watch("resourceVersion=1") as watch:
        type_, status = await watch.event()

    assert (type_, status["code"]) == ("ERROR", 410)


async def test_initial_events_end_with_their_bookmark(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"

    async with owner.watch(query) as watch:
        first, second = await watch.event(), await watch.event()

    assert (first[0], first[1]["metadata"]["name"]) == ("ADDED", "oil-production")
    assert second[0] == "BOOKMARK"
    assert second[1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_ends_after_its_time_with_a_last_bookmark(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async with owner.watch("timeoutSeconds=1&allowWatchBookmarks=true") as watch:
        lines = (await watch.end()).splitlines()

    assert [msgspec.json.decode(line)["type"] for line in lines] == ["ADDED", "BOOKMARK"]


async def test_a_watch_lives_through_a_restart_of_nats(world: World) -> None:
    owner = await world.owner("oil", "oil-production")
    await world.namespace("oil-development")
    await world.settle()

    async with owner.watch() as watch:
        assert await watch.named() == ("ADDED", "oil-production")
        await world.nats.restart()
        await world.tenant("oil", "oil-production", "oil-development")

        assert await watch.named() == ("ADDED", "oil-development")


async def test_stopping_ends_watches_and_new_connections(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async with owner.watch() as watch:
        await watch.named()
        world.role.stopping.set()
        assert await watch.end() == b""

    assert not world.role.readiness.ready


async def test_many_watches_end_when_their_clients_go(world: World) -> None:
    owner = await world.owner("oil", "oil-production")

    async def look() -> None:
        async with owner.watch() as watch:
            await watch.named()

    await asyncio.gather(*(look() for _ in range(50)))
    followers = world.service.feed.followers
    async with asyncio.timeout(10):
        while world.service.feed.followers:
            await asyncio.sleep(0)

    assert followers <= 50
