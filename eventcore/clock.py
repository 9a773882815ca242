"""The time of the cluster, whatever the clock of this machine says.

Lives of tokens are counted by the API server, and timers fire by the clock of NATS. So that a machine whose clock is
wrong neither lets a token expire nor takes an old view for a fresh one, `now` is the API server's time: each answer of
a server bounds how far its clock is from the monotonic one here, and the local clock counts only within these bounds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from eventcore.logs import get

log = get("clock")

TOLERANCE: Final = 5.0
"""Seconds that a clock may differ before anybody is told."""
_HTTP_PRECISION: Final = 1.0
"""A Date header leaves the fraction of its second out."""


def wall() -> float:
    """Return what the clock of this machine says, in seconds since 1970."""
    return time.time()


class ServerClock:
    """The clock of a server, as its answers tell it. Until it has answered, it is taken to be the one here."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._told = False
        self.forget()

    def forget(self) -> None:
        """Know nothing of the server."""
        self._low, self._high = float("-inf"), float("inf")

    def hear(self, said: float, *, sent: float, received: float, precision: float = 0.0) -> None:
        """Take what the server said the time was, within ``precision`` seconds after.

        ``sent`` and ``received`` are when it was asked and answered, by `time.monotonic`.
        """
        low, high = said - received, said + precision - sent
        if low > self._high or high < self._low:
            self._low, self._high = low, high  # the clock was set, or another server answers
        else:
            self._low, self._high = max(low, self._low), min(high, self._high)
        skew = self.skew
        if (abs(skew) > TOLERANCE) != self._told:
            self._told = not self._told
            if self._told:
                difference = f"{apart(skew)} that of {self.server}"
                log.warning("the clock of this machine is wrong: set it by NTP", difference=difference)
            else:
                log.info("the clock of this machine is right again", by=self.server)

    def hear_date(self, header: str | None, *, sent: float, received: float) -> None:
        """Take a Date header; one that cannot be read says nothing."""
        try:
            said = parsedate_to_datetime(header or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        self.hear(said, sent=sent, received=received, precision=_HTTP_PRECISION)

    @property
    def offset(self) -> float:
        """Seconds from `time.monotonic` to the server's time."""
        return min(max(wall() - time.monotonic(), self._low), self._high)

    @property
    def skew(self) -> float:
        """Seconds that the clock of this machine is surely ahead of the server's, below 0: behind."""
        return wall() - time.monotonic() - self.offset

    def time(self) -> float:
        """Return the server's time in seconds since 1970."""
        return time.monotonic() + self.offset

    def now(self) -> datetime:
        """Return the server's time."""
        return datetime.fromtimestamp(self.time(), UTC)


def apart(skew: float) -> str:
    """Return a skew for a person: ``12 s ahead of`` or ``12 s behind``."""
    return f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}"


KUBE: Final = ServerClock("kube-apiserver")
NATS: Final = ServerClock("nats-server")


def now() -> datetime:
    """Return the time of the cluster: that of the API server."""
    return KUBE.now()
