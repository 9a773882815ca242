"""A list against the view: what was missed is made up for, and nothing is taken for deleted that may live."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from eventcore import topology
from eventcore.events import OBJECT_DELETED, AuditRecord, decode_body
from eventcore.keys import ObjectKey
from watchers.answers import read
from watchers.watching import KindWatcher

if TYPE_CHECKING:
    from eventcore.views import ObjectsView
    from tests.watchers.conftest import World

NAMESPACES = "/api/v1/namespaces"
ACCOUNTS = "/api/v1/serviceaccounts"


def key(name: str) -> ObjectKey:
    return ObjectKey("Namespace", "", name)


def names(view: ObjectsView) -> list[str]:
    return sorted(record.key.name for record in view.all("Namespace"))


async def seed(world: World, *, count: int) -> None:
    """Bring so many namespaces onto the bus with a watcher that then stops."""
    for number in range(count):
        await world.api.put(NAMESPACES, f"ns-{number:02}")
    async with world.watcher():
        await world.objects.until(lambda: all(world.objects.of(key(f"ns-{number:02}")) for number in range(count)))


async def marked(world: World, kind: str, *, after: int) -> None:
    """Wait for a mark of a kind after a sequence: the list before it is on the bus."""
    subject = f"marks.{kind}"
    await world.objects.until(lambda: any(m.subject == subject and m.sequence > after for m in world.objects.messages))


async def last_sequence(world: World) -> int:
    return (await world.bus.stream_state("OBJECTS")).last_sequence


async def test_a_restarted_watcher_publishes_only_what_changed_and_buries_what_is_gone(world: World) -> None:
    # Given eight namespaces on the bus, of which one changed and one went while no watcher ran
    await seed(world, count=8)
    await world.api.put(NAMESPACES, "ns-03", metadata={"labels": {"changed": "yes"}})
    world.api.forget(NAMESPACES, "ns-05")
    before = await last_sequence(world)

    async with world.watcher():
        await marked(world, "Namespace", after=before)

    news = [m for m in world.objects.messages if m.sequence > before and m.subject.startswith("objects.")]
    assert sorted(message.subject for message in news) == [key("ns-03").subject(), key("ns-05").subject()]
    async with world.reader() as reader:
        assert names(reader.view) == [f"ns-0{number}" for number in range(8) if number != 5]
        assert reader.view.last(key("ns-05")) is not None


async def test_a_namespace_recreated_while_no_watcher_ran_is_followed(world: World) -> None:
    await seed(world, count=2)
    world.api.forget(NAMESPACES, "ns-00")
    await world.api.put(NAMESPACES, "ns-00", uid="another")

    async with world.watcher():
        await world.objects.until_many(key("ns-00"), 2)

    assert world.objects.of(key("ns-00"))[-1].headers["ce-uid"] == "another"


async def test_a_list_that_breaks_off_buries_nothing(world: World) -> None:
    # Given eight namespaces on the bus, three a page, and a server that fails on the second page, then on the token
    await seed(world, count=8)
    world.api.forget(NAMESPACES, "ns-00")
    world.api.forget(NAMESPACES, "ns-07")
    before = await last_sequence(world)
    broken = 0

    async def fail_next_page(path: str) -> None:
        nonlocal broken
        if path == NAMESPACES and broken < 2:
            broken += 1
            code, reason = (500, "InternalError") if broken == 1 else (410, "Expired")
            body = {"kind": "Status", "code": code, "reason": reason, "message": "broken off"}
            world.api.answers["LIST", NAMESPACES].append(web.json_response(body, status=code))

    world.api.after_page = fail_next_page
    lists = world.api.asked("LIST", NAMESPACES)

    # When a watcher lists: twice in vain, a third time to the end
    async with world.watcher():
        await world.api.until_asked("LIST", NAMESPACES, lists + 4)
        early = [m for m in world.objects.messages if m.sequence > before and m.subject.startswith("objects.")]
        await marked(world, "Namespace", after=before)

    # Then nothing was buried before the whole list was there
    assert broken == 2
    assert early == []
    async with world.reader() as reader:
        assert names(reader.view) == [f"ns-0{number}" for number in range(1, 7)]


async def test_an_object_born_while_the_list_ran_is_not_buried(world: World) -> None:
    # Given another watcher publishes a new namespace while this one's list is under way
    await seed(world, count=2)
    before = await last_sequence(world)
    born = False

    async def born_meanwhile(path: str) -> None:
        nonlocal born
        if path == NAMESPACES and not born:
            born = True
            late = await world.api.put(NAMESPACES, "ns-99")
            async with world.publisher("Namespace") as other:
                await other.offer(read(world.row("Namespace"), msgspec.json.encode(late)))
                await other.flush()

    world.api.after_page = born_meanwhile
    async with world.watcher():
        await marked(world, "Namespace", after=before)

    assert [message.headers["ce-type"] == OBJECT_DELETED for message in world.objects.of(key("ns-99"))] == [False]


async def test_a_mass_delete_stops_says_so_and_sends_no_marks(world: World) -> None:
    # Given an API server that suddenly lists 3 of 15 namespaces
    await seed(world, count=15)
    for number in range(3, 15):
        world.api.forget(NAMESPACES, f"ns-{number:02}")
    before = await last_sequence(world)

    async with world.watcher() as role:
        await world.audit.until(lambda: len(world.audit.messages) >= 1)
        # Then the other kinds go on, this one is not marked, and live changes still come through
        await marked(world, "ServiceAccount", after=before)
        await marked(world, "ServiceAccount", after=await last_sequence(world))
        await world.api.until_asked("WATCH", NAMESPACES, 2)
        await world.api.put(NAMESPACES, "ns-00", metadata={"labels": {"still": "followed"}})
        await world.objects.until_many(key("ns-00"), 2)
        metrics = role.metrics.render().decode()

    assert 'tether_watch_mass_delete_stopped{kind="Namespace"} 1.0' in metrics
    record = decode_body(AuditRecord, world.audit.messages[0].data)
    assert (record.component, record.action, record.object) == ("watcher", "mass-delete-stopped", "Namespace")
    assert "3 of 15" in record.message
    assert "--mass-delete-share=1" in record.message
    assert not [m for m in world.objects.messages if m.subject == "marks.Namespace" and m.sequence > before]
    async with world.reader() as reader:
        assert len(names(reader.view)) == 15


async def test_a_tenant_that_deleted_its_many_namespaces_while_nobody_watched_stops_nothing(world: World) -> None:
    # given a tenant that has more than half of all namespaces
    await seed(world, count=15)
    for number in range(12):
        await world.api.put(NAMESPACES, f"ns-{number:02}", metadata={"labels": {"capsule.clastix.io/tenant": "oil"}})
    async with world.watcher():
        await marked(world, "Namespace", after=await last_sequence(world))

    # when all of them go while no watcher runs, then the next one buries them and vouches for the rest
    for number in range(12):
        world.api.forget(NAMESPACES, f"ns-{number:02}")
    before = await last_sequence(world)
    async with world.watcher():
        await marked(world, "Namespace", after=before)
    async with world.reader() as reader:
        assert names(reader.view) == ["ns-12", "ns-13", "ns-14"]


async def test_an_operator_confirms_with_one_watcher_and_the_stopped_one_goes_on(world: World) -> None:
    await seed(world, count=15)
    for number in range(15):
        world.api.forget(NAMESPACES, f"ns-{number:02}")
    before = await last_sequence(world)

    async with world.watcher() as stopped:
        await world.audit.until(lambda: len(world.audit.messages) >= 1)
        async with world.watcher(mass_delete_share=1.0):
            await world.objects.until(
                lambda: sum(m.headers["ce-type"] == OBJECT_DELETED for m in world.objects.messages) == 15
            )
        after = await last_sequence(world)
        await marked(world, "Namespace", after=after)
        metrics = stopped.metrics.render().decode()

    assert after > before
    assert 'tether_watch_mass_delete_stopped{kind="Namespace"} 0.0' in metrics


async def test_the_view_follows_an_api_server_that_was_restored_from_a_backup(world: World) -> None:
    # Given two namespaces on the bus, one of them at a version that the restored server never gave out
    await seed(world, count=2)
    await world.api.put(NAMESPACES, "ns-00", metadata={"labels": {"after": "backup"}})
    before = await last_sequence(world)
    async with world.watcher():
        await world.objects.until_many(key("ns-00"), 2)
        await marked(world, "Namespace", after=before)

    # When the server comes back with all versions lower, and one uid another
    world.api.restore(60)
    await world.api.put(NAMESPACES, "ns-00", metadata={"labels": {"from": "backup"}})
    await world.api.put(NAMESPACES, "ns-01", uid="restored")
    before = await last_sequence(world)
    async with world.watcher():
        await marked(world, "Namespace", after=before)

    # Then the view is what the server has, and the marks go back too
    async with world.reader() as reader:
        first, second = (reader.view.get("Namespace", "", name) for name in ("ns-00", "ns-01"))
        mark = reader.view.mark("Namespace")
    assert first is not None
    assert first.metadata.labels == {"from": "backup"}
    assert second is not None
    assert second.uid == "restored"
    assert mark is not None
    assert mark.resource_version == "62"


async def test_when_objects_is_lost_a_running_watcher_lists_again(world: World) -> None:
    async with world.watcher():
        for number in range(5):
            await world.api.put(NAMESPACES, f"ns-0{number}")
        await world.objects.until(lambda: all(world.objects.of(key(f"ns-0{number}")) for number in range(5)))

        # When the stream is deleted and made anew, and nothing changes in the cluster
        await world.bus.js.delete_stream("OBJECTS")
        await topology.apply(world.bus, world.settings)

        async with world.reader() as reader:
            for _ in range(2):
                await reader.wait_for((await world.bus.stream_state("OBJECTS")).last_sequence + 1, 20)
            while len(names(reader.view)) < 5:
                await reader.wait_for(reader.view.sequence + 1, 20)


async def test_what_was_purged_from_objects_comes_back(world: World) -> None:
    # Given the same stream with less in it, as after a restore of NATS' files
    await world.api.put(NAMESPACES, "oil")
    async with world.watcher():
        await world.objects.until_many(key("oil"), 1)
        await world.bus.js.purge_stream("OBJECTS", subject=key("oil").subject())

        # When the connection is lost once, so that views are read anew
        await world.nats.restart()

        async with world.reader() as reader, asyncio.timeout(20):
            while not names(reader.view):
                await reader.wait_for(reader.view.sequence + 1, 20)


async def test_a_stream_made_anew_is_noticed_even_if_the_view_had_not_seen_the_loss(world: World) -> None:
    # Given one kind's watcher alone, which nobody tells about changes of the view
    stopping = asyncio.Event()
    await world.api.put(NAMESPACES, "oil")
    async with world.tools() as tools:
        task = asyncio.ensure_future(KindWatcher(world.row("Namespace"), tools).run(stopping))
        await world.objects.until_many(key("oil"), 1)

        await world.bus.js.delete_stream("OBJECTS")
        await topology.apply(world.bus, world.settings)

        async with asyncio.timeout(20):
            while not names(tools.reader.view) or tools.reader.rebuilds == 0:
                await tools.reader.wait_for(tools.reader.view.sequence + 1, 20)
        stopping.set()
        await task


async def test_an_object_that_does_not_decode_is_reported_and_its_neighbours_go_on(world: World) -> None:
    tenants = "/apis/capsule.clastix.io/v1beta2/tenants"
    await world.api.put(tenants, "gas", spec={"owners": "not a list"})
    await world.api.put(tenants, "oil", spec={"owners": [{"kind": "User", "name": "dana"}]})

    async with world.watcher() as role:
        await world.objects.until_many(ObjectKey("Tenant", "", "oil"), 1)
        await world.audit.until(lambda: len(world.audit.messages) >= 1)
        metrics = role.metrics.render().decode()

    record = decode_body(AuditRecord, world.audit.messages[0].data)
    assert record.object == "Tenant/gas"
    assert 'tether_watch_refused_objects_total{kind="Tenant",why="undecodable"} 1.0' in metrics
    # and whatever it granted before, what is there now grants nothing
    [mark] = world.objects.of(ObjectKey("Tenant", "", "gas"))
    assert mark.headers["ce-withheld"] == "undecodable"
    assert b"not a list" not in mark.data


async def test_a_list_with_an_object_without_a_name_buries_nothing(world: World) -> None:
    await seed(world, count=4)
    world.api.forget(NAMESPACES, "ns-02")
    world.api.served[NAMESPACES]["", "?"] = {"metadata": {"labels": {}}}
    before = await last_sequence(world)

    async with world.watcher():
        await marked(world, "Namespace", after=before)

    async with world.reader() as reader:
        assert names(reader.view) == ["ns-00", "ns-01", "ns-02", "ns-03"]
