"""The stage of an attack: a whole Tether, a bystander that works all the time, the attackers with their credentials."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from eventcore.kube import IssuedToken, KubeClient, api_path
from tests.attack.cases import Who
from tests.attack.judging import Process
from tests.behaviour.conftest import ACCOUNT, ENABLED, Cluster, Object, Tenancy, eventually, may, path
from tests.kubeapi import Client
from tether import manifests
from tether.dev_layout import HOST, Layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

NAMESPACES: Final = api_path("", "v1", "namespaces")
_PROBE_SECONDS: Final = 5.0
_LIFE_SECONDS: Final = 86_400
ADDRESSES: Final = {
    "mallory": "127.0.66.1",
    "developer": "127.0.66.2",
    "former": "127.0.66.3",
    "pod": "127.0.66.4",
    "unknown": "127.0.66.5",
    "administrator": "127.0.0.1",
}
"""Each attacker comes from an address of its own on loopback, and the victims from the usual one."""
SETTINGS: Final = {"TETHER_PROXY_CLUSTER_SCOPED": "true"}
ROLES: Final = ("watcher", "router", "worker", "proxy")


class Attacker(msgspec.Struct, frozen=True):
    """Who attacks: its token ("" for none), its name and its groups as the API server knows it."""

    name: Who
    token: str
    user: str
    groups: tuple[str, ...] = ()


class Stage:
    """Everything that cases use. ``victim`` is the tenant whose life comes next, so that it can be aimed at."""

    def __init__(self, cluster: Cluster, admin: KubeClient, stack: AsyncExitStack) -> None:
        self.cluster = cluster
        self.admin = admin
        self.layout = Layout(cluster.folder)
        self.bystander = Tenancy(cluster, admin)
        self.mallory = Tenancy(cluster, admin)
        self.former = Tenancy(cluster, admin)
        self.victim = Tenancy(cluster, admin)
        self.marker = f"marker-{secrets.token_hex(12)}"
        self.attackers: dict[Who, Attacker] = {}
        self.bystander_token = ""
        self.bystander_uid = ""
        self._stack = stack
        self.shared: set[str] = set()  # namespaces of the hostile tenant that it shows to others, as it may
        self._doors: dict[tuple[Who, bool], Client] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def foreign(self) -> str:
        """The namespace of the bystander, which no attacker may look into."""
        return f"{self.bystander.name}-web"

    @property
    def field(self) -> str:
        """The namespace of the hostile tenant in which the developer has the role ``edit``."""
        return f"{self.mallory.name}-dev"

    @property
    def secrets(self) -> list[str]:
        """What no answer to an attacker may hold."""
        return [self.marker, self.bystander_token, self.bystander_uid]

    async def set(self) -> None:
        """Make everybody."""
        await asyncio.gather(self._make_bystander(), self._make_mallory(), self._make_former(), self._make_pod())
        self.attackers["unknown"] = Attacker("unknown", "", "system:anonymous", ("system:unauthenticated",))
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession(trust_env=False))

    async def up(self) -> None:
        """Bring back what ended, as it was."""
        await self.cluster.start(**SETTINGS)

    async def door(self, who: Who, *, direct: bool = False) -> Client:
        """Return a client of an attacker, to the proxy or to the API server, from its own address."""
        if (who, direct) not in self._doors:
            token = self.attackers[who].token
            url, trust = self.cluster.way(direct=direct)
            connector = aiohttp.TCPConnector(ssl=trust, local_addr=(ADDRESSES[who], 0), limit=0)
            timeout = aiohttp.ClientTimeout(total=60)
            session = aiohttp.ClientSession(connector=connector, trust_env=False, timeout=timeout, max_field_size=2**20)
            await self._stack.enter_async_context(session)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            self._doors[who, direct] = Client(url, session, headers)
        return self._doors[who, direct]

    async def processes(self) -> dict[str, Process | None]:
        """Return how each process of Tether and NATS is, None for one that is not there."""
        state = self.layout.load()
        names = [name for name in state.processes if not name.startswith("api")]
        found = await asyncio.gather(*(self._process(name) for name in names))
        return dict(zip(names, found, strict=True))

    async def probe(self, name: str, what: str = "readyz") -> str:
        """Return what is wrong by a process's own word, "" when nothing is."""
        if self._session is None:
            raise RuntimeError("the stage is not set")
        url = f"http://{HOST}:{self.layout.load().ports[name]}/{what}"
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS)) as response:
                text = (await response.text()).strip()
                return "" if response.ok else f"/{what}: {text[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"/{what}: {type(error).__name__}"

    async def _process(self, name: str) -> Process | None:
        ident = self.layout.load().processes.get(name)
        if ident is None or not ident.alive:
            return None
        status = await asyncio.to_thread(Path(f"/proc/{ident.pid}/status").read_text)
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        ill = "" if name.startswith("nats") else await self.probe(name)
        return Process(ident.pid, ident.started, memory * 1024, ill)

    async def _make_bystander(self) -> None:
        """A tenant that stands for the whole run, with a Secret that nobody else may read."""
        tenancy = self.bystander
        await tenancy.make()
        await tenancy.make_usable("web")
        body: Object = {"metadata": {"name": "inmost"}, "stringData": {"value": self.marker}}
        await self.admin.create(path("Secret", self.foreign), body)
        self.bystander_token = await tenancy.token()
        self.bystander_uid = (await tenancy.must("Namespace", "", self.foreign))["metadata"]["uid"]

    async def _make_mallory(self) -> None:
        """A tenant as the guide makes it, and a developer in one of its namespaces, who is no owner."""
        tenancy = self.mallory
        await tenancy.make()
        await tenancy.make_usable("dev")
        self.attackers["mallory"] = Attacker(
            "mallory", await tenancy.token(), tenancy.user, _groups(f"system:serviceaccounts:{tenancy.home}")
        )
        self.attackers["developer"] = await self._account("developer", self.field, "edit")

    async def _make_former(self) -> None:
        """An owner that is none any more, and kept a token that it made for itself while it was."""
        tenancy = self.former
        await tenancy.make()
        own = await tenancy.token()
        async with self.cluster.client(self.cluster.as_token(own, direct=True)) as client:
            issued = await eventually(lambda: may(_mint(client, tenancy.home)))
        await self.admin.merge_patch(
            path("ServiceAccount", tenancy.home, ACCOUNT), {"metadata": {"annotations": {ENABLED: None}}}
        )
        await self.admin.merge_patch(
            path("Tenant", "", tenancy.name), {"spec": {"owners": [{"kind": "User", "name": "nobody-at-all"}]}}
        )
        await tenancy.gone("RoleBinding", tenancy.home, ACCOUNT)
        groups = _groups(f"system:serviceaccounts:{tenancy.home}")
        self.attackers["former"] = Attacker("former", issued.token, tenancy.user, groups)

    async def _make_pod(self) -> None:
        name = f"pods-{secrets.token_hex(3)}"
        await self.admin.create(path("Namespace"), {"metadata": {"name": name}})
        self.attackers["pod"] = await self._account("pod", name, "")

    async def _account(self, who: Who, namespace: str, role: str) -> Attacker:
        await self.admin.create(path("ServiceAccount", namespace), {"metadata": {"name": who}})
        if role:
            body = {
                "metadata": {"name": who},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": who, "namespace": namespace}],
            }
            await self.admin.create(path("RoleBinding", namespace), body)
        issued = await self.admin.token_request(namespace, who, expiration_seconds=_LIFE_SECONDS)
        user = f"system:serviceaccount:{namespace}:{who}"
        return Attacker(who, issued.token, user, _groups(f"system:serviceaccounts:{namespace}"))


def _groups(own: str) -> tuple[str, ...]:
    return ("system:serviceaccounts", own, "system:authenticated")


def _mint(client: KubeClient, home: str) -> Coroutine[None, None, IssuedToken]:
    return client.token_request(home, ACCOUNT, expiration_seconds=_LIFE_SECONDS)


async def equip(admin: KubeClient, *, real: bool) -> None:
    """Install what ships and makes an attack worth more: the proxy's optional rights, and the policies that hold us."""
    applier = manifests.Applier(admin, "person")
    await applier.apply(manifests.read(manifests.shipped("deploy/crds")))
    for name in ("proxy-writes", "proxy-impersonation", "proxy-cluster-scoped"):
        await applier.apply(manifests.read(manifests.shipped(f"deploy/optional/{name}.yaml")))
    if real:
        await applier.apply(manifests.read(manifests.shipped("deploy/admission")))


@asynccontextmanager
async def staged(cluster: Cluster) -> AsyncIterator[Stage]:
    """Yield a stage on a cluster that runs."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(cluster.client())
        await equip(admin, real=cluster.kind == "real")
        stage = Stage(cluster, admin, stack)
        await stage.set()
        yield stage
