"""From a bearer token to an identity: verified here or by TokenReview, remembered by its hash, asked once at a time.

A token of a live account grant is verified without a call (``local_tokens``), any other goes to TokenReview.
A good answer is believed for at most ``identity_cache_ttl`` seconds and never past the token's own expiry. Whatever
changes in the grants of a ServiceAccount drops what is remembered of it, and a token whose binding Secret left the
account's record is refused at once, while the API server itself may believe it for ten seconds more. Tokens are kept
nowhere and appear in no message.

Each network may have so many tokens reviewed that turn out to be nobody's (`proxycore.failed_tokens`). One that is
verified here, or was good before, never waits for that.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from eventcore.clock import KUBE
from eventcore.errors import KubeError
from eventcore.grants import AccountGrant, SubjectGrant
from eventcore.logs import get
from proxycore.failed_tokens import FailedTokens
from proxycore.identities import SERVICE_ACCOUNT_PREFIX, Identity
from proxycore.statuses import RefusedError, Status, too_many_requests, unauthorized, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.grants import Grant
    from eventcore.views import Change, GrantRecord
    from proxycore.local_tokens import LocalTokens
    from proxycore.measures import Tally

log = get("proxy.authentication")

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
REFUSED_TTL = 2.0
"""Seconds for which a refusal is remembered: a client that retries in a loop costs one review in this time."""
REVOKED_TTL = 900.0
"""Seconds for which a revoked binding Secret is remembered: far longer than an API server believes its token."""
MAX_REMEMBERED = 20_000


class Poster(Protocol):
    """What posts a review, as KubeClient does."""

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        """POST a body, return the answer's; KubeError."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request. ``secret_uid`` is the Secret that the token is bound to, "" without one.

    ``by_certificate``: there is no token to send on, so the request goes under the proxy's account with this identity.
    """

    identity: Identity
    secret_uid: str = ""
    by_certificate: bool = False


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _ReviewStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: list[str] = []


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class _SecretRef(msgspec.Struct, frozen=True):
    uid: str = ""


class _KubernetesClaim(msgspec.Struct, frozen=True):
    secret: _SecretRef = _SecretRef()


class _Claims(msgspec.Struct, frozen=True):
    exp: float | None = None
    kubernetes: _KubernetesClaim = msgspec.field(default=_KubernetesClaim(), name="kubernetes.io")


class _Remembered(msgspec.Struct, frozen=True):
    caller: Caller | None  # None: the API server said no
    until: float


class Authenticator:
    """Identifies bearer tokens. Give `grants_changed` every change of the grants."""

    def __init__(
        self,
        reviews: Poster,
        *,
        ttl: float,
        tally: Tally,
        local: LocalTokens | None = None,
        failures: FailedTokens | None = None,
        clock: Callable[[], float] = KUBE.time,
    ) -> None:
        self._reviews = reviews
        self._failures = failures or FailedTokens(0.0)
        self._local = local
        self._ttl = ttl
        self._counts = tally.identities
        self._clock = clock
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()  # tokens whose last review said yes
        self._running: dict[bytes, asyncio.Task[_Remembered]] = {}
        self._dropped: OrderedDict[str, float] = OrderedDict()  # user to the time of the last drop
        self._revoked: OrderedDict[str, float] = OrderedDict()  # Secret uid to the time

    @property
    def size(self) -> int:
        """How many answers are remembered."""
        return len(self._remembered)

    async def identify(self, token: str, peer: str = "") -> Caller:
        """Return who the token belongs to; RefusedError 401, or 503 when nobody can tell.

        429 when too many tokens that are nobody's came from the network of this peer.
        """
        digest = digest_of(token)
        found = self._remembered.get(digest)
        if found is not None and found.until > self._clock():
            self._counts["cached"] += 1
        else:
            found = await self._review_once(digest, token, peer)
        if found.caller is None or self.is_revoked(found.caller):
            self._counts["refused"] += 1
            raise RefusedError(unauthorized())
        return found.caller

    def recall(self, digest: bytes) -> Caller | None:
        """Return whose the token with this digest is if that is remembered and still true; None: `identify` tells."""
        found = self._remembered.get(digest)
        if found is None or found.caller is None or found.until <= self._clock() or self.is_revoked(found.caller):
            return None
        self._counts["cached"] += 1
        return found.caller

    def is_revoked(self, caller: Caller) -> bool:
        """Tell whether the grants withdrew the token that this caller came with."""
        return bool(caller.secret_uid) and caller.secret_uid in self._revoked

    def grants_changed(self, change: Change[GrantRecord]) -> None:
        """Drop what a change of the grants puts in doubt."""
        old = change.old.grant if change.old else None
        new = change.new.grant if change.new else None
        if old == new:
            return
        for grant in (old, new):
            if user := _account_of(grant):
                self._drop(user)
        had = _secrets(old)
        has = _secrets(new)
        for uid in has:
            self._revoked.pop(uid, None)  # grants that were lost and compiled again
        for uid in had - has:
            self._note(self._revoked, uid, REVOKED_TTL)

    async def _review_once(self, digest: bytes, token: str, peer: str) -> _Remembered:
        task = self._running.get(digest)
        if task is None:
            task = asyncio.create_task(self._review(digest, token, peer))
            self._running[digest] = task
            task.add_done_callback(lambda _: self._running.pop(digest, None))
        # A caller that goes away must not take the review from the others that wait for it.
        return await asyncio.shield(task)

    async def _review(self, digest: bytes, token: str, peer: str) -> _Remembered:
        begun = self._clock()
        if self._local is not None and (known := await self._local.verify(token)) is not None:
            self._counts["local"] += 1
            caller = Caller(identity=known.identity, secret_uid=known.secret_uid)
            self._note_good(digest, good=True)
            return self._remember(digest, _Remembered(caller, min(self._clock() + self._ttl, known.expiry)), begun)
        found = await (self._ask(token) if digest in self._good else self._ask_of_new(token, peer))
        self._note_good(digest, good=found is not None)
        return self._remember(digest, _Remembered(found, self._until(found, token)), begun)

    async def _ask_of_new(self, token: str, peer: str) -> Caller | None:
        """Ask about a token that was never good: if it is nobody's, that is on the account of its peer."""
        taken = self._failures.take(peer)
        if taken.wait:
            self._counts["limited"] += 1
            raise RefusedError(_too_many(taken.wait))
        caller, answered = None, False
        try:
            caller = await self._ask(token)
            answered = True
        finally:
            if caller is not None or not answered:
                self._failures.give_back(taken)
        return caller

    async def _ask(self, token: str) -> Caller | None:
        """Return who the API server says that a token belongs to, None for nobody; RefusedError 503."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            status = msgspec.json.decode(await self._reviews.create(PATH, body), type=_Review).status
        except (KubeError, msgspec.DecodeError) as error:
            self._counts["failed"] += 1
            log.warning("token review failed", error=error)
            raise RefusedError(_cannot_tell(error)) from None
        self._counts["reviewed"] += 1
        if self._local is not None and status.authenticated:
            self._local.learn(frozenset(status.audiences))
        return _caller(status.user, token) if status.authenticated and status.user.username else None

    def _note_good(self, digest: bytes, *, good: bool) -> None:
        """Note whether a token is somebody's, for longer than that is believed."""
        if not good:
            self._good.pop(digest, None)
            return
        self._good[digest] = None
        self._good.move_to_end(digest)
        while len(self._good) > MAX_REMEMBERED:
            self._good.popitem(last=False)

    def _remember(self, digest: bytes, found: _Remembered, begun: float) -> _Remembered:
        """Keep an answer, unless the caller's grants changed while it was on its way."""
        caller = found.caller
        if caller is None or self._dropped.get(caller.identity.user, 0.0) < begun:
            self._remembered[digest] = found
            self._remembered.move_to_end(digest)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _until(self, caller: Caller | None, token: str) -> float:
        now = self._clock()
        if caller is None:
            return now + min(REFUSED_TTL, self._ttl)
        expiry = _claims(token).exp
        return now + self._ttl if expiry is None else min(now + self._ttl, expiry)

    def _drop(self, user: str) -> None:
        self._note(self._dropped, user, self._ttl + REFUSED_TTL)
        for digest, found in list(self._remembered.items()):
            if found.caller is not None and found.caller.identity.user == user:
                del self._remembered[digest]

    def _note(self, notes: OrderedDict[str, float], name: str, keep: float) -> None:
        now = self._clock()
        notes[name] = now
        notes.move_to_end(name)
        while notes and next(iter(notes.values())) < now - keep:
            notes.popitem(last=False)


def digest_of(token: str) -> bytes:
    """Return what a token is remembered by."""
    return hashlib.sha256(token.encode()).digest()


def _account_of(grant: Grant | None) -> str:
    """Return the user name of the ServiceAccount that a grant is about, "" for any other grant."""
    match grant:
        case AccountGrant(namespace=namespace, name=name):
            return f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"
        case SubjectGrant(subject_kind="ServiceAccount", name=user):
            return user
        case _:
            return ""


def _secrets(grant: Grant | None) -> set[str]:
    return {secret.uid for secret in grant.secrets} if isinstance(grant, AccountGrant) else set()


def _caller(user: _User, token: str) -> Caller:
    identity = Identity(
        user=user.username,
        uid=user.uid,
        groups=tuple(user.groups),
        extra={key: tuple(values) for key, values in user.extra.items()},
    )
    return Caller(identity=identity, secret_uid=_claims(token).kubernetes.secret.uid)


def _claims(token: str) -> _Claims:
    """Return what a token says of itself. Used only after the API server accepted it, and only to be stricter."""
    try:
        _, payload, _ = token.split(".")
        return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    except (ValueError, RecursionError, binascii.Error, msgspec.DecodeError):
        return _Claims()


def _too_many(seconds: float) -> Status:
    return too_many_requests(
        "too many tokens that are nobody's came from this address; try again later", retry_after=math.ceil(seconds)
    )


def _cannot_tell(error: Exception) -> Status:
    retry = getattr(error, "retry_after", None)
    return unavailable(
        "the proxy cannot ask the API server who this token belongs to; try again", retry_after=int(retry or 1)
    )
