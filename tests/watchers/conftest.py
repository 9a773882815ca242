"""A watcher between a real nats-server and an API server that does what the test says."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from aiohttp import web
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from eventcore import topology
from eventcore.bus import BusMessage
from eventcore.kube import KubeClient
from eventcore.logs import get
from eventcore.metrics import Metrics
from eventcore.process import Role
from eventcore.pulling import message_of
from eventcore.reading import Reader
from watchers.kinds import KindRow, rows
from watchers.main import watch
from watchers.metrics import WatchMetrics
from watchers.publish import Publisher
from watchers.watching import Tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from eventcore.bus import Bus
    from eventcore.keys import ObjectKey
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from tests.conftest import MakeBus, MakeSettings
    from tether.devcluster.nats import NatsServer

Object = dict[str, Any]

NAMESPACES = "/api/v1/namespaces"
ACCOUNTS = "/api/v1/serviceaccounts"
SECRETS = "/api/v1/secrets"
TENANTS = "/apis/capsule.clastix.io/v1beta2/tenants"
TENANT_OWNERS = "/apis/capsule.clastix.io/v1beta2/tenantowners"
CONFIGURATIONS = "/apis/capsule.clastix.io/v1beta2/capsuleconfigurations"
CA_SECRET = "/api/v1/namespaces/capsule-system/secrets"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
COLLECTIONS = (
    NAMESPACES,
    ACCOUNTS,
    SECRETS,
    TENANTS,
    TENANT_OWNERS,
    CONFIGURATIONS,
    CA_SECRET,
    f"{_RBAC}/rolebindings",
    f"{_RBAC}/clusterroles",
    f"{_RBAC}/clusterrolebindings",
)


class ScriptedApi:
    """Lists, watches and single objects over HTTP, with every fault at the test's command.

    ``answers`` maps (verb, path) to answers that come before the usual ones; verbs are GET, LIST and WATCH.
    """

    def __init__(self) -> None:
        self.version = 100
        self.url = ""
        self.port = 0
        self.served: dict[str, dict[tuple[str, str], Object]] = {path: {} for path in COLLECTIONS}
        self.answers: dict[tuple[str, str], list[web.Response]] = defaultdict(list)
        self.gates: dict[tuple[str, str], asyncio.Event] = {}  # a request waits until its gate is set
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.oldest = 0  # a watch from before it gets 410
        self.silent: set[str] = set()  # watches of these paths send nothing, and stay open
        self.after_page: Callable[[str], Awaitable[None]] | None = None
        self._log: dict[str, list[tuple[int, str, Object]]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._cut = 0
        self._ended = 0
        self._uids = itertools.count(1)
        self._runner: web.AppRunner | None = None

    @staticmethod
    def status(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
        """Return a metav1.Status as an answer to give."""
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        return web.json_response(body | {"reason": reason, "message": message}, status=code, headers=headers)

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    async def put(self, path: str, name: str, *, namespace: str = "", uid: str = "", **fields: Any) -> Object:
        """Create or change an object; returns it as it is now."""
        self.version += 1
        old = self.served[path].get((namespace, name))
        kept = uid or (old["metadata"]["uid"] if old else f"uid-{next(self._uids)}")
        metadata = {"name": name, "uid": kept, "resourceVersion": str(self.version), **fields.pop("metadata", {})}
        if namespace:
            metadata["namespace"] = namespace
        obj = {"metadata": metadata, **fields}
        self.served[path][namespace, name] = obj
        await self._tell(path, "MODIFIED" if old else "ADDED", obj)
        return obj

    async def delete(self, path: str, name: str, *, namespace: str = "") -> None:
        """Delete an object and tell the watches."""
        self.version += 1
        obj = self.served[path].pop((namespace, name))
        obj = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.version)}}
        await self._tell(path, "DELETED", obj)

    def forget(self, path: str, name: str, *, namespace: str = "") -> None:
        """Delete an object without a word, as when no watcher runs."""
        self.version += 1
        del self.served[path][namespace, name]

    def restore(self, version: int) -> None:
        """Go back to a backup: versions begin again from here, and nothing is known of what came after it."""
        self.version = version
        self._log.clear()

    async def bookmark(self, path: str) -> str:
        """Send a bookmark to the watches of a path; returns its version."""
        self.version += 1
        await self._tell(path, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
        return str(self.version)

    async def say(self, path: str, type_: str, obj: Object) -> None:
        """Send any event to the watches of a path."""
        await self._tell(path, type_, obj)

    async def cut_watches(self) -> None:
        """Break every watch, as a restart of the API server does."""
        async with self._changed:
            self._cut += 1
            self._changed.notify_all()

    async def end_watches(self) -> None:
        """End every watch in good order, as at its time-out."""
        async with self._changed:
            self._ended += 1
            self._changed.notify_all()

    async def until_asked(self, verb: str, path: str, times: int = 1) -> None:
        """Wait until so many requests of this verb came for the path."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.asked(verb, path) >= times)

    def asked(self, verb: str, path: str) -> int:
        return sum(1 for seen in self.requests if seen[:2] == (verb, path))

    async def _tell(self, path: str, type_: str, obj: Object) -> None:
        async with self._changed:
            self._log[path].append((int(obj["metadata"].get("resourceVersion", self.version)), type_, obj))
            self._changed.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        collection = path in self.served or path in COLLECTIONS
        verb = "GET" if not collection else "WATCH" if "watch" in request.query else "LIST"
        async with self._changed:
            self.requests.append((verb, path, dict(request.query) | {"accept": request.headers.get("Accept", "")}))
            self._changed.notify_all()
        if gate := self.gates.get((verb, path)):
            await gate.wait()
        if self.answers[verb, path]:
            return self.answers[verb, path].pop(0)
        if collection and path not in self.served:
            return self.status(404, "NotFound", "the server could not find the requested resource")
        if verb == "WATCH":
            return await self._watch(request, path)
        if verb == "LIST":
            return await self._list(request, path)
        return self._get(path)

    def _get(self, path: str) -> web.Response:
        head, _, name = path.rpartition("/")
        namespace = ""
        parts = head.split("/")
        if len(parts) > 4 and parts[-3] == "namespaces":
            namespace, head = parts[-2], "/".join(parts[:-3] + parts[-1:])
        obj = self.served.get(head, {}).get((namespace, name))
        obj = obj or self.served.get(path.rpartition("/")[0], {}).get((namespace, name))
        return web.json_response(obj) if obj else self.status(404, "NotFound", f"{name} not found")

    async def _list(self, request: web.Request, path: str) -> web.Response:
        limit = int(request.query.get("limit", "500"))
        start, _, version = request.query.get("continue", f"0:{self.version}").partition(":")
        items = [self.served[path][key] for key in sorted(self.served[path])]
        page = items[int(start) : int(start) + limit]
        end = int(start) + len(page)
        meta = {"resourceVersion": version, "continue": f"{end}:{version}" if end < len(items) else ""}
        if self.after_page is not None:
            await self.after_page(path)
        return web.json_response({"metadata": meta, "items": page})

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        if since < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(msgspec.json.encode({"type": "ERROR", "object": gone}) + b"\n")
            return response
        cut, ended = self._cut, self._ended
        sent = 0
        while True:
            async with self._changed:
                while (self._cut, self._ended) == (cut, ended) and len(self._log[path]) == sent:
                    await self._changed.wait()
                news, sent = self._log[path][sent:], len(self._log[path])
            if self._cut != cut:
                if request.transport is not None:
                    request.transport.abort()
                return response
            if self._ended != ended:
                return response
            for version, type_, obj in news:
                if version > since and path not in self.silent:
                    with suppress(ConnectionError):
                        await response.write(msgspec.json.encode({"type": type_, "object": obj}) + b"\n")


class Tail:
    """Every message of a stream from its first, in order, as they come."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self.messages: list[BusMessage] = []
        self._bus = bus
        self._stream = stream
        self._news = asyncio.Condition()

    async def run(self) -> None:
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, mem_storage=True)
        subscription = await self._bus.js.subscribe(
            ">", stream=self._stream, config=config, ordered_consumer=False, manual_ack=True
        )
        async for raw in subscription.messages:
            async with self._news:
                self.messages.append(message_of(raw))
                self._news.notify_all()

    def of(self, key: ObjectKey) -> list[BusMessage]:
        """Return the messages of an object."""
        return [message for message in self.messages if message.subject == key.subject()]

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until the messages are such."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(enough)

    async def until_many(self, key: ObjectKey, count: int) -> list[BusMessage]:
        """Wait for so many messages of an object and return them."""
        await self.until(lambda: len(self.of(key)) >= count)
        return self.of(key)


class World:
    """What a test stands in: the API server, the bus, a view of OBJECTS and watchers to start and stop."""

    def __init__(self, api: ScriptedApi, nats: NatsServer, folder: Path, bus: Bus, settings: Settings) -> None:
        self.api = api
        self.nats = nats
        self.folder = folder
        self.bus = bus
        self.settings = settings
        self.objects = Tail(bus, topology.OBJECTS)
        self.audit = Tail(bus, topology.AUDIT)
        self.stopping = asyncio.Event()

    @asynccontextmanager
    async def watcher(self, **changes: Any) -> AsyncIterator[Role]:
        """Run ``tether watch`` in this process until the block ends, then stop it cleanly."""
        settings = msgspec.structs.replace(self.settings, **changes)
        role = Role(name="watch", settings=settings, log=get("test"))
        task = asyncio.ensure_future(watch(role))
        try:
            yield role
        finally:
            role.stopping.set()
            await asyncio.wait_for(task, 15)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader[ObjectsView, ObjectRecord]]:
        """Yield a fresh view of OBJECTS that is up to date."""
        stopping = asyncio.Event()
        reader = Reader.objects(self.bus)
        task = asyncio.ensure_future(reader.run(stopping))
        try:
            await reader.wait_for(0, 20)
            await reader.barrier(20)
            yield reader
        finally:
            stopping.set()
            await task

    @asynccontextmanager
    async def publisher(self, kind: str, **changes: Any) -> AsyncIterator[Publisher]:
        """Yield the publisher of a kind, without anything that watches."""
        settings = msgspec.structs.replace(self.settings, **changes)
        metrics = Metrics()
        client = await KubeClient.connect(settings)
        try:
            async with self.reader() as reader:
                publisher = Publisher(
                    self.row(kind),
                    bus=self.bus,
                    reader=reader,
                    client=client,
                    settings=settings,
                    metrics=metrics,
                    counters=WatchMetrics(metrics),
                    log=get("test"),
                )
                yield publisher
                await publisher.close(5)
        finally:
            await client.close()

    @asynccontextmanager
    async def tools(self) -> AsyncIterator[Tools]:
        """Yield what a single KindWatcher needs, without the rest of a watcher."""
        metrics = Metrics()
        client = await KubeClient.connect(self.settings)
        try:
            async with self.reader() as reader:
                yield Tools(
                    name="watcher-test",
                    bus=self.bus,
                    reader=reader,
                    client=client,
                    settings=self.settings,
                    metrics=metrics,
                    counters=WatchMetrics(metrics),
                )
        finally:
            await client.close()

    def row(self, kind: str) -> KindRow:
        return next(row for row in rows(self.settings) if row.kind == kind)


@pytest.fixture
async def world(
    tmp_path: Path, nats_server: NatsServer, make_settings: MakeSettings, make_bus: MakeBus
) -> AsyncIterator[World]:
    api = ScriptedApi()
    await api.start()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": api.url}}],
                "users": [{"name": "u", "user": {"token": "example-token"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    settings = make_settings(kubeconfig=str(kubeconfig), mark_interval=0.1, list_page_size=3)
    bus = await make_bus("test", settings)
    found = World(api, nats_server, tmp_path, bus, settings)
    tails = [asyncio.ensure_future(found.objects.run()), asyncio.ensure_future(found.audit.run())]
    yield found
    for tail in tails:
        tail.cancel()
    await asyncio.gather(*tails, return_exceptions=True)
    await bus.close()
    await api.stop()
    await nats_server.kill()  # nobody needs its store any more, and a clean stop takes most of a second
