"""What follows from Capsule's objects: who is a Capsule user, who owns a Tenant, whose a namespace is. Reads only.

Everything is derived from the specifications in the store at the moment of asking, never from a status, so a decision
does not depend on how far the controllers are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tether.devcluster.capsule_crds import DEFAULT_OWNER_ROLES, DELETER, GROUP, PROVISIONER
from tether.devcluster.objects import dig, labels_of, name_of
from tether.devcluster.resources import NAMESPACES, SERVICE_ACCOUNTS
from tether.devcluster.selectors import Matcher, Requirement
from tether.devcluster.tokens import split_username

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tether.devcluster.contracts import Object, Resource, StoreApi, UserInfo

CONFIGURATION_NAME = "default"
CONTROLLER_USER = "system:serviceaccount:capsule-system:capsule"
TENANT_LABEL = f"{GROUP}/tenant"
MANAGED_BY_LABEL = f"{GROUP}/managed-by"
NEW_TENANT_LABEL = "projectcapsule.dev/tenant"
CONTROLLED_LABEL = "projectcapsule.dev/managed-by"
CORDONED_LABEL = "projectcapsule.dev/cordoned"
PROMOTE_LABEL = "owner.projectcapsule.dev/promote"

Subject = tuple[str, str]
"""Kind (User, Group, ServiceAccount) and name; that of a ServiceAccount is its username."""


class Owner(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One owner of a Tenant as ``status.owners`` lists it."""

    kind: str
    name: str
    cluster_roles: tuple[str, ...] = ()

    def as_object(self) -> Object:
        return {"kind": self.kind, "name": self.name, "clusterRoles": list(self.cluster_roles)}


class CapsuleFacts:
    """Answers from the store; every method reads the state of the moment."""

    def __init__(self, store: StoreApi) -> None:
        self._store = store

    def kind(self, plural: str) -> Resource | None:
        """Return one of Capsule's kinds, None while its definition is not there."""
        return self._store.resource(GROUP, plural)

    def tenants(self) -> list[Object]:
        return self._all("tenants")

    def tenant(self, name: str) -> Object | None:
        kind = self.kind("tenants")
        return self._store.get(kind, "", name) if kind else None

    def tenant_owners(self) -> list[Object]:
        """Return the TenantOwners that name somebody; the schema lets one without a spec in."""
        return [owner for owner in self._all("tenantowners") if isinstance(owner.get("spec"), dict)]

    def configuration(self) -> Object:
        """Return the spec of the CapsuleConfiguration ``default``, {} without one."""
        kind = self.kind("capsuleconfigurations")
        found = self._store.get(kind, "", CONFIGURATION_NAME) if kind else None
        spec = found.get("spec") if found else None
        return spec if isinstance(spec, dict) else {}

    def users(self) -> list[Subject]:
        """Return the effective Capsule users: the configuration's, and the TenantOwners that aggregate. Sorted."""
        spec = self.configuration()
        found = {subject_of(user) for user in spec.get("users") or ()}
        found |= {("Group", str(name)) for name in spec.get("userGroups") or ()}
        for name in map(str, spec.get("userNames") or ()):
            found.add(("ServiceAccount" if split_username(name) else "User", name))
        for owner in self.tenant_owners():
            if dig(owner, "spec", "aggregate") is not False:
                found.add(subject_of(owner["spec"]))
        return sorted(found)

    def administrators(self) -> list[Subject]:
        return sorted({subject_of(user) for user in self.configuration().get("administrators") or ()})

    def role_names(self) -> tuple[str, str]:
        """Return the names of the ClusterRoles that let create and delete namespaces."""
        rbac = self.configuration().get("rbac") or {}
        return str(rbac.get("provisioner") or PROVISIONER), str(rbac.get("deleter") or DELETER)

    def is_administrator(self, user: UserInfo) -> bool:
        """Tell whether Capsule lets the user do everything: its own controller, or a configured administrator."""
        if user.username == CONTROLLER_USER:
            return True
        return not self._is_ignored(user) and is_among(user, self.administrators())

    def is_capsule_user(self, user: UserInfo) -> bool:
        """Tell whether Capsule's rules for tenants bind the user."""
        if self._is_ignored(user) or self.is_administrator(user):
            return False
        if "system:serviceaccounts:kube-system" in user.groups:
            return False
        account = split_username(user.username)
        if account is not None:
            namespace = self._store.get(NAMESPACES, "", account[0])
            if namespace is not None and self.tenant_of(namespace) is not None:
                return True
        return is_among(user, self.users())

    def owners_of(self, tenant: Object) -> list[Owner]:
        """Return the owners of a Tenant: its own, matched TenantOwners, promoted accounts and administrators."""
        roles: dict[Subject, dict[str, None]] = {}

        def add(subject: Subject, names: Iterable[Any]) -> None:
            roles.setdefault(subject, {}).update(dict.fromkeys(map(str, names)))

        for owner in _dicts(dig(tenant, "spec", "owners")):
            add(subject_of(owner), owner.get("clusterRoles") or DEFAULT_OWNER_ROLES)
        for owner in filter(tenant_owner_matcher(tenant), self.tenant_owners()):
            add(subject_of(owner["spec"]), owner["spec"].get("clusterRoles") or DEFAULT_OWNER_ROLES)
        configured = self.configuration().get("rbac") or {}
        for account in self.promoted(tenant):
            add(account, configured.get("promotionClusterRoles") or (PROVISIONER, DELETER))
        for administrator in self.administrators():
            add(administrator, configured.get("administrationClusterRoles") or (DELETER,))
        return sorted(Owner(kind=kind, name=name, cluster_roles=tuple(names)) for (kind, name), names in roles.items())

    def promotes(self, tenant: Object | None = None) -> bool:
        """Tell whether the configuration, or a Tenant, lets accounts be promoted; a Tenant has to say so itself."""
        if tenant is None:
            return bool(self.configuration().get("allowServiceAccountPromotion"))
        return dig(tenant, "spec", "permissions", "allowOwnerPromotion") is True

    def promoted(self, tenant: Object) -> list[Subject]:
        """Return the accounts in the Tenant's namespaces that are promoted to owners, where that is allowed."""
        if not self.promotes() or not self.promotes(tenant):
            return []
        found: list[Subject] = []
        for account in self._store.list(SERVICE_ACCOUNTS):
            meta = account["metadata"]
            if labels_of(account).get(PROMOTE_LABEL) != "true":
                continue
            namespace = self._store.get(NAMESPACES, "", meta["namespace"])
            owner = self.tenant_of(namespace) if namespace else None
            if owner is not None and name_of(owner) == name_of(tenant):
                found.append(("ServiceAccount", f"system:serviceaccount:{meta['namespace']}:{meta['name']}"))
        return found

    def owns(self, user: UserInfo, tenant: Object) -> bool:
        return bool(self._owned_among(user, [tenant]))

    def owned_by(self, user: UserInfo) -> list[Object]:
        """Return the Tenants that the user owns."""
        return self._owned_among(user, self.tenants())

    def concerned_by(self, owner: Object) -> list[Object]:
        """Return the Tenants that match a TenantOwner."""
        return [tenant for tenant in self.tenants() if tenant_owner_matcher(tenant)(owner)]

    def _owned_among(self, user: UserInfo, tenants: list[Object]) -> list[Object]:
        if is_among(user, self.administrators()):
            return tenants
        naming = [owner for owner in self.tenant_owners() if is_among(user, [subject_of(owner["spec"])])]
        promotes = bool(self.configuration().get("allowServiceAccountPromotion"))
        return [
            tenant
            for tenant in tenants
            if is_among(user, map(subject_of, _dicts(dig(tenant, "spec", "owners"))))
            or any(map(tenant_owner_matcher(tenant), naming))
            or (promotes and is_among(user, self.promoted(tenant)))
        ]

    def tenant_of(self, namespace: Object) -> Object | None:
        """Return the Tenant that a namespace provably belongs to: one reference, live uid, equal label."""
        references = tenant_references(namespace)
        if len(references) != 1 or labels_of(namespace).get(TENANT_LABEL) != references[0].get("name"):
            return None
        tenant = self.tenant(str(references[0].get("name")))
        if tenant is None or tenant["metadata"]["uid"] != references[0].get("uid"):
            return None
        return tenant

    def _is_ignored(self, user: UserInfo) -> bool:
        return bool(set(user.groups) & set(self.configuration().get("ignoreUserWithGroups") or ()))

    def _all(self, plural: str) -> list[Object]:
        kind = self.kind(plural)
        return self._store.list(kind) if kind else []


def tenant_references(namespace: Object) -> list[Object]:
    """Return the owner references of a namespace that name a Tenant, of any version."""
    references = _dicts(dig(namespace, "metadata", "ownerReferences"))
    group = f"{GROUP}/"
    return [one for one in references if one.get("kind") == "Tenant" and str(one.get("apiVersion")).startswith(group)]


def is_among(user: UserInfo, subjects: Iterable[Subject]) -> bool:
    """Tell whether a subject names the user: groups by group, users and accounts by username."""
    return any(name in user.groups if kind == "Group" else name == user.username for kind, name in subjects)


def tenant_owner_matcher(tenant: Object) -> Matcher:
    """Return what tells whether a Tenant matches a TenantOwner: by its selectors, or named by the label for it."""
    name = name_of(tenant)
    selectors = _dicts(dig(tenant, "spec", "permissions", "matchOwners"))

    def matches(owner: Object) -> bool:
        labels: dict[str, str] = owner["metadata"].get("labels") or {}
        return labels.get(NEW_TENANT_LABEL) == name or any(_matches(selector, labels) for selector in selectors)

    return matches


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    """Tell whether a metav1.LabelSelector selects; an empty one selects everything, as in Kubernetes."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(
        Requirement(str(term.get("key")), str(term.get("operator")), tuple(term.get("values") or ())).holds(labels)
        for term in _dicts(selector.get("matchExpressions"))
    )


def subject_of(fields: Object) -> Subject:
    """Return the subject that an owner or user entry names."""
    return str(fields.get("kind") or ""), str(fields.get("name") or "")


def _dicts(values: Any) -> list[Object]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
