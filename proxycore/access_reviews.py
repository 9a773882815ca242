"""What somebody may do, asked of the API server: each question once at a time, in a fair turn, remembered for a while.

A SubjectAccessReview under the proxy's account. Of a question only a digest is kept, so what is remembered has a bound
in bytes whatever a caller asks; who asks much forgets its own answers and nobody else's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import KubeError
from eventcore.logs import get
from proxycore.identities import Identity
from proxycore.remembering import Memory
from proxycore.statuses import RefusedError, unavailable
from proxycore.turns import Turns, share_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxycore.authentication import Poster

log = get("proxy.access_reviews")

PATH: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
MOST: Final = 24 * 2**20
MOST_EACH: Final = 5 * 2**20
"""Bytes of answers that are remembered, 256 each, and of those of one share."""


class Attributes(msgspec.Struct, frozen=True):
    """What is to be done, as ``resourceAttributes`` of a review has it."""

    verb: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    namespace: str = ""


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody whose rights are asked for. ``digest`` stands for the whole identity, which may be long."""

    identity: Identity
    digest: bytes
    share: str

    @classmethod
    def of(cls, identity: Identity) -> Asker:
        return cls(identity=identity, digest=digest(identity), share=share_of(identity.user))


def digest(identity: Identity) -> bytes:
    """Return what stands for an identity as a key."""
    return hashlib.blake2b(msgspec.msgpack.encode(identity), digest_size=16).digest()


class _Answer(msgspec.Struct, frozen=True):
    allowed: bool
    until: float
    epochs: tuple[int, int]


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class AccessReviews:
    """Asks, with the proxy's right to create SubjectAccessReviews."""

    def __init__(
        self, poster: Poster, *, turns: Turns | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._poster = poster
        self._turns = turns or Turns()
        self._clock = clock
        self._answers: Memory[bytes, _Answer] = Memory(most=MOST, share=MOST_EACH)
        self._asking: dict[tuple[bytes, tuple[int, int]], asyncio.Task[bool]] = {}

    @property
    def size(self) -> int:
        """How many answers are remembered."""
        return len(self._answers)

    def known(self, asker: Asker, attributes: Attributes, epochs: tuple[int, int] = (0, 0)) -> bool | None:
        """Return the answer that is remembered, None without one that was asked for in these ``epochs``."""
        found = self._answers.get(_key(asker, attributes))
        return found.allowed if found is not None and found.epochs == epochs and found.until > self._clock() else None

    async def allowed(
        self,
        asker: Asker,
        attributes: Attributes,
        *,
        believed: tuple[float, float],
        epochs: tuple[int, int] = (0, 0),
        recall: bool = True,
    ) -> bool:
        """Tell whether somebody may; RefusedError 429 when it asks too much at a time, 503 when nobody can tell.

        ``believed``: seconds for which a yes and a no are. What is remembered counts only with ``recall``.
        """
        known = self.known(asker, attributes, epochs) if recall else None
        if known is not None:
            return known
        key = _key(asker, attributes)
        if (asking := self._asking.get((key, epochs))) is None:
            asking = asyncio.ensure_future(self._ask(asker, attributes, key, believed, epochs))
            self._asking[key, epochs] = asking
            asking.add_done_callback(lambda task: self._asked((key, epochs), task))
        # A caller that goes away must not take the review from the others that wait for it.
        return await asyncio.shield(asking)

    def forget(self, asker: Asker, attributes: Attributes) -> None:
        """Believe an answer no more."""
        self._answers.drop(_key(asker, attributes))

    def _asked(self, flight: tuple[bytes, tuple[int, int]], task: asyncio.Task[bool]) -> None:
        del self._asking[flight]
        if not task.cancelled():
            task.exception()  # everybody who waited may have gone

    async def _ask(
        self,
        asker: Asker,
        attributes: Attributes,
        key: bytes,
        believed: tuple[float, float],
        epochs: tuple[int, int],
    ) -> bool:
        try:
            async with self._turns.turn(asker.share):
                answer = await self._poster.create(PATH, _review(asker.identity, attributes))
            allowed = msgspec.json.decode(answer, type=_Review).status.allowed
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("access review failed", error=error)
            raise RefusedError(unavailable("the proxy cannot ask the API server what you may do; try again")) from None
        until = self._clock() + believed[0 if allowed else 1]
        self._answers.put(key, _Answer(allowed, until, epochs), holder=asker.share, size=0)
        return allowed


def _key(asker: Asker, attributes: Attributes) -> bytes:
    return hashlib.blake2b(asker.digest + msgspec.msgpack.encode(attributes), digest_size=16).digest()


def _review(identity: Identity, attributes: Attributes) -> dict[str, object]:
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": identity.user,
            "groups": list(identity.groups),
            "uid": identity.uid,
            "extra": {key: list(values) for key, values in identity.extra.items()},
            "resourceAttributes": {name: value for name, value in msgspec.structs.asdict(attributes).items() if value},
        },
    }
