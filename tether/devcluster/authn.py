"""Who makes a request: client certificates, bearer tokens, nobody; and who it acts as, once RBAC allowed that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tether.devcluster.contracts import Attributes, UserInfo
from tether.devcluster.errors import bad_request, denied
from tether.devcluster.tokens import InvalidTokenError, TokenIssuer, groups_of_account, split_username, unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tether.devcluster.contracts import Authorizer, StoreApi
    from tether.devcluster.pki import ClusterPki

ANONYMOUS = "system:anonymous"
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
AUTHENTICATION_GROUP = "authentication.k8s.io"

_EXTRA_PREFIX = "impersonate-extra-"
_BROKEN_ESCAPE = re.compile("%(?![0-9a-f]{2})")


class DevAuthenticator:
    """Implements ``contracts.Authenticator``: a client certificate counts before a bearer token, as in Kubernetes."""

    def __init__(self, store: StoreApi, pki: ClusterPki, issuer: TokenIssuer, authorizer: Authorizer) -> None:
        self._store = store
        self._pki = pki
        self._issuer = issuer
        self._authorizer = authorizer

    def authenticate(self, headers: Mapping[str, str], peer_certificate_der: bytes | None) -> UserInfo:
        if peer_certificate_der:
            user = self._pki.user_of_certificate(peer_certificate_der)
            if user is None:
                raise unauthorized()
            return authenticated(user)
        token = bearer_token(headers.get("Authorization", ""))
        if not token:
            return UserInfo(username=ANONYMOUS, groups=(UNAUTHENTICATED,))
        try:
            return authenticated(self._issuer.verify(token).user)
        except InvalidTokenError:
            raise unauthorized() from None

    def impersonate(
        self, user: UserInfo, headers: Mapping[str, str], all_values: Callable[[str], list[str]]
    ) -> UserInfo:
        username = headers.get("Impersonate-User", "")
        uid = headers.get("Impersonate-Uid", "")
        groups = tuple(all_values("Impersonate-Group"))
        extra = _impersonated_extra(headers, all_values)
        if not username:
            if groups or uid or extra:
                asked = [*(f"Group {group}" for group in groups), *(["UID"] if uid else []), *extra]
                raise bad_request(f"requested [{', '.join(asked)}] without impersonating a user")
            return user
        account = split_username(username)
        if account is not None:
            self._require(user, resource="serviceaccounts", namespace=account[0], name=account[1])
        else:
            self._require(user, resource="users", name=username)
        for group in groups:
            self._require(user, resource="groups", name=group)
        for key, values in extra.items():
            for value in values:
                self._require(user, AUTHENTICATION_GROUP, resource="userextras", subresource=key, name=value)
        if uid:
            self._require(user, AUTHENTICATION_GROUP, resource="uids", name=uid)
        if account is not None and not groups:
            groups = groups_of_account(account[0])
        return UserInfo(username=username, uid=uid, groups=_with_authentication_group(username, groups), extra=extra)

    def _require(
        self, user: UserInfo, group: str = "", *, resource: str, name: str, subresource: str = "", namespace: str = ""
    ) -> None:
        attributes = Attributes(
            user=user,
            verb="impersonate",
            group=group,
            resource=resource,
            subresource=subresource,
            namespace=namespace,
            name=name,
        )
        allowed, reason = self._authorizer.authorize(attributes)
        if not allowed:
            raise denied(attributes, reason)


def bearer_token(authorization: str) -> str:
    """Return the token of an Authorization header, "" when it is of another scheme or empty."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticated(user: UserInfo) -> UserInfo:
    """Return the user with the group of everybody who proved who they are."""
    return UserInfo(
        username=user.username,
        uid=user.uid,
        groups=_with_authentication_group(user.username, user.groups),
        extra=user.extra,
    )


def _with_authentication_group(username: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    if AUTHENTICATED in groups or UNAUTHENTICATED in groups:
        return groups
    return (*groups, UNAUTHENTICATED if username == ANONYMOUS else AUTHENTICATED)


def _impersonated_extra(
    headers: Mapping[str, str], all_values: Callable[[str], list[str]]
) -> dict[str, tuple[str, ...]]:
    names = {name.lower() for name in headers if name.lower().startswith(_EXTRA_PREFIX)}
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        key = name.removeprefix(_EXTRA_PREFIX)
        found.setdefault(key if _BROKEN_ESCAPE.search(key) else unquote(key), []).extend(all_values(name))
    return {key: tuple(values) for key, values in found.items()}
