"""Which objects of a cluster-scoped kind the grants give somebody, for one operation: pure.

A scope is a union over everything that the caller and its groups own. List, get and watch use the same scope, so they
agree by construction. Nothing in it can be written by a tenant.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import re2  # type: ignore[import-untyped]  # ships no types

from eventcore.grants import SubjectGrant, TenantGrant
from eventcore.keys import key
from eventcore.logs import get
from eventcore.objects import LABEL_TENANT
from eventcore.selectors import Requirement
from proxycore.identities import namespaces_of, subject_keys, tenants_of
from proxycore.kinds import BY_RULE, NAMESPACES, TENANT, VOLUMES
from proxycore.rule_matching import speaks_of
from proxycore.selectors import matches, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.grants import Choice, ClusterRule, SelectorTerm
    from proxycore.identities import Grants, Identity
    from proxycore.kinds import ProxiedKind

log = get("proxy.rules")

LIST: Final = "List"
"""The operation without which no other counts."""
OPERATION_OF: Final = {"update": "Update", "patch": "Update", "delete": "Delete"}
LONGEST_SELECTOR: Final = 4000
"""Characters of a selector of ours that go upstream; servers between might break on more, and each object is judged."""
_RULED: Final = frozenset({"get", "list", "watch"})
_OPERATORS: Final = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!exists"}


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What decides of an object. ``claim_namespace``: of a PersistentVolume, whose claim holds it; "" for none."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    claim_namespace: str = ""


class Holder(msgspec.Struct, frozen=True):
    """A tenant that may have volumes."""

    tenant: str
    namespaces: frozenset[str]

    def holds(self, volume: Seen) -> bool:
        """Tell whether a volume is the tenant's: by its claim and by Capsule's label, which must not disagree."""
        label = volume.labels.get(LABEL_TENANT, "")
        if not volume.claim_namespace:
            return label == self.tenant
        return volume.claim_namespace in self.namespaces and label in {"", self.tenant}


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of one kind: those that any part of it names."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    selectors: frozenset[tuple[Requirement, ...]] = frozenset()
    holders: frozenset[Holder] = frozenset()

    def allows(self, seen: Seen) -> bool:
        """Tell whether an object is in the scope. One that lives in a namespace never is."""
        return not seen.namespace and (
            seen.name in self.names
            or any(_finds(pattern, seen.name) for pattern in self.patterns)
            or any(matches(selector, seen.labels) for selector in self.selectors)
            or any(holder.holds(seen) for holder in self.holders)
        )

    @property
    def by_name_alone(self) -> bool:
        """Whether an object can neither join nor leave the scope while it lives."""
        return not self.selectors and not self.holders

    def selector(self) -> tuple[Requirement, ...]:
        """Return requirements that every object of the scope meets, for the API server to do most of the work."""
        if len(self.selectors) == 1 and not (self.names or self.patterns or self.holders):
            found = next(iter(self.selectors))
            return found if len(render(found)) <= LONGEST_SELECTOR else ()
        return ()


def scope_of(identity: Identity, grants: Grants, kind: ProxiedKind, verb: str) -> Scope | None:
    """Return what a request with this verb may touch of a kind; None: no grant speaks of it, so RBAC alone decides."""
    settled = _settled(identity, grants, kind.setting, verb)
    chosen = selectors_of(identity, grants, kind, verb)
    if not chosen:
        return settled
    settled = settled or Scope()
    return msgspec.structs.replace(settled, selectors=settled.selectors | chosen)


def selectors_of(
    identity: Identity, grants: Grants, kind: ProxiedKind, verb: str
) -> frozenset[tuple[Requirement, ...]]:
    """Return the label selectors of all rules that give somebody a verb on a kind."""
    if verb not in _RULED or kind.namespace:
        return frozenset()
    return frozenset(
        selector
        for rule in _rules(identity, grants)
        if (rule.lists or verb == "get") and speaks_of(rule, kind)
        if rule.selector and (selector := _selector(rule.selector)) is not None
    )


def is_named(identity: Identity, grants: Grants, kind: ProxiedKind) -> bool:
    """Tell whether a rule names a kind's resource itself, and not only by ``*``."""
    return any(kind.resource in rule.resources and speaks_of(rule, kind) for rule in _rules(identity, grants))


def rules_of(identity: Identity, grants: Grants) -> list[ClusterRule]:
    """Return every rule that counts for somebody now."""
    return list(_rules(identity, grants))


def _settled(identity: Identity, grants: Grants, setting: str, verb: str) -> Scope | None:
    """Return what tenants and their settings give."""
    if setting == BY_RULE:
        return None
    if setting == NAMESPACES:
        return Scope(names=namespaces_of(identity, grants))
    if setting == TENANT:
        return Scope(names=frozenset(tenant for tenant, _ in _owned(identity, grants)))
    wanted = {LIST, OPERATION_OF.get(verb, LIST)}
    found = [
        grant
        for tenant, given in _owned(identity, grants)
        if wanted <= set(given.get(setting, ())) and isinstance(grant := grants.get(key("tenant", tenant)), TenantGrant)
    ]
    if not found:
        return None
    if setting == VOLUMES:
        return Scope(holders=frozenset(Holder(grant.name, frozenset(grant.namespaces)) for grant in found))
    chosen = [grant.choices[setting] for grant in found if setting in grant.choices]
    return Scope(
        names=frozenset(name for choice in chosen for name in choice.names),
        patterns=frozenset(choice.pattern for choice in chosen if choice.pattern),
        selectors=frozenset(selector for choice in chosen for selector in _selectors(choice)),
    )


def _rules(identity: Identity, grants: Grants) -> Iterator[ClusterRule]:
    for subject in subject_keys(identity):
        grant = grants.get(subject)
        if isinstance(grant, SubjectGrant):
            for rule in grant.rules:
                # That of a ProxySetting counts while its tenant is there; a URL of one tenant has no other's.
                alive = not rule.tenant or isinstance(grants.get(key("tenant", rule.tenant)), TenantGrant)
                if alive and identity.only in {"", rule.tenant}:
                    yield rule


def _owned(identity: Identity, grants: Grants) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """Yield the tenants of the identity and of each group, with the operations that come with that ownership."""
    for tenant, grant in tenants_of(identity, grants):
        if isinstance(grants.get(key("tenant", tenant)), TenantGrant):
            yield tenant, grant.operations.get(tenant, {})


def _selectors(choice: Choice) -> Iterator[tuple[Requirement, ...]]:
    for terms in choice.selectors:
        if (known := _selector(terms)) is not None:
            yield known


def _selector(terms: tuple[SelectorTerm, ...]) -> tuple[Requirement, ...] | None:
    found = [_requirement(term) for term in terms]
    known = tuple(one for one in found if one is not None)
    # A term that is not understood must not be left out: the selector would choose more.
    return known if len(known) == len(found) else None


def _requirement(term: SelectorTerm) -> Requirement | None:
    operator = _OPERATORS.get(term.operator)
    if operator is None or (operator in {"in", "notin"}) != bool(term.values):
        return None
    return Requirement(term.key, operator, term.values)


def _finds(pattern: str, name: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is not None and compiled.search(name) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    """Return a compiled RE2 expression, None for one that RE2 does not know: look-around, back-references, errors."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        log.warning("a regular expression of a Tenant is not RE2's, so it matches nothing", error=error)
        return None
