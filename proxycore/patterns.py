"""The pattern that a request's path follows: few words, so that they can be a label. Pure.

Kinds that tenants see through the proxy have their own; whatever else is asked for is told apart only by its shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxycore.kinds import KINDS

if TYPE_CHECKING:
    from proxycore.requestinfo import RequestInfo

PLAIN: Final = frozenset({"/", "/api", "/apis", "/version", "/openid/v1/jwks", "/.well-known/openid-configuration"})
OTHER: Final = "/{path}"
_NAMESPACES: Final = "/api/v1/namespaces"
_REVIEWS: Final = ("selfsubjectaccessreviews", "selfsubjectrulesreviews")
_KNOWN: Final[dict[tuple[str, str], str]] = {
    ("", "namespaces"): _NAMESPACES,
    **{(kind.group, kind.resource): f"/api/v1/{kind.resource}" for kind in KINDS if not kind.group},
    **{(kind.group, kind.resource): f"/apis/{kind.group}/{{version}}/{kind.resource}" for kind in KINDS if kind.group},
    **{("authorization.k8s.io", one): f"/apis/authorization.k8s.io/{{version}}/{one}" for one in _REVIEWS},
}
_CORE: Final = "/api/{version}"
_GROUP: Final = "/apis/{group}/{version}"
_IN_NAMESPACE: Final = "/namespaces/{namespace}"


def pattern(info: RequestInfo) -> str:
    """Return the pattern of a request's path."""
    if not info.is_resource:
        return info.path if info.path in PLAIN else OTHER
    inside = info.namespace and info.resource != "namespaces"
    base = None if inside else _KNOWN.get((info.group, info.resource))
    if base is None:
        base = (_CORE if info.prefix == "api" else _GROUP) + (_IN_NAMESPACE if inside else "") + "/{resource}"
    if info.subresource:
        return base + "/{name}/{subresource}"
    return base + "/{name}" if info.name else base
