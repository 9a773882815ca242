"""A list across namespaces: one list for each that the caller may list, by name, in one snapshot, merged.

The first namespace is listed as the request asks; its resourceVersion then pins all the others, so the whole is of one
moment and a watch can go on from it. Where that snapshot is lost or the grants change meanwhile, the list begins anew.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from proxycore.documents import view_for
from proxycore.merging import Merged, Part, Place, empty_form, part_of, place_of, refusal_of, upstream_accept
from proxycore.statuses import RefusedError, expired, unavailable
from proxycore.turns import Turns, share_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from proxycore.across import Across, Crossing, Send
    from proxycore.identities import Identity
    from proxycore.statuses import Status

ATTEMPTS: Final = 3
AT_ONCE: Final = 8
"""Namespaces of one list that are read at once."""
ALL_AT_ONCE: Final = 64
"""The same of all lists together: an API server lets some hundred requests in, and says 429 to the rest."""
SHARE_AT_ONCE: Final = 16
"""The same of all lists of one share, see `turns`."""
PAGE: Final = 500
"""Objects in a page upstream where the client names no limit."""
MOST_HELD: Final = 256 * 2**20
"""Bytes of answers that all lists together may hold."""
_OK: Final = 200
_GONE: Final = 410
_FORBIDDEN: Final = 403


class _AgainError(Exception):
    """The snapshot is lost, or a namespace has left the grants."""


class Room:
    """How much lists may hold, all together, and how many namespaces they may read at once: one in each turn."""

    def __init__(self, most: int = MOST_HELD, at_once: int = ALL_AT_ONCE) -> None:
        self.turns = Turns(at_once=at_once, each=min(at_once, SHARE_AT_ONCE))
        self._left = most

    def take(self, size: int) -> None:
        """Take room for an answer; RefusedError 503 when there is none."""
        if size > self._left:
            raise RefusedError(unavailable("lists across namespaces hold too much now; try again, and set a limit"))
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class AcrossList:
    """One list for one caller. ``version`` is what memory holds, for a list of no namespace at all."""

    def __init__(
        self, crossing: Crossing, identity: Identity, decision: Across, accept: str, send: Send, room: Room
    ) -> None:
        self._crossing = crossing
        self._identity = identity
        self._decision = decision
        self._view = view_for(accept, include=decision.query.include_object)
        self._accept = upstream_accept(self._view.accept("list"), accept)
        self._send = send
        self._room = room
        self._share = share_of(identity.user)
        self._held = 0

    async def body(self, version: int) -> bytes:
        """Return the list; RefusedError."""
        place = place_of(self._decision.token) if self._decision.token else None
        pinned = place is not None or self._decision.query.resource_version_match == "Exact"
        try:
            for _ in range(ATTEMPTS):
                try:
                    return await self._attempt(place, version)
                except _AgainError:
                    if pinned:
                        raise RefusedError(expired("of the list", version)) from None
                finally:
                    self._room.give_back(self._held)
                    self._held = 0
        except RefusedError as error:
            if place is not None and error.status.code == _GONE:
                raise RefusedError(expired("of the continue token", version)) from None
            raise
        raise RefusedError(unavailable("what you may list changes faster than it can be listed; try again"))

    async def _attempt(self, place: Place | None, version: int) -> bytes:
        decision = self._decision
        allowed = await self._crossing.allowed(self._identity, decision, since=place.namespace if place else "")
        known = self._crossing.list_kinds.get((decision.group, decision.version, decision.resource), "")
        merged = empty_form(self._view, decision.kind, decision.api_version, known)
        reading = _Reading(self, allowed, place)
        end = await reading.into(merged)
        if not reading.told <= self._crossing.candidates(self._identity):
            raise _AgainError
        if self._view.form == "json" and reading.told:
            self._crossing.list_kinds[decision.group, decision.version, decision.resource] = merged.kind
        pin = reading.version if reading.told or place is not None else str(version or "")
        self._remember(pin, frozenset(allowed) - reading.refused, place)
        return merged.encode(pin, end)

    def _remember(self, version: str, names: frozenset[str], place: Place | None) -> None:
        told = self._crossing.told
        if place is not None:
            before = told.get(self._identity, self._decision, version)
            if before is None:
                return  # the first page was another process's
            names |= {name for name in before if name < place.namespace}
        told.put(self._identity, self._decision, version, names)

    async def fetch(self, namespace: str, *, version: str, token: str, limit: int) -> Part | Status:
        """Return a page of one namespace, or its refusal. ``version`` "": the one that the client asks for."""
        pairs = [("limit", str(limit)), *self._pin(version, token)]
        target = self._decision.target(namespace, pairs, table=self._view.form == "table")
        async with self._room.turns.turn(self._share):
            answer = await self._send(target, self._accept)
            body = await answer.read()
        if answer.code != _OK:
            return refusal_of(answer.code, body)
        self._room.take(len(body))
        self._held += len(body)
        return part_of(body, binary=self._view.binary)

    def _pin(self, version: str, token: str) -> list[tuple[str, str]]:
        query = self._decision.query
        timeout = [("timeoutSeconds", str(query.timeout))] if query.timeout is not None else []
        if token:
            return [("continue", token), *timeout]
        if version:
            return [("resourceVersion", version), ("resourceVersionMatch", "Exact"), *timeout]
        asked, match = query.resource_version, query.resource_version_match
        if not match and asked not in {"", "0"}:
            # With a limit of ours, no match would mean another one than without.
            match = "Exact" if self._decision.limit else "NotOlderThan"
        pairs = [("resourceVersion", asked), ("resourceVersionMatch", match)]
        return [*((name, value) for name, value in pairs if value), *timeout]

    @property
    def limit(self) -> int:
        return self._decision.limit

    def refused(self, namespace: str) -> None:
        """Believe no more that the caller may list here."""
        self._crossing.rights.forget(self._identity, self._decision.question, namespace)


class _Reading:
    """One attempt. ``told``: the namespaces whose objects are in it, ``refused``: those that RBAC refused after all."""

    def __init__(self, whole: AcrossList, names: list[str], place: Place | None) -> None:
        self._whole = whole
        self._names = names
        self._place = place
        self._pinned = place is not None
        self.version = place.version if place is not None else ""
        self.told: set[str] = set()
        self.refused: set[str] = set()

    async def into(self, merged: Merged) -> Place | None:
        """Read namespace after namespace until all are read or the limit is reached; return where it goes on."""
        async with aclosing(self._answers(merged)) as answers:
            async for name, part in answers:
                self.told.add(name)
                if token := await self._take(name, part, merged):
                    return Place(name, self.version, token)
                if not self._left(merged) and (after := self._after(name)):
                    return Place(after, self.version)
        return None

    async def _take(self, name: str, part: Part, merged: Merged) -> str:
        """Take all pages of a namespace, or as many as there is room for; return the token of the next one."""
        token = self._token(name)
        while True:
            if self._whole.limit and len(part.entries) > self._left(merged):
                # It was asked for beside others, before it was known how many they hold.
                part = await self._page(name, token, self._left(merged))
            merged.add(part)
            token = part.goes_on
            if not token or not self._left(merged):
                return token
            part = await self._page(name, token, self._left(merged))

    async def _answers(self, merged: Merged) -> AsyncGenerator[tuple[str, Part], None]:
        """Yield the first page of each namespace in order, several read at once when the version is known."""
        rest = list(self._names)
        while rest:
            batch, rest = (rest[:AT_ONCE], rest[AT_ONCE:]) if self._pinned else (rest[:1], rest[1:])
            left = self._left(merged)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._try(name, left)) for name in batch]
            for name, task in zip(batch, tasks, strict=True):
                if (part := self._good(name, task.result())) is not None:
                    if not self._pinned:
                        self._pinned, self.version = True, part.version
                    yield name, part

    async def _try(self, name: str, limit: int) -> Part | RefusedError | Status:
        try:
            return await self._whole.fetch(name, version=self.version, token=self._token(name), limit=limit)
        except RefusedError as error:
            return error  # an exception group would hide it

    def _good(self, name: str, answer: Part | RefusedError | Status) -> Part | None:
        if isinstance(answer, Part):
            return answer
        if isinstance(answer, RefusedError):
            raise answer
        if answer.code == _FORBIDDEN:
            self._whole.refused(name)
            self.refused.add(name)
            return None
        raise _AgainError if answer.code == _GONE and self._pinned else RefusedError(answer)

    async def _page(self, name: str, token: str, limit: int) -> Part:
        answer = await self._whole.fetch(name, version=self.version, token=token, limit=limit)
        part = self._good(name, answer)
        if part is None:
            raise _AgainError  # what was told of it already must not stand
        return part

    def _token(self, name: str) -> str:
        return self._place.upstream if self._place is not None and self._place.namespace == name else ""

    def _left(self, merged: Merged) -> int:
        return max(0, self._whole.limit - merged.count) if self._whole.limit else PAGE

    def _after(self, name: str) -> str:
        return next((other for other in self._names if other > name), "")
