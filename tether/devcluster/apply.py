"""Server-side apply and managedFields: who owns what, what an apply changes or removes, and when it conflicts. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from tether.devcluster import errors
from tether.devcluster.contracts import ApiError, Object, Resource
from tether.devcluster.fieldsets import Path, Shape, flatten, from_fields, merge, names_item, remove, to_fields, written
from tether.devcluster.objects import clone, metadata, name_of

_UNTRACKED: tuple[Path, ...] = (
    ("f:apiVersion",),
    ("f:kind",),
    *(
        ("f:metadata", f"f:{field}")
        for field in (
            "name",
            "namespace",
            "generateName",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        )
    ),
)
_METADATA: Path = ("f:metadata",)
_STATUS = "f:status"


class Owner(msgspec.Struct, frozen=True):
    """What tells one managedFields entry from another."""

    manager: str
    operation: str  # Apply or Update
    subresource: str
    api_version: str

    def shown(self) -> str:
        """Return the owner as a conflict names it."""
        sub = f' with subresource "{self.subresource}"' if self.subresource else ""
        using = f" using {self.api_version}" if self.operation == "Update" else ""
        return f'"{self.manager}"{sub}{using}'


class _Ledger:
    """The managedFields of one object, read into sets."""

    def __init__(self, obj: Object | None) -> None:
        self.sets: dict[Owner, set[Path]] = {}
        self._times: dict[Owner, str] = {}
        self._before: dict[Owner, set[Path]] = {}
        for entry in (metadata(obj).get("managedFields") or []) if obj else []:
            owner = Owner(
                str(entry.get("manager") or ""),
                str(entry.get("operation") or "Update"),
                str(entry.get("subresource") or ""),
                str(entry.get("apiVersion") or ""),
            )
            self.sets[owner] = from_fields(entry.get("fieldsV1"))
            self._before[owner] = set(self.sets[owner])
            self._times[owner] = str(entry.get("time") or "")

    def find(self, manager: str, operation: str, subresource: str) -> Owner | None:
        """Return the manager's entry of that operation, of whatever version."""
        for owner in self.sets:
            if (owner.manager, owner.operation, owner.subresource) == (manager, operation, subresource):
                return owner
        return None

    def lose(self, paths: set[Path], *, but: Owner | None = None) -> None:
        """Take paths from all owners."""
        for owner in self.sets:
            if owner != but:
                self.sets[owner] -= paths

    def entries(self, time: str) -> list[Object]:
        """Return managedFields; the time of an entry is that of its last change."""
        found = []
        for owner, owned in self.sets.items():
            if not owned:
                continue
            same = owned == self._before.get(owner)
            entry: Object = {
                "manager": owner.manager,
                "operation": owner.operation,
                "apiVersion": owner.api_version,
                "time": self._times[owner] if same else time,
                "fieldsType": "FieldsV1",
                "fieldsV1": to_fields(owned),
            }
            if owner.subresource:
                entry["subresource"] = owner.subresource
            found.append(entry)
        return sorted(found, key=lambda e: (e["operation"], e["time"], e["manager"], e.get("subresource", "")))


def _tracked(resource: Resource, shape: Shape, obj: Object, subresource: str) -> dict[Path, Any]:
    """Return what this endpoint owns of an object: status belongs to its own endpoint where the kind has one."""
    split = "status" in resource.subresources

    def belongs(path: Path) -> bool:
        if path == _METADATA or path[:1] in _UNTRACKED or path[:2] in _UNTRACKED:
            return False
        if subresource == "status":
            return path[0] == _STATUS
        return not (split and path[0] == _STATUS)

    return {path: value for path, value in flatten(shape, obj).items() if belongs(path)}


def _changed(old: dict[Path, Any], new: dict[Path, Any]) -> set[Path]:
    """Return the paths that are new or have another value."""
    return {path for path, value in new.items() if path not in old or not _same(old[path], value)}


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and bool(old == new)


def record_update(
    resource: Resource,
    shape: Shape,
    old: Object | None,
    new: Object,
    *,
    manager: str,
    subresource: str,
    time: str,
) -> None:
    """Write into ``new`` who owns what after a create, update or patch: the writer owns all that it changed."""
    given = metadata(new).get("managedFields")
    if given is not None and given in ([], [{}]) and old is not None and metadata(old).get("managedFields"):
        metadata(new).pop("managedFields")  # the documented way of giving up all ownership
        return
    metadata(new).pop("managedFields", None)
    if old is not None and not metadata(old).get("managedFields"):
        return
    ledger = _Ledger(old)
    before = _tracked(resource, shape, old, subresource) if old is not None else {}
    after = _tracked(resource, shape, new, subresource)
    changed, gone = _changed(before, after), set(before) - set(after)
    owner = ledger.find(manager, "Update", subresource)
    ledger.lose(changed | gone, but=owner)
    owned = ledger.sets.pop(owner) if owner else set()
    if owned or changed:
        current = Owner(manager, "Update", subresource, resource.api_version)
        ledger.sets[current] = (owned - gone) | changed
    entries = ledger.entries(time)
    if entries:
        metadata(new)["managedFields"] = entries


def apply(
    resource: Resource,
    shape: Shape,
    live: Object | None,
    config: Object,
    *,
    manager: str,
    subresource: str,
    force: bool,
    time: str,
) -> Object:
    """Return the object after a server-side apply of ``config``; 409 with every conflict unless ``force``.

    Fields that this manager applied before and leaves out now go, unless somebody else owns them too.
    """
    config = clone(config)
    metadata(config).pop("managedFields", None)
    base: Object = live if live is not None else {"metadata": {}}
    if live is not None and not metadata(live).get("managedFields"):
        base = _with_first_owner(resource, shape, live, time)
    ledger = _Ledger(base)
    applied = set(_tracked(resource, shape, config, subresource))
    previous = ledger.find(manager, "Apply", subresource)
    last = ledger.sets.pop(previous) if previous else set()
    merged = merge(shape, base, config)
    if subresource == "status":
        merged = {key: clone(value) for key, value in base.items() if key != "status"} | (
            {"status": merged["status"]} if "status" in merged else {}
        )
    theirs = set().union(*ledger.sets.values()) if ledger.sets else set()
    merged = _pruned(shape, merged, last - applied - theirs, applied | theirs)
    before = _tracked(resource, shape, base, subresource)
    after = _tracked(resource, shape, merged, subresource)
    changed = _changed(before, after)
    conflicts = [(owner, path) for owner, owned in ledger.sets.items() for path in sorted(owned & changed)]
    if conflicts and not force:
        raise _conflict(resource, name_of(config), conflicts)
    ledger.lose(changed | (set(before) - set(after)))
    ledger.sets[Owner(manager, "Apply", subresource, resource.api_version)] = applied
    metadata(merged)["managedFields"] = ledger.entries(time)
    return merged


def _with_first_owner(resource: Resource, shape: Shape, live: Object, time: str) -> Object:
    """Return an object that nobody is recorded to own, with all of it owned by ``before-first-apply``."""
    owned = set(_tracked(resource, shape, live, "")) | set(_tracked(resource, shape, live, "status"))
    based = clone(live)
    metadata(based)["managedFields"] = [
        {
            "manager": "before-first-apply",
            "operation": "Update",
            "apiVersion": resource.api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields(owned),
        }
    ]
    return dict(based)


def _pruned(shape: Shape, merged: Object, gone: set[Path], kept: set[Path]) -> Object:
    """Return the object without the paths that are gone; what is kept below one of them keeps it alive.

    An item of a list goes as a whole or keeps the keys that name it.
    """
    result: Any = merged
    for path in sorted(gone, key=len):
        if not names_item(path) and not any(other[: len(path)] == path for other in kept):
            result = remove(shape, result, path)
    found: Object = result if isinstance(result, dict) else {}
    found.setdefault("metadata", {})
    return found


def _conflict(resource: Resource, name: str, conflicts: list[tuple[Owner, Path]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {owner.shown()}",
            "field": written(path),
        }
        for owner, path in conflicts
    ]
    if len(conflicts) == 1:
        owner, path = conflicts[0]
        text = f"Apply failed with 1 conflict: conflict with {owner.shown()}: {written(path)}"
    else:
        lines = []
        for shown in sorted({owner.shown() for owner, _ in conflicts}):
            lines.append(f"conflicts with {shown}:")
            lines += [f"- {written(path)}" for owner, path in conflicts if owner.shown() == shown]
        text = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    error = errors.conflict(resource, name)
    return ApiError(409, "Conflict", text, {**(error.details or {}), "causes": causes})
