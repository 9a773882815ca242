"""The questions that clients ask the API about identities and rights, and the TokenRequest of an account.

Each answer is the posted object with its status; what can only be wrong in the question is refused as kube-apiserver
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.devcluster.authn import authenticated
from tether.devcluster.contracts import Attributes, Object, UserInfo
from tether.devcluster.errors import Cause, bad_request, bad_value, invalid_kind
from tether.devcluster.objects import clone, dig
from tether.devcluster.resources import AUTHENTICATION, AUTHORIZATION
from tether.devcluster.tokens import InvalidTokenError

if TYPE_CHECKING:
    from tether.devcluster.authn import DevAuthenticator
    from tether.devcluster.contracts import StoreApi, VirtualHandler
    from tether.devcluster.rbac import RbacAuthorizer
    from tether.devcluster.tokens import TokenIssuer


def handlers(
    store: StoreApi,  # noqa: ARG001 - part of the agreed signature; the issuer reads the store itself
    authenticator: DevAuthenticator,
    authorizer: RbacAuthorizer,
    issuer: TokenIssuer,
) -> dict[tuple[str, str], VirtualHandler]:
    """Return the handlers by (group, resource) or (group, resource/subresource). All of them answer 201."""
    reviews = _Reviews(authenticator, authorizer, issuer)
    return {
        (AUTHENTICATION, "tokenreviews"): reviews.token,
        (AUTHENTICATION, "selfsubjectreviews"): reviews.self_subject,
        (AUTHORIZATION, "subjectaccessreviews"): reviews.subject_access,
        (AUTHORIZATION, "localsubjectaccessreviews"): reviews.local_subject_access,
        (AUTHORIZATION, "selfsubjectaccessreviews"): reviews.self_subject_access,
        (AUTHORIZATION, "selfsubjectrulesreviews"): reviews.self_subject_rules,
        ("", "serviceaccounts/token"): reviews.token_request,
    }


class _Reviews:
    def __init__(self, authenticator: DevAuthenticator, authorizer: RbacAuthorizer, issuer: TokenIssuer) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._issuer = issuer

    async def token(self, _user: UserInfo, _namespace: str, _name: str, body: Object) -> Object:
        token = str(dig(body, "spec", "token") or "")
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        audiences = [str(audience) for audience in dig(body, "spec", "audiences") or ()]
        try:
            verified = self._issuer.verify(token, audiences)
        except InvalidTokenError as error:
            return _answer(body, {"user": {}, "error": str(error)})
        user = authenticated(verified.user)
        return _answer(
            body,
            {"authenticated": True, "user": _user_object(user), "audiences": list(verified.audiences)},
        )

    async def self_subject(self, user: UserInfo, _namespace: str, _name: str, body: Object) -> Object:
        return _answer(body, {"userInfo": _user_object(user)})

    async def subject_access(self, _user: UserInfo, _namespace: str, _name: str, body: Object) -> Object:
        return self._decide(body, _reviewed_user(body, "SubjectAccessReview"), "SubjectAccessReview")

    async def local_subject_access(self, _user: UserInfo, namespace: str, _name: str, body: Object) -> Object:
        asked = dig(body, "spec", "resourceAttributes", "namespace") or ""
        if asked != namespace:
            raise bad_request(f"spec.resourceAttributes.namespace must match namespace: {namespace}")
        return self._decide(body, _reviewed_user(body, "LocalSubjectAccessReview"), "LocalSubjectAccessReview")

    async def self_subject_access(self, user: UserInfo, _namespace: str, _name: str, body: Object) -> Object:
        return self._decide(body, user, "SelfSubjectAccessReview")

    async def self_subject_rules(self, user: UserInfo, _namespace: str, _name: str, body: Object) -> Object:
        namespace = str(dig(body, "spec", "namespace") or "")
        if not namespace:
            raise bad_request("no namespace on request")
        rules = self._authorizer.rules_of(user, namespace)
        return _answer(
            body,
            {
                "resourceRules": [rule.as_object() for rule in rules if not rule.urls],
                "nonResourceRules": [rule.as_object() for rule in rules if rule.urls],
                "incomplete": False,
            },
        )

    async def token_request(self, _user: UserInfo, namespace: str, name: str, body: Object) -> Object:
        return self._issuer.request(namespace, name, body)

    def _decide(self, body: Object, user: UserInfo, kind: str) -> Object:
        allowed, reason = self._authorizer.authorize(_attributes(body, user, kind))
        return _answer(body, {"allowed": allowed} | ({"reason": reason} if reason else {}))


def _answer(body: Object, status: Object) -> Object:
    answer: Object = clone(body)
    answer.setdefault("metadata", {})
    answer["status"] = status
    return answer


def _reviewed_user(body: Object, kind: str) -> UserInfo:
    spec = _spec(body)
    username, groups = str(spec.get("user") or ""), _texts(spec.get("groups"))
    if not username and not groups:
        raise _invalid(kind, bad_value("spec.user", "", "at least one of user or group must be specified"))
    extra = {str(key): _texts(values) for key, values in (spec.get("extra") or {}).items()}
    return UserInfo(username=username, uid=str(spec.get("uid") or ""), groups=groups, extra=extra)


def _attributes(body: Object, user: UserInfo, kind: str) -> Attributes:
    spec = _spec(body)
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if bool(resource) == bool(path):
        detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise _invalid(kind, bad_value("spec.resourceAttributes", resource, detail))
    if path:
        return Attributes(user=user, verb=_text(path, "verb"), path=_text(path, "path"))
    return Attributes(
        user=user,
        verb=_text(resource, "verb"),
        group=_text(resource, "group"),
        version=_text(resource, "version"),
        resource=_text(resource, "resource"),
        subresource=_text(resource, "subresource"),
        namespace=_text(resource, "namespace"),
        name=_text(resource, "name"),
    )


def _spec(body: Object) -> Object:
    spec = body.get("spec")
    return spec if isinstance(spec, dict) else {}


def _invalid(kind: str, cause: Cause) -> Exception:
    return invalid_kind(f"{kind}.{AUTHORIZATION}", "", [cause], group=AUTHORIZATION, short=kind)


def _user_object(user: UserInfo) -> Object:
    shown: Object = {"username": user.username, "groups": list(user.groups)}
    if user.uid:
        shown["uid"] = user.uid
    if user.extra:
        shown["extra"] = {key: list(values) for key, values in user.extra.items()}
    return shown


def _text(fields: Any, key: str) -> str:
    return str(fields.get(key) or "") if isinstance(fields, dict) else ""


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values) if isinstance(values, list) else ()
