"""The compiled grants in the KV bucket ``access``: what the proxy needs to decide, ready to use.

``access`` workers write them, the proxy reads them. A value that is empty, undecodable or names another key is no
grant: ``decode_grant`` returns None and the reader fails closed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from eventcore.errors import EventError
from eventcore.keys import Key, key

BUCKET: Final = "access"


class SelectorTerm(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on labels. ``operator`` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of one cluster-scoped kind: those that any of its parts names.

    ``pattern`` is a regular expression with the semantics of RE2 that matches somewhere in the name, "" for none. Of a
    selector all terms hold; one without terms chooses every object.
    """

    names: tuple[str, ...] = ()
    pattern: str = ""
    selectors: tuple[tuple[SelectorTerm, ...], ...] = ()


class ClusterRule(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of cluster-scoped kinds that somebody may see: those with the labels of a selector.

    ``groups`` and ``resources`` are as clusterResources have them. ``lists``: they may be listed and watched too, not
    only read one by one. Of the selector all terms hold; one without terms chooses nothing. ``tenant``: whose
    ProxySetting it comes from, so it counts while that tenant is there; "" for a GlobalProxySettings.
    """

    groups: tuple[str, ...]
    resources: tuple[str, ...]
    selector: tuple[SelectorTerm, ...]
    lists: bool = True
    tenant: str = ""


class TenantGrant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="tenant"):
    """``tenant.<name>``: the namespaces that are provably the tenant's, sorted.

    ``choices``: by kind as a ProxySetting names it (Nodes, StorageClasses, ...), what the Tenant allows of it.
    """

    name: str
    uid: str
    namespaces: tuple[str, ...] = ()
    choices: dict[str, Choice] = {}

    def key(self) -> Key:
        return key("tenant", self.name)


class SubjectGrant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="subject"):
    """``subject.<kind>.<name>``: the tenants that a User, Group or ServiceAccount owns, sorted.

    The name of a ServiceAccount is its user name, ``system:serviceaccount:<namespace>:<name>``. ``operations``: by
    tenant and by kind as a ProxySetting names it, which of List, Update and Delete it may do. ``rules``: what it may
    see beside that, and may without owning anything. ``reflected``: namespaces of other tenants in which a RoleBinding
    names the subject; ``shared``: those of them that its lists across namespaces hold too.
    """

    subject_kind: str
    name: str
    tenants: tuple[str, ...] = ()
    operations: dict[str, dict[str, tuple[str, ...]]] = {}
    rules: tuple[ClusterRule, ...] = ()
    reflected: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def key(self) -> Key:
        return key("subject", self.subject_kind, self.name)


class BoundSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A binding Secret of one token generation."""

    name: str
    uid: str
    generation: int


class AccountGrant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="account"):
    """``account.<namespace>.<name>``: an enabled account and the token generations that are good. Never a token."""

    namespace: str
    name: str
    uid: str
    secrets: tuple[BoundSecret, ...] = ()

    def key(self) -> Key:
        return key("account", self.namespace, self.name)


class CapsuleUserRef(msgspec.Struct, frozen=True, kw_only=True):
    """One effective user of Capsule."""

    kind: str  # User, Group or ServiceAccount
    name: str


class ConfigGrant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="config"):
    """``config``: who is a Capsule user, from the CapsuleConfiguration."""

    users: tuple[CapsuleUserRef, ...] = ()

    def key(self) -> Key:
        return key("config")


Grant = TenantGrant | SubjectGrant | AccountGrant | ConfigGrant

_DECODER: Final = msgspec.json.Decoder(Grant)


def encode_grant(grant: Grant) -> bytes:
    """Return the value of a grant."""
    return msgspec.json.encode(grant)


def decode_grant(kv_key: str, value: bytes) -> Grant | None:
    """Return the grant at this key of the bucket, or None: no grant."""
    if not value:
        return None
    try:
        grant = _DECODER.decode(value)
        return grant if Key.of_token(kv_key) == grant.key() else None
    except (msgspec.DecodeError, EventError, UnicodeDecodeError):
        return None
