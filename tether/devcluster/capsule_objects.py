"""What Capsule's controllers write: the RoleBindings of a namespace, their subjects, and conditions.

Nothing here reads the store; when to write is for `capsule_controllers`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tether.devcluster.capsule_crds import GROUP
from tether.devcluster.capsule_facts import CONTROLLED_LABEL, MANAGED_BY_LABEL, NEW_TENANT_LABEL, Subject
from tether.devcluster.objects import metadata, name_of, now
from tether.devcluster.resources import RBAC
from tether.devcluster.tokens import split_username

if TYPE_CHECKING:
    from tether.devcluster.contracts import Object

BINDING_LABEL = f"{GROUP}/role-binding"


def role_binding(
    tenant: Object, namespace: str, role: str, subjects: list[Object], labels: Object | None = None
) -> Object:
    """Return a RoleBinding in a namespace of a Tenant; its name is made of the role and the subjects."""
    made_of = repr((role, [sorted(subject.items()) for subject in subjects]))
    digest = hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()
    return {
        "metadata": {
            "name": f"capsule:managed:{digest}",
            "namespace": namespace,
            "labels": {
                **(labels or {}),
                NEW_TENANT_LABEL: name_of(tenant),
                MANAGED_BY_LABEL: name_of(tenant),
                CONTROLLED_LABEL: "controller",
                BINDING_LABEL: digest,
            },
            "ownerReferences": [
                {
                    "apiVersion": tenant["apiVersion"],
                    "kind": "Tenant",
                    "name": name_of(tenant),
                    "uid": metadata(tenant)["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                },
            ],
        },
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    }


def rbac_subject(subject: Subject) -> Object | None:
    """Return the subject of a binding; None for an account whose name is not four colon parts."""
    kind, name = subject
    if kind != "ServiceAccount":
        return {"apiGroup": RBAC, "kind": kind, "name": name}
    account = split_username(name)
    return {"kind": kind, "namespace": account[0], "name": account[1]} if account else None


def with_group(subject: Object) -> Object:
    """Return a subject as RBAC wants it: a User or Group with its API group."""
    return subject if subject.get("kind") == "ServiceAccount" else {"apiGroup": RBAC, **subject}


def ready_condition() -> tuple[str, str, str, str]:
    """Return (type, status, reason, message) of what was reconciled."""
    return ("Ready", "True", "Succeeded", "reconciled")


def cordoned_condition(*, cordoned: bool) -> tuple[str, str, str, str]:
    """Return (type, status, reason, message) of what may be cordoned."""
    return ("Cordoned", "True", "Cordoned", "cordoned") if cordoned else ("Cordoned", "False", "Active", "not cordoned")


def conditions(old: object, *wanted: tuple[str, str, str, str]) -> list[Object]:
    """Return conditions of (type, status, reason, message); the time of one changes with its status only."""
    known = {one.get("type"): one for one in old if isinstance(one, dict)} if isinstance(old, list) else {}
    conditions = []
    for type_, status, reason, message in wanted:
        before = known.get(type_, {})
        since = before.get("lastTransitionTime") if before.get("status") == status else None
        fields = {"type": type_, "status": status, "reason": reason, "message": message}
        conditions.append(fields | {"lastTransitionTime": since or now()})
    return conditions
