"""Tables as kubectl prints them: the columns of each kind, rows, ages; and the metadata-only forms. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from tether.devcluster import jsonpath
from tether.devcluster.contracts import Object, Resource
from tether.devcluster.objects import dig, labels_of, metadata, name_of

Cell = Callable[[Object], Any]
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400


class Column(msgspec.Struct, frozen=True):
    """One column: priority 0 always shows, 1 with ``-o wide``."""

    name: str
    cell: Cell
    priority: int = 0
    type: str = "string"
    format: str = ""

    def definition(self) -> Object:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": f"{self.name} of the object",
            "priority": self.priority,
        }


def human_age(timestamp: Any, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was, as kubectl shows it: 45s, 3m20s, 5h, 2d4h."""
    if not isinstance(timestamp, str):
        return "<unknown>"
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<unknown>"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = int(((now or datetime.now(UTC)) - then).total_seconds())
    if seconds < 0:
        return "0s" if seconds >= -1 else "<invalid>"
    if seconds < 2 * _MINUTE:
        return f"{seconds}s"
    steps = (
        (10 * _MINUTE, _MINUTE, "m", 1, "s"),
        (3 * _HOUR, _MINUTE, "m", 0, ""),
        (8 * _HOUR, _HOUR, "h", _MINUTE, "m"),
        (2 * _DAY, _HOUR, "h", 0, ""),
        (8 * _DAY, _DAY, "d", _HOUR, "h"),
        (2 * _YEAR, _DAY, "d", 0, ""),
        (8 * _YEAR, _YEAR, "y", _DAY, "d"),
    )
    for below, unit, letter, part, part_letter in steps:
        if seconds < below:
            rest = seconds % unit // part if part else 0
            return f"{seconds // unit}{letter}" + (f"{rest}{part_letter}" if rest else "")
    return f"{seconds // _YEAR}y"


def _at(*path: str, default: Any = "<none>") -> Cell:
    def cell(obj: Object) -> Any:
        value = dig(obj, *path)
        return default if value is None else value

    return cell


def _count(*path: str) -> Cell:
    return lambda obj: len(dig(obj, *path) or ())


def _age(obj: Object) -> str:
    return human_age(metadata(obj).get("creationTimestamp"))


def _ready(obj: Object) -> str:
    return f"{dig(obj, 'status', 'readyReplicas') or 0}/{dig(obj, 'spec', 'replicas') or 0}"


def _containers_ready(pod: Object) -> str:
    states = dig(pod, "status", "containerStatuses") or []
    ready = sum(bool(state.get("ready")) for state in states)
    return f"{ready}/{len(dig(pod, 'spec', 'containers') or ())}"


def _restarts(pod: Object) -> str:
    return str(sum(int(state.get("restartCount") or 0) for state in dig(pod, "status", "containerStatuses") or []))


def _ports(service: Object) -> str:
    ports = dig(service, "spec", "ports") or []
    return ",".join(f"{port.get('port')}/{port.get('protocol') or 'TCP'}" for port in ports) or "<none>"


def _role(binding: Object) -> str:
    return f"{dig(binding, 'roleRef', 'kind')}/{dig(binding, 'roleRef', 'name')}"


def _subjects(kind: str) -> Cell:
    def cell(binding: Object) -> str:
        found = [subject for subject in binding.get("subjects") or [] if subject.get("kind") == kind]
        account = kind == "ServiceAccount"
        return ", ".join(
            f"{one.get('namespace')}/{one.get('name')}" if account else one.get("name", "") for one in found
        )

    return cell


def _node_status(node: Object) -> str:
    for condition in dig(node, "status", "conditions") or []:
        if condition.get("type") == "Ready":
            return "Ready" if condition.get("status") == "True" else "NotReady"
    return "Unknown"


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    return ",".join(sorted(key.removeprefix(prefix) for key in labels_of(node) if key.startswith(prefix))) or "<none>"


def _involved(event: Object) -> str:
    return f"{str(dig(event, 'involvedObject', 'kind')).lower()}/{dig(event, 'involvedObject', 'name')}"


def _last_seen(event: Object) -> str:
    return human_age(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp"))


_NAME = Column("Name", name_of, format="name")
_AGE = Column("Age", _age)
_CREATED = Column("Created At", _at("metadata", "creationTimestamp"), type="date")
_REPLICAS = (Column("Ready", _ready), Column("Up-to-date", _at("status", "updatedReplicas", default=0), type="integer"))
_BINDING = (
    _NAME,
    Column("Role", _role),
    _AGE,
    Column("Users", _subjects("User"), 1),
    Column("Groups", _subjects("Group"), 1),
    Column("ServiceAccounts", _subjects("ServiceAccount"), 1),
)
_RBAC = "rbac.authorization.k8s.io"
_COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    ("", "namespaces"): (_NAME, Column("Status", _at("status", "phase")), _AGE),
    ("", "serviceaccounts"): (_NAME, Column("Secrets", _count("secrets"), type="integer"), _AGE),
    ("", "secrets"): (_NAME, Column("Type", _at("type")), Column("Data", _count("data"), type="integer"), _AGE),
    ("", "configmaps"): (_NAME, Column("Data", _count("data"), type="integer"), _AGE),
    ("", "events"): (
        Column("Last Seen", _last_seen),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _involved),
        Column("Source", _at("source", "component", default=""), 1),
        Column("Message", _at("message", default="")),
        Column("Count", _at("count", default=1), 1, "integer"),
        Column("Name", name_of, 1, format="name"),
    ),
    ("", "pods"): (
        _NAME,
        Column("Ready", _containers_ready),
        Column("Status", _at("status", "phase", default="Pending")),
        Column("Restarts", _restarts),
        _AGE,
        Column("IP", _at("status", "podIP"), 1),
        Column("Node", _at("spec", "nodeName"), 1),
    ),
    ("", "services"): (
        _NAME,
        Column("Type", _at("spec", "type", default="ClusterIP")),
        Column("Cluster-IP", _at("spec", "clusterIP")),
        Column("External-IP", _at("spec", "externalName")),
        Column("Port(s)", _ports),
        _AGE,
    ),
    ("", "nodes"): (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        _AGE,
        Column("Version", _at("status", "nodeInfo", "kubeletVersion", default="")),
    ),
    ("", "resourcequotas"): (_NAME, _AGE),
    ("", "limitranges"): (_NAME, _CREATED),
    ("", "persistentvolumeclaims"): (
        _NAME,
        Column("Status", _at("status", "phase")),
        Column("Volume", _at("spec", "volumeName", default="")),
        Column("StorageClass", _at("spec", "storageClassName", default="")),
        _AGE,
    ),
    ("", "persistentvolumes"): (
        _NAME,
        Column("Reclaim Policy", _at("spec", "persistentVolumeReclaimPolicy", default="")),
        Column("Status", _at("status", "phase")),
        Column("StorageClass", _at("spec", "storageClassName", default="")),
        _AGE,
    ),
    ("apps", "deployments"): (
        _NAME,
        *_REPLICAS,
        Column("Available", _at("status", "availableReplicas", default=0), type="integer"),
        _AGE,
    ),
    ("apps", "statefulsets"): (_NAME, Column("Ready", _ready), _AGE),
    (_RBAC, "roles"): (_NAME, _CREATED),
    (_RBAC, "clusterroles"): (_NAME, _CREATED),
    (_RBAC, "rolebindings"): _BINDING,
    (_RBAC, "clusterrolebindings"): _BINDING,
    ("apiextensions.k8s.io", "customresourcedefinitions"): (_NAME, _CREATED),
    ("storage.k8s.io", "storageclasses"): (
        _NAME,
        Column("Provisioner", _at("provisioner")),
        Column("ReclaimPolicy", _at("reclaimPolicy", default="Delete")),
        Column("VolumeBindingMode", _at("volumeBindingMode", default="Immediate")),
        Column("AllowVolumeExpansion", _at("allowVolumeExpansion", default=False), type="boolean"),
        _AGE,
    ),
    ("networking.k8s.io", "ingressclasses"): (_NAME, Column("Controller", _at("spec", "controller")), _AGE),
    ("networking.k8s.io", "ingresses"): (_NAME, Column("Class", _at("spec", "ingressClassName")), _AGE),
    ("networking.k8s.io", "networkpolicies"): (_NAME, _AGE),
    ("scheduling.k8s.io", "priorityclasses"): (
        _NAME,
        Column("Value", _at("value", default=0), type="integer"),
        Column("Global-Default", _at("globalDefault", default=False), type="boolean"),
        _AGE,
    ),
    ("node.k8s.io", "runtimeclasses"): (_NAME, Column("Handler", _at("handler")), _AGE),
    ("coordination.k8s.io", "leases"): (_NAME, Column("Holder", _at("spec", "holderIdentity", default="")), _AGE),
}


def columns_of(resource: Resource) -> tuple[Column, ...]:
    """Return the columns of a kind: its own, those of its definition, or name and age."""
    if resource.columns:
        own = tuple(
            Column(name, _printed(kind, path), priority, kind) for name, kind, path, priority in resource.columns
        )
        return (_NAME, *own)
    return _COLUMNS.get((resource.group, resource.plural), (_NAME, _AGE))


def _printed(kind: str, path: str) -> Cell:
    def cell(obj: Object) -> Any:
        found = jsonpath.find(obj, path)
        if not found or found[0] is None:
            return "<unknown>" if kind == "date" else None
        if kind == "date":
            return human_age(found[0])
        if kind in {"integer", "number", "boolean"}:
            return found[0]
        return " ".join(value if isinstance(value, str) else json.dumps(value) for value in found)

    return cell


def table(
    resource: Resource, items: Sequence[Object], list_meta: Object, *, include: str, version: str = "v1"
) -> Object:
    """Return a meta.k8s.io Table of objects; ``include`` is None, Metadata or Object (includeObject)."""
    columns = columns_of(resource)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": list_meta,
        "columnDefinitions": [column.definition() for column in columns],
        "rows": [_row(columns, obj, include, version) for obj in items],
    }


def _row(columns: tuple[Column, ...], obj: Object, include: str, version: str) -> Object:
    row: Object = {"cells": [_cell(column, obj) for column in columns]}
    if include == "Object":
        row["object"] = obj
    elif include != "None":
        row["object"] = partial(obj, version)
    return row


def _cell(column: Column, obj: Object) -> Any:
    try:
        return column.cell(obj)
    except (TypeError, ValueError, AttributeError):  # the specification of a built-in kind is taken as it comes
        return "<invalid>"


def partial(obj: Object, version: str = "v1") -> Object:
    """Return the PartialObjectMetadata of an object."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj.get("metadata") or {},
    }
