"""An operator of NATS with one account and its users, as `nsc` makes them: keys, JWTs and credentials files."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eventcore.clock import now

OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3
LIMITS: dict[str, Any] = dict.fromkeys(["subs", "data", "payload", "imports", "exports", "conn", "leaf"], -1) | {
    "wildcards": True
}
JETSTREAM = dict.fromkeys(["mem_storage", "disk_storage", "streams", "consumer"], -1)


class Pair:
    """A key of some kind, in the spelling of NATS."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._private = Ed25519PrivateKey.generate()

    @property
    def public(self) -> str:
        raw = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _spelled(bytes([self._kind]) + raw)

    @property
    def seed(self) -> str:
        lead = bytes([SEED | self._kind >> 5, (self._kind & 31) << 3])
        return _spelled(lead + self._private.private_bytes_raw())

    def jwt(self, subject: str, claims: dict[str, Any], *, seconds: float = 0) -> str:
        """Return a JWT by this key about another one; ``seconds``: how long it is good, 0 for ever."""
        at = int(now().timestamp())
        body: dict[str, Any] = {"iat": at, "iss": self.public, "sub": subject, "name": "test"}
        body |= {"nats": {"version": 2, **claims}} | ({"exp": at + seconds} if seconds else {})
        body["jti"] = base64.b32encode(hashlib.sha256(msgspec.json.encode(body)).digest()).decode().rstrip("=")
        text = b".".join(_url(msgspec.json.encode(part)) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
        return (text + b"." + _url(self._private.sign(text))).decode()


class NatsOperator:
    """``config`` makes a nats-server take the users of one account, and `credentials` makes a user."""

    def __init__(self) -> None:
        operator, system = Pair(OPERATOR), Pair(ACCOUNT)
        self._account = Pair(ACCOUNT)
        accounts = {
            pair.public: operator.jwt(pair.public, {"type": "account", "limits": limits})
            for pair, limits in ((system, LIMITS), (self._account, LIMITS | JETSTREAM))
        }
        preload = ", ".join(f'{public}: "{jwt}"' for public, jwt in accounts.items())
        trusted = operator.jwt(operator.public, {"type": "operator"})
        self.config = (
            f"operator: {trusted}\nsystem_account: {system.public}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}"
        )

    def credentials(self, *, seconds: float = 0) -> str:
        """Return the credentials file of a new user."""
        user = Pair(USER)
        jwt = self._account.jwt(user.public, {"type": "user", "subs": -1, "data": -1, "payload": -1}, seconds=seconds)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


def _spelled(body: bytes) -> str:
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode().rstrip("=")


def _url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
