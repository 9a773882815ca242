"""The CapsuleConfiguration of a cluster with one more Capsule user: read, merged, and nothing else of it changed.

Its lists are atomic, so what is rendered must hold every entry that the cluster's own has.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from eventcore.errors import NotFoundError, StartError
from eventcore.kube import api_path
from eventcore.objects import CAPSULE_GROUP, LAST_APPLIED, Namespace, Tenant
from tether.cluster_lists import capsule_path, get_if_there
from tether.render import Section
from workers.ownership import identities, namespace_claims, namespace_tenant, owner_set

if TYPE_CHECKING:
    from eventcore.kube import KubeClient
    from workers.ownership import Account

Object = dict[str, Any]

_SERVER_FIELDS: Final = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
)
"""What an API server or a controller writes, and no manifest holds."""


async def read(client: KubeClient, name: str) -> Object:
    """Return the CapsuleConfiguration of the cluster; StartError where there is none."""
    path = api_path(CAPSULE_GROUP, "v1beta2", "capsuleconfigurations", name=name)
    try:
        return await client.get_as(Object, path)
    except NotFoundError:
        raise StartError(
            f"CapsuleConfiguration {name} does not exist at {client.server_url}: install Capsule there, or set "
            "--capsule-configuration-name"
        ) from None


async def check_home(client: KubeClient, account: Account, tenant: str) -> None:
    """Refuse a home that is a member of a Tenant that the account does not own; StartError says so.

    Whoever made such a namespace acts for every account in it, and Tether gives them nothing.
    """
    home = await get_if_there(client, Namespace, api_path("", "v1", "namespaces", name=account.namespace))
    for name in sorted(namespace_claims(home) - {tenant}) if home else ():
        found = await get_if_there(client, Tenant, capsule_path("tenants", name))
        if home is None or found is None or namespace_tenant(home, {name: found}) is None:
            continue
        owners = owner_set(found.spec.owners) | owner_set(found.status.owners or ())
        if not owners & set(identities(account)):
            raise StartError(
                f"Namespace {account.namespace} is a member of Tenant {name}, which {account} does not own, so it "
                "would get nothing: name an owner in a namespace outside of tenants"
            )


def section(existing: Object, account: Account) -> Section:
    """Return the merged object and what was added to it."""
    missing = addition(existing, account)
    if missing is None:
        said = f"{account} is a Capsule user in it already, so nothing was added."
    else:
        field, entry = missing
        said = f"Added to {field}: {entry['name'] if isinstance(entry, dict) else entry}."
    return Section(
        "Who is a Capsule user, as the cluster has it now. "
        f"{said}\nIts lists replace those in the cluster: render it again when they have changed there.",
        merged(existing, account),
    )


def merged(existing: Object, account: Account) -> Object:
    """Return the configuration as a manifest, with the account as a Capsule user."""
    metadata = {name: value for name, value in existing["metadata"].items() if name not in _SERVER_FIELDS}
    annotations = dict(metadata.pop("annotations", None) or {})
    annotations.pop(LAST_APPLIED, None)
    if annotations:
        metadata["annotations"] = annotations
    spec: Object = copy.deepcopy(existing.get("spec") or {})
    if (missing := addition(existing, account)) is not None:
        field, entry = missing
        spec[field] = [*(spec.get(field) or []), entry]
    return {
        "apiVersion": f"{CAPSULE_GROUP}/v1beta2",
        "kind": "CapsuleConfiguration",
        "metadata": metadata,
        "spec": spec,
    }


def addition(existing: Object, account: Account) -> tuple[str, Object | str] | None:
    """Return the field of the spec and the entry that it lacks, None where the account is a Capsule user already.

    The account alone where this Capsule knows ``users``; else the group of the accounts of its namespace, the one
    entry that every Capsule understands.
    """
    spec = existing.get("spec") or {}
    group = account.groups[1]
    known = {str(name) for field in ("userGroups", "userNames") for name in spec.get(field) or []}
    users = spec.get("users") or []
    aggregated = (existing.get("status") or {}).get("users")
    known |= {str(user.get("name")) for user in [*users, *(aggregated or [])]}
    if known & {group, account.username}:
        return None
    if users or aggregated is not None:
        return "users", {"kind": "ServiceAccount", "name": account.username}
    return "userGroups", group
