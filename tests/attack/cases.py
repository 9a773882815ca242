"""What a case is: an attacker does something hostile, it stands while a victim lives, then it is looked at and gone.

A case is written as an async generator: all before ``yield`` is the attack, all after it the look at what came of it.
What speaks against Tether goes into ``found`` of its ground. What it made it leaves to ``clean``, which always runs.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from tests.attack.judging import Found

if TYPE_CHECKING:
    from tests.attack.stage import Stage

Who = Literal["mallory", "developer", "former", "pod", "unknown", "administrator"]
"""The owner of a hostile tenant, a developer with ``edit`` in one of its namespaces, one who was an owner until his
account was disabled, a pod without rights, a peer without a credential; and an administrator who errs."""


class Ground:
    """What one case stands on: the stage, its own mark, what it found and how what it made is removed.

    ``took``: how long the steps of a revocation of its own took, in seconds, if it had one.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.mark = f"x{secrets.token_hex(4)}"
        self.found = Found()
        self.notes: list[str] = []
        self.took: dict[str, float] = {}
        self._clean: list[Callable[[], Awaitable[object]]] = []

    def later(self, clean: Callable[[], Awaitable[object]]) -> None:
        """Have this done at the end, whatever happens; the last first."""
        self._clean.append(clean)

    async def clean(self) -> None:
        while self._clean:
            await self._clean.pop()()


Attack = Callable[[Ground], AsyncIterator[None]]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One attack.

    ``section``: which promise it tries. ``quick``: tried in the quick half too; ``long``: never there otherwise.
    ``spares``: the roles whose processes the case itself ends. ``shares``: it asks only, so that many share the life of
    one victim. ``alone``: it disturbs what others look at, so that it shares with nobody.
    """

    name: str
    section: str
    who: Who
    attack: Attack
    quick: bool = False
    long: bool = False
    spares: frozenset[str] = frozenset()
    shares: bool = False
    alone: bool = False

    @property
    def title(self) -> str:
        """The case's own name."""
        return f"{self.section} {self.who}: {self.name}"


def half(cases: list[Case]) -> list[Case]:
    """Return the quick half: what is marked, and of the others so many that half of all are there, spread evenly."""
    marked = [case for case in cases if case.quick]
    others = [case for case in cases if not case.quick and not case.long]
    wanted = max(0, len(cases) // 2 - len(marked))
    step = len(others) / wanted if wanted else 0
    chosen = {id(case) for case in marked} | {id(others[int(number * step)]) for number in range(wanted)}
    return [case for case in cases if id(case) in chosen]
