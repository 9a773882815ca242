"""One request on its way to the API server and back without a task: each step is taken in the callback that brings it.

Most requests of tenants are this: known caller, no body, an open connection to the API server. A task and its wake-ups
would cost more than all that is done. Whatever has to be awaited is handed to a task instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from eventcore.logs import get
from proxycore.plane.answers import StaleError
from proxycore.plane.pool import CLOSED, SAFE
from proxycore.statuses import RefusedError

if TYPE_CHECKING:
    from proxycore.accounting import Asked
    from proxycore.headers import Header
    from proxycore.plane.answers import Answered, Taker
    from proxycore.plane.upstream_connection import UpstreamConnection

log = get("proxy.passage")


class AgainError(Exception):
    """The answer is of no use: the request has to be sent once more, by somebody who can await."""


class Way(Protocol):
    """How a request goes to the API server, and how its answer begins."""

    def ask(self, asked: Asked, taker: Taker, /) -> UpstreamConnection | None:
        """Send the request on an open connection; None, and nothing sent, when none is free."""

    def begin(self, asked: Asked, upstream: Answered, /) -> None:
        """Begin the client's answer; RefusedError when it gets another one, AgainError when none yet."""


class Ends(Protocol):
    """Hears how a request ends."""

    def passed(self, asked: Asked) -> None:
        """The answer went out."""

    def failed(self, asked: Asked, error: Exception) -> None:
        """There is none."""

    def gone(self, asked: Asked) -> None:
        """The client went away."""

    def again(self, asked: Asked) -> None:
        """The request has to be decided and sent once more, in a task."""


class Passage:
    """Takes the answer of the API server and gives it to the client, no faster than the client reads."""

    def __init__(self, way: Way, asked: Asked, ends: Ends) -> None:
        self._way = way
        self._asked = asked
        self._ends = ends
        self._connection: UpstreamConnection | None = None
        self._answer: Answered | None = None

    def ask(self) -> bool:
        """Send the request; False, and nothing sent, when no connection is free."""
        self._asked.request.on_gone = self._gone
        self._connection = self._way.ask(self._asked, self)
        if self._connection is None:
            self._asked.request.on_gone = None
            return False
        self._asked.run.sent_on()
        return True

    # From the API server.

    def answer_begins(self, answer: Answered) -> None:
        self._asked.run.came()
        self._answer = answer
        try:
            self._way.begin(self._asked, answer)
        except AgainError:
            answer.release()
            self._over()
            self._ends.again(self._asked)
            return
        except Exception as error:  # noqa: BLE001 - the parser that calls must not see it, and the client is told
            answer.release()
            self._over()
            self._ends.failed(self._asked, error)
            return
        answer.send_to(self)
        if self._connection is not None:
            self._asked.request.feed_from(self._connection)

    def answer_failed(self, error: RefusedError | StaleError) -> None:
        if self._connection is None:
            return
        self._asked.run.came()
        self._over()
        if not isinstance(error, StaleError):
            self._ends.failed(self._asked, error)
        elif self._asked.request.method in SAFE:
            self._ends.again(self._asked)
        else:
            self._ends.failed(self._asked, RefusedError(CLOSED))

    def piece(self, data: bytes) -> None:
        request = self._asked.request
        if not request.answer_over:
            request.write(data)

    def ended(self, trailers: list[Header]) -> None:
        if self._connection is None:
            return
        request = self._asked.request
        self._over()
        if not request.answer_over:
            request.finish(trailers)
        self._ends.passed(self._asked)

    def broke(self) -> None:
        if self._connection is None:
            return
        log.info("upstream answer broke off")
        self._over()
        if not self._asked.request.answer_over:
            self._asked.request.break_off()
        self._ends.passed(self._asked)

    # From the client.

    def _gone(self) -> None:
        connection = self._connection
        self._over()
        if self._answer is not None:
            self._answer.release()
        elif connection is not None:
            connection.abort()
        self._ends.gone(self._asked)

    def _over(self) -> None:
        self._asked.request.on_gone = None
        self._connection = None
