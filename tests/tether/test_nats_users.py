"""The users of deploy/nats-users.conf before a real nats-server: each role does what is its own, and nothing else.

That every role gets along with its rights is held by tests/behaviour, whose processes log in as these users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from nats.aio.msg import Msg

from eventcore import topology
from eventcore.bus import Bus
from eventcore.grants import TenantGrant, encode_grant
from eventcore.reading import Reader
from eventcore.settings import Settings
from eventcore.topology import ACCESS, AUDIT, DLQ, OBJECTS, WORK
from tether.dev_nats import OPERATOR, USERS, users_config
from tether.devcluster.nats import NatsServer

ROLES = [user for user in USERS if user != OPERATOR]
WRITES = {
    "objects.Tenant._.one": (OBJECTS, "watcher"),
    "marks.Tenant": (OBJECTS, "watcher"),
    "work.token.0.one": (WORK, "router"),
    "timer.token.0.one": (WORK, "worker"),
    "dlq.token.one": (DLQ, "worker"),
    "$KV.access.tenant.one": (ACCESS, "worker"),
    "audit.watcher._.one": (AUDIT, "watcher"),
    "audit.rbac._.one": (AUDIT, "worker"),
    "audit.proxy._.one": (AUDIT, "proxy"),
}
"""What is stored, by subject: its stream, and the one role that may write it."""


class Server:
    """A nats-server with the users, and whoever is logged in there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nats = NatsServer(folder / "nats", extra_config=users_config({user: f"p-{user}" for user in USERS}))

    @asynccontextmanager
    async def login(self, user: str) -> AsyncIterator[Bus]:
        file = self._folder / user
        file.write_text(f"p-{user}")
        settings = Settings(nats_url=self.nats.url, nats_user=user, nats_password_file=str(file))
        bus = await Bus.connect(settings, f"{user}-1")
        try:
            yield bus
        finally:
            await bus.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    found = Server(tmp_path)
    async with found.nats, found.login(OPERATOR) as operator:
        await topology.apply(operator, Settings())
        yield found


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_writes_what_is_its_own_and_nothing_else(server: Server, role: str) -> None:
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        for subject, (stream, writer) in WRITES.items():
            if writer == role:
                await bus.publish(subject, b"{}")
            else:
                await bus.nc.publish(subject, b"{}")
                await bus.nc.flush()
            assert (await operator.last(stream, subject) is not None) == (writer == role), subject


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("subject", "question"),
    [
        ("STREAM.DELETE.OBJECTS", b""),
        ("STREAM.PURGE.OBJECTS", b""),
        ("STREAM.MSG.DELETE.OBJECTS", b'{"seq": 1}'),
        ("CONSUMER.DELETE.WORK.token-0", b""),
    ],
)
async def test_no_role_removes_what_the_operator_may_remove(
    server: Server, role: str, subject: str, question: bytes
) -> None:
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        await operator.publish("objects.Tenant._.one", b"{}")

        async def stands() -> bool:
            complete = await topology.apply(operator, Settings(), dry_run=True) == []
            return complete and (await operator.stream_state(OBJECTS)).messages == 1

        await bus.nc.publish(f"$JS.API.{subject}", question)
        await bus.nc.flush()
        assert await stands()

        await operator.nc.request(f"$JS.API.{subject}", question)
        assert not await stands()


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_hears_nothing_but_the_answers_to_itself(server: Server, role: str) -> None:
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        heard: dict[Bus, list[str]] = {bus: [], operator: []}
        for listener, subjects in heard.items():

            async def note(message: Msg, subjects: list[str] = subjects) -> None:
                subjects.append(message.subject)

            for subject in ("objects.>", "$KV.>", *(f"_INBOX_{other}.>" for other in USERS if other != role)):
                await listener.nc.subscribe(subject, cb=note)
            await listener.nc.flush()
        told = ["objects.Tenant._.one", "$KV.access.tenant.one"]
        for subject in told:
            await operator.publish(subject, b"{}")
        await bus.nc.flush()

        assert heard[bus] == []
        assert [subject for subject in heard[operator] if not subject.startswith("_INBOX")] == told


@pytest.mark.parametrize(("role", "stored"), [("proxy", False), ("worker", True)])
async def test_an_answer_that_is_to_be_stored_is_stored_in_ones_own_account_alone(
    server: Server, role: str, *, stored: bool
) -> None:
    # A stream answers to any subject that the question names, and the server does not ask whether that may be written.
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        for subject in ("objects.Tenant._.one", "$KV.access.tenant.one"):
            await bus.nc.publish("$JS.API.STREAM.INFO.OBJECTS", b"", reply=subject)
            await bus.nc.flush()
            await bus.stream_state(OBJECTS)  # answered in order, so that answer has gone out too
            assert (await operator.last(WRITES[subject][0], subject) is not None) == stored


async def test_a_consumer_of_the_proxys_delivers_nothing_into_another_stream(server: Server) -> None:
    async with server.login("proxy") as proxy, server.login(OPERATOR) as operator:
        config = {"name": "push", "ack_policy": "none", "deliver_subject": "$KV.access.tenant.one"}
        question = msgspec.json.encode({"stream_name": OBJECTS, "config": config, "action": "create"})

        made = await proxy.nc.request(f"$JS.API.CONSUMER.CREATE.{OBJECTS}.push", question)
        assert b'"deliver_subject"' in made.data
        for _ in range(2):
            await operator.publish("objects.Tenant._.one", b"{}")

        info = await operator.js.consumer_info(OBJECTS, "push")
        assert (info.num_pending, info.delivered and info.delivered.consumer_seq) == (2, 0)
        assert await operator.last(ACCESS, "$KV.access.tenant.one") is None


async def test_the_proxy_reads_grants_from_an_account_of_its_own(server: Server) -> None:
    async with server.login("proxy") as proxy, server.login("worker") as worker:
        stopping = asyncio.Event()
        reader = Reader.access(proxy)
        running = asyncio.create_task(reader.run(stopping))
        grant = TenantGrant(name="oil", uid="u", namespaces=("oil-production",))

        revision = await worker.kv_put(grant.key(), encode_grant(grant), revision=0)
        await reader.wait_for(revision, 30)

        assert reader.view.get(grant.key()) == grant
        stopping.set()
        await running
