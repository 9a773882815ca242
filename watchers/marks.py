"""Marks: what a watcher vouches for, so that every reader knows how fresh its view of a kind is.

A mark says: at ``time``, OBJECTS held everything of this kind up to ``resource_version``. It goes out after a list, at
each bookmark and at least every ``mark_interval`` seconds, only while the watch is alive, and only after everything
that was seen before it is acknowledged. No marks means that views grow old, which is the truth.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import nats.errors

from eventcore.clock import now as time_now
from eventcore.errors import BusError, EventError, WrongSequenceError
from eventcore.events import MARK, Event, Mark, decode_body, encode_body
from eventcore.keys import mark_subject
from eventcore.topology import OBJECTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from eventcore.bus import Bus
    from eventcore.settings import Settings


class Freshness:
    """What may be claimed of one kind, pure: times are monotonic seconds that the caller gives.

    ``epoch`` changes with every break, so that a claim made before one is not published after it.
    """

    def __init__(self, inactivity: float) -> None:
        self.epoch = 0
        self.regressed = False
        self._inactivity = inactivity
        self._version = ""
        self._active = 0.0
        self._alive = False

    def seen(self, resource_version: str, at: float) -> None:
        """A complete list, an event or a bookmark brought the kind to this version."""
        self._version = resource_version
        self._active = at
        self._alive = True

    def broken(self) -> None:
        """The watch ended: nothing is known until the next one brings something."""
        self._alive = False
        self.epoch += 1

    def claim(self, at: float) -> str | None:
        """Return the version up to which all was seen, or None: nothing may be claimed."""
        if not self._alive or not self._version or at - self._active > self._inactivity:
            return None
        return self._version


def version_to_claim(ours: str, last: str, *, regressed: bool) -> str:
    """Return the version to put into a mark when the last mark, maybe another watcher's, claimed ``last``.

    What another watcher has published is in OBJECTS too, so a mark does not go back to a version that we have seen and
    it has passed; unless our list showed that the API server itself went back (``regressed``).
    """
    if regressed or not (ours.isdigit() and last.isdigit()):
        return ours
    return max(ours, last, key=int)


class Marker:
    """Publishes the marks of one kind. :meth:`pulse` asks for one now.

    ``vouch`` waits until all that was seen is on the bus, and returns the creation time of the OBJECTS that holds
    it, "" when none does.
    """

    def __init__(
        self,
        kind: str,
        freshness: Freshness,
        *,
        bus: Bus,
        settings: Settings,
        watcher: str,
        vouch: Callable[[], Awaitable[str]],
        log: FilteringBoundLogger,
    ) -> None:
        self._kind = kind
        self._freshness = freshness
        self._bus = bus
        self._settings = settings
        self._watcher = watcher
        self._vouch = vouch
        self._log = log
        self._wanted = asyncio.Event()

    def pulse(self) -> None:
        """Publish a mark soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Publish marks until cancelled. Raises only what a publish of objects raised."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.mark_interval):
                    await self._wanted.wait()
            self._wanted.clear()
            epoch, at = self._freshness.epoch, time_now()
            claim = self._freshness.claim(time.monotonic())
            if claim is None:
                continue
            stream = await self._vouch()
            if not stream or self._freshness.epoch != epoch:
                continue
            mark = Mark(kind=self._kind, resource_version=claim, time=at, watcher=self._watcher, stream=stream)
            try:
                await self._publish(mark)
            except WrongSequenceError:
                continue  # another watcher has just said it
            except (BusError, TimeoutError, OSError, nats.errors.Error) as error:
                self._log.debug("mark not published", error=str(error) or type(error).__name__)

    async def _publish(self, mark: Mark) -> None:
        subject = mark_subject(self._kind)
        last = await self._bus.last(OBJECTS, subject)
        before = ""
        if last is not None:
            with suppress(EventError):
                before = decode_body(Mark, last.data).resource_version
        version = version_to_claim(mark.resource_version, before, regressed=self._freshness.regressed)
        mark = msgspec.structs.replace(mark, resource_version=version)
        event = Event(
            id=f"{self._settings.cluster}:{self._watcher}:{mark.kind}:{mark.time.isoformat()}",
            source=f"/clusters/{self._settings.cluster}",
            type=MARK,
            subject=mark.kind,
            time=mark.time,
        )
        # Within one interval: a mark that comes later than the next one is no use.
        await self._bus.publish(
            subject,
            encode_body(mark),
            event,
            expect_last=last.sequence if last else 0,
            timeout=self._settings.mark_interval,
        )
