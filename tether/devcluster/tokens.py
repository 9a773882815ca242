"""ServiceAccount tokens as kube-apiserver makes and checks them: signed, for an audience, bound to what must live.

A token from TokenRequest dies with its time, its account (by uid) and the Secret or Pod that it is bound to. A token of
a Secret of type ``kubernetes.io/service-account-token`` has no end and dies with that Secret or its account.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import jwt
import msgspec

from tether.devcluster.contracts import ApiError, Object, StoreApi, UserInfo
from tether.devcluster.errors import bad_request, bad_value, conflict, invalid_kind, not_found
from tether.devcluster.objects import clone, dig, name_of, namespace_of
from tether.devcluster.resources import SECRETS, SERVICE_ACCOUNTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tether.devcluster.contracts import Resource
    from tether.devcluster.pki import ClusterPki

ISSUER = "https://kubernetes.default.svc.cluster.local"
LEGACY_ISSUER = "kubernetes/serviceaccount"
LEGACY_TYPE = "kubernetes.io/service-account-token"
ACCOUNT_NAME_ANNOTATION = "kubernetes.io/service-account.name"
ACCOUNT_UID_ANNOTATION = "kubernetes.io/service-account.uid"

DEFAULT_SECONDS = 3600
SHORTEST_SECONDS = 600
LONGEST_SECONDS = 1 << 32
WARN_ONLY_SECONDS = 3607  # what a kubelet asks for pods; answered with a year, so that old clients go on working
EXTENDED_SECONDS = 365 * 24 * 3600
LEEWAY_SECONDS = 60  # of the API server: on the times in a token, and after deletionTimestamp of what it is bound to

_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_USERNAME = re.compile(rf"system:serviceaccount:({_LABEL}):({_LABEL}(?:\.{_LABEL})*)")
_CLAIM = "kubernetes.io"
_LEGACY = "kubernetes.io/serviceaccount/"


class InvalidTokenError(Exception):
    """The token does not prove anybody; the text says why and never holds the token."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token proves, and which of the wanted audiences it is for."""

    user: UserInfo
    audiences: tuple[str, ...]


class TokenIssuer:
    """Mints and verifies tokens against the accounts, Secrets and Pods in the store. ``now`` gives Unix seconds."""

    def __init__(self, store: StoreApi, pki: ClusterPki, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = pki.service_account_keys
        self._now = now
        self.ca_pem = pki.ca_pem
        self.audiences = (ISSUER,)

    def openid_configuration(self) -> Object:
        """Return the document at ``/.well-known/openid-configuration``."""
        return {
            "issuer": ISSUER,
            "jwks_uri": f"{ISSUER}/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def jwks(self) -> Object:
        """Return the document at ``/openid/v1/jwks``: the public key that verifies every token."""
        numbers = self._keys.public_key.public_numbers()
        key = {"use": "sig", "kty": "RSA", "kid": self._keys.key_id, "alg": "RS256"}
        return {"keys": [key | {"n": _base64url(numbers.n), "e": _base64url(numbers.e)}]}

    def request(self, namespace: str, name: str, body: Object) -> Object:
        """Answer a TokenRequest for an account.

        ApiError: 404 no such account or bound object, 409 another uid, 422 a bad duration, 400 an object that tokens
        cannot be bound to.
        """
        spec = body.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        seconds = _checked_seconds(spec.get("expirationSeconds"))
        account = self._store.get(SERVICE_ACCOUNTS, namespace, name)
        if account is None:
            raise not_found(SERVICE_ACCOUNTS, name)
        reference = spec.get("boundObjectRef")
        bound = self._bound_object(account, reference) if reference else None
        audiences = [str(audience) for audience in spec.get("audiences") or self.audiences]
        extended = bound is not None and bound[0] == "pod" and seconds == WARN_ONLY_SECONDS
        life = EXTENDED_SECONDS if extended and set(audiences) & set(self.audiences) else seconds
        issued = int(self._now())
        claim: Object = {"namespace": namespace, "serviceaccount": _reference(account)}
        if bound is not None:
            claim[bound[0]] = _reference(bound[1])
        if life != seconds:
            claim["warnafter"] = issued + seconds
        token = self._sign(
            {
                "aud": audiences,
                "exp": issued + life,
                "iat": issued,
                "iss": ISSUER,
                "jti": str(uuid.uuid4()),
                _CLAIM: claim,
                "nbf": issued,
                "sub": username_of(namespace, name),
            },
        )
        answer: Object = clone(body)
        answer["spec"] = {**spec, "audiences": audiences, "expirationSeconds": seconds}
        answer["status"] = {"token": token, "expirationTimestamp": _timestamp(issued + seconds)}
        return answer

    def legacy_token(self, secret: Object, account: Object) -> str:
        """Return the token without end that belongs into a Secret of type ``kubernetes.io/service-account-token``."""
        return self._sign(
            {
                "iss": LEGACY_ISSUER,
                f"{_LEGACY}namespace": namespace_of(secret),
                f"{_LEGACY}secret.name": name_of(secret),
                f"{_LEGACY}service-account.name": name_of(account),
                f"{_LEGACY}service-account.uid": account["metadata"]["uid"],
                "sub": username_of(namespace_of(account), name_of(account)),
            },
        )

    def verify(self, token: str, audiences: Iterable[str] = ()) -> Verified:
        """Return who the token proves to one of ``audiences`` (default: the API itself), or InvalidTokenError."""
        wanted = tuple(audiences) or self.audiences
        try:
            if jwt.get_unverified_header(token).get("kid") != self._keys.key_id:
                raise InvalidTokenError("invalid bearer token: it was signed with an unknown key")
            claims = jwt.decode(
                token,
                self._keys.public_key,
                algorithms=["RS256"],
                options={"verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise InvalidTokenError(f"invalid bearer token: {type(error).__name__}") from None
        if claims.get("iss") == LEGACY_ISSUER:
            return self._verify_legacy(token, claims, wanted)
        if claims.get("iss") != ISSUER:
            raise InvalidTokenError("invalid bearer token: another issuer")
        return self._verify_bound(claims, wanted)

    def _verify_bound(self, claims: dict[str, Any], wanted: tuple[str, ...]) -> Verified:
        now = self._now()
        if now > claims["exp"] + LEEWAY_SECONDS:
            raise InvalidTokenError("service account token has expired")
        if now < claims["nbf"] - LEEWAY_SECONDS:
            raise InvalidTokenError("service account token is not valid yet")
        matching = tuple(audience for audience in wanted if audience in claims["aud"])
        if not matching:
            raise InvalidTokenError(f"token audiences {claims['aud']} are invalid for the target audiences {wanted}")
        claim = claims[_CLAIM]
        namespace = claim["namespace"]
        account = self._living(SERVICE_ACCOUNTS, namespace, claim["serviceaccount"])
        extra = {"authentication.kubernetes.io/credential-id": (f"JTI={claims['jti']}",)}
        if "secret" in claim:
            self._living(SECRETS, namespace, claim["secret"])
        if "pod" in claim:
            pod = claim["pod"]
            self._living(self._pods(), namespace, pod)
            extra["authentication.kubernetes.io/pod-name"] = (pod["name"],)
            extra["authentication.kubernetes.io/pod-uid"] = (pod["uid"],)
        return Verified(user=account_user(account, extra), audiences=matching)

    def _verify_legacy(self, token: str, claims: dict[str, Any], wanted: tuple[str, ...]) -> Verified:
        matching = tuple(audience for audience in wanted if audience in self.audiences)
        if not matching:
            raise InvalidTokenError(f"the token is for the API only, not for the target audiences {wanted}")
        namespace = claims[f"{_LEGACY}namespace"]
        secret = self._store.get(SECRETS, namespace, claims[f"{_LEGACY}secret.name"])
        if secret is None or self._is_gone(secret) or dig(secret, "data", "token") != _base64(token):
            raise InvalidTokenError("service account token has been invalidated")
        reference = {
            "name": claims[f"{_LEGACY}service-account.name"],
            "uid": claims[f"{_LEGACY}service-account.uid"],
        }
        return Verified(user=account_user(self._living(SERVICE_ACCOUNTS, namespace, reference), {}), audiences=matching)

    def _living(self, resource: Resource, namespace: str, reference: Object) -> Object:
        found = self._store.get(resource, namespace, reference["name"])
        if found is None or self._is_gone(found):
            raise InvalidTokenError(f"service account token has been invalidated: its {resource.kind} is gone")
        if found["metadata"]["uid"] != reference["uid"]:
            raise InvalidTokenError(f"the UID of the {resource.kind} does not match the claim of the token")
        return found

    def _is_gone(self, obj: Object) -> bool:
        deleted = dig(obj, "metadata", "deletionTimestamp")
        return bool(deleted) and datetime.fromisoformat(deleted).timestamp() < self._now() - LEEWAY_SECONDS

    def _bound_object(self, account: Object, reference: Object) -> tuple[str, Object]:
        version, kind, name = (str(reference.get(key) or "") for key in ("apiVersion", "kind", "name"))
        group, _, short_version = version.rpartition("/")
        if group or kind not in {"Secret", "Pod"}:
            raise bad_request(f"cannot bind token to object of type {group}/{short_version}, Kind={kind}")
        resource = SECRETS if kind == "Secret" else self._pods()
        found = self._store.get(resource, namespace_of(account), name)
        if found is None:
            raise not_found(resource, name)
        if kind == "Pod" and dig(found, "spec", "serviceAccountName") != name_of(account):
            raise bad_request(
                f'cannot bind token for serviceaccount "{name_of(account)}" to pod running with different '
                "serviceaccount name.",
            )
        uid, wanted = found["metadata"]["uid"], str(reference.get("uid") or "")
        if wanted and wanted != uid:
            why = (
                f"the UID in the bound object reference ({wanted}) does not match the UID in record. "
                "The object might have been deleted and then recreated"
            )
            raise conflict(resource, name, why)
        return kind.lower(), found

    def _pods(self) -> Resource:
        pods = self._store.resource("", "pods")
        if pods is None:
            raise bad_request("cannot bind token to object of type /v1, Kind=Pod")
        return pods

    def _sign(self, claims: Object) -> str:
        return jwt.encode(claims, self._keys.private_key, algorithm="RS256", headers={"kid": self._keys.key_id})


def username_of(namespace: str, name: str) -> str:
    """Return the username of an account."""
    return f"system:serviceaccount:{namespace}:{name}"


def groups_of_account(namespace: str) -> tuple[str, ...]:
    """Return the groups that every account of a namespace is in."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def account_user(account: Object, extra: Mapping[str, tuple[str, ...]]) -> UserInfo:
    """Return the user that an account is."""
    namespace = namespace_of(account)
    return UserInfo(
        username=username_of(namespace, name_of(account)),
        uid=account["metadata"]["uid"],
        groups=groups_of_account(namespace),
        extra=dict(extra),
    )


def split_username(username: str) -> tuple[str, str] | None:
    """Return (namespace, name) of ``system:serviceaccount:<namespace>:<name>``, None for any other username.

    With names that no ServiceAccount can have it is any other.
    """
    found = _USERNAME.fullmatch(username)
    return (found[1], found[2]) if found else None


def _checked_seconds(value: Any) -> int:
    seconds = DEFAULT_SECONDS if value is None else value
    field, kind, group = "spec.expirationSeconds", "TokenRequest.authentication.k8s.io", "authentication.k8s.io"
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise bad_request(f"{field} must be a whole number of seconds")
    detail = ""
    if seconds < SHORTEST_SECONDS:
        detail = "may not specify a duration less than 10 minutes"
    elif seconds > LONGEST_SECONDS:
        detail = "may not specify a duration larger than 2^32 seconds"
    if detail:
        raise invalid_kind(kind, "", [bad_value(field, seconds, detail)], group=group, short="TokenRequest")
    return seconds


def _reference(obj: Object) -> Object:
    return {"name": name_of(obj), "uid": obj["metadata"]["uid"]}


def _timestamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _base64url(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unauthorized() -> ApiError:
    """401: wrong credentials; the answer never says what is wrong with them."""
    return ApiError(401, "Unauthorized", "Unauthorized")
