"""An account's entry among the users of Capsule: what it looks like, whose it is, and how it comes and goes. Pure.

What Tether added it remembers by annotations on the CapsuleConfiguration itself, where no tenant can write; an entry
that nobody remembers is somebody else's. The lists are atomic, so a change is a JSON patch of the one entry that stands
or falls with the resourceVersion that was read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from eventcore.objects import OWN_PREFIX
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.objects import CapsuleConfiguration

Field = Literal["users", "userNames", "userGroups"]
"""Lists of the spec, the best first: those of Capsule 0.12, of 0.10 and of every one before."""
Object = dict[str, Any]

FIELDS: Final[tuple[Field, ...]] = get_args(Field)
ANNOTATION_PREFIX: Final = OWN_PREFIX + "user-"
"""Of the annotations that remember entries; the rest of the key is a hash of the account, the value
``<field> <namespace>/<name> <tenant>``."""
_PARTS: Final = 3


class Memory(msgspec.Struct, frozen=True):
    """An entry that Tether added: in which list, and for an owner of which tenant."""

    field: Field
    tenant: str


def annotation(account: Account) -> str:
    """Return the key of the annotation that remembers an account's entry."""
    return ANNOTATION_PREFIX + hashlib.sha256(str(account).encode()).hexdigest()[:16]


def remembered(annotations: Mapping[str, str]) -> dict[Account, Memory]:
    """Return the entries that Tether added, by account; what is malformed or at another account's key is none."""
    found: dict[Account, Memory] = {}
    for key, value in annotations.items():
        parts = value.split(" ")
        if not key.startswith(ANNOTATION_PREFIX) or len(parts) != _PARTS or parts[0] not in FIELDS:
            continue
        account = Account.of_text(parts[1])
        if account is not None and key == annotation(account):
            found[account] = Memory(next(field for field in FIELDS if field == parts[0]), parts[2])
    return found


def entry(field: Field, account: Account) -> Object | str:
    """Return the entry of an account in a list: itself, or where only groups are known that of its namespace."""
    match field:
        case "users":
            return {"kind": "ServiceAccount", "name": account.username}
        case "userNames":
            return account.username
        case "userGroups":
            return account.groups[1]


def listed(configuration: CapsuleConfiguration | None) -> frozenset[tuple[str, str]]:
    """Return (kind, name) of everybody whom the lists of the spec name; the kind of a bare user name is ""."""
    if configuration is None:
        return frozenset()
    spec = configuration.spec
    return frozenset(
        {(user.kind, user.name) for user in spec.users}
        | {("", name) for name in spec.user_names}
        | {("Group", name) for name in spec.user_groups}
    )


def best_field(served: Iterable[str]) -> Field | None:
    """Return the list in which an entry belongs where these fields of the spec are served, None where none is."""
    known = set(served)
    return next((field for field in FIELDS if field in known), None)


def is_kept(annotations: Mapping[str, str], spec: Mapping[str, Any], account: Account) -> bool:
    """Tell whether an account has its entry, Tether's or one that somebody else wrote."""
    memory = remembered(annotations).get(account)
    if memory is not None:
        return entry(memory.field, account) in (spec.get(memory.field) or ())
    return any(entry(field, account) in (spec.get(field) or ()) for field in ("users", "userNames"))


def addition(body: Object, account: Account, tenant: str, field: Field) -> list[Object]:
    """Return the JSON patch that adds an account's entry at the end of a list; [] where it stands there already."""
    metadata, spec = body["metadata"], body.get("spec")
    annotations = metadata.get("annotations")
    new, key = entry(field, account), annotation(account)
    have = (spec or {}).get(field) or []
    memories = remembered(annotations or {})
    if new in have and not any(m.field == field and entry(field, other) == new for other, m in memories.items()):
        return []
    operations = [_test(metadata)]
    if new not in have:
        if spec is None:
            operations.append({"op": "add", "path": "/spec", "value": {}})
        operations.append(
            {"op": "add", "path": f"/spec/{field}/-", "value": new}
            if have
            else {"op": "add", "path": f"/spec/{field}", "value": [new]}
        )
    value = f"{field} {account} {tenant}"
    operations.append(
        {"op": "add", "path": f"/metadata/annotations/{_pointer(key)}", "value": value}
        if annotations
        else {"op": "add", "path": "/metadata/annotations", "value": {key: value}}
    )
    return operations


def removal(body: Object, account: Account) -> list[Object]:
    """Return the JSON patch that takes back an account's entry and its memory; [] where Tether added none.

    Of two equal entries one is somebody else's and stays. An entry that another account needs too stays.
    """
    metadata, spec = body["metadata"], body.get("spec") or {}
    memories = remembered(metadata.get("annotations") or {})
    if account not in memories:
        return []
    field = memories[account].field
    old = entry(field, account)
    needed = any(
        memory.field == field and entry(field, other) == old for other, memory in memories.items() if other != account
    )
    operations = [_test(metadata)]
    have = spec.get(field) or []
    if old in have and not needed:
        at = max(index for index, one in enumerate(have) if one == old)
        operations.append({"op": "test", "path": f"/spec/{field}/{at}", "value": old})
        operations.append({"op": "remove", "path": f"/spec/{field}/{at}"})
    operations.append({"op": "remove", "path": f"/metadata/annotations/{_pointer(annotation(account))}"})
    return operations


def _test(metadata: Object) -> Object:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}


def _pointer(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")
