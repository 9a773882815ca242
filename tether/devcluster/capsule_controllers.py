"""Capsule's controllers: status of Tenants and kin, owners' rights in each namespace, who may create one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tether.devcluster.capsule_crds import GROUP
from tether.devcluster.capsule_facts import (
    CONFIGURATION_NAME,
    CORDONED_LABEL,
    MANAGED_BY_LABEL,
    NEW_TENANT_LABEL,
    PROMOTE_LABEL,
    TENANT_LABEL,
    CapsuleFacts,
    Subject,
    tenant_owner_matcher,
    tenant_references,
)
from tether.devcluster.capsule_objects import (
    BINDING_LABEL,
    conditions,
    cordoned_condition,
    rbac_subject,
    ready_condition,
    role_binding,
    with_group,
)
from tether.devcluster.controllers import Controller, Key, follow, is_deleting
from tether.devcluster.objects import clone, dig, labels_of, metadata, name_of, namespace_of
from tether.devcluster.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES, RBAC, SERVICE_ACCOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tether.devcluster.contracts import Change, Object, Resource
    from tether.devcluster.store import Store

FINALIZER = "controller.projectcapsule.dev/finalize"
_NAME_LABEL = "kubernetes.io/metadata.name"
_CREATED_BY = {"projectcapsule.dev/created-by": "rbac-controller"}


async def run(store: Store) -> None:
    """Run all of Capsule's controllers until cancelled."""
    await follow(store, capsule_controllers(store))


def capsule_controllers(store: Store) -> list[Controller]:
    """Return all of Capsule's controllers."""
    return [NamespaceRights(store), Tenants(store), CapsuleRights(store), TenantOwners(store)]


class Tenants:
    """Keeps a Tenant's label, finalizer and status; a Tenant goes after its namespaces."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts = CapsuleFacts(store)
        self._spaces: dict[str, set[str]] = {}  # namespaces by the uid of the Tenant that they refer to

    def all_keys(self) -> Iterator[Key]:
        self._spaces.clear()
        for namespace in self._store.list(NAMESPACES):
            self._index(namespace)
        return ((name_of(tenant),) for tenant in self._facts.tenants())

    def keys(self, change: Change) -> Iterable[Key]:
        if change.resource == NAMESPACES:
            return self._keys_of_namespace(change)
        if change.resource == SERVICE_ACCOUNTS and _carries(change, PROMOTE_LABEL):
            namespace = self._store.get(NAMESPACES, "", namespace_of(change.obj))
            return [(str(one.get("name")),) for one in tenant_references(namespace or {})]
        if change.resource.group != GROUP:
            return ()
        if change.resource.plural == "tenants":
            return [(name_of(change.obj),)]
        return ((name,) for name in _tenants_of(self._facts, change))

    def reconcile(self, key: Key) -> None:
        kind, tenant = self._facts.kind("tenants"), self._facts.tenant(key[0])
        if kind is None or tenant is None:
            return
        spaces = self._namespaces_of(tenant)
        if is_deleting(tenant):
            for namespace in spaces:
                if not is_deleting(namespace):
                    self._store.delete(NAMESPACES, "", name_of(namespace))
            spaces = self._namespaces_of(tenant)
            held = metadata(tenant).get("finalizers") or []
            if not spaces and FINALIZER in held:
                new: Object = clone(tenant)
                metadata(new)["finalizers"] = [one for one in held if one != FINALIZER]
                self._store.update(kind, new)
                return
        else:
            tenant = self._stamp(kind, tenant)
            self._cordon(tenant, spaces)
            spaces = self._namespaces_of(tenant)
        new = clone(tenant)
        new["status"] = self._status(tenant, spaces)
        self._store.update(kind, new, subresource="status")

    def _stamp(self, kind: Resource, tenant: Object) -> Object:
        new: Object = clone(tenant)
        metadata(new).setdefault("labels", {})[_NAME_LABEL] = name_of(tenant)
        held = metadata(new).setdefault("finalizers", [])
        if FINALIZER not in held:
            held.append(FINALIZER)
        return self._store.update(kind, new)

    def _cordon(self, tenant: Object, spaces: list[Object]) -> None:
        """Label the namespaces when the Tenant is cordoned, and once more when it no longer is."""
        cordoned = bool(dig(tenant, "spec", "cordoned"))
        if not cordoned and dig(tenant, "status", "state") != "Cordoned":
            return  # a label on a single namespace is its own
        for namespace in spaces:
            new: Object = clone(namespace)
            labels = metadata(new).setdefault("labels", {})
            if cordoned:
                labels[CORDONED_LABEL] = "true"
            else:
                labels.pop(CORDONED_LABEL, None)
            self._store.update(NAMESPACES, new)

    def _status(self, tenant: Object, spaces: list[Object]) -> Object:
        old = tenant.get("status") or {}
        cordoned = bool(dig(tenant, "spec", "cordoned"))
        deleting = is_deleting(tenant)
        state = "Terminating" if deleting else "Cordoned" if cordoned else "Active"
        names = [name_of(namespace) for namespace in spaces]
        before = {space.get("name"): space.get("conditions") for space in old.get("spaces") or ()}
        return {
            **old,
            "state": state,
            "size": len(names),
            "namespaces": old.get("namespaces", names) if deleting else names,
            "spaces": [self._space(tenant, one, before.get(name_of(one))) for one in spaces],
            "owners": [owner.as_object() for owner in self._facts.owners_of(tenant)],
            "conditions": conditions(old.get("conditions"), ready_condition(), cordoned_condition(cordoned=cordoned)),
            "observedGeneration": metadata(tenant).get("generation", 1),
        }

    def _space(self, tenant: Object, namespace: Object, before: object) -> Object:
        cordoned = bool(dig(tenant, "spec", "cordoned")) or labels_of(namespace).get(CORDONED_LABEL) == "true"
        wanted = [ready_condition(), cordoned_condition(cordoned=cordoned)]
        if is_deleting(namespace):
            wanted.append(("Terminating", "True", "Terminating", "being deleted"))
        uid = metadata(namespace)["uid"]
        return {"name": name_of(namespace), "uid": uid, "conditions": conditions(before, *wanted)}

    def _namespaces_of(self, tenant: Object) -> list[Object]:
        names = sorted(self._spaces.get(metadata(tenant)["uid"], ()))
        found = (self._store.get(NAMESPACES, "", name) for name in names)
        return [namespace for namespace in found if namespace is not None]

    def _keys_of_namespace(self, change: Change) -> Iterator[Key]:
        for reference in tenant_references(change.old or {}):
            self._spaces.get(str(reference.get("uid")), set()).discard(name_of(change.obj))
            yield (str(reference.get("name")),)
        if change.type != "DELETED":
            self._index(change.obj)
        for reference in tenant_references(change.obj):
            yield (str(reference.get("name")),)

    def _index(self, namespace: Object) -> None:
        for reference in tenant_references(namespace):
            self._spaces.setdefault(str(reference.get("uid")), set()).add(name_of(namespace))


class NamespaceRights:
    """Keeps the RoleBindings of a tenant namespace: owners' roles and the Tenant's additional ones, nothing older."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts = CapsuleFacts(store)

    def all_keys(self) -> Iterator[Key]:
        return ((name_of(one),) for one in self._store.list(NAMESPACES) if TENANT_LABEL in labels_of(one))

    def keys(self, change: Change) -> Iterable[Key]:
        if change.resource == NAMESPACES:
            return [(name_of(change.obj),)]
        unlabelled = change.type == "ADDED" and MANAGED_BY_LABEL not in labels_of(change.obj)
        if (unlabelled and change.resource in {SERVICE_ACCOUNTS, CONFIG_MAPS}) or (
            change.resource == ROLE_BINDINGS and _carries(change, BINDING_LABEL)
        ):
            return [(namespace_of(change.obj),)]
        if change.resource == SERVICE_ACCOUNTS and _carries(change, PROMOTE_LABEL):
            return self._keys_of_tenant(labels_of(change.obj).get(NEW_TENANT_LABEL, ""))
        if change.resource.group != GROUP or not _specification_changed(change):
            return ()
        if change.resource.plural == "tenants":
            return self._keys_of_tenant(name_of(change.obj))
        return [key for name in _tenants_of(self._facts, change) for key in self._keys_of_tenant(name)]

    def reconcile(self, key: Key) -> None:
        (name,) = key
        namespace = self._store.get(NAMESPACES, "", name)
        if namespace is None or is_deleting(namespace):
            return
        tenant = self._facts.tenant_of(namespace)
        wanted = {} if tenant is None else {name_of(one): one for one in self._bindings(tenant, name)}
        for found in self._store.list(ROLE_BINDINGS, name):
            binding = wanted.pop(name_of(found), None)
            if binding is not None:
                self._repair(found, binding)
            elif BINDING_LABEL in labels_of(found):
                self._store.delete(ROLE_BINDINGS, name, name_of(found))
        for binding in wanted.values():
            self._store.create(ROLE_BINDINGS, binding)
        if tenant is not None:
            self._stamp_first_objects(name, name_of(tenant))

    def _keys_of_tenant(self, tenant: str) -> Iterator[Key]:
        for namespace in self._store.list(NAMESPACES):
            if labels_of(namespace).get(TENANT_LABEL) == tenant:
                yield (name_of(namespace),)

    def _repair(self, found: Object, wanted: Object) -> None:
        if found.get("roleRef") != wanted["roleRef"]:
            self._store.delete(ROLE_BINDINGS, namespace_of(found), name_of(found))
            self._store.create(ROLE_BINDINGS, wanted)
            return
        new: Object = clone(found) | {"subjects": wanted["subjects"]}
        meta = metadata(new)
        meta["labels"] = dict(labels_of(wanted))
        meta["ownerReferences"] = wanted["metadata"]["ownerReferences"]
        self._store.update(ROLE_BINDINGS, new)

    def _stamp_first_objects(self, namespace: str, tenant: str) -> None:
        """Label what Kubernetes itself puts into a namespace, as the webhook does for every object."""
        for kind in (SERVICE_ACCOUNTS, CONFIG_MAPS):
            for obj in self._store.list(kind, namespace):
                if MANAGED_BY_LABEL not in labels_of(obj):
                    new: Object = clone(obj)
                    labels = metadata(new).setdefault("labels", {})
                    labels[MANAGED_BY_LABEL] = labels[NEW_TENANT_LABEL] = tenant
                    self._store.update(kind, new)

    def _bindings(self, tenant: Object, namespace: str) -> Iterator[Object]:
        for owner in self._facts.owners_of(tenant):
            subject = rbac_subject((owner.kind, owner.name))
            for role in owner.cluster_roles if subject else ():
                yield role_binding(tenant, namespace, role, [subject] if subject else [])
        for extra in dig(tenant, "spec", "additionalRoleBindings") or ():
            subjects = [with_group(subject) for subject in extra.get("subjects") or ()]
            role, labels = str(extra.get("clusterRoleName")), extra.get("labels") or {}
            yield role_binding(tenant, namespace, role, subjects, labels)


class CapsuleRights:
    """Keeps the ClusterRoles to create and delete namespaces, who may create, and the configuration's status."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts = CapsuleFacts(store)

    def all_keys(self) -> Iterator[Key]:
        yield ("rights",)

    def keys(self, change: Change) -> Iterable[Key]:
        ours = name_of(change.obj).startswith("capsule-") or _CREATED_BY.items() <= labels_of(change.obj).items()
        rights = ours and change.resource in {CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS}
        promoted = change.resource == SERVICE_ACCOUNTS and _carries(change, PROMOTE_LABEL)
        ruled = change.resource.group == GROUP and _specification_changed(change)
        return self.all_keys() if rights or promoted or ruled else ()

    def reconcile(self, key: Key) -> None:  # noqa: ARG002 - there is only one key
        provisioner, deleter = self._facts.role_names()
        wanted = {provisioner: ["create", "patch"], deleter: ["delete"]}
        for name, verbs in wanted.items():
            self._put(
                CLUSTER_ROLES,
                {
                    "metadata": {"name": name, "labels": dict(_CREATED_BY)},
                    "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": verbs}],
                },
            )
        for role in self._store.list(CLUSTER_ROLES):
            if _CREATED_BY.items() <= labels_of(role).items() and name_of(role) not in wanted:
                self._store.delete(CLUSTER_ROLES, "", name_of(role))
        users = self._facts.users()
        promoted = [account for tenant in self._facts.tenants() for account in self._facts.promoted(tenant)]
        subjects = dict.fromkeys([*users, *self._facts.administrators(), *promoted])
        self._put(
            CLUSTER_ROLE_BINDINGS,
            {
                "metadata": {"name": provisioner, "labels": dict(_CREATED_BY)},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": provisioner},
                "subjects": [found for found in map(rbac_subject, sorted(subjects)) if found],
            },
        )
        self._report(users)

    def _put(self, kind: Resource, wanted: Object) -> None:
        found = self._store.get(kind, "", name_of(wanted))
        if found is None:
            self._store.create(kind, wanted)
            return
        new: Object = clone(found) | {field: value for field, value in wanted.items() if field != "metadata"}
        metadata(new)["labels"] = labels_of(found) | labels_of(wanted)
        self._store.update(kind, new)

    def _report(self, users: list[Subject]) -> None:
        kind = self._facts.kind("capsuleconfigurations")
        found = self._store.get(kind, "", CONFIGURATION_NAME) if kind else None
        if kind is None or found is None:
            return
        new: Object = clone(found)
        old = new.get("status") or {}
        new["status"] = {
            **old,
            "users": [{"kind": subject, "name": name} for subject, name in users],
            "tenants": sorted(name_of(tenant) for tenant in self._facts.tenants()),
            "conditions": conditions(old.get("conditions"), ready_condition()),
        }
        self._store.update(kind, new, subresource="status")


class TenantOwners:
    """Keeps the status of TenantOwners: the Tenants that they own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts = CapsuleFacts(store)

    def all_keys(self) -> Iterator[Key]:
        return ((name_of(owner),) for owner in self._facts.tenant_owners())

    def keys(self, change: Change) -> Iterable[Key]:
        if change.resource.group != GROUP or not _specification_changed(change):
            return ()
        if change.resource.plural == "tenantowners":
            return [(name_of(change.obj),)]
        return self._keys_of_tenant(change) if change.resource.plural == "tenants" else ()

    def reconcile(self, key: Key) -> None:
        kind = self._facts.kind("tenantowners")
        owner = self._store.get(kind, "", key[0]) if kind else None
        if kind is None or owner is None or is_deleting(owner):
            return
        new: Object = clone(owner)
        new["status"] = {
            "tenants": [name_of(tenant) for tenant in self._facts.concerned_by(owner)],
            "conditions": conditions(dig(owner, "status", "conditions"), ready_condition()),
            "observedGeneration": metadata(owner).get("generation", 1),
        }
        self._store.update(kind, new, subresource="status")

    def _keys_of_tenant(self, change: Change) -> Iterator[Key]:
        matches = tenant_owner_matcher(change.obj)
        for owner in self._facts.tenant_owners():
            if matches(owner) or name_of(change.obj) in (dig(owner, "status", "tenants") or ()):
                yield (name_of(owner),)


def _tenants_of(facts: CapsuleFacts, change: Change) -> list[str]:
    """Return the Tenants whose owners may differ after a change of a TenantOwner or the configuration."""
    if not _specification_changed(change):
        return []
    if change.resource.plural == "capsuleconfigurations":
        return [name_of(tenant) for tenant in facts.tenants()]
    if change.resource.plural != "tenantowners":
        return []
    states = [state for state in (change.obj, change.old) if state is not None]
    return list(dict.fromkeys(name_of(tenant) for state in states for tenant in facts.concerned_by(state)))


def _carries(change: Change, label: str) -> bool:
    return label in labels_of(change.obj) or (change.old is not None and label in labels_of(change.old))


def _specification_changed(change: Change) -> bool:
    if change.old is None or change.type == "DELETED":
        return True
    return change.old.get("spec") != change.obj.get("spec") or labels_of(change.old) != labels_of(change.obj)
