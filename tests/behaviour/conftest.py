"""The ``cluster`` of the behaviour suite: all as processes, on the embedded API or on a real control plane.

``--cluster embedded`` (the default) or ``--cluster real``. One cluster serves all tests of a run; each test makes
tenants with names of its own.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest

from eventcore.bus import Bus
from eventcore.errors import ForbiddenError, NotFoundError
from eventcore.events import AuditRecord, decode_body
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from eventcore.settings_reading import load
from tests.behaviour.people import acting, authority  # noqa: F401 -- fixtures of every test here
from tests.kubeapi import Client
from tether import dev_processes

Object = dict[str, Any]
T = TypeVar("T")

ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
WAIT = 60.0
"""Seconds within which anything must have happened; a bound for broken runs, not a measure."""

PLURALS = {
    "Namespace": ("", "v1", "namespaces"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "Secret": ("", "v1", "secrets"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Event": ("", "v1", "events"),
    "Deployment": ("apps", "v1", "deployments"),
    "Role": ("rbac.authorization.k8s.io", "v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "ClusterRole": ("rbac.authorization.k8s.io", "v1", "clusterroles"),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
    "Tenant": ("capsule.clastix.io", "v1beta2", "tenants"),
    "TenantOwner": ("capsule.clastix.io", "v1beta2", "tenantowners"),
    "GlobalTenantResource": ("capsule.clastix.io", "v1beta2", "globaltenantresources"),
    "CapsuleConfiguration": ("capsule.clastix.io", "v1beta2", "capsuleconfigurations"),
    "GitRepository": ("source.toolkit.fluxcd.io", "v1", "gitrepositories"),
    "Kustomization": ("kustomize.toolkit.fluxcd.io", "v1", "kustomizations"),
    "HelmRelease": ("helm.toolkit.fluxcd.io", "v2", "helmreleases"),
}


def path(kind: str, namespace: str = "", name: str = "") -> str:
    group, version, plural = PLURALS[kind]
    return api_path(group, version, plural, namespace=namespace, name=name)


class Cluster:
    """A running cluster: where it answers, and how to look at it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.environ = dict(
            line.removeprefix("export ").replace("'", "").split("=", 1)
            for line in (folder / "env.sh").read_text().splitlines()
        )

    def settings(self, kubeconfig: Path | None = None) -> Settings:
        flags = {"kubeconfig": str(kubeconfig or self.folder / "admin.kubeconfig"), "log_level": "error"}
        return load({"TETHER_NATS_URL": self.environ["TETHER_NATS_URL"]}, flags)

    def tether(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against this cluster."""
        return subprocess.run(  # noqa: S603 -- our own command
            [sys.executable, "-P", "-m", "tether.cli", *arguments],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            check=False,
        )

    @asynccontextmanager
    async def client(self, kubeconfig: Path | None = None) -> AsyncIterator[KubeClient]:
        client = await KubeClient.connect(self.settings(kubeconfig))
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await Bus.connect(self.settings(), "test")
        try:
            yield bus
        finally:
            await bus.close()

    @asynccontextmanager
    async def wire(self, token: str = "", *, direct: bool = False) -> AsyncIterator[Client]:
        """Yield a client that shows every answer: with a token, or directly as the admin, as Flux's own account is."""
        direct = direct or not token
        url, trust = self.way(direct=direct, with_certificate=not token)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), trust_env=False) as session:
            yield Client(url, session, {"Authorization": f"Bearer {token}"} if token else {})

    def way(self, *, direct: bool, with_certificate: bool = False) -> tuple[str, ssl.SSLContext]:
        """Return the URL of the API server or of the proxy, and what is trusted and shown there."""
        if not direct:
            authority = Path(self.environ["TETHER_PROXY_CA_FILE"]).read_text()
            return self.environ["TETHER_PROXY_URL"], ssl.create_default_context(cadata=authority)
        config = msgspec.yaml.decode((self.folder / "admin.kubeconfig").read_bytes(), type=Object)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        trust = ssl.create_default_context(cadata=authority)
        if with_certificate:
            pair = self.folder / "admin.pem"
            pair.touch(mode=0o600)
            parts = [base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")]
            pair.write_bytes(b"\n".join(parts))
            trust.load_cert_chain(pair)
        return cluster["server"], trust

    def as_token(self, token: str, *, direct: bool = False) -> Path:
        """Return a kubeconfig for a token, through the proxy or directly to the API server."""
        admin = msgspec.yaml.decode((self.folder / "admin.kubeconfig").read_bytes(), type=Object)
        server = dict(admin["clusters"][0]["cluster"])
        if not direct:
            authority = Path(self.environ["TETHER_PROXY_CA_FILE"]).read_bytes()
            server = {
                "server": self.environ["TETHER_PROXY_URL"],
                "certificate-authority-data": base64.b64encode(authority).decode(),
            }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": server}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = self.folder / f"{secrets.token_hex(4)}.kubeconfig"
        file.touch(mode=0o600)
        file.write_bytes(msgspec.json.encode(config))
        return file

    async def restart(self, *roles: str, **settings: str) -> None:
        """End all processes of these roles as a person does, and bring them back with other settings."""
        await self.stop(*roles)
        await self.start(**settings)

    async def stop(self, *roles: str) -> None:
        """End all processes of these roles as a person does."""
        files = [file for role in roles for file in sorted(self.folder.glob(f"pids/{role}-*.pid"))]
        found = (dev_processes.Ident.of(int(file.read_text())) for file in files)
        late = await dev_processes.stop([ident for ident in found if ident is not None], grace=30)
        assert not late

    async def start(self, **settings: str) -> None:
        """Bring back what ended, with these settings."""
        await asyncio.to_thread(_dev, "up", self.folder, **settings)


def _dev(verb: str, folder: Path, *arguments: str, **settings: str) -> None:
    done = subprocess.run(  # noqa: S603 -- our own command
        [sys.executable, "-P", "-m", "tether.cli", "dev", verb, "--dir", str(folder), *arguments],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("TETHER_")},
            "TETHER_LOG_LEVEL": "info",
            **settings,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def cluster(control_plane: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running(folder, control_plane) as made:
        yield made
        log = (folder / "log" / "nats-1.log").read_text()
        assert not [line for line in log.splitlines() if " Violation " in line]  # of no role, in the whole run


@contextmanager
def running(folder: Path, control_plane: Path | None, **settings: str) -> Iterator[Cluster]:
    """Run all of Tether in a folder, with these settings, on an API server or on the embedded one."""
    arguments = () if control_plane is None else ("--kubeconfig", str(control_plane))
    try:
        _dev("up", folder, *arguments, **settings)
        made = Cluster(folder, "embedded" if control_plane is None else "real")
        asyncio.run(_make_configuration(made))
        yield made
    finally:
        _dev("down", folder)


async def _make_configuration(cluster: Cluster) -> None:
    """Make the CapsuleConfiguration whose groups the tests add to."""
    async with cluster.client() as client:
        body = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "CapsuleConfiguration",
            "metadata": {"name": "default"},
            "spec": {"userGroups": ["capsule.clastix.io"]},
        }
        await client.apply(path("CapsuleConfiguration", "", "default"), body, manager="person", force=True)


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[KubeClient]:
    async with cluster.client() as client:
        yield client


_numbers = itertools.count(1)


class Tenancy:
    """One tenant of a test: its objects, and what Tether made of them."""

    def __init__(self, cluster: Cluster, admin: KubeClient) -> None:
        self.cluster = cluster
        self.admin = admin
        self.name = f"t{next(_numbers)}-{secrets.token_hex(2)}"
        self.home = f"{self.name}-system"
        self.user = f"system:serviceaccount:{self.home}:{ACCOUNT}"
        self.impersonator = f"{self.home}-{ACCOUNT}-impersonator"

    async def apply(self, *objects: Object) -> None:
        for obj in objects:
            metadata = obj["metadata"]
            target = path(obj["kind"], metadata.get("namespace", ""), metadata["name"])
            await self.admin.apply(target, obj, manager="person", force=True)

    def account(self, **annotations: str | None) -> Object:
        metadata: Object = {"name": ACCOUNT, "namespace": self.home}
        if annotations:
            metadata["annotations"] = annotations
        return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}

    def tenant(self, *owners: str) -> Object:
        spec: Object = {
            "owners": [{"kind": "ServiceAccount", "name": owner} for owner in owners],
            "additionalRoleBindings": [
                {
                    "clusterRoleName": "cluster-admin",
                    "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.home}],
                }
            ],
        }
        return {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "Tenant",
            "metadata": {"name": self.name},
            "spec": spec,
        }

    async def make_home(self) -> None:
        await self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.home}})
        await self.make_users(f"system:serviceaccounts:{self.home}")

    async def make_users(self, group: str) -> None:
        """Make the members of a group Capsule users; the list is atomic, so it is added to by JSON patch."""
        add = {"op": "add", "path": "/spec/userGroups/-", "value": group}
        await self.admin.json_patch(path("CapsuleConfiguration", "", "default"), [add])

    async def make(self, *, enabled: bool = True, owner: bool = True, **annotations: str) -> None:
        """Make home, Tenant and account; by default owned and enabled as in the guide."""
        await self.make_home()
        await self.apply(self.tenant(*([self.user] if owner else [])))
        await self.apply(self.account(**(annotations | ({ENABLED: "true"} if enabled else {}))))

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return msgspec.json.decode(await self.admin.get(path(kind, namespace, name)), type=Object)
        except NotFoundError:
            return None

    async def must(self, kind: str, namespace: str, name: str) -> Object:
        """Return an object once it is there."""

        async def there() -> Object | None:
            return await self.get(kind, namespace, name)

        return await eventually(there)

    async def gone(self, kind: str, namespace: str, name: str) -> None:
        """Return once an object is not there any more."""

        async def absent() -> bool:
            return await self.get(kind, namespace, name) is None

        await eventually(absent)

    async def secret(self, namespace: str, name: str, key: str) -> bytes:
        """Return the decoded value of a key of a Secret, once it is there."""
        data: dict[str, str] = (await self.must("Secret", namespace, name))["data"]
        return base64.b64decode(data[key])

    async def token(self) -> str:
        return (await self.secret(self.home, f"{ACCOUNT}-token", "token")).decode()

    async def kubeconfig(self, namespace: str = "") -> Path:
        """Return the file of the distributed kubeconfig as Flux reads it."""
        file = self.cluster.folder / f"{self.name}-{secrets.token_hex(2)}.kubeconfig"
        content = await self.secret(namespace or self.home, f"{ACCOUNT}-kubeconfig", "kubeconfig")
        file.touch(mode=0o600)
        file.write_bytes(content)
        return file

    @asynccontextmanager
    async def acting(self) -> AsyncIterator[KubeClient]:
        """Yield a client of the tenant, through its kubeconfig and the proxy."""
        async with self.cluster.client(await self.kubeconfig()) as client:
            yield client

    @asynccontextmanager
    async def as_administrator(self) -> AsyncIterator[None]:
        """Let the cluster-admin be an administrator of Capsule for the length of the block."""
        target = path("CapsuleConfiguration", "", "default")
        before = (await self.must("CapsuleConfiguration", "", "default"))["spec"].get("administrators")
        user = {"kind": "User", "name": "kubernetes-admin"}
        await self.admin.merge_patch(target, {"spec": {"administrators": [*(before or []), user]}})
        try:
            yield
        finally:
            await self.admin.merge_patch(target, {"spec": {"administrators": before}})

    async def join(self, owner: Tenancy) -> None:
        """Make the home a member of a Tenant, as an administrator of Capsule can."""
        tenant = await owner.must("Tenant", "", owner.name)
        reference = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "Tenant",
            "name": owner.name,
            "uid": tenant["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata = {"ownerReferences": [reference], "labels": {"capsule.clastix.io/tenant": owner.name}}

        async def joined() -> bool:
            patch = self.admin.merge_patch(path("Namespace", "", self.home), {"metadata": metadata})
            return await may(patch) is not None

        async with self.as_administrator():
            await eventually(joined)

    @asynccontextmanager
    async def flux(self, namespace: str = "") -> AsyncIterator[Client]:
        """Yield a client with the distributed kubeconfig of a namespace, as Flux reads it, that shows every answer."""
        config = msgspec.yaml.decode(await self.secret(namespace or self.home, f"{ACCOUNT}-kubeconfig", "value"))
        server = config["clusters"][0]["cluster"]
        trust = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), trust_env=False) as session:
            token = config["users"][0]["user"]["token"]
            yield Client(server["server"], session, {"Authorization": f"Bearer {token}"})

    async def make_namespaces(self, *suffixes: str) -> list[str]:
        """Make namespaces as the tenant does, through the proxy; Capsule's right to do so may follow a little later."""
        names = [f"{self.name}-{suffix}" for suffix in suffixes]
        async with self.acting() as client:
            for name in names:
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}

                async def create(body: Object = body) -> bool:
                    return await may(client.create(path("Namespace"), body)) is not None

                await eventually(create)
        return names

    async def make_usable(self, suffix: str) -> str:
        """Make a namespace as the tenant does, and wait until Capsule has given the tenant its rights in it."""
        (name,) = await self.make_namespaces(suffix)
        async with self.acting() as client:

            async def usable() -> bool:
                return await may(client.get(path("Secret", name))) is not None

            await eventually(usable)
        return name


async def may(request: Awaitable[T]) -> T | None:
    """Return the answer, or None where it was refused or a thing was not there."""
    try:
        return await request
    except (ForbiddenError, NotFoundError):
        return None


async def eventually(look: Callable[[], Awaitable[T | None]]) -> T:
    """Ask again until the answer is true; a cluster has many authors, and no one event tells of them all."""
    deadline = time.monotonic() + WAIT
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {WAIT:g} s"
        await asyncio.sleep(0.05)


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    return eventually


@pytest.fixture
def tenancy(cluster: Cluster, admin: KubeClient) -> Tenancy:
    """A tenant that nobody made yet."""
    return Tenancy(cluster, admin)


@pytest.fixture
def other(cluster: Cluster, admin: KubeClient) -> Tenancy:
    """A second tenant beside it."""
    return Tenancy(cluster, admin)


@pytest.fixture
def audit(cluster: Cluster) -> Callable[[], Awaitable[list[AuditRecord]]]:
    """Return a function that reads all audit records there are."""

    async def read() -> list[AuditRecord]:
        done = await asyncio.to_thread(cluster.tether, "audit", "tail", "--no-follow", "--json")
        assert done.returncode == 0, done.stderr
        return [decode_body(AuditRecord, line.encode()) for line in done.stdout.splitlines()]

    return read
