"""What a write makes of an object: which fields the API server owns, fills, or keeps as they were. Pure functions."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tether.devcluster import crds
from tether.devcluster.objects import clone, metadata, name_of
from tether.devcluster.resources import CRDS, NAMESPACES, SECRETS, counts_generation

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object, Resource

_SERVER_OWNED = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_FIRST_STATUS = {
    "namespaces": {"phase": "Active"},
    "pods": {"phase": "Pending"},
    "persistentvolumeclaims": {"phase": "Pending"},
    "persistentvolumes": {"phase": "Pending"},
}


def for_create(resource: Resource, obj: Object, *, uid: str, time: str) -> Object:
    """Return the object to store for a create: a copy with the server's own fields set; it has no version yet."""
    new: Object = clone(obj)
    meta = metadata(new)
    for field in _SERVER_OWNED:
        meta.pop(field, None)
    if not resource.namespaced:
        meta.pop("namespace", None)
    meta["uid"] = uid
    meta["creationTimestamp"] = time
    if counts_generation(resource):
        meta["generation"] = 1
    if "status" in resource.subresources:
        new.pop("status", None)
    if resource == NAMESPACES:
        new["spec"] = {"finalizers": ["kubernetes"]}
    if not resource.group and resource.plural in _FIRST_STATUS:
        new["status"] = dict(_FIRST_STATUS[resource.plural])
    return _filled(resource, new, time)


def for_update(resource: Resource, old: Object, obj: Object, subresource: str, time: str) -> Object:
    """Return the object to store for an update through the main endpoint, ``status`` or ``finalize``.

    It keeps what this endpoint cannot change; generation counts a changed specification. The resourceVersion is
    that of ``old``.
    """
    if subresource == "status":
        new: Object = clone(old)
        new.pop("status", None)
        if "status" in obj:
            new["status"] = clone(obj["status"])
        _take_managed_fields(new, obj)
        return new
    if subresource == "finalize":
        new = clone(old)
        new["spec"] = clone(obj.get("spec") or {})
        return new
    new = clone(obj)
    meta, before = metadata(new), metadata(old)
    for field in (*_SERVER_OWNED, "name", "namespace"):
        meta.pop(field, None)
        if field in before:
            meta[field] = before[field]
    if "status" in resource.subresources:
        new.pop("status", None)
        if "status" in old:
            new["status"] = clone(old["status"])
    if resource == NAMESPACES:
        new["spec"] = clone(old.get("spec") or {})
    new = _filled(resource, new, time)
    if counts_generation(resource) and _specification(resource, new) != _specification(resource, old):
        meta["generation"] = int(before.get("generation") or 0) + 1
    return new


def for_deletion(resource: Resource, old: Object, time: str, *, hold: str = "") -> Object:
    """Return the object marked as deleting: it waits for its finalizers, of which ``hold`` is one more."""
    new: Object = clone(old)
    meta = metadata(new)
    meta["deletionTimestamp"] = time
    meta["deletionGracePeriodSeconds"] = 0
    if hold and hold not in (meta.get("finalizers") or []):
        meta["finalizers"] = [*(meta.get("finalizers") or []), hold]
    if meta.get("generation"):
        meta["generation"] += 1
    if resource == NAMESPACES:
        new.setdefault("status", {})["phase"] = "Terminating"
        meta.pop("deletionGracePeriodSeconds")
    return new


def finalizers(resource: Resource, obj: Object) -> list[str]:
    """Return all that must be done before the object may go: its finalizers, and a namespace's own."""
    found = list(metadata(obj).get("finalizers") or [])
    if resource == NAMESPACES:
        found += (obj.get("spec") or {}).get("finalizers") or []
    return found


def _filled(resource: Resource, new: Object, time: str) -> Object:
    new["apiVersion"] = resource.api_version
    new["kind"] = resource.kind
    if resource == NAMESPACES:
        labels = metadata(new).setdefault("labels", {})
        if isinstance(labels, dict):
            labels["kubernetes.io/metadata.name"] = name_of(new)
    elif resource == SECRETS:
        _fold_string_data(new)
    elif resource == CRDS:
        crds.establish(new, time)
    return new


def _fold_string_data(secret: Object) -> None:
    plain = secret.pop("stringData", None)
    if plain:
        data = secret.setdefault("data", {})
        data.update({key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()})
    secret["type"] = secret.get("type") or "Opaque"


def _specification(resource: Resource, obj: Object) -> Object:
    hidden = {"metadata", "status"} if "status" in resource.subresources else {"metadata"}
    return {key: value for key, value in obj.items() if key not in hidden}


def _take_managed_fields(new: Object, obj: Object) -> None:
    managed = metadata(obj).get("managedFields")
    if managed is not None:
        metadata(new)["managedFields"] = clone(managed)
