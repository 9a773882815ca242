"""A URL of one tenant, ``/tenant/<name>/...``: what the caller sees and does through it stays in that tenant. Pure.

The identity carries the tenant, so whatever reads the grants sees that tenant's part of them. What would go to the API
server as the caller, where RBAC knows nothing of the URL, is looked at here once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from eventcore.grants import TenantGrant
from eventcore.keys import key
from proxycore.identities import is_capsule_user, owns_any
from proxycore.policy import stale
from proxycore.statuses import RefusedError, forbidden, not_found

if TYPE_CHECKING:
    from proxycore.acting import Acting
    from proxycore.identities import Grants, Identity
    from proxycore.policy import Freshness
    from proxycore.requestinfo import RequestInfo

_OPEN = frozenset({("", "namespaces", "create"), ("authentication.k8s.io", "selfsubjectreviews", "create")})
"""What is about no namespace and passes all the same: Capsule says whose a new namespace is."""


class _Attributes(msgspec.Struct, frozen=True):
    verb: str = ""
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    resource_attributes: _Attributes | None = None


class _Access(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


def narrowed(acting: Acting, tenant: str, grants: Grants, freshness: Freshness) -> Acting:
    """Return who acts, seen in one tenant; RefusedError 404 for one that is not its own, whether or not it is there."""
    if not freshness.fresh:
        raise RefusedError(stale(freshness))
    identity = msgspec.structs.replace(acting.identity, only=tenant)
    if not is_capsule_user(identity, grants) or not owns_any(identity, grants):
        raise RefusedError(not_found("tenants", tenant, group="capsule.clastix.io"))
    return msgspec.structs.replace(acting, identity=identity)


def stay_inside(info: RequestInfo, identity: Identity, grants: Grants) -> None:
    """Let a request go on as its caller if it stays in the tenant; RefusedError 403."""
    if not info.is_resource or not info.tenant:
        return
    inside = (
        info.namespace in _namespaces(identity, grants)
        if info.namespace
        else (info.group, info.resource, info.verb) in _OPEN and not info.subresource
    )
    if not inside:
        raise RefusedError(
            forbidden(
                identity.user,
                info.verb,
                info.resource,
                name=info.name,
                group=info.group,
                namespace=info.namespace,
                why=_why(identity),
            )
        )


def narrow_access(body: bytes, identity: Identity, grants: Grants) -> bytes:
    """Return a SelfSubjectAccessReview as the API server answered it, refused if it is about what is outside."""
    asked = msgspec.json.decode(body, type=_Access).spec.resource_attributes
    if asked is None or (asked.group, asked.resource, asked.verb) in _OPEN:
        return body
    is_namespace = (asked.group, asked.resource) == ("", "namespaces")
    if (asked.name if is_namespace else asked.namespace) in _namespaces(identity, grants):
        return body
    found: dict[str, Any] = msgspec.json.decode(body)
    found["status"] = {"allowed": False, "reason": _why(identity)}
    return msgspec.json.encode(found)


def narrow_rules(body: bytes) -> bytes:
    """Return a SelfSubjectRulesReview without the rules of the API server: it does not say which namespace they are of.

    It says that it is incomplete.
    """
    found: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    status: dict[str, Any] = found.setdefault("status", {})
    status["resourceRules"] = []
    status["incomplete"] = True
    return msgspec.json.encode(found)


def _namespaces(identity: Identity, grants: Grants) -> frozenset[str]:
    grant = grants.get(key("tenant", identity.only))
    if not isinstance(grant, TenantGrant) or not owns_any(identity, grants):
        return frozenset()
    return frozenset(grant.namespaces)


def _why(identity: Identity) -> str:
    return f'the URL is narrowed to the tenant "{identity.only}"'
