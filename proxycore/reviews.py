"""What a caller may do, asked by itself: the API server's answer, and added to it exactly what the proxy grants.

Tools ask before they act: without this ``kubectl auth can-i list namespaces`` says no where the proxy answers the list.
A review that the API server allowed stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxycore.identities import namespaces_of
from proxycore.kinds import KINDS, ProxiedKind
from proxycore.listquery import ListQuery
from proxycore.policy import Filtered
from proxycore.rules import OPERATION_OF, scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxycore.identities import Grants, Identity
    from proxycore.rules import Scope

REASON: Final = "granted by the proxy"
COLLECTION: Final = frozenset({"list", "watch"})


class Attributes(msgspec.Struct, frozen=True):
    """spec.resourceAttributes of a SelfSubjectAccessReview."""

    verb: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""


class _AccessSpec(msgspec.Struct, frozen=True, rename="camel"):
    resource_attributes: Attributes | None = None


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Access(msgspec.Struct, frozen=True):
    spec: _AccessSpec = _AccessSpec()
    status: _AccessStatus = _AccessStatus()


async def add_access(
    body: bytes, identity: Identity, grants: Grants, permits: Callable[[Filtered], Awaitable[bool]]
) -> bytes:
    """Return a SelfSubjectAccessReview as the API server answered it, allowed if the proxy grants what it asks.

    ``permits`` tells whether one object is in a scope. msgspec.DecodeError when the body is no review.
    """
    review = msgspec.json.decode(body, type=_Access)
    asked = review.spec.resource_attributes
    if review.status.allowed or asked is None or not await _granted(asked, identity, grants, permits):
        return body
    found: dict[str, Any] = msgspec.json.decode(body)
    found["status"] = {"allowed": True, "reason": REASON}
    return msgspec.json.encode(found)


def add_rules(body: bytes, identity: Identity, grants: Grants) -> bytes:
    """Return a SelfSubjectRulesReview as the API server answered it, with the proxy's rules after the others.

    What is granted by label or expression has no form there, and the answer then says that it is incomplete.
    """
    found: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    status: dict[str, Any] = found.setdefault("status", {})
    rules, complete = _rules(identity, grants)
    status["resourceRules"] = [*(status.get("resourceRules") or ()), *rules]
    status.setdefault("nonResourceRules", [])
    status["incomplete"] = bool(status.get("incomplete")) or not complete
    return msgspec.json.encode(found)


async def _granted(
    asked: Attributes, identity: Identity, grants: Grants, permits: Callable[[Filtered], Awaitable[bool]]
) -> bool:
    if asked.subresource:
        return False
    if (asked.group, asked.resource) == ("", "namespaces"):
        return asked.verb in COLLECTION or (asked.verb == "get" and asked.name in namespaces_of(identity, grants))
    kind = next((one for one in KINDS if (one.group, one.resource) == (asked.group, asked.resource)), None)
    if kind is None or asked.verb not in kind.verbs:
        return False
    scope = scope_of(identity, grants, kind.setting, asked.verb)
    if scope is None:
        return False
    # Without a name the question is about every object, and that is never granted.
    return asked.verb in COLLECTION or (bool(asked.name) and await permits(_request(kind, scope, asked)))


def _request(kind: ProxiedKind, scope: Scope, asked: Attributes) -> Filtered:
    version = asked.version if asked.version not in {"", "*"} else kind.version
    return Filtered(
        setting=kind.setting,
        verb="get",
        path=kind.path(version),
        scope=scope,
        name=asked.name,
        by_node=kind.by_node,
        query=ListQuery(),
    )


def _rules(identity: Identity, grants: Grants) -> tuple[list[dict[str, Any]], bool]:
    rules = [_rule("", "namespaces", sorted(COLLECTION))]
    if mine := sorted(namespaces_of(identity, grants)):
        rules.append(_rule("", "namespaces", ["get"], mine))
    complete = True
    for kind in KINDS:
        by_names: dict[tuple[str, ...], list[str]] = {}
        for verb in ("get", *sorted(OPERATION_OF)):
            scope = scope_of(identity, grants, kind.setting, verb) if verb in kind.verbs else None
            if scope is None:
                continue
            complete &= scope.by_name_alone and not scope.patterns
            if scope.names:
                by_names.setdefault(tuple(sorted(scope.names)), []).append(verb)
        if scope_of(identity, grants, kind.setting, "list") is not None:
            rules.append(_rule(kind.group, kind.resource, sorted(kind.verbs & COLLECTION)))
        rules += [_rule(kind.group, kind.resource, verbs, list(names)) for names, verbs in by_names.items()]
    return rules, complete


def _rule(group: str, resource: str, verbs: list[str], names: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"verbs": verbs, "apiGroups": [group], "resources": [resource]}
    return found | {"resourceNames": names} if names else found
