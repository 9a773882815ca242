"""Whether an account may have anything at all: it is enabled, it owns a live Tenant, and it lives in no other's.

A Tenant may name an account in a namespace that does not exist yet, and whoever makes that namespace makes the account.
So an account whose home is a member of a Tenant that it does not own gets nothing.

The view answers first. Before a right is given, the API server answers again, since the view may be a moment behind.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from eventcore.clock import now
from eventcore.errors import NotFoundError, TetherError
from eventcore.kube import api_path
from eventcore.objects import CAPSULE_GROUP, Namespace, ServiceAccount, Tenant
from workers.ownership import Account, identities, is_enabled, namespace_claims, namespace_tenant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube import KubeClient
    from eventcore.reading import Reader
    from eventcore.settings import Settings
    from eventcore.views import ObjectRecord, ObjectsView
    from workers.relations import Relations

T = TypeVar("T")

REQUIRED_KINDS: Final = ("ServiceAccount", "Namespace", "Tenant", "Secret")
"""Kinds without which nothing can be decided; a view that has no mark of one of them may lack most objects."""
OPTIONAL_KINDS: Final = {"TenantOwner": "tenantowners", "CapsuleConfiguration": "capsuleconfigurations"}
"""Kinds that count in the same way where the API server serves them, by their plural."""
SERVED_FOR: Final = 10.0
"""Seconds for which it is believed which kinds are served."""


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
        tenant = self.relations.foreign_home(account, entitlement.tenants) if entitlement else ""
        return (entitlement, tenant) if entitlement and tenant else None

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
        """Ask the API server whether an account really has lost everything; OutdatedError if not.

        ``tenants`` are those that its objects were made for. A view that was lost and is being filled again must not
        take anything from anybody.
        """
        service_account = await self._account(account)
        if service_account is None or not is_enabled(service_account) or await self._foreign_home(account):
            return
        for name in sorted(set(tenants)):
            if await self._owns(account, name):
                raise OutdatedError(f"the view does not show yet that {account} owns Tenant {name}")

    async def confirm_left(self, account: Account, namespace: str, tenants: Iterable[str]) -> None:
        """Ask the API server whether a namespace is really of none of these tenants that the account owns."""
        found = await self._namespace(namespace)
        if found is None:
            return
        for name in sorted(namespace_claims(found) & set(tenants)):
            fresh = await self._tenant(name)
            proven = fresh is not None and namespace_tenant(found, {name: fresh}) is not None
            if proven and await self._owns(account, name):
                raise OutdatedError(f"the view does not show yet that namespace {namespace} is of Tenant {name}")

    async def _foreign_home(self, account: Account) -> str:
        """Return the Tenant that an account's home provably belongs to at the API server and that it does not own."""
        home = await self._namespace(account.namespace)
        for name in sorted(namespace_claims(home)) if home else ():
            fresh = await self._tenant(name)
            if home and fresh and namespace_tenant(home, {name: fresh}) and not self._is_owner(account, fresh):
                return name
        return ""

    async def _owns(self, account: Account, name: str) -> bool:
        tenant = await self._tenant(name)
        return tenant is not None and self._is_owner(account, tenant)

    def _is_owner(self, account: Account, tenant: Tenant) -> bool:
        # A status that is behind its spec may keep what was given, but gives nothing new.
        owners = self.relations.judge(tenant).certain
        return any(owner in owners for owner in identities(account))

    async def confirm_namespace(self, name: str, tenant: str) -> None:
        """Ask the API server whether a namespace is provably of this tenant; OutdatedError if not, or without one."""
        if not tenant:
            raise OutdatedError(f"Namespace {name} has just left its Tenant")
        namespace, fresh = await self._namespace(name), await self._tenant(tenant)
        if namespace is None or fresh is None or namespace_tenant(namespace, {tenant: fresh}) is None:
            raise OutdatedError(f"Namespace {name} has just left Tenant {tenant}")

    async def _account(self, account: Account) -> ServiceAccount | None:
        path = api_path("", "v1", "serviceaccounts", namespace=account.namespace, name=account.name)
        return await self._get(ServiceAccount, path)

    async def _namespace(self, name: str) -> Namespace | None:
        return await self._get(Namespace, api_path("", "v1", "namespaces", name=name))

    async def _tenant(self, name: str) -> Tenant | None:
        return await self._get(Tenant, api_path(CAPSULE_GROUP, "v1beta2", "tenants", name=name))

    async def _get(self, kind: type[T], path: str) -> T | None:
        try:
            return await self.client.get_as(kind, path)
        except NotFoundError:
            return None
