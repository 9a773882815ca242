"""The steps of the demo: the guide's example done once, each step a check that holds or says what does not.

Waiting is on watches (`Sightings`) and on the audit stream. Only what depends on the proxies' own view of the grants is
asked again, since nothing outside a proxy tells when it has caught up.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import time
from collections.abc import Callable
from contextlib import aclosing
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import yaml

from eventcore.errors import TetherError
from eventcore.objects import ANNOTATION_ENABLED
from tether import demo_clients, manifests
from tether.audit_log import entries
from tether.demo_clients import NoAnswerError, RefusedError
from tether.dev_accounts import kubeconfig
from tether.dev_layout import write_private

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable
    from pathlib import Path

    from eventcore.bus import Bus
    from eventcore.events import AuditRecord
    from eventcore.kube import KubeClient
    from tether.demo_clients import Client
    from tether.demo_sightings import Sightings
    from tether.dev import Addresses

T = TypeVar("T")
Note = Callable[[str], None]

ACCOUNT = "gitops-reconciler"
KUBECONFIG_SECRET = f"{ACCOUNT}-kubeconfig"
TOKEN_SECRET = f"{ACCOUNT}-token"
_MANAGER = "tether-demo"
_ASK_AGAIN_SECONDS = 0.2
_FORBIDDEN = 403
_NOT_FOUND = 404
_CONFLICT = 409


class CheckFailedError(TetherError):
    """What a step checks does not hold."""


class Tenant(msgspec.Struct, frozen=True):
    """One tenant of the example."""

    name: str

    @property
    def home(self) -> str:
        return f"{self.name}-system"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (f"{self.name}-development", f"{self.name}-production")

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.home}:{ACCOUNT}"


OIL, GAS = Tenant("oil"), Tenant("gas")
TENANTS = (OIL, GAS)


class Steps:
    """Each step returns a line of what was seen, or raises TetherError with what does not hold."""

    def __init__(
        self, *, addresses: Addresses, admin: KubeClient, bus: Bus, sightings: Sightings, folder: Path, note: Note
    ) -> None:
        self._addresses = addresses
        self._admin = admin
        self._bus = bus
        self._sightings = sightings
        self._folder = folder
        self._note = note
        self._annotated: dict[str, float] = {}

    def kubeconfig_of(self, tenant: Tenant) -> Path:
        """Return where a tenant's kubeconfig lies, once it was made."""
        return self._folder / f"{tenant.name}.kubeconfig"

    # The administrator.

    async def apply(self) -> str:
        """Apply the example, the accounts without their annotation yet."""
        applier = manifests.Applier(self._admin, _MANAGER)
        objects = _example()
        await applier.apply(map(_without_annotation, objects))
        return ", ".join(manifests.title(obj) for obj in objects)

    async def annotate(self) -> str:
        """Apply the accounts as they stand in the files: with the annotation."""
        applier = manifests.Applier(self._admin, _MANAGER)
        for obj in _example():
            if obj["kind"] == "ServiceAccount":
                self._annotated[obj["metadata"]["namespace"]] = time.monotonic()
                await applier.apply([obj])
        return f'{ANNOTATION_ENABLED}: "true"'

    # What Tether does by itself.

    async def rbac(self) -> str:
        """Wait for the rights of both accounts, and compare them with the guide's."""
        for tenant in TENANTS:
            impersonator = f"{tenant.home}-{ACCOUNT}-impersonator"
            binding = await self._see("RoleBinding", tenant.home, ACCOUNT)
            role = await self._see("ClusterRole", "", impersonator)
            cluster_binding = await self._see("ClusterRoleBinding", "", impersonator)
            subject = (ACCOUNT, tenant.home)
            _require(binding["roleRef"]["name"] == "cluster-admin", f"{tenant.home}: not bound to cluster-admin")
            for bound in (binding, cluster_binding):
                found = [(one["name"], one.get("namespace")) for one in bound.get("subjects") or []]
                _require(found == [subject], f"{bound['metadata']['name']}: bound to {found}")
            _require(cluster_binding["roleRef"]["name"] == impersonator, f"{impersonator}: bound to another role")
            _require(_impersonated(role) == [tenant.user], f"{impersonator}: allows {_impersonated(role)}")
        return "cluster-admin at home, and the right to impersonate itself"

    async def token(self) -> str:
        """Wait for both tokens, and let the API server say whose they are."""
        for tenant in TENANTS:
            secret = await self._see("Secret", tenant.home, TOKEN_SECRET)
            token = _data(secret, "token")
            path = self._folder / f"{tenant.name}-direct.kubeconfig"
            write_private(path, kubeconfig(self._addresses.api_url, self._admin.ca_pem, {"token": token}))
            user = await self._ask(demo_clients.client(path).whoami)
            _require(user == tenant.user, f"the token of {tenant.home} is that of {user}")
        return f"the API server knows it as {OIL.user}"

    async def home_kubeconfig(self) -> str:
        """Wait for the kubeconfig at home, and keep it for the next steps."""
        for tenant in TENANTS:
            secret = await self._see("Secret", tenant.home, KUBECONFIG_SECRET)
            self._check_kubeconfig(secret, tenant.home)
            write_private(self.kubeconfig_of(tenant), _data(secret, "kubeconfig"))
        return f"Secret {OIL.home}/{KUBECONFIG_SECRET}, server {self._addresses.proxy_url}"

    async def create_namespaces(self) -> str:
        """Let each account make its namespaces, through its own kubeconfig and the proxy."""
        for tenant in TENANTS:
            client = self._client(tenant)
            for name in tenant.namespaces:
                await self._create(client, name)
                await self._see("Namespace", "", name)
        return f"{', '.join(OIL.namespaces)} with {demo_clients.client_name()}, as {OIL.user}"

    async def distribute(self) -> str:
        """Wait for the kubeconfig in each tenant namespace."""
        for tenant in TENANTS:
            for name in tenant.namespaces:
                self._check_kubeconfig(await self._see("Secret", name, KUBECONFIG_SECRET), name)
        return f"Secret {KUBECONFIG_SECRET} in each"

    # What the tenant sees.

    async def list_own(self) -> str:
        """List namespaces through the proxy: oil's, all of them, and never another one on the way."""
        return await self._lists_exactly(OIL)

    async def direct(self) -> str:
        """The same request with the same token at the API server itself is refused."""
        direct = demo_clients.client(self._folder / f"{OIL.name}-direct.kubeconfig")
        return await self._refused(direct.list_namespaces, "listing namespaces at the API server", {_FORBIDDEN})

    async def isolation(self) -> str:
        """Gas sees gas only; neither can read the other's namespaces, nor what is in them."""
        await self._lists_exactly(GAS)
        for one, other in ((OIL, GAS), (GAS, OIL)):
            client = self._client(one)
            for name in (*other.namespaces, other.home, "kube-system"):
                what = f"{one.name} reading {name}"
                await self._refused(lambda: client.get_namespace(name), what, {_FORBIDDEN, _NOT_FOUND})  # noqa: B023 - awaited here
                await self._refused(lambda: client.list_secrets(name), f"{what}'s secrets", {_FORBIDDEN})  # noqa: B023 - as above
        return f"gas sees {', '.join(GAS.namespaces)}; oil is refused there, and gas in oil's"

    async def audit(self) -> str:
        """Wait until AUDIT holds each grant, mint, write and refusal of the demo, with its cause."""
        lacking = {want for tenant in TENANTS for want in _wanted_records(tenant)}
        count = 0
        async with aclosing(entries(self._bus, follow=True)) as records:
            self._note(_missing(lacking))
            async for entry in records:
                record = entry.record
                count += 1
                _require(bool(record.cause), f"audit record {entry.sequence} ({record.action}) names no cause")
                lacking -= {want for want in lacking if want.matches(record)}
                self._note(_missing(lacking))
                if not lacking:
                    break
        return f"{count} records; `tether audit tail` shows them with their causes"

    # The two times.

    def times(self) -> dict[str, float | int | None]:
        """Return median and longest milliseconds of both times, None where nothing was measured."""
        to_home = [
            (seen - self._annotated[tenant.home]) * 1000
            for tenant in TENANTS
            if tenant.home in self._annotated
            and (seen := self._sightings.first_seen("Secret", tenant.home, KUBECONFIG_SECRET)) is not None
        ]
        to_namespace = [
            (seen - made) * 1000
            for tenant in TENANTS
            for name in tenant.namespaces
            if (seen := self._sightings.first_seen("Secret", name, KUBECONFIG_SECRET)) is not None
            and (made := self._sightings.first_seen("Namespace", "", name)) is not None
        ]
        times: dict[str, float | int | None] = {}
        for name, samples in (("annotation_to_kubeconfig", to_home), ("namespace_to_kubeconfig", to_namespace)):
            times[f"{name}_ms"] = round(median(samples), 1) if samples else None
            times[f"{name}_max_ms"] = round(max(samples), 1) if samples else None
            times[f"{name}_samples"] = len(samples)
        return times

    # Below all of these.

    def _client(self, tenant: Tenant) -> Client:
        return demo_clients.client(self.kubeconfig_of(tenant))

    async def _see(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        where = f"{namespace}/{name}" if namespace else name
        self._note(f"waiting for {kind} {where}")
        await self._sightings.until(lambda: self._sightings.get(kind, namespace, name) is not None)
        return self._sightings.get(kind, namespace, name) or {}

    def _check_kubeconfig(self, secret: dict[str, Any], namespace: str) -> None:
        text = _data(secret, "kubeconfig")
        _require(_data(secret, "value") == text, f"{namespace}: the keys kubeconfig and value differ")
        value = yaml.safe_load(text)
        _require(value["clusters"][0]["cluster"]["server"] == self._addresses.proxy_url, f"{namespace}: another server")
        found = value["contexts"][0]["context"].get("namespace")
        _require(found == namespace, f"{namespace}: the context's namespace is {found}")

    async def _create(self, client: Client, name: str) -> None:
        tried = False
        while True:
            try:
                await client.create_namespace(name)
            except NoAnswerError as error:
                tried = True
                self._note(str(error))
            except RefusedError as error:
                if error.code == _CONFLICT and tried:
                    return  # the try without an answer was done
                # Capsule binds the right to create namespaces in its own time.
                self._note(str(error))
            else:
                return
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _lists_exactly(self, tenant: Tenant) -> str:
        client, want = self._client(tenant), sorted(tenant.namespaces)
        while True:
            found = sorted(await self._ask(client.list_namespaces))
            foreign = sorted(set(found) - set(want))
            _require(not foreign, f"{tenant.name} sees {', '.join(foreign)}")
            if found == want:
                return f"{', '.join(found)}, and nothing else"
            self._note(f"{tenant.name} sees {', '.join(found) or 'nothing'} yet")
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _refused(self, request: Callable[[], Awaitable[object]], what: str, codes: set[int]) -> str:
        try:
            await self._ask(request)
        except RefusedError as error:
            _require(error.code in codes, f"{what}: refused with {error.code}, should be one of {sorted(codes)}")
            return f"{error.code}: {error}"
        raise CheckFailedError(f"{what} was allowed")

    async def _ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer, asking again while there is none: a process may just be coming back."""
        while True:
            try:
                return await request()
            except NoAnswerError as error:
                self._note(str(error))
                await asyncio.sleep(_ASK_AGAIN_SECONDS)


class _WantedRecord(msgspec.Struct, frozen=True):
    component: str
    account: str  # "" for a record of the tenant itself
    object: str  # what the record's object ends with
    outcome: str = "done"

    def matches(self, record: AuditRecord) -> bool:
        return (
            record.component == self.component
            and record.account == self.account
            and record.object.endswith(self.object)
            and record.outcome == self.outcome
        )

    def __str__(self) -> str:
        return f"{self.component} {self.object or self.account}"


def _wanted_records(tenant: Tenant) -> Iterable[_WantedRecord]:
    account = f"{tenant.home}/{ACCOUNT}"
    yield _WantedRecord("rbac", account, f"{tenant.home}/{ACCOUNT}")
    yield _WantedRecord("rbac", account, f"{tenant.home}-{ACCOUNT}-impersonator")
    yield _WantedRecord("token", account, "")
    for namespace in (tenant.home, *tenant.namespaces):
        yield _WantedRecord("kubeconfig", account, f"{namespace}/{KUBECONFIG_SECRET}")
    yield _WantedRecord("access", account, f"account/{account}")
    yield _WantedRecord("access", "", f"tenant/{tenant.name}")
    yield _WantedRecord("proxy", account, "", "refused")


def _missing(lacking: set[_WantedRecord]) -> str:
    return f"waiting for the records of {', '.join(sorted(map(str, lacking)))}"


def _example() -> list[manifests.Object]:
    """Return the objects of the example; namespaces first, since accounts live in them."""
    return sorted(manifests.read(manifests.shipped("examples")), key=lambda obj: obj["kind"] != "Namespace")


def _without_annotation(obj: manifests.Object) -> manifests.Object:
    bare = copy.deepcopy(obj)
    bare["metadata"].get("annotations", {}).pop(ANNOTATION_ENABLED, None)
    return bare


def _data(secret: dict[str, Any], key: str) -> str:
    value = (secret.get("data") or {}).get(key)
    _require(bool(value), f"Secret {secret['metadata']['name']} has no key {key}")
    return base64.b64decode(str(value)).decode()


def _impersonated(role: dict[str, Any]) -> list[str]:
    return [
        name
        for rule in role.get("rules") or []
        if rule.get("verbs") == ["impersonate"] and "users" in rule.get("resources", [])
        for name in rule.get("resourceNames") or ["everybody"]
    ]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailedError(otherwise)
