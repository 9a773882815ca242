"""Turns at the API server for what the proxy asks on behalf of callers: a fair share each, and a limit for one of them.

Who waits is served round the shares, one question of each in turn, so a caller that asks for thousands waits for itself
and delays nobody else by more than its one turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from proxycore.identities import account_of
from proxycore.statuses import RefusedError, too_many_requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxycore.authentication import Poster

AT_ONCE: Final = 64
"""Questions of all callers that run at a time."""
EACH: Final = 16
"""The same of one share."""
WAITING: Final = 4096
"""Questions of one share that may wait for their turn; a request that brings more is refused."""

Turn = asyncio.Future[None]


def share_of(user: str) -> str:
    """Return whose share a user's questions count in.

    Accounts of a namespace have one together: who may make one account may make any number.
    """
    account = account_of(user)
    return f"system:serviceaccounts:{account[0]}" if account is not None else user


class Line:
    """Who waits, by share. ``most``: how many of one share, RefusedError 429 for more."""

    def __init__(self, most: int = WAITING) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def wait(self, share: str, given: Callable[[], None]) -> None:
        """Wait until `call` gives a turn. ``given`` is called for a turn that came to somebody who had gone."""
        places = self._waiting.setdefault(share, deque())
        if len(places) >= self._most:
            raise RefusedError(too_many_requests("you ask for more than can be reviewed at a time; try again"))
        turn: Turn = asyncio.get_running_loop().create_future()
        places.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(share, turn)
            else:
                given()
            raise

    def call(self, may: Callable[[str], bool] = lambda _: True) -> str | None:
        """Give a turn to the next share that may have one, and return it; None when there is none."""
        while (share := next((one for one in self._waiting if may(one)), None)) is not None:
            places = self._waiting.pop(share)
            turn = places.popleft()
            if places:
                self._waiting[share] = places  # behind all others
            if not turn.done():
                turn.set_result(None)
                return share
        return None

    def _forget(self, share: str, turn: Turn) -> None:
        places = self._waiting.get(share)
        if places is not None and turn in places:
            places.remove(turn)
            if not places:
                del self._waiting[share]


class Turns:
    """Lets so many run at a time, and so many of one share."""

    def __init__(self, *, at_once: int = AT_ONCE, each: int = EACH, waiting: int = WAITING) -> None:
        self._at_once = at_once
        self._each = each
        self._line = Line(waiting)
        self._running: Counter[str] = Counter()
        self._all = 0

    @asynccontextmanager
    async def turn(self, share: str) -> AsyncIterator[None]:
        """Wait for a turn, and give it back at the end of the block; RefusedError 429 when too many wait."""
        if self._all < self._at_once and self._running[share] < self._each:
            self._begin(share)  # whoever waits now, waits for its own share
        else:
            await self._line.wait(share, lambda: self._end(share))
        try:
            yield
        finally:
            self._end(share)

    def _begin(self, share: str) -> None:
        self._all += 1
        self._running[share] += 1

    def _end(self, share: str) -> None:
        self._all -= 1
        self._running[share] -= 1
        if not self._running[share]:
            del self._running[share]
        while self._all < self._at_once and (called := self._line.call(lambda one: self._running[one] < self._each)):
            self._begin(called)


class Paced:
    """Posts reviews at a limited rate (--client-connection-*): ``rate`` a second, above 0, and a ``burst`` above.

    The bucket holds ``burst`` questions and fills at ``rate``. Whoever comes when it is empty waits, each share in
    turn; what is remembered asks nothing and waits for nothing. Reviews of tokens, whose user nobody knows yet, are
    one share.
    """

    def __init__(self, poster: Poster, *, rate: float, burst: int) -> None:
        self._poster = poster
        self._gap = 1 / rate
        self._lead = self._gap * (max(burst, 1) - 1)
        self._due = 0.0  # when the next question would come if all came evenly
        self._line = Line()
        self._timer: asyncio.TimerHandle | None = None

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        """POST a body when its turn has come; KubeError, RefusedError 429."""
        if self._timer is None and self._wait() <= 0:
            self._take()
        else:
            share = share_of(body["spec"].get("user", ""))
            waits = self._line.wait(share, lambda: None)
            self._arm()
            await waits
        return await self._poster.create(path, body)

    def _wait(self) -> float:
        now = asyncio.get_running_loop().time()
        return max(self._due, now) - self._lead - now

    def _take(self) -> None:
        self._due = max(self._due, asyncio.get_running_loop().time()) + self._gap

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._wait()), self._next)

    def _next(self) -> None:
        self._timer = None
        if self._line.call() is not None:
            self._take()
        if self._line:
            self._arm()
