"""A whole line in one process: nats-server, embedded API, watcher, router and workers; and makers of plain objects."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from eventcore import topology
from eventcore.bus import Bus
from eventcore.errors import NotFoundError
from eventcore.events import AuditRecord, decode_body
from eventcore.grants import AccountGrant, Grant, TenantGrant, decode_grant
from eventcore.keys import WORKERS, Key, WorkerName
from eventcore.kube import KubeClient, api_path
from eventcore.logs import get
from eventcore.process import Role
from eventcore.settings import Settings
from eventcore.waiting import end
from tests.repeating import repeating
from tether.devcluster.api import ApiOptions, EmbeddedApi
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki
from watchers.main import watch
from workers.main import route, work

Object = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT = 30.0

_PLURALS = {
    "Namespace": ("", "v1", "namespaces"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "Secret": ("", "v1", "secrets"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Event": ("", "v1", "events"),
    "RoleBinding": ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "ClusterRole": ("rbac.authorization.k8s.io", "v1", "clusterroles"),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
    "Tenant": ("capsule.clastix.io", "v1beta2", "tenants"),
    "TenantOwner": ("capsule.clastix.io", "v1beta2", "tenantowners"),
    "CapsuleConfiguration": ("capsule.clastix.io", "v1beta2", "capsuleconfigurations"),
}


class Reading:
    """What a client saw that reads its kubeconfig again before each request."""

    def __init__(self) -> None:
        self.good: list[str] = []
        self.refused = 0

    @property
    def tokens(self) -> list[str]:
        """The different tokens, in the order in which they came."""
        return list(dict.fromkeys(self.good))


class Line:
    """The running line, and what a test does to it and sees of it."""

    def __init__(self, api: EmbeddedApi, nats: NatsServer, client: KubeClient, bus: Bus, settings: Settings) -> None:
        self.api = api
        self.nats = nats
        self.client = client
        self.bus = bus
        self.settings = settings
        self.audit: list[AuditRecord] = []
        self._moved = asyncio.Condition()
        self._authorities = {"proxy": base64.b64encode(api.pki.ca_pem.encode()).decode()}

    # What a person does.

    def path(self, kind: str, namespace: str = "", name: str = "") -> str:
        group, version, plural = _PLURALS[kind]
        return api_path(group, version, plural, namespace=namespace, name=name)

    async def apply(self, *objects: Object) -> None:
        for obj in objects:
            metadata = obj["metadata"]
            path = self.path(obj["kind"], metadata.get("namespace", ""), metadata["name"])
            await self.client.apply(path, obj, manager="person", force=True)

    async def apply_files(self, *names: str) -> None:
        """Apply manifests of the folder ``examples``."""
        for name in names:
            await self.apply(*yaml.safe_load_all((EXAMPLES / name).read_text()))

    async def patch(self, kind: str, namespace: str, name: str, patch: Object) -> None:
        await self.client.merge_patch(self.path(kind, namespace, name), patch)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        await self.client.delete(self.path(kind, namespace, name))

    async def annotate(self, account: str, **values: str | None) -> None:
        """Set annotations of an account ``namespace/name``; underscores of the names stand for slashes."""
        namespace, name = account.split("/")
        annotations = {key.replace("_", "/"): value for key, value in values.items()}
        await self.patch("ServiceAccount", namespace, name, {"metadata": {"annotations": annotations}})

    @asynccontextmanager
    async def acting_as(self, token: str) -> AsyncIterator[KubeClient]:
        """Yield a client with a tenant's token."""
        file = self.nats.folder.parent / "tenant.kubeconfig"
        file.write_text(self.api.kubeconfig(token=token))
        client = await KubeClient.connect(msgspec.structs.replace(self.settings, kubeconfig=str(file)))
        try:
            yield client
        finally:
            await client.close()

    async def make_namespace(self, home: str, name: str, tenant: str = "") -> None:
        """Make a namespace as the account of a home does it, with the token of its kubeconfig."""
        labels = {"capsule.clastix.io/tenant": tenant} if tenant else {}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        async with self.acting_as(await self.token(home)) as client:
            await client.create(self.path("Namespace"), body)

    def hand_over(self, namespace: str, tenant: str) -> None:
        """Give a namespace to another tenant, past Capsule's admission, as its own administrators can."""
        store = self.api.store
        namespaces, tenants = store.resource("", "namespaces"), store.resource("capsule.clastix.io", "tenants")
        assert namespaces is not None
        assert tenants is not None
        new, owner = deepcopy(store.get(namespaces, "", namespace)), store.get(tenants, "", tenant)
        assert new is not None
        assert owner is not None
        new["metadata"]["labels"]["capsule.clastix.io/tenant"] = tenant
        (reference,) = new["metadata"]["ownerReferences"]
        reference |= {"name": tenant, "uid": owner["metadata"]["uid"]}
        store.update(namespaces, new)

    def ca_of(self, name: str) -> str:
        """Return a CA certificate as a Secret's data holds it; another name, another authority."""
        if name not in self._authorities:
            self._authorities[name] = base64.b64encode(ClusterPki.load_or_create(None).ca_pem.encode()).decode()
        return self._authorities[name]

    async def put_ca(self) -> None:
        """Make the Secret with the proxy's CA."""
        metadata = {"name": "capsule-proxy", "namespace": "capsule-system"}
        await self.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"ca.crt": self.ca_of("proxy")}}
        )

    # What a person sees.

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            body = await self.client.get(self.path(kind, namespace, name))
        except NotFoundError:
            return None
        return msgspec.json.decode(body, type=Object)

    async def must(self, kind: str, namespace: str, name: str) -> Object:
        """Return an object that has to be there."""
        found = await self.get(kind, namespace, name)
        assert found is not None, f"{kind} {namespace}/{name} is not there"
        return found

    async def all(self, kind: str, namespace: str = "") -> list[Object]:
        body = msgspec.json.decode(await self.client.get(self.path(kind, namespace)), type=Object)
        items: list[Object] = body["items"]
        return items

    async def grant(self, *parts: str) -> Grant | None:
        key = Key(parts)
        entry = await self.bus.kv_get(key)
        return decode_grant(key.token(), entry.value) if entry else None

    async def kubeconfig(self, namespace: str, name: str = "gitops-reconciler-kubeconfig") -> Object | None:
        secret = await self.get("Secret", namespace, name)
        if secret is None:
            return None
        config = yaml.safe_load(base64.b64decode(secret["data"]["kubeconfig"]))
        return config if isinstance(config, dict) else None

    async def token(self, namespace: str) -> str:
        """Return the token in a namespace's kubeconfig, "" without one."""
        config = await self.kubeconfig(namespace)
        return str(config["users"][0]["user"]["token"]) if config else ""

    async def accepts(self, token: str) -> bool:
        """Ask the API server whether a token is good."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        body = await self.client.create(api_path("authentication.k8s.io", "v1", "tokenreviews"), review)
        status = msgspec.json.decode(body, type=Object)["status"]
        return bool(status.get("authenticated"))

    @asynccontextmanager
    async def reading(self, namespace: str) -> AsyncIterator[Reading]:
        """Run a client that reads its kubeconfig again before each request, as Flux does."""
        seen = Reading()

        async def read() -> None:
            token = await self.token(namespace)
            if await self.accepts(token):
                seen.good.append(token)
            else:
                seen.refused += 1

        async with repeating(read, 0.01):
            yield seen

    async def until(self, check: Callable[[], Awaitable[object]], what: str) -> None:
        """Wait until a check holds; it is made again after every change in the cluster, of a grant or in AUDIT."""
        try:
            async with asyncio.timeout(WAIT), self._moved:
                while not await check():
                    await self._moved.wait()
        except TimeoutError:
            records = "\n".join(f"  {r.component} {r.action} {r.object} {r.message}" for r in self.audit[-30:])
            raise AssertionError(f"never came: {what}; the last records are\n{records}") from None

    async def until_there(self, kind: str, namespace: str, name: str) -> Object:
        await self.until(lambda: self.get(kind, namespace, name), f"{kind} {namespace}/{name}")
        return await self.must(kind, namespace, name)

    async def until_gone(self, kind: str, namespace: str, name: str) -> None:
        async def gone() -> bool:
            return await self.get(kind, namespace, name) is None

        await self.until(gone, f"{kind} {namespace}/{name} is gone")

    async def until_recorded(self, component: str, action: str, part: str) -> AuditRecord:
        """Wait for an audit record whose object holds ``part``, and return the last one."""

        def found() -> list[AuditRecord]:
            return [r for r in self.audit if (r.component, r.action) == (component, action) and part in r.object]

        async def there() -> bool:
            return bool(found())

        await self.until(there, f"a record of {component} {action} {part}")
        return found()[-1]

    async def until_granted(self, tenant: str, *namespaces: str) -> None:
        """Wait until the grant of a tenant holds exactly these namespaces."""

        async def check() -> bool:
            grant = await self.grant("tenant", tenant)
            return isinstance(grant, TenantGrant) and grant.namespaces == namespaces

        await self.until(check, f"the grant of {tenant} with {namespaces}")

    async def until_generations(self, home: str, *generations: int) -> None:
        """Wait until the grant of the account of a home holds exactly these token generations."""

        async def check() -> bool:
            grant = await self.grant("account", home, "gitops-reconciler")
            return isinstance(grant, AccountGrant) and tuple(s.generation for s in grant.secrets) == generations

        await self.until(check, f"the grant of {home}/gitops-reconciler with generations {generations}")

    async def settle(self) -> None:
        """Apply the guide's example and wait until all of it is there, with one namespace of the tenant."""
        await self.apply_files("capsule-configuration.yaml", "oil.yaml")
        await self.until_there("Secret", "oil-system", "gitops-reconciler-kubeconfig")
        await self.until(lambda: self.grant("config"), "the grant of the configuration")
        await self.make_namespace("oil-system", "oil-production")
        await self.until_there("Secret", "oil-production", "gitops-reconciler-kubeconfig")
        await self.until_there("ClusterRoleBinding", "", "oil-system-gitops-reconciler-impersonator")
        await self.until_granted("oil", "oil-production")
        await self.until_generations("oil-system", 1)

    # What runs.

    async def moved(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def follow_cluster(self) -> None:
        async for _ in self.api.store.changes():
            await self.moved()

    async def follow(self, stream: str) -> None:
        """Follow a stream from its start; what cannot be followed fails here, not where somebody waits for it."""

        async def take(message: Msg) -> None:
            if stream == topology.AUDIT:
                self.audit.append(decode_body(AuditRecord, message.data))
            await self.moved()

        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, mem_storage=True)
        await self.bus.js.subscribe(">", stream=stream, config=config, ordered_consumer=False, manual_ack=True, cb=take)

    def role(self, name: str, **changes: Any) -> Role:
        return Role(name=name, settings=msgspec.structs.replace(self.settings, **changes), log=get("test"))

    @asynccontextmanager
    async def running(self, role: Role, main: Awaitable[None]) -> AsyncIterator[Role]:
        """Run a role in this process until the block ends, then stop it as SIGTERM would."""
        task = asyncio.ensure_future(main)
        try:
            yield role
        finally:
            role.stopping.set()
            await asyncio.wait_for(task, 20)

    @asynccontextmanager
    async def watcher(self) -> AsyncIterator[Role]:
        role = self.role("watch")
        async with self.running(role, watch(role)):
            yield role

    @asynccontextmanager
    async def router(self, **changes: Any) -> AsyncIterator[Role]:
        role = self.role("route", **changes)
        async with self.running(role, route(role)):
            yield role

    @asynccontextmanager
    async def workers(self, *names: WorkerName, **changes: Any) -> AsyncIterator[Role]:
        role = self.role("work", **changes)
        async with self.running(role, work(role, names or WORKERS)):
            yield role

    @asynccontextmanager
    async def everything(self, **changes: Any) -> AsyncIterator[None]:
        """Run one watcher, one router and all workers."""
        async with self.watcher(), self.router(**changes), self.workers(**changes):
            yield


@pytest.fixture(scope="session")
def worker_pki() -> ClusterPki:
    return ClusterPki.load_or_create(None)


MakeLine = Callable[..., Awaitable[Line]]


@pytest.fixture
async def make_line(tmp_path: Path, worker_pki: ClusterPki) -> AsyncIterator[MakeLine]:
    """Return a function that starts a server of each kind, and stops them when the test ends."""
    async with AsyncExitStack() as stack:

        async def make(*, capsule_webhooks: bool = True, capsule_controllers: bool = True, **changes: Any) -> Line:
            nats = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
            options = ApiOptions(
                bookmark_every=0.2, capsule_webhooks=capsule_webhooks, capsule_controllers=capsule_controllers
            )
            api = EmbeddedApi(options, pki=worker_pki)
            await api.start()
            stack.push_async_callback(api.stop)
            config = tmp_path / "admin.kubeconfig"
            config.write_text(api.admin_kubeconfig())
            fields = {"nats_url": nats.url, "kubeconfig": str(config), "mark_interval": 0.5, "retry_base": 0.2}
            settings = msgspec.structs.replace(Settings(), **(fields | changes))
            bus = await Bus.connect(settings, "test")
            stack.push_async_callback(bus.close)
            await topology.apply(bus, settings)
            client = await KubeClient.connect(settings)
            stack.push_async_callback(client.close)
            line = Line(api, nats, client, bus, settings)
            await line.put_ca()
            await line.follow(topology.AUDIT)
            await line.follow(topology.ACCESS)
            stack.push_async_callback(end, asyncio.ensure_future(line.follow_cluster()))
            return line

        yield make


@pytest.fixture
async def line(make_line: MakeLine) -> Line:
    return await make_line()
