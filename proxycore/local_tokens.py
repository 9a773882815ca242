"""Known accounts' tokens, verified here: no call to the API server for the tokens that Tether itself minted.

A token is believed without a TokenReview only when its namespace, name, account uid and Secret uid are those of a live
account grant, its signature is by one of the cluster's keys, its issuer is the cluster's, its time is right, and it is
for an audience that the API server itself took before. Whatever fails here is no refusal: a TokenReview decides.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import jwt
import msgspec

from eventcore.clock import KUBE
from eventcore.errors import KubeError
from eventcore.grants import AccountGrant
from eventcore.keys import key
from eventcore.logs import get
from proxycore.identities import SERVICE_ACCOUNT_PREFIX, Identity, account_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxycore.identities import Grants

log = get("proxy.local_tokens")

KEYS_PATH: Final = "/openid/v1/jwks"
KEYS_TYPE: Final = "application/jwk-set+json"
"""kube-apiserver answers 406 to who asks for its keys as plain JSON."""
ISSUER_PATH: Final = "/.well-known/openid-configuration"
ALGORITHMS: Final = ("RS256", "ES256")
KEYS_TTL: Final = 600.0
"""Seconds for which the keys are believed: a key that the cluster withdrew is trusted no longer than this."""
KEYS_FLOOR: Final = 10.0
"""Least seconds between two readings of the keys, so that tokens with invented key ids cost the API server nothing."""
_UNREADABLE: Final = (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError)
"""What reading a token raises that is none: JSON may be of any depth, and its numbers of any length."""
_JUDGED_HERE: Final[Any] = {"verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
_CREDENTIAL_ID: Final = "authentication.kubernetes.io/credential-id"


class Fetcher(Protocol):
    """What reads a path, as KubeClient does."""

    async def get(self, path: str, /, *, accept: str = ...) -> bytes:
        """Return the body of a GET; KubeError."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a token proves, the Secret that it is bound to, and when it ends (Unix seconds)."""

    identity: Identity
    secret_uid: str
    expiry: float


class _Reference(msgspec.Struct, frozen=True):
    name: str
    uid: str


class _Claim(msgspec.Struct, frozen=True):
    namespace: str
    serviceaccount: _Reference
    secret: _Reference  # a token that is bound to nothing, or to a Pod, is not one of ours


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    sub: str
    aud: list[str]
    exp: float
    nbf: float
    kubernetes: _Claim = msgspec.field(name="kubernetes.io")
    jti: str = ""


class _Configuration(msgspec.Struct, frozen=True):
    issuer: str


class _Keys(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class ClusterKeys:
    """The public keys and the issuer of ServiceAccount tokens, as the API server publishes them."""

    def __init__(self, fetcher: Fetcher, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read = float("-inf")
        self._tried = float("-inf")
        self.issuer = ""

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key of this id, None when the cluster has none or cannot be asked."""
        now = self._clock()
        known = key_id in self._keys and now - self._read < KEYS_TTL
        if not known and now - self._tried >= KEYS_FLOOR:
            self._tried = now
            await self._refresh()
        return self._keys.get(key_id) if self._clock() - self._read < KEYS_TTL else None

    async def _refresh(self) -> None:
        begun = self._clock()
        try:
            issuer = msgspec.json.decode(await self._fetcher.get(ISSUER_PATH), type=_Configuration).issuer
            found = msgspec.json.decode(await self._fetcher.get(KEYS_PATH, accept=KEYS_TYPE), type=_Keys).keys
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("the keys of ServiceAccount tokens cannot be read, so each token is reviewed", error=error)
            return
        self.issuer = issuer
        self._keys = dict(_usable(found))
        self._read = begun


class LocalTokens:
    """Verifies tokens of live account grants. ``fresh`` says whether the grants are current."""

    def __init__(
        self,
        keys: ClusterKeys,
        grants: Callable[[], Grants],
        fresh: Callable[[], bool],
        *,
        clock: Callable[[], float] = KUBE.time,
    ) -> None:
        self._keys = keys
        self._grants = grants
        self._fresh = fresh
        self._clock = clock
        self._audiences: frozenset[str] = frozenset()

    def learn(self, audiences: frozenset[str]) -> None:
        """Note audiences that the API server took for its own in an answer to a review."""
        self._audiences |= audiences

    async def verify(self, token: str) -> Verified | None:
        """Return whom the token proves, None when only a review can tell."""
        if not self._may_be(token):
            return None
        claims = await self._signed(token)
        # Grants may have changed while the keys were read: what is returned is true at this moment.
        if claims is None or not self._grants_name(claims) or not self._good(claims):
            return None
        return _verified(claims)

    def _may_be(self, token: str) -> bool:
        """Tell whether what the token says of itself could be true; nothing of it is believed yet."""
        try:
            raw = jwt.decode_complete(token, options={"verify_signature": False})
            return self._grants_name(msgspec.convert(raw["payload"], _Claims))
        except _UNREADABLE:
            return False

    def _grants_name(self, claims: _Claims) -> bool:
        claim = claims.kubernetes
        account = claim.serviceaccount
        if claims.sub != f"{SERVICE_ACCOUNT_PREFIX}{claim.namespace}:{account.name}" or not self._fresh():
            return False
        grant = self._grants().get(key("account", claim.namespace, account.name))
        return (
            isinstance(grant, AccountGrant)
            and bool(grant.uid)
            and grant.uid == account.uid
            and any(secret.uid == claim.secret.uid and secret.name == claim.secret.name for secret in grant.secrets)
        )

    def _good(self, claims: _Claims) -> bool:
        return (
            bool(self._keys.issuer)
            and claims.iss == self._keys.issuer
            and not self._audiences.isdisjoint(claims.aud)
            and claims.nbf <= self._clock() < claims.exp
        )

    async def _signed(self, token: str) -> _Claims | None:
        """Return the claims if one of the cluster's keys signed them."""
        try:
            found = await self._keys.find(jwt.get_unverified_header(token).get("kid", ""))
            if found is None:
                return None
            # The key says which algorithm it is for; the token does not choose.
            payload = jwt.decode(token, found.key, algorithms=[found.algorithm_name], options=_JUDGED_HERE)
            return msgspec.convert(payload, _Claims)
        except _UNREADABLE:
            return None


def _usable(keys: list[dict[str, Any]]) -> list[tuple[str, jwt.PyJWK]]:
    found = []
    for one in keys:
        try:
            parsed = jwt.PyJWK.from_dict(one)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue  # of a kind that this release does not know
        if parsed.key_id and parsed.algorithm_name in ALGORITHMS and one.get("use", "sig") == "sig":
            found.append((parsed.key_id, parsed))
    return found


def _verified(claims: _Claims) -> Verified:
    claim = claims.kubernetes
    # Group for group and extra for extra what the API server makes of such a token.
    identity = Identity(
        user=claims.sub,
        uid=claim.serviceaccount.uid,
        groups=account_groups(claim.namespace),
        extra={_CREDENTIAL_ID: (f"JTI={claims.jti}",)} if claims.jti else {},
    )
    return Verified(identity=identity, secret_uid=claim.secret.uid, expiry=claims.exp)
