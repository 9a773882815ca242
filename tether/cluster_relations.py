"""Who owns what in a cluster that was just read, by the same rules that the reconcilers go by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from eventcore.clock import now
from eventcore.keys import ObjectKey
from eventcore.kube import api_path
from eventcore.objects import CapsuleConfiguration, Namespace, ServiceAccount, Tenant, TenantOwner
from eventcore.views import Change, ObjectRecord
from tether.cluster_lists import capsule_path, list_all, list_if_served
from workers.access import config_grant
from workers.ownership import identities, is_enabled
from workers.relations import Relations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube import KubeClient
    from eventcore.objects import KubeObject
    from workers.ownership import Account


class Tenancy(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about ownership, as the API server has it now."""

    accounts: tuple[ServiceAccount, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    tenant_owners: tuple[TenantOwner, ...] = ()
    configurations: tuple[CapsuleConfiguration, ...] = ()

    def relations(self, configuration: str, selector: str = "") -> Relations:
        """Return the indexes over it.

        ``configuration`` is the name of the CapsuleConfiguration in use, ``selector`` chooses the namespaces that get a
        kubeconfig.
        """
        relations = Relations(configuration, selector=selector)
        kinds: tuple[tuple[str, Iterable[KubeObject]], ...] = (
            ("CapsuleConfiguration", self.configurations),
            ("TenantOwner", self.tenant_owners),
            ("Tenant", self.tenants),
            ("Namespace", self.namespaces),
            ("ServiceAccount", self.accounts),
        )
        for kind, objects in kinds:
            for obj in objects:
                relations.apply(Change(old=None, new=_record(kind, obj), sequence=0))
        return relations


async def read_tenancy(client: KubeClient) -> Tenancy:
    """Read it; KubeError."""
    return Tenancy(
        accounts=tuple(await list_all(client, ServiceAccount, api_path("", "v1", "serviceaccounts"))),
        namespaces=tuple(await list_all(client, Namespace, api_path("", "v1", "namespaces"))),
        tenants=tuple(await list_if_served(client, Tenant, capsule_path("tenants"))),
        tenant_owners=tuple(await list_if_served(client, TenantOwner, capsule_path("tenantowners"))),
        configurations=tuple(await list_if_served(client, CapsuleConfiguration, capsule_path("capsuleconfigurations"))),
    )


def entitled(relations: Relations) -> dict[Account, tuple[str, ...]]:
    """Return the enabled accounts that own a live Tenant and live in no other one, with the tenants, sorted."""
    owned = _owned(relations).items()
    return {account: tenants for account, tenants in owned if not relations.foreign_home(account, tenants)}


def refused(relations: Relations) -> dict[Account, str]:
    """Return the accounts that get nothing, since their home is a member of a Tenant that they do not own; that one."""
    found = ((account, relations.foreign_home(account, tenants)) for account, tenants in _owned(relations).items())
    return {account: tenant for account, tenant in found if tenant}


def _owned(relations: Relations) -> dict[Account, tuple[str, ...]]:
    enabled = (account for account, found in sorted(relations.accounts.items()) if is_enabled(found))
    owned = ((account, tuple(sorted(relations.tenants_of_account(account)))) for account in enabled)
    return {account: tenants for account, tenants in owned if tenants}


def is_capsule_user(relations: Relations, account: Account) -> bool:
    """Tell whether Capsule takes an account for one of its users, wherever its home is."""
    grant = config_grant(relations.configuration)
    users = {(user.kind, user.name) for user in grant.users} if grant else set()
    return any((owner.kind, owner.name) in users for owner in identities(account))


def _record(kind: str, obj: KubeObject) -> ObjectRecord:
    metadata = obj.metadata
    return ObjectRecord(
        key=ObjectKey(kind, metadata.namespace, metadata.name),
        sequence=0,
        id="",
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        deleted=False,
        time=now(),
        body=b"",
        obj=obj,
    )
