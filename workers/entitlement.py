"""Whether an account may have anything at all: it is enabled, it owns a live Tenant, and it lives in no other's.

A Tenant may name an account in a namespace that does not exist yet, and whoever makes that namespace makes the account.
So an account whose home is a member of a Tenant that it does not own gets nothing.

The view answers first. Before a right is given, the API server answers again, since the view may be a moment behind.
Before one is taken, the API server may object, since a view that is being filled again must not take anything from
anybody: it objects by saying that the account still owns, and by nothing else. What the account itself can write is not
asked about.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from eventcore.clock import now
from eventcore.errors import KubeError, NotFoundError, TetherError
from eventcore.kube_paths import object_path
from eventcore.logs import get
from eventcore.objects import CAPSULE_GROUP, Namespace, ServiceAccount, Tenant
from workers.ownership import Account, identities, is_enabled, namespace_claims, namespace_tenant, provable_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from eventcore.kube import KubeClient
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from workers.relations import Relations

log = get("workers.entitlement")

T = TypeVar("T")

REQUIRED_KINDS: Final = ("ServiceAccount", "Namespace", "Tenant", "Secret")
"""Kinds without which nothing can be decided; a view that has no mark of one of them may lack most objects."""
OPTIONAL_KINDS: Final = {"TenantOwner": "tenantowners", "CapsuleConfiguration": "capsuleconfigurations"}
"""Kinds that count in the same way where the API server serves them, by their plural."""
SERVED_FOR: Final = 10.0
"""Seconds for which it is believed which kinds are served."""
OBJECTION: Final = 5.0
"""Seconds that the API server has to object to a revocation."""
_NO_OBJECTION: Final = frozenset({400, 403, 404})
"""Answers of an API server that is there and does not say that anybody owns anything."""


class OutdatedError(TetherError):
    """The API server says other than the view: nothing is done until they agree."""


class Entitlement(msgspec.Struct, frozen=True):
    """Why an account may have what it has. ``tenants`` are sorted; ``until``: it ends then if nothing changes."""

    account: Account
    uid: str
    tenants: tuple[str, ...]
    until: datetime | None = None

    @property
    def tenant(self) -> str:
        return self.tenants[0]


class _Resource(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_Resource]


class Judge:
    """Decides about accounts and namespaces for the reconcilers."""

    def __init__(
        self, client: KubeClient, reader: Reader[ObjectsView, ObjectRecord], relations: Relations, settings: Settings
    ) -> None:
        self.client = client
        self.relations = relations
        self._reader = reader
        self._settings = settings
        self._served_plurals: frozenset[str] = frozenset()
        self._served_at = float("-inf")

    async def missing(self) -> str:
        """Return a kind that no watcher has vouched for yet, or "": without it absence means nothing."""
        mark = self._reader.view.mark
        for kind in REQUIRED_KINDS:
            if mark(kind) is None:
                return kind
        for kind, plural in OPTIONAL_KINDS.items():
            if mark(kind) is None and plural in await self._served():
                return kind
        return ""

    async def _served(self) -> frozenset[str]:
        if time.monotonic() - self._served_at > SERVED_FOR:
            try:
                found = await self.client.get_as(_Resources, f"/apis/{CAPSULE_GROUP}/v1beta2")
                self._served_plurals = frozenset(one.name for one in found.resources)
            except NotFoundError:
                self._served_plurals = frozenset()
            except KubeError:
                if self._served_at == float("-inf"):
                    raise
                return self._served_plurals  # as it was: an API server that fails now must not hold up a revocation
            self._served_at = time.monotonic()
        return self._served_plurals

    def look(self, account: Account) -> Entitlement | None:
        """Return what the view says about an account, None when it may have nothing."""
        entitlement = self._owning(account)
        if entitlement is None or self.relations.foreign_home(account, entitlement.tenants):
            return None
        return entitlement

    def refused(self, account: Account) -> tuple[Entitlement, str] | None:
        """Return what an account would have, and the tenant that its home belongs to, which alone keeps it from it."""
        entitlement = self._owning(account)
        if entitlement is None:
            return None
        tenant = self.relations.foreign_home(account, entitlement.tenants)
        return (entitlement, tenant) if tenant else None

    def why_not(self, account: Account) -> str:
        """Return why an account may have nothing, for a person."""
        service_account = self.relations.accounts.get(account)
        if service_account is None or not is_enabled(service_account):
            return "it is not enabled any more"
        if (refused := self.refused(account)) is not None:
            return f"its home is a member of Tenant {refused[1]}, which it does not own"
        return "it owns no Tenant any more"

    def _owning(self, account: Account) -> Entitlement | None:
        service_account = self.relations.accounts.get(account)
        if service_account is None or not is_enabled(service_account):
            return None
        tenants, until = self.relations.owned_at(account, now(), self._settings.owner_status_grace)
        if not tenants:
            return None
        return Entitlement(account, service_account.metadata.uid, tuple(sorted(tenants)), until)

    async def confirm(self, entitlement: Entitlement) -> None:
        """Ask the API server whether it is still so; OutdatedError if not."""
        account = entitlement.account
        service_account = await self._account(account)
        if (
            service_account is None
            or not is_enabled(service_account)
            or service_account.metadata.uid != entitlement.uid
        ):
            raise OutdatedError(f"ServiceAccount {account} has just been changed")
        if tenant := await self._foreign_home(account):
            raise OutdatedError(f"Namespace {account.namespace} has just become a member of Tenant {tenant}")
        for name in entitlement.tenants:
            if await self._owns(account, name):
                return
        raise OutdatedError(f"ServiceAccount {account} has just lost its Tenant")

    async def confirm_lost(self, account: Account, tenants: Iterable[str]) -> None:
        """Let the API server object to taking everything from an account: OutdatedError if it owns one of ``tenants``.

        These are not to come from what the account can write; see `Relations.remembered_tenants`.
        """
        async with self._objections(f"what {account} owns"):
            service_account = await self._account(account)
            if service_account is None or not is_enabled(service_account):
                return
            tenant = await self._first_owned(account, tenants)
            if tenant and not await self._foreign_home(account):
                raise OutdatedError(f"the view does not show yet that {account} owns Tenant {tenant}")

    async def confirm_left(self, account: Account, namespace: str, tenants: Iterable[str]) -> None:
        """Let the API server object: OutdatedError if a namespace is still of one of these tenants of the account."""
        async with self._objections(f"whose {namespace} is"):
            found = await self._namespace(namespace)
            name = await self._proven_tenant(found)
            if name in set(tenants) and await self._owns(account, name):
                raise OutdatedError(f"the view does not show yet that namespace {namespace} is of Tenant {name}")

    async def _first_owned(self, account: Account, tenants: Iterable[str]) -> str:
        """Return one of these tenants that the account owns at the API server; one that cannot be asked is passed.

        If none was found, KubeError of one of those, and rather such as leaves it open than a refusal.
        """
        failure: KubeError | None = None
        for name in tenants:
            try:
                if await self._owns(account, name):
                    return name
            except KubeError as error:
                if failure is None or failure.status in _NO_OBJECTION:
                    failure = error
        if failure is not None:
            raise failure
        return ""

    @asynccontextmanager
    async def _objections(self, what: str) -> AsyncIterator[None]:
        """Bound the time for objections, and let no failure be one, as long as watchers vouch for the view.

        Where no answer came and no watcher has vouched lately, nobody knows, and nothing is taken: OutdatedError.
        """
        try:
            async with asyncio.timeout(OBJECTION):
                yield
        except (KubeError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            log.warning("API server was asked before a revocation and does not say", what=what, error=why)
            if isinstance(error, KubeError) and error.status in _NO_OBJECTION:
                return
            if kind := self._stale():
                raise OutdatedError(f"neither API server ({why}) nor watchers of {kind} say {what}") from error

    def _stale(self) -> str:
        """Return a required kind for which no watcher has vouched lately, or ""."""
        limit = self._settings.max_view_age
        return next((kind for kind in REQUIRED_KINDS if self._reader.view.age(kind) > limit), "")

    async def _foreign_home(self, account: Account) -> str:
        """Return the Tenant that an account's home provably belongs to at the API server and that it does not own."""
        name = await self._proven_tenant(await self._namespace(account.namespace))
        return name if name and not await self._owns(account, name) else ""

    async def _proven_tenant(self, namespace: Namespace | None) -> str:
        """Return the Tenant that a namespace provably belongs to at the API server, "" without one."""
        if namespace is None or not (name := provable_tenant(namespace)):
            return ""
        fresh = await self._tenant(name)
        return name if fresh is not None and namespace_tenant(namespace, {name: fresh}) is not None else ""

    async def _owns(self, account: Account, name: str) -> bool:
        tenant = await self._tenant(name)
        return tenant is not None and self._is_owner(account, tenant)

    def _is_owner(self, account: Account, tenant: Tenant) -> bool:
        # A status that is behind its spec may keep what was given, but gives nothing new.
        owners = self.relations.judge(tenant).certain
        return any(owner in owners for owner in identities(account))

    async def confirm_namespace(self, name: str, tenant: str) -> None:
        """Ask the API server whether a namespace is provably of this tenant; OutdatedError if not, or without one."""
        if not tenant or await self._proven_tenant(await self._namespace(name)) != tenant:
            raise OutdatedError(
                f"Namespace {name} has just left Tenant {tenant}"
                if tenant
                else f"Namespace {name} has just left its Tenant"
            )

    async def confirm_outside(self, name: str) -> None:
        """Ask the API server whether a namespace says nothing of a tenant; OutdatedError if it does."""
        namespace = await self._namespace(name)
        if namespace is not None and (claims := namespace_claims(namespace)):
            raise OutdatedError(f"Namespace {name} has just become one of Tenant {', '.join(sorted(claims))}")

    async def _account(self, account: Account) -> ServiceAccount | None:
        return await self._get(ServiceAccount, "", "v1", "serviceaccounts", account.name, account.namespace)

    async def _namespace(self, name: str) -> Namespace | None:
        return await self._get(Namespace, "", "v1", "namespaces", name)

    async def _tenant(self, name: str) -> Tenant | None:
        return await self._get(Tenant, CAPSULE_GROUP, "v1beta2", "tenants", name)

    async def _get(
        self, kind: type[T], group: str, version: str, plural: str, name: str, namespace: str = ""
    ) -> T | None:
        try:
            return await self.client.get_as(kind, object_path(group, version, plural, name, namespace=namespace))
        except NotFoundError:
            return None
