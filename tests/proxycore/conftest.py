"""A proxy in this process between a real nats-server and an embedded API; grants come as the workers write them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
import yaml

from eventcore import topology
from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.events import Mark, encode_body, object_event
from eventcore.grants import CapsuleUserRef, ConfigGrant, Grant, SubjectGrant, TenantGrant, encode_grant
from eventcore.keys import Key, ObjectKey, mark_subject
from eventcore.kube import KubeClient, api_path
from eventcore.kube_auth import KubeAuth
from eventcore.logs import get
from eventcore.objects import RBAC_KINDS
from eventcore.process import Role
from eventcore.publishable import publishable, tombstone
from eventcore.settings import Settings
from proxycore.main import Service, new_loop, serving_tls
from tether.devcluster.api import ApiOptions, EmbeddedApi
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.contracts import Change

# Before Python 3.14 the first asyncio.get_event_loop() of a thread makes a loop that nobody closes, and pytest-asyncio
# asks for it. After an explicit "none", none is made.
asyncio.set_event_loop(None)

RIGHTS = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"]},
]
IMPERSONATION = [
    {"apiGroups": [""], "resources": ["users", "groups", "serviceaccounts"], "verbs": ["impersonate"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["uids", "userextras/scopes"], "verbs": ["impersonate"]},
]
RBAC = "/apis/rbac.authorization.k8s.io/v1"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
CLUSTER = "test"


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the event loop that the proxy has in service; virtual time needs asyncio's own."""
    if item.get_closest_marker("looptime") is not None:
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": new_loop}


class Reply(msgspec.Struct, frozen=True):
    """One HTTP answer, its body decoded if it is JSON."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The names in a list, or in a Table."""
        if self.body["kind"] == "Table":
            return [row["cells"][0] for row in self.body["rows"]]
        return [item["metadata"]["name"] for item in self.body["items"]]

    @property
    def version(self) -> str:
        return str(self.body["metadata"]["resourceVersion"])


class Watching:
    """The events of one open watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def event(self) -> tuple[str, Any]:
        """Return (type, object) of the next event."""
        async with asyncio.timeout(15):
            line = await self.response.content.readline()
        assert line, "the watch ended"
        found = msgspec.json.decode(line)
        return found["type"], found["object"]

    async def named(self) -> tuple[str, str]:
        """Return (type, name) of the next event that is no bookmark."""
        while True:
            type_, obj = await self.event()
            if type_ != "BOOKMARK":
                return type_, obj["metadata"]["name"]

    async def end(self) -> bytes:
        """Return what still comes until the watch ends."""
        async with asyncio.timeout(15):
            return await self.response.read()


class Tenant:
    """A client of the proxy with one token."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self.session = session
        self.url = url
        self.token = token

    async def request(self, method: str, target: str, *, headers: Any = None, **options: Any) -> Reply:
        sent = [("Authorization", f"Bearer {self.token}"), *(headers or {}).items()]
        async with self.session.request(method, self.url + target, headers=sent, **options) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json" and raw
            return Reply(response.status, msgspec.json.decode(raw) if is_json else raw, dict(response.headers))

    async def get(self, target: str, **options: Any) -> Reply:
        return await self.request("GET", target, **options)

    @asynccontextmanager
    async def watch(self, query: str = "", *, accept: str = "application/json") -> AsyncIterator[Watching]:
        """Open a watch of Namespaces."""
        target = f"{self.url}/api/v1/namespaces?watch=true{'&' if query else ''}{query}"
        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
        async with self.session.get(target, headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Watching(response)


class World:
    """What a test stands in. `settle` after changes: then the proxy has seen all of them."""

    def __init__(self, api: EmbeddedApi, nats: NatsServer, bus: Bus, admin: KubeClient, settings: Settings) -> None:
        self.api = api
        self.nats = nats
        self.bus = bus
        self.admin = admin
        self.settings = settings
        self.role = Role(name="proxy", settings=settings, log=get("test"))
        self.service: Service
        self.session: aiohttp.ClientSession
        self.vouching = True  # whether marks go out
        self._marking = asyncio.Lock()
        self.over = False  # a publish that is just answered may swallow a cancellation, so loops look here too
        self._mirrored = 0
        self._kinds = {("", "namespaces"): "Namespace"}
        self._sequences: dict[str, int] = {}
        self._news = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.service.port}"

    # The cluster.

    async def account(self, namespace: str, name: str) -> tuple[str, str]:
        """Create a ServiceAccount; return (user name, token)."""
        await self.namespace(namespace)
        await self.admin.create(api_path("", "v1", "serviceaccounts", namespace=namespace), _named(name))
        issued = await self.admin.token_request(namespace, name, expiration_seconds=3600)
        return f"system:serviceaccount:{namespace}:{name}", issued.token

    async def namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        """Create a Namespace unless it is there."""
        if self.api.store.get(_namespaces(self.api), "", name) is None:
            await self.admin.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})

    async def allow(self, name: str, user: str, rules: list[dict[str, Any]]) -> None:
        """Give a user rights in the whole cluster."""
        await self.admin.create(f"{RBAC}/clusterroles", {**_named(name), "rules": rules})
        subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}
        reference = {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": name}
        body = {**_named(name), "subjects": [subject], "roleRef": reference}
        await self.admin.create(f"{RBAC}/clusterrolebindings", body)

    # The grants.

    async def grant(self, grant: Grant) -> None:
        """Write a grant as the access worker does."""
        found = await self.bus.kv_get(grant.key())
        await self.bus.kv_put(grant.key(), encode_grant(grant), revision=found.revision if found else 0)

    async def withdraw(self, target: Key) -> None:
        """Delete a grant."""
        found = await self.bus.kv_get(target)
        assert found is not None
        await self.bus.kv_delete(target, revision=found.revision)

    async def capsule_users(self, *refs: tuple[str, str]) -> None:
        """Say who is a user of Capsule: (kind, name) each."""
        await self.grant(ConfigGrant(users=tuple(CapsuleUserRef(kind=kind, name=name) for kind, name in refs)))

    async def owns(self, kind: str, name: str, *tenants: str) -> None:
        """Make somebody the owner of tenants, and of no others."""
        await self.grant(SubjectGrant(subject_kind=kind, name=name, tenants=tuple(sorted(tenants))))

    async def tenant(self, name: str, *namespaces: str) -> None:
        """Say which namespaces are a tenant's; they are created if they are not there."""
        for namespace in namespaces:
            await self.namespace(namespace)
        await self.grant(TenantGrant(name=name, uid=f"uid-{name}", namespaces=tuple(sorted(namespaces))))

    async def settle(self) -> None:
        """Wait until the proxy holds all that the cluster and the grants say now."""
        wanted = self.api.store.version
        async with asyncio.timeout(15), self._news:
            await self._news.wait_for(lambda: self._mirrored >= wanted)
        await self.mark()
        await self.service.objects.barrier(15)
        await self.service.access.barrier(15)
        assert await self.service.feed.settled(15)

    # The proxy.

    @asynccontextmanager
    async def proxy(self, **changes: Any) -> AsyncIterator[Service]:
        """Run another proxy process's worth of service until the block ends."""
        settings = msgspec.structs.replace(self.settings, **changes)
        role = Role(name="proxy", settings=settings, log=get("test"))
        bus = await Bus.connect(settings, "proxy")
        service = Service(role, bus, await KubeAuth.load(settings), serving_tls(settings))
        task = asyncio.ensure_future(service.run())
        self.role = role
        try:
            await _either(service.listening.wait(), task)
            yield service
        finally:
            role.stopping.set()
            await asyncio.wait_for(task, 20)
            await bus.close()

    def client(self, token: str) -> Tenant:
        return Tenant(self.session, self.url, token)

    async def owner(self, tenant: str = "oil", *namespaces: str) -> Tenant:
        """Return a client whose ServiceAccount owns a tenant with these namespaces."""
        user, token = await self.account(f"{tenant}-system", "gitops-reconciler")
        await self.capsule_users(("Group", "system:serviceaccounts"))
        await self.tenant(tenant, *namespaces)
        await self.owns("ServiceAccount", user, tenant)
        await self.settle()
        await self.move_on()
        return self.client(token)

    async def move_on(self) -> None:
        """Write something elsewhere, as every living cluster does all the time, so that versions differ."""
        await self.admin.create(
            api_path("", "v1", "configmaps", namespace="default"), {"metadata": {"generateName": "x-"}}
        )
        await self.settle()

    # The watcher's part.

    async def mirror(self) -> None:
        """Publish Namespaces as a watcher does, from the store's own changes."""
        changes = self.api.store.changes()
        await self._publish_all("", "namespaces")
        await self._done(self.api.store.version)
        async for change in changes:
            if kind := self._kinds.get((change.resource.group, change.resource.plural)):
                await self._publish(kind, _last(change), gone=change.type == "DELETED")
            await self._done(change.resource_version)
            if self.over:
                return

    async def vouch(self) -> None:
        """Publish marks as a watcher does."""
        while not self.over:
            async with self._marking:
                if self.vouching:
                    await self.mark()
            await asyncio.sleep(0.1)

    async def stop_vouching(self) -> None:
        """Publish no mark any more; none is on its way afterwards."""
        self.vouching = False
        async with self._marking:
            pass

    async def mark(self) -> None:
        for kind in (*self._kinds.values(), "Tenant", "CapsuleConfiguration"):
            mark = Mark(kind=kind, resource_version=str(self._mirrored), time=now())
            await self.bus.publish(mark_subject(kind), encode_body(mark))

    async def follow_rights(self) -> None:
        """Publish RBAC's objects too from now on, as watchers do where their changes decide."""
        group = "rbac.authorization.k8s.io"
        for kind in RBAC_KINDS:
            plural = kind.removeprefix("Any").lower() + "s"
            self._kinds[group, plural] = kind
            await self._publish_all(group, plural)

    def unfollow(self, group: str, plural: str) -> None:
        """Publish nothing of a kind any more, as if its watchers had died."""
        del self._kinds[group, plural]

    async def _publish_all(self, group: str, plural: str) -> None:
        resource = self.api.store.resource(group, plural)
        assert resource is not None
        for obj in self.api.store.list(resource):
            await self._publish(self._kinds[group, plural], obj, gone=False)

    async def _publish(self, kind: str, obj: dict[str, Any], *, gone: bool) -> None:
        meta = obj["metadata"]
        key = ObjectKey(kind, meta.get("namespace", ""), meta["name"])
        body = msgspec.json.encode(obj)
        event = object_event(CLUSTER, key, uid=meta["uid"], resource_version=meta["resourceVersion"], deleted=gone)
        data = tombstone(kind, body) if gone else publishable(kind, body)
        await self.bus.publish(key.subject(), data, event, rollup=gone, ttl=3600 if gone else None)

    async def _done(self, version: int) -> None:
        async with self._news:
            self._mirrored = max(self._mirrored, version)
            self._news.notify_all()


def _last(change: Change) -> dict[str, Any]:
    meta = {**change.obj["metadata"], "resourceVersion": str(change.resource_version)}
    return {**change.obj, "metadata": meta}


def _named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def _namespaces(api: EmbeddedApi) -> Any:
    return api.store.resource("", "namespaces")


async def streams(bus: Bus, settings: Settings) -> None:
    """Make the streams; the lanes of the workers are not needed here."""
    for stream in topology.streams(settings):
        await bus.js.add_stream(stream)


async def _either(wait: Any, task: asyncio.Future[None]) -> None:
    waiting = asyncio.ensure_future(wait)
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()


@pytest.fixture(scope="session")
def pki() -> ClusterPki:
    return ClusterPki.load_or_create(None)


@pytest.fixture(scope="session")
def serving(pki: ClusterPki) -> tuple[str, str]:
    return pki.issue_serving(["127.0.0.1", "localhost"])


@pytest.fixture
async def world(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[World]:
    api = EmbeddedApi(ApiOptions(bookmark_every=0.1), pki=pki)
    await api.start()
    for name, text in (("admin.kubeconfig", api.admin_kubeconfig()), ("tls.crt", serving[0]), ("tls.key", serving[1])):
        (tmp_path / name).write_text(text)
    tls = ssl.create_default_context(cadata=pki.ca_pem)
    async with NatsServer(tmp_path / "nats") as nats, _session(tls) as session:
        settings = Settings(
            nats_url=nats.url,
            kubeconfig=str(tmp_path / "admin.kubeconfig"),
            proxy_port=0,
            proxy_tls_cert=str(tmp_path / "tls.crt"),
            proxy_tls_key=str(tmp_path / "tls.key"),
            cluster=CLUSTER,
        )
        bus = await Bus.connect(settings, "test")
        await streams(bus, settings)
        admin = await KubeClient.connect(settings)
        found = World(api, nats, bus, admin, settings)
        found.session = session
        user, token = await found.account("capsule-system", "tether-proxy")
        await found.allow("tether-proxy", user, RIGHTS)
        (tmp_path / "proxy.kubeconfig").write_text(api.kubeconfig(token=token))
        found.settings = msgspec.structs.replace(settings, kubeconfig=str(tmp_path / "proxy.kubeconfig"))
        helpers = [asyncio.ensure_future(found.mirror()), asyncio.ensure_future(found.vouch())]
        try:
            async with found.proxy() as service:
                found.service = service
                yield found
        finally:
            found.over = True
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await admin.close()
            await bus.close()
            await api.stop()


def _session(tls: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))


def kubeconfig(url: str, ca: str, token: str) -> str:
    """Return a kubeconfig for the proxy."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    return yaml.safe_dump(config)
