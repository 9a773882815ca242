"""What is known of one request while it runs: what it asks for and as whom, and what metrics and lines need."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from proxycore.authentication import digest_of
from proxycore.headers import asked_identity, bearer_token, forwarded, wants_upgrade
from proxycore.measures import STAGES, WATCHES
from proxycore.patterns import OTHER
from proxycore.plane.heads import LONGEST_KEPT
from proxycore.requestinfo import RequestInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractContextManager

    from proxycore.access_log import AccessLog
    from proxycore.acting import Acting
    from proxycore.authentication import Caller
    from proxycore.headers import Header
    from proxycore.identities import Identity
    from proxycore.measures import Measures
    from proxycore.plane.answers import Answered
    from proxycore.plane.exchange import Request

T = TypeVar("T")

_UNREAD: Final = RequestInfo(method="", target="", path="", query="", verb="")

_VERBS: Final = frozenset({"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"})


class Counts:
    """The numbers of all requests. The labels have few values each, so what is kept is bounded."""

    def __init__(self, measures: Measures, access_log: AccessLog | None = None) -> None:
        self.running = 0
        self.access_log = access_log
        measures.in_flight.set_function(lambda: float(self.running))
        self.tunnels = measures.tunnels
        self.watches = {source: measures.watches.labels(source) for source in WATCHES}
        self.identity, self.decision, self.upstream = (measures.tally.stages[stage] for stage in STAGES)
        self._answers = measures.tally.answers
        self._paths = measures.tally.paths
        self._first_byte = measures.tally.first_byte

    def answered(self, route: str, verb: str, code: str, path: str, seconds: float) -> None:
        """Count a request that took so many seconds; ``path`` is a pattern."""
        labels = route, verb, code, path
        self._answers[labels] = self._answers.get(labels, 0) + 1
        self._paths[path].observe(seconds)

    def began(self, route: str, seconds: float) -> None:
        """Note the time to the first byte of an answer."""
        self._first_byte[route].observe(seconds)


class Run:
    """One request.

    Times are seconds: ``identity`` from its head until it is known as whom it acts, ``upstream`` for the API server's
    answers to begin, ``total`` once it is done. ``answer`` is the API server's, where one was sent on. ``proven``: that
    ``caller`` may act as ``identity`` is known here, and not only to the API server.
    """

    # What is not known yet is the class's.
    info = _UNREAD
    caller: Identity | None = None
    identity: Identity | None = None
    proven = True
    route = "refused"
    answer: Answered | None = None
    identity_seconds = 0.0
    decision_seconds = 0.0
    upstream_seconds = 0.0
    total = 0.0
    _first_byte = False
    _sent_on = 0.0

    def __init__(self, counts: Counts, request: Request) -> None:
        self.request = request
        self._counts = counts
        self._begun = time.monotonic()
        counts.running += 1

    def identified(self) -> None:
        """Note that it is known as whom the request acts."""
        self.identity_seconds = time.monotonic() - self._begun

    def decided(self) -> None:
        """Note that it is decided what becomes of the request."""
        self.decision_seconds = time.monotonic() - self._begun - self.identity_seconds

    async def upstream(self, answer: Awaitable[T]) -> T:
        """Wait for the API server, and note how long it took."""
        asked = time.monotonic()
        try:
            return await answer
        finally:
            self.upstream_seconds += time.monotonic() - asked

    def sent_on(self) -> None:
        """Note that the API server is asked, by who is called back and does not wait."""
        self._sent_on = time.monotonic()

    def came(self) -> None:
        """Note that its answer begins, or will not come."""
        self.upstream_seconds += time.monotonic() - self._sent_on

    def tunnelling(self) -> AbstractContextManager[None]:
        """Count a tunnel while it is open."""
        return self._counts.tunnels.track_inprogress()

    def watching(self, source: str) -> AbstractContextManager[None]:
        """Count a watch while it is open; ``source`` is one of WATCHES."""
        return self._counts.watches[source].track_inprogress()

    def began(self) -> None:
        """Note that the answer begins."""
        if not self._first_byte:
            self._first_byte = True
            self._counts.began(self.route, time.monotonic() - self._begun)

    def done(self, code: str) -> None:
        """Count the request, and write its access line; call it once. ``code`` is "gone" where the client went."""
        if not self._first_byte:
            self.began()
        counts = self._counts
        counts.running -= 1
        self.total = time.monotonic() - self._begun
        if not self.identity_seconds:
            self.identity_seconds = self.total  # it ended there
        counts.identity.observe(self.identity_seconds)
        if self.decision_seconds:
            counts.decision.observe(self.decision_seconds)
        if self.upstream_seconds:
            counts.upstream.observe(self.upstream_seconds)
        verb = self.info.verb if self.info.verb in _VERBS else "other"
        counts.answered(self.route, verb, code, self.info.pattern or OTHER, self.total)
        if counts.access_log is not None:
            counts.access_log.take(self, gone=code == "gone")


class Meaning:
    """What the headers of a request say, and so of each request of the connection with the same headers.

    Each part is read when it is asked for, so that what is wrong is said in the order of the work; RefusedError (400).
    ``own``: names of further headers that are for the proxy alone, see `forwarded`.
    """

    def __init__(self, headers: list[Header], peer: str, own: frozenset[str]) -> None:
        self._headers = headers
        self._peer = peer
        self._own = own
        # What passes upstream, as bytes, once somebody rendered it: with the token, and under the proxy's account.
        self.sent_as_caller = b""
        self.sent_as_proxy = b""

    @functools.cached_property
    def token(self) -> str:
        """The bearer token, "" without one."""
        return bearer_token(self._headers)

    @functools.cached_property
    def token_digest(self) -> bytes:
        """What the token is remembered by."""
        return digest_of(self.token)

    @functools.cached_property
    def asked(self) -> Identity | None:
        """Whom the client asks to act as."""
        return asked_identity(self._headers)

    @functools.cached_property
    def passed(self) -> tuple[Header, ...]:
        """The headers that go upstream."""
        return tuple(forwarded(self._headers, self._peer, self._own))

    @functools.cached_property
    def accept(self) -> str:
        """The first Accept header, "" without one."""
        return next((value for name, value in self._headers if name.lower() == "accept"), "")

    @functools.cached_property
    def upgrade(self) -> str:
        """The protocol that the client wants to change to, "" for none."""
        return wants_upgrade(self._headers)


@dataclass(slots=True)
class Asked:
    """One request with all that is known of it when it is decided. ``token``: what told its caller, "" for none.

    ``passes``: it goes to the API server as its caller whatever the grants say, and so does the answer back.
    """

    request: Request
    run: Run
    info: RequestInfo
    meaning: Meaning
    caller: Caller
    acting: Acting
    token: str
    passes: bool = False

    @property
    def passed(self) -> list[Header]:
        """The headers of the request that go upstream."""
        return [*self.meaning.passed]

    @property
    def lasts(self) -> bool:
        """Whether it comes again as the same objects.

        An identity that is impersonated, or seen in one tenant, is made each time, and so is what is read of a long
        target.
        """
        return self.acting.own and not self.info.tenant and len(self.info.target) <= LONGEST_KEPT
