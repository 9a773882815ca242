"""Who owns what: accounts, the identities that they act under, the owners of a Tenant, the tenant of a namespace.

All of it is pure and fails closed: what is malformed, deleted or contradictory owns nothing and belongs to nobody.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.foreign import is_namespace_name, is_object_name, shown
from eventcore.keys import Key, key
from eventcore.objects import ANNOTATION_ENABLED, ANNOTATION_GLOBAL, ANNOTATION_NAMESPACES, CAPSULE_GROUP, LABEL_TENANT
from eventcore.selectors import parse_selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.objects import (
        CapsuleConfiguration,
        LabelSelector,
        LabelSelectorRequirement,
        Namespace,
        OwnerReference,
        ServiceAccount,
        Tenant,
        TenantOwner,
        TenantSpecOwner,
    )

LABEL_PROMOTE: Final = "owner.projectcapsule.dev/promote"
LABEL_OWNER_OF: Final = "projectcapsule.dev/tenant"
GROUP_ALL_ACCOUNTS: Final = "system:serviceaccounts"
GROUP_AUTHENTICATED: Final = "system:authenticated"
OWNER_KINDS: Final = frozenset({"User", "Group", "ServiceAccount"})
_USER_PARTS: Final = 4


class Account(msgspec.Struct, frozen=True, order=True):
    """A ServiceAccount by name; its home is the namespace that it lives in."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def username(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def groups(self) -> tuple[str, str, str]:
        return (GROUP_ALL_ACCOUNTS, f"{GROUP_ALL_ACCOUNTS}:{self.namespace}", GROUP_AUTHENTICATED)

    def key(self) -> Key:
        return key(self.namespace, self.name)

    @classmethod
    def of_key(cls, target: Key) -> Account:
        return cls(*target.parts[:2])

    @classmethod
    def of_text(cls, text: str) -> Account | None:
        """Return the account of ``<namespace>/<name>``, None for any other text.

        Annotations say so, whoever wrote them: what no account can be called never becomes a key.
        """
        namespace, _, name = text.partition("/")
        return cls._of_names(namespace, name)

    @classmethod
    def of_username(cls, username: str) -> Account | None:
        """Return the account of ``system:serviceaccount:<namespace>:<name>``, None for any other text."""
        parts = username.split(":", _USER_PARTS)
        if len(parts) != _USER_PARTS or parts[:2] != ["system", "serviceaccount"]:
            return None
        return cls._of_names(parts[2], parts[3])

    @classmethod
    def _of_names(cls, namespace: str, name: str) -> Account | None:
        return cls(namespace, name) if is_namespace_name(namespace) and is_object_name(name) else None

    @classmethod
    def of(cls, service_account: ServiceAccount) -> Account:
        return cls(service_account.metadata.namespace, service_account.metadata.name)


class Owner(msgspec.Struct, frozen=True, order=True):
    """An identity that may own tenants: kind is User, Group or ServiceAccount (whose name is its user name)."""

    kind: str
    name: str


class OwnerState(msgspec.Struct, frozen=True):
    """The owners of one tenant. ``stale`` ones stand only in a status that is behind the spec, since ``since``."""

    certain: frozenset[Owner] = frozenset()
    stale: frozenset[Owner] = frozenset()
    since: datetime | None = None

    @property
    def all(self) -> frozenset[Owner]:
        return self.certain | self.stale


def identities(account: Account) -> tuple[Owner, ...]:
    """Return every owner that this account is: Capsule compares user names for User and ServiceAccount alike."""
    users = (Owner("ServiceAccount", account.username), Owner("User", account.username))
    return users + tuple(Owner("Group", group) for group in account.groups)


def is_enabled(service_account: ServiceAccount) -> bool:
    """Tell whether an administrator switched Tether on for this account, and it is not being deleted."""
    metadata = service_account.metadata
    return metadata.deletion_timestamp is None and metadata.annotations.get(ANNOTATION_ENABLED) == "true"


def is_global(service_account: ServiceAccount) -> bool:
    """Tell whether the kubeconfig goes to the tenant's namespaces too, which is the default."""
    return service_account.metadata.annotations.get(ANNOTATION_GLOBAL) != "false"


def chosen_namespaces(service_account: ServiceAccount) -> LabelSelector | None:
    """Return which of its tenants' namespaces an account wants its kubeconfig in, None for a malformed selector."""
    try:
        return parse_selector(service_account.metadata.annotations.get(ANNOTATION_NAMESPACES, ""))
    except ValueError:
        return None


def is_live(tenant: Tenant) -> bool:
    """Tell whether a Tenant may own anything: one that is being deleted may not."""
    return tenant.metadata.deletion_timestamp is None


def selector_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Match as Kubernetes does: all requirements hold, an empty selector matches; an unknown operator never does."""
    return all(labels.get(name) == value for name, value in selector.match_labels.items()) and all(
        _requirement_holds(requirement, labels) for requirement in selector.match_expressions
    )


def _requirement_holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


def owner_set(owners: Iterable[TenantSpecOwner]) -> frozenset[Owner]:
    """Return the well-formed owners of a list of a Tenant."""
    return frozenset(Owner(owner.kind, owner.name) for owner in owners if well_formed(owner.kind, owner.name))


def well_formed(kind: str, name: str) -> bool:
    """Tell whether this names somebody for whom there can be a grant.

    A kind that is known, of a ServiceAccount its whole user name, of anybody else a name that the bus can hold.
    """
    if kind == "ServiceAccount":
        return Account.of_username(name) is not None
    return kind in OWNER_KINDS and bool(name) and key("subject", kind, name).fits


def matched_owners(tenant: Tenant, tenant_owners: Iterable[TenantOwner]) -> frozenset[Owner]:
    """Return the owners that TenantOwner objects bring: matched by a selector, or labelled for this tenant."""
    return frozenset(
        Owner(owner.spec.kind, owner.spec.name)
        for owner in tenant_owners
        if owner.metadata.deletion_timestamp is None
        and well_formed(owner.spec.kind, owner.spec.name)
        and (
            owner.metadata.labels.get(LABEL_OWNER_OF) == tenant.metadata.name
            or any(selector_matches(s, owner.metadata.labels) for s in tenant.spec.permissions.match_owners)
        )
    )


def is_promoted(service_account: ServiceAccount) -> bool:
    """Tell whether the account carries the label that makes it an owner of the tenant whose namespace it lives in."""
    metadata = service_account.metadata
    return metadata.deletion_timestamp is None and metadata.labels.get(LABEL_PROMOTE) == "true"


def promotion_allowed(tenant: Tenant, configuration: CapsuleConfiguration | None) -> bool:
    """Tell whether promoted accounts of the tenant's namespaces own it: both switches must be on.

    A Tenant that says nothing allows it in a Capsule that does not tell owners in the status; a newer one tells there.
    """
    if configuration is None or not configuration.spec.allow_service_account_promotion:
        return False
    allowed = tenant.spec.permissions.allow_owner_promotion
    return tenant.status.owners is None if allowed is None else allowed


def status_is_current(tenant: Tenant) -> bool:
    """Tell whether the status speaks of the spec that is there; older Capsules do not say, and are believed."""
    observed = tenant.status.observed_generation
    return observed in {0, tenant.metadata.generation}


def stale_until(state: OwnerState, now: datetime, grace: float) -> datetime | None:
    """Return when the stale owners stop counting, None when they do not count any more."""
    if state.since is None:
        return None
    end = state.since.timestamp() + grace
    return state.since.fromtimestamp(end, state.since.tzinfo) if now.timestamp() < end else None


def namespace_claims(namespace: Namespace) -> frozenset[str]:
    """Return the tenants that a namespace mentions, by label or owner reference, proven or not, if such may exist."""
    claims = {r.name for r in namespace.metadata.owner_references if _of_capsule(r.api_version) and r.kind == "Tenant"}
    claims.add(namespace.metadata.labels.get(LABEL_TENANT, ""))
    return frozenset(name for name in claims if is_object_name(name))


def namespace_tenant(namespace: Namespace, tenants: Mapping[str, Tenant]) -> Tenant | None:
    """Return the tenant that a namespace provably belongs to.

    It has exactly one owner reference to a Tenant, a live Tenant of that name and uid exists, and the label agrees.
    Anything else is nobody's.
    """
    reference = _only_reference(namespace)
    tenant = tenants.get(reference.name) if reference else None
    if reference is None or tenant is None or not is_live(tenant):
        return None
    return tenant if reference.uid and tenant.metadata.uid == reference.uid else None


def provable_tenant(namespace: Namespace) -> str:
    """Return the one tenant that a namespace may provably belong to, "" where it contradicts itself."""
    reference = _only_reference(namespace)
    return reference.name if reference else ""


def _only_reference(namespace: Namespace) -> OwnerReference | None:
    references = [r for r in namespace.metadata.owner_references if r.kind == "Tenant" and _of_capsule(r.api_version)]
    if len(references) != 1 or namespace.metadata.labels.get(LABEL_TENANT) != references[0].name:
        return None
    return references[0]


def _of_capsule(api_version: str) -> bool:
    return api_version.partition("/")[0] == CAPSULE_GROUP


def findings(tenant: Tenant, effective: frozenset[Owner]) -> tuple[str, ...]:
    """Return what is wrong with the owners of a Tenant, one line each, for the person who wrote it."""
    found = [
        f"owner '{shown(owner.name)}' of kind ServiceAccount is not system:serviceaccount:<namespace>:<name>, "
        "so it owns nothing: correct spec.owners"
        if owner.kind == "ServiceAccount"
        else f"owner '{shown(owner.name)}' has a name that is too long, so the proxy knows nothing of it: shorten it"
        for owner in tenant.spec.owners
        if owner.kind in OWNER_KINDS and owner.name and not well_formed(owner.kind, owner.name)
    ]
    if not effective and not tenant.spec.owners and is_live(tenant):
        found.append(
            "the Tenant has no owners, so nobody can reconcile it: add the account to spec.owners, or a TenantOwner"
        )
    return tuple(found)
