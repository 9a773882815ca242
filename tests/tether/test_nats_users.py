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
from nats.js.api import AckPolicy, ConsumerConfig

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
    "audit.router._.one": (AUDIT, "router"),
    "audit.rbac._.one": (AUDIT, "worker"),
    "audit.proxy._.one": (AUDIT, "proxy"),
}
"""What is stored, by subject: its stream, and the one role that may write it."""


SECONDS = 20


def reads(stream: str) -> set[str]:
    """Return what a reader of a stream asks."""
    return {
        f"STREAM.INFO.{stream}",
        f"CONSUMER.CREATE.{stream}.x",
        f"CONSUMER.CREATE.{stream}.x.>",
        f"CONSUMER.INFO.{stream}.probe",
        f"CONSUMER.MSG.NEXT.{stream}.probe",
    }


MAY_ASK = {
    "watcher": reads(OBJECTS) | {"STREAM.MSG.GET.OBJECTS"},
    "router": reads(OBJECTS) | reads(ACCESS),
    "worker": reads(OBJECTS)
    | {"STREAM.INFO.AUDIT"}
    | {
        "CONSUMER.MSG.NEXT.WORK.token-0",
        "CONSUMER.LIST.WORK",
        "STREAM.MSG.GET.WORK",
        "CONSUMER.MSG.NEXT.DLQ.mover",
        "STREAM.MSG.GET.KV_access",
    },
    "proxy": reads(OBJECTS) | reads(ACCESS),
}


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


STREAMS = {OBJECTS: "probe", WORK: "token-0", AUDIT: "probe", DLQ: "mover", ACCESS: "probe"}
"""Each stream with a consumer that it has."""
FORGED = [*WRITES, "$JS.API.STREAM.PURGE.OBJECTS", "$JS.API.STREAM.DELETE.WORK"]
"""Where an answer is wanted: what is stored, and what would be obeyed."""


def questions(stream: str, consumer: str) -> dict[str, object]:
    """Return what can be asked of a stream: subject and body."""
    made = {"stream_name": stream, "config": {"name": "x", "ack_policy": "none", "inactive_threshold": 10**10}}
    return {
        "INFO": None,
        "STREAM.NAMES": None,
        "STREAM.LIST": None,
        f"STREAM.INFO.{stream}": None,
        f"STREAM.MSG.GET.{stream}": {"seq": 1},
        f"DIRECT.GET.{stream}": {"seq": 1},
        f"DIRECT.GET.{stream}.objects.Tenant._.there": None,
        f"CONSUMER.NAMES.{stream}": None,
        f"CONSUMER.LIST.{stream}": None,
        f"CONSUMER.INFO.{stream}.{consumer}": None,
        f"CONSUMER.CREATE.{stream}.x": made,
        f"CONSUMER.CREATE.{stream}.x.>": made | {"config": {**made["config"], "filter_subject": ">"}},  # type: ignore[dict-item]
        f"CONSUMER.MSG.NEXT.{stream}.{consumer}": {"batch": 1, "no_wait": True},
    }


async def ask_everything(bus: Bus, forged: str) -> None:
    """Ask all that can be asked, with the answers to go to this subject; return when all were answered."""
    for stream, consumer in STREAMS.items():
        for subject, body in questions(stream, consumer).items():
            await bus.nc.publish(f"$JS.API.{subject}", msgspec.json.encode(body) if body else b"", reply=forged)
    for subject in WRITES:
        await bus.nc.publish(subject.replace("one", "own"), b"{}", reply=forged)
    await bus.nc.flush()
    await bus.stream_state(OBJECTS)  # answered in order, so the others have gone out too


async def fill(operator: Bus) -> None:
    """Put a message into each stream, and a consumer onto those that have none."""
    for subject in (
        "objects.Tenant._.there",
        "work.token.0.there",
        "audit.rbac._.there",
        "dlq.there",
        "$KV.access.there",
    ):
        await operator.publish(subject, b"{}")
    for stream, consumer in STREAMS.items():
        if consumer == "probe":
            await operator.js.add_consumer(stream, ConsumerConfig(durable_name="probe", ack_policy=AckPolicy.NONE))


@pytest.mark.parametrize("role", ROLES)
async def test_no_answer_of_the_server_is_stored_where_a_role_may_not_write(server: Server, role: str) -> None:
    # A stream answers to any subject that the question names, and the server does not ask whether that may be written.
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        await fill(operator)
        for forged in FORGED:
            await ask_everything(bus, forged)

        stored = {
            subject for subject, (stream, _) in WRITES.items() if await operator.last(stream, subject) is not None
        }
        assert stored <= {subject for subject, (_, writer) in WRITES.items() if writer == role}
        assert await topology.apply(operator, Settings(), dry_run=True) == []
        assert await operator.last(OBJECTS, "objects.Tenant._.there") is not None


@pytest.mark.parametrize("forged", WRITES)
async def test_in_the_account_of_the_streams_such_an_answer_would_be_stored(server: Server, forged: str) -> None:
    async with server.login(OPERATOR) as operator:
        await fill(operator)
        await ask_everything(operator, forged)

        assert await operator.last(WRITES[forged][0], forged) is not None


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_asks_what_it_needs_and_is_not_answered_otherwise(server: Server, role: str) -> None:
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        await fill(operator)
        answered = set()
        for stream, consumer in STREAMS.items():
            for subject, body in questions(stream, consumer).items():
                inbox = bus.nc.new_inbox()
                subscription = await bus.nc.subscribe(inbox)
                question = msgspec.json.encode(body) if body else b""
                await bus.nc.publish(f"$JS.API.{subject}", question, reply=inbox)
                answer = await subscription.next_msg(SECONDS)
                if (answer.headers or {}).get("Status") != "503":
                    answered.add(subject)
                await subscription.unsubscribe()

        assert answered == {"INFO", *MAY_ASK[role]}


@pytest.mark.parametrize("role", ROLES)
async def test_a_consumer_that_a_role_makes_delivers_nothing_into_another_stream(server: Server, role: str) -> None:
    async with server.login(role) as bus, server.login(OPERATOR) as operator:
        config = {"name": "push", "ack_policy": "none", "deliver_subject": "$KV.access.tenant.one"}
        question = msgspec.json.encode({"stream_name": OBJECTS, "config": config, "action": "create"})

        made = await bus.nc.request(f"$JS.API.CONSUMER.CREATE.{OBJECTS}.push", question)
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
