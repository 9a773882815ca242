"""Kubernetes' own controllers: what the API's users see happen by itself after a write.

A controller names the keys that a change concerns and reconciles a key from the state in the store. It starts from all
keys of the state, so a restart catches up; nothing polls.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Protocol

import structlog

from tether.devcluster.contracts import ApiError
from tether.devcluster.objects import clone, dig, metadata, name_of, namespace_of
from tether.devcluster.rbac import CLUSTER_ROLES, aggregated_rules
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from tether.devcluster.tokens import ACCOUNT_NAME_ANNOTATION, ACCOUNT_UID_ANNOTATION, LEGACY_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tether.devcluster.contracts import Change, Object, Resource
    from tether.devcluster.store import Store
    from tether.devcluster.tokens import TokenIssuer

ROOT_CA = "kube-root-ca.crt"
DEFAULT_ACCOUNT = "default"
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"

Key = tuple[str, ...]

log = structlog.get_logger(__name__)


class Controller(Protocol):
    """What ``follow`` drives. A reconcile may raise ApiError: it is logged, and the next change tries again."""

    def all_keys(self) -> Iterable[Key]:
        """Return the keys of the whole state, once at the start and after the subscription was cut."""

    def keys(self, change: Change) -> Iterable[Key]:
        """Return the keys that a change concerns."""

    def reconcile(self, key: Key) -> None:
        """Make the state right for a key."""


async def run(store: Store, issuer: TokenIssuer) -> None:
    """Run all of Kubernetes' controllers until cancelled."""
    await follow(store, kubernetes(store, issuer))


def kubernetes(store: Store, issuer: TokenIssuer) -> list[Controller]:
    """Return all of Kubernetes' controllers."""
    return [
        NamespaceAccounts(store, issuer.ca_pem),
        LegacyTokens(store, issuer),
        RoleAggregation(store),
        GarbageCollector(store),
        NamespaceDeletion(store),
    ]


async def follow(store: Store, controllers: Sequence[Controller]) -> None:
    """Drive controllers by the changes of the store until cancelled."""
    while True:
        changes = store.changes()
        try:
            work = _everything(controllers)
            while True:
                for controller, key in work:
                    _reconcile(controller, key)
                    await asyncio.sleep(0)  # requests are served in between
                if not await changes.wait():
                    break  # the subscription was cut: begin again from the state
                work = _concerned(controllers, changes.pending())
        finally:
            changes.close()


def settle(store: Store, controllers: Sequence[Controller]) -> None:
    """Reconcile at once, from the state, until nothing changes any more."""
    changes = store.changes()
    try:
        work = _everything(controllers)
        while work:
            for controller, key in work:
                _reconcile(controller, key)
            work = _concerned(controllers, changes.pending())
    finally:
        changes.close()


def _everything(controllers: Sequence[Controller]) -> list[tuple[Controller, Key]]:
    return [(controller, key) for controller in controllers for key in dict.fromkeys(controller.all_keys())]


def _concerned(controllers: Sequence[Controller], changes: Sequence[Change]) -> list[tuple[Controller, Key]]:
    return [
        (controller, key)
        for controller in controllers
        for key in dict.fromkeys(key for change in changes for key in controller.keys(change))
    ]


def _reconcile(controller: Controller, key: Key) -> None:
    try:
        controller.reconcile(key)
    except ApiError as error:
        name = type(controller).__name__
        log.warning("reconcile refused", controller=name, key=key, code=error.code, reason=error.message)


class NamespaceAccounts:
    """Gives every namespace its ``default`` account and the ConfigMap with the cluster's authority."""

    def __init__(self, store: Store, ca_pem: str) -> None:
        self._store = store
        self._ca_pem = ca_pem

    def all_keys(self) -> Iterator[Key]:
        return ((name_of(namespace),) for namespace in self._store.list(NAMESPACES))

    def keys(self, change: Change) -> Iterator[Key]:
        if change.resource == NAMESPACES:
            yield (name_of(change.obj),)
        elif (change.resource, name_of(change.obj)) in {(SERVICE_ACCOUNTS, DEFAULT_ACCOUNT), (CONFIG_MAPS, ROOT_CA)}:
            yield (namespace_of(change.obj),)

    def reconcile(self, key: Key) -> None:
        (namespace,) = key
        found = self._store.get(NAMESPACES, "", namespace)
        if found is None or is_deleting(found):
            return
        if self._store.get(SERVICE_ACCOUNTS, namespace, DEFAULT_ACCOUNT) is None:
            self._store.create(SERVICE_ACCOUNTS, {"metadata": {"name": DEFAULT_ACCOUNT, "namespace": namespace}})
        data = {"ca.crt": self._ca_pem}
        root = self._store.get(CONFIG_MAPS, namespace, ROOT_CA)
        if root is None:
            self._store.create(CONFIG_MAPS, {"metadata": {"name": ROOT_CA, "namespace": namespace}, "data": data})
        elif root.get("data") != data:
            self._store.update(CONFIG_MAPS, clone(root) | {"data": data})


class LegacyTokens:
    """Fills Secrets of type ``kubernetes.io/service-account-token`` and removes those whose account is gone."""

    def __init__(self, store: Store, issuer: TokenIssuer) -> None:
        self._store = store
        self._issuer = issuer

    def all_keys(self) -> Iterator[Key]:
        return (_key(secret) for secret in self._store.list(SECRETS) if secret.get("type") == LEGACY_TYPE)

    def keys(self, change: Change) -> Iterator[Key]:
        if change.resource == SECRETS and change.obj.get("type") == LEGACY_TYPE:
            yield _key(change.obj)
        elif change.resource == SERVICE_ACCOUNTS:
            for secret in self._store.list(SECRETS, namespace_of(change.obj)):
                if secret.get("type") == LEGACY_TYPE and _account_name(secret) == name_of(change.obj):
                    yield _key(secret)

    def reconcile(self, key: Key) -> None:
        secret = self._store.get(SECRETS, *key)
        if secret is None or is_deleting(secret) or not _account_name(secret):
            return
        account = self._store.get(SERVICE_ACCOUNTS, key[0], _account_name(secret))
        uid = dig(secret, "metadata", "annotations", ACCOUNT_UID_ANNOTATION)
        if account is None or (uid and uid != account["metadata"]["uid"]):
            self._store.delete(SECRETS, *key, uid=secret["metadata"]["uid"])
            return
        new: Object = clone(secret)
        metadata(new)["annotations"][ACCOUNT_UID_ANNOTATION] = account["metadata"]["uid"]
        data = new.setdefault("data", {})
        wanted = {"ca.crt": self._issuer.ca_pem, "namespace": key[0]}
        if not data.get("token"):
            wanted["token"] = self._issuer.legacy_token(secret, account)
        data |= {name: base64.b64encode(text.encode()).decode() for name, text in wanted.items()}
        self._store.update(SECRETS, new)


class RoleAggregation:
    """Fills the rules of ClusterRoles that gather those of others."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all_keys(self) -> Iterator[Key]:
        return ((name_of(role),) for role in self._store.list(CLUSTER_ROLES) if role.get("aggregationRule"))

    def keys(self, change: Change) -> Iterable[Key]:
        return self.all_keys() if change.resource == CLUSTER_ROLES else ()

    def reconcile(self, key: Key) -> None:
        role = self._store.get(CLUSTER_ROLES, "", key[0])
        rules = aggregated_rules(role, self._store.list(CLUSTER_ROLES)) if role else None
        if role is not None and rules is not None and rules != role.get("rules"):
            self._store.update(CLUSTER_ROLES, clone(role) | {"rules": rules})


class NamespaceDeletion:
    """Empties a namespace that is being deleted, then lets it go."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all_keys(self) -> Iterator[Key]:
        return ((name_of(namespace),) for namespace in self._store.list(NAMESPACES) if is_deleting(namespace))

    def keys(self, change: Change) -> Iterator[Key]:
        if change.resource == NAMESPACES:
            yield (name_of(change.obj),)
        elif change.type == "DELETED" and change.resource.namespaced:
            yield (namespace_of(change.obj),)

    def reconcile(self, key: Key) -> None:
        (name,) = key
        namespace = self._store.get(NAMESPACES, "", name)
        if namespace is None or not is_deleting(namespace):
            return
        kinds = [resource for resource in self._store.resources() if resource.namespaced]
        for resource in kinds:
            for obj in self._store.list(resource, name):
                if not is_deleting(obj):
                    self._store.delete(resource, name, name_of(obj))
        if any(self._store.list(resource, name) for resource in kinds):
            return  # what has finalizers goes later; its end is a change that brings us back
        new: Object = clone(namespace)
        held = dig(new, "spec", "finalizers") or []
        new["spec"] = {"finalizers": [name for name in held if name != "kubernetes"]}
        self._store.update(NAMESPACES, new, subresource="finalize")


class GarbageCollector:
    """Removes what lost all of its owners, and serves the foreground and orphan ways of deletion.

    An owner is looked for in the dependent's own namespace or at cluster scope; one elsewhere counts as absent. A
    cluster-scoped object that names a namespaced owner is never collected, nor is one whose owner's kind is not served:
    Kubernetes cannot tell either.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._dependents: dict[str, set[Key]] = {}  # by the owner's uid

    def all_keys(self) -> Iterator[Key]:
        self._dependents.clear()
        for resource in self._store.resources():
            for obj in self._store.list(resource):
                self._index(resource, obj)
                yield _object_key(resource, obj)

    def keys(self, change: Change) -> Iterator[Key]:
        key = _object_key(change.resource, change.obj)
        if change.old is not None:
            for reference in _owners(change.old):
                self._dependents.get(str(reference.get("uid")), set()).discard(key)
        if change.type != "DELETED":
            self._index(change.resource, change.obj)
            yield key
            return
        yield from list(self._dependents.pop(change.obj["metadata"]["uid"], ()))
        for reference in _owners(change.obj):  # an owner in foreground deletion waits for its dependents
            owner = self._owner_kind(reference)
            if owner is not None:
                namespace = namespace_of(change.obj) if owner.namespaced else ""
                yield (owner.group, owner.plural, namespace, str(reference.get("name")))

    def reconcile(self, key: Key) -> None:
        group, plural, namespace, name = key
        resource = self._store.resource(group, plural)
        obj = self._store.get(resource, namespace, name) if resource else None
        if resource is None or obj is None:
            return
        if is_deleting(obj):
            self._finish_deletion(resource, obj)
            return
        references = _owners(obj)
        absent = [reference for reference in references if self._is_absent(resource, obj, reference)]
        if not absent:
            return
        if len(absent) == len(references):
            self._store.delete(resource, namespace, name, uid=obj["metadata"]["uid"])
        else:
            new: Object = clone(obj)
            metadata(new)["ownerReferences"] = [one for one in references if one not in absent]
            self._store.update(resource, new)

    def _finish_deletion(self, resource: Resource, obj: Object) -> None:
        held = metadata(obj).get("finalizers") or []
        if not {FOREGROUND, ORPHAN} & set(held):
            return
        uid = obj["metadata"]["uid"]
        for group, plural, namespace, name in sorted(self._dependents.get(uid, ())):
            kind = self._store.resource(group, plural)
            dependent = self._store.get(kind, namespace, name) if kind else None
            if kind is None or dependent is None:
                continue
            if ORPHAN in held:
                new: Object = clone(dependent)
                metadata(new)["ownerReferences"] = [one for one in _owners(dependent) if one.get("uid") != uid]
                self._store.update(kind, new)
            elif not is_deleting(dependent):
                self._store.delete(kind, namespace, name)
        if FOREGROUND in held and any(self._exists(dependent) for dependent in self._dependents.get(uid, ())):
            return
        released: Object = clone(obj)
        metadata(released)["finalizers"] = [name for name in held if name not in {FOREGROUND, ORPHAN}]
        self._store.update(resource, released)

    def _exists(self, key: Key) -> bool:
        resource = self._store.resource(key[0], key[1])
        return resource is not None and self._store.get(resource, key[2], key[3]) is not None

    def _is_absent(self, resource: Resource, obj: Object, reference: Object) -> bool:
        owner = self._owner_kind(reference)
        if owner is None or (owner.namespaced and not resource.namespaced):
            return False
        namespace = namespace_of(obj) if owner.namespaced else ""
        found = self._store.get(owner, namespace, str(reference.get("name")))
        return found is None or found["metadata"]["uid"] != reference.get("uid")

    def _owner_kind(self, reference: Object) -> Resource | None:
        group = str(reference.get("apiVersion") or "").rpartition("/")[0]
        for resource in self._store.resources():
            if resource.group == group and resource.kind == reference.get("kind"):
                return resource
        return None

    def _index(self, resource: Resource, obj: Object) -> None:
        for reference in _owners(obj):
            self._dependents.setdefault(str(reference.get("uid")), set()).add(_object_key(resource, obj))


def is_deleting(obj: Object) -> bool:
    """Tell whether an object is marked for deletion."""
    return bool(dig(obj, "metadata", "deletionTimestamp"))


def _owners(obj: Object) -> list[Object]:
    owners = dig(obj, "metadata", "ownerReferences")
    return owners if isinstance(owners, list) else []


def _key(obj: Object) -> tuple[str, str]:
    return namespace_of(obj), name_of(obj)


def _object_key(resource: Resource, obj: Object) -> Key:
    return resource.group, resource.plural, namespace_of(obj), name_of(obj)


def _account_name(secret: Object) -> str:
    return str(dig(secret, "metadata", "annotations", ACCOUNT_NAME_ANNOTATION) or "")
