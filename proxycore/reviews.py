"""What a caller may do, asked by itself: the API server's answer, and added to it exactly what the proxy grants.

Tools ask before they act: without this ``kubectl auth can-i list namespaces`` says no where the proxy answers the list.
A review that the API server allowed stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from proxycore.access_reviews import Attributes
from proxycore.identities import namespaces_of
from proxycore.kinds import KINDS, NAMESPACE_KIND, ProxiedKind, kind_named
from proxycore.policy import Filtered
from proxycore.rule_matching import ANY
from proxycore.rules import OPERATION_OF, rules_of, scope_of, selectors_of
from proxycore.statuses import RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxycore.identities import Grants, Identity

REASON: Final = "granted by the proxy"
COLLECTION: Final = frozenset({"list", "watch"})


class Cluster(Protocol):
    """What the API server knows, as FilteredKinds asks it."""

    async def permits(self, decision: Filtered, /) -> bool:
        """Tell whether one object is in a scope."""

    async def version_of(self, group: str, version: str, resource: str, /) -> str:
        """Return the version in which a resource is served for the whole cluster, "" for none."""

    async def may_read(self, kind: ProxiedKind, /) -> bool:
        """Tell whether the proxy's account may read a kind."""


class _AccessSpec(msgspec.Struct, frozen=True, rename="camel"):
    resource_attributes: Attributes | None = None


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Access(msgspec.Struct, frozen=True):
    spec: _AccessSpec = _AccessSpec()
    status: _AccessStatus = _AccessStatus()


async def add_access(
    body: bytes,
    identity: Identity,
    grants: Grants,
    cluster: Cluster,
    across: Callable[[Attributes], Awaitable[bool]],
) -> bytes:
    """Return a SelfSubjectAccessReview as the API server answered it, allowed if the proxy grants what it asks.

    ``across`` tells whether a list across namespaces is answered here.
    msgspec.DecodeError when the body is no review.
    """
    review = msgspec.json.decode(body, type=_Access)
    asked = review.spec.resource_attributes
    if review.status.allowed or asked is None:
        return body
    if not (await _granted(asked, identity, grants, cluster) or await across(asked)):
        return body
    found: dict[str, Any] = msgspec.json.decode(body)
    found["status"] = {"allowed": True, "reason": REASON}
    return msgspec.json.encode(found)


async def add_rules(body: bytes, identity: Identity, grants: Grants, cluster: Cluster) -> bytes:
    """Return a SelfSubjectRulesReview as the API server answered it, with the proxy's rules after the others.

    What is granted by label or expression has no form there, and the answer then says that it is incomplete.
    """
    found: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    status: dict[str, Any] = found.setdefault("status", {})
    rules, complete = _rules(identity, grants)
    by_rule = await _by_rule(identity, grants, cluster)
    status["resourceRules"] = [*(status.get("resourceRules") or ()), *rules, *by_rule]
    status.setdefault("nonResourceRules", [])
    status["incomplete"] = bool(status.get("incomplete")) or not complete or bool(rules_of(identity, grants))
    return msgspec.json.encode(found)


async def _granted(asked: Attributes, identity: Identity, grants: Grants, cluster: Cluster) -> bool:
    if asked.subresource:
        return False
    if (asked.group, asked.resource) == ("", "namespaces"):
        if asked.verb in COLLECTION or (asked.verb == "get" and asked.name in namespaces_of(identity, grants)):
            return True
        kind: ProxiedKind | None = NAMESPACE_KIND
        if not selectors_of(identity, grants, NAMESPACE_KIND, asked.verb):
            return False
    else:
        kind = await _kind(asked, identity, grants, cluster)
    if kind is None or asked.verb not in kind.verbs:
        return False
    scope = scope_of(identity, grants, kind, asked.verb)
    if scope is None or (kind.discovered and not await cluster.may_read(kind)):
        return False
    # Without a name the question is about every object, and that is never granted.
    one = Filtered(kind=kind, verb="get", scope=scope, name=asked.name)
    return asked.verb in COLLECTION or (bool(asked.name) and await cluster.permits(one))


async def _kind(asked: Attributes, identity: Identity, grants: Grants, cluster: Cluster) -> ProxiedKind | None:
    """Return the kind of a question in a version that is served, None for one that is not of the cluster scope."""
    plain = next((one for one in KINDS if (one.group, one.resource) == (asked.group, asked.resource)), None)
    if plain is not None:
        version = plain.version if asked.version in {"", ANY} else asked.version
        return msgspec.structs.replace(plain, version=version)
    if ANY in {asked.group, asked.resource} or not rules_of(identity, grants):
        return None  # nobody is given everything
    version = await _version(cluster, asked.group, asked.version, asked.resource)
    return kind_named(asked.group, asked.resource, version) if version else None


async def _version(cluster: Cluster, group: str, version: str, resource: str) -> str:
    try:
        return await cluster.version_of(group, version, resource)
    except RefusedError:
        return ""  # who cannot know says no


def _rules(identity: Identity, grants: Grants) -> tuple[list[dict[str, Any]], bool]:
    rules = [_rule("", "namespaces", sorted(COLLECTION))]
    if mine := sorted(namespaces_of(identity, grants)):
        rules.append(_rule("", "namespaces", ["get"], mine))
    complete = True
    for kind in KINDS:
        by_names: dict[tuple[str, ...], list[str]] = {}
        for verb in ("get", *sorted(OPERATION_OF)):
            scope = scope_of(identity, grants, kind, verb) if verb in kind.verbs else None
            if scope is None:
                continue
            complete &= scope.by_name_alone and not scope.patterns
            if scope.names:
                by_names.setdefault(tuple(sorted(scope.names)), []).append(verb)
        if scope_of(identity, grants, kind, "list") is not None:
            rules.append(_rule(kind.group, kind.resource, sorted(kind.verbs & COLLECTION)))
        rules += [_rule(kind.group, kind.resource, verbs, list(names)) for names, verbs in by_names.items()]
    return rules, complete


async def _by_rule(identity: Identity, grants: Grants, cluster: Cluster) -> list[dict[str, Any]]:
    """Return what clusterResources let be listed, of the kinds that they name in full."""
    known = {(kind.group, kind.resource) for kind in (*KINDS, NAMESPACE_KIND)}
    named = {
        (group.partition("/")[0], resource, group.partition("/")[2])
        for rule in rules_of(identity, grants)
        if rule.lists
        for group in rule.groups
        for resource in rule.resources
        if ANY not in group + resource
    }
    found = []
    for group, resource, version in sorted(named):
        if (group, resource) not in known and (served := await _version(cluster, group, version, resource)):
            kind = kind_named(group, resource, served)
            found.append(_rule(group, resource, sorted(kind.verbs & COLLECTION)))
    return found


def _rule(group: str, resource: str, verbs: list[str], names: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"verbs": verbs, "apiGroups": [group], "resources": [resource]}
    return found | {"resourceNames": names} if names else found
