"""Runs cases on a stage, each while a victim lives, and judges them.

Where cases share one life and something is wrong, each is tried again alone, so that every miss has a name. What took
too long is a miss when it did so twice: a machine has slow moments of its own. After a case by which somebody was
stopped the stage is tried without an attack; when it does not come right, the rest goes on with a new one.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from typing import TYPE_CHECKING, Final

import aiohttp

from eventcore.errors import TetherError
from tests.attack.cases import Ground
from tests.attack.judging import Baseline, Found, of_beats, of_onboarding, of_processes, of_revocation
from tests.attack.pulse import Pulse, leaks
from tests.attack.victim import How, Victim
from tests.attack.world import World
from tests.behaviour.conftest import Tenancy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.attack.cases import Case
    from tests.attack.stage import Stage
    from tests.kubeapi import Client

CALM_CYCLES: Final = 5
CASE_SECONDS: Final = 120.0
AT_ONCE: Final = 6
"""How many cases may share a life."""
_HOWS: Final[tuple[How, ...]] = ("annotation", "owner", "tenant", "account")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Engine:
    """One stage at work. ``results`` holds what was found by the title of each case that was tried.

    ``together``: poison shares the life of a victim with other poison, as in the quick half and on a real API server,
    where a dead token is remembered for ten seconds. Otherwise only those share it that ask, and poison stands alone.
    """

    def __init__(self, stage: Stage, results: dict[str, Found], *, together: bool) -> None:
        self._stage = stage
        self._world = World(stage)
        self._pulse = Pulse(stage)
        self._hows: Iterator[How] = itertools.cycle(_HOWS)
        self._baseline = Baseline({}, {})
        self._share = together
        self.results = results

    async def run(self, cases: Sequence[Case]) -> None:
        """Try the cases; those that are not in ``results`` afterwards need another stage."""
        await self._world.make()
        async with self._pulse.beating():
            await self._measure()
            for together in _batches(cases, everything=self._share):
                if not await self._try(together):
                    return

    async def _measure(self) -> None:
        cycles = []
        for _ in range(CALM_CYCLES):
            victim = Victim(Tenancy(self._stage.cluster, self._stage.admin))
            await victim.live(next(self._hows))
            if victim.found:
                raise RuntimeError(f"without any attack: {victim.found.lines()}")
            cycles.append(victim.took | victim.revoked)
        wrong = await self._world.look()
        wrong.add(of_beats(self._pulse.take()))
        if wrong:
            raise RuntimeError(f"without any attack: {wrong.lines()}")
        processes = await self._stage.processes()
        self._baseline = Baseline.of(cycles, {name: one for name, one in processes.items() if one is not None})
        say(f"usual, in seconds: { {step: round(seconds, 2) for step, seconds in self._baseline.seconds.items()} }")

    async def _try(self, cases: Sequence[Case]) -> bool:
        """Try cases together, and each alone where something was wrong; tell whether the stage still stands."""
        found, whole = await self._together(cases)
        if len(cases) > 1:
            # What only the whole shows may be anybody's; what took one of them too long, that it had company.
            again = [case for case, one in zip(cases, found, strict=True) if whole or _only_of_time([one])]
            self.results |= {case.title: one for case, one in zip(cases, found, strict=True) if case not in again}
            if (whole or any(one.stopped for one in found)) and not await self._recovered():
                return False
            for case in again:
                if not await self._try([case]):
                    return False
            return True
        if _only_of_time([whole, *found]):
            found, whole = await self._together(cases)
        for case, one in zip(cases, found, strict=True):
            one.add(whole)
            self.results[case.title] = one
        return not any(one.stopped or one.slow for one in found) or await self._recovered()

    async def _together(self, cases: Sequence[Case]) -> tuple[list[Found], Found]:
        """Return what was found of each by itself, and what only the whole shows."""
        stage, began = self._stage, time.monotonic()
        spared = frozenset().union(*(case.spares for case in cases))
        self._pulse.take()
        self._pulse.spared = spared
        before = {name: one for name, one in (await stage.processes()).items() if one is not None}
        stage.victim = Tenancy(stage.cluster, stage.admin)
        victim = Victim(stage.victim)
        victim.shared = stage.shared
        grounds = [Ground(stage) for _ in cases]
        attacks = [case.attack(ground) for case, ground in zip(cases, grounds, strict=True)]
        whole = Found()
        try:
            await asyncio.gather(*(_step(attack, ground) for attack, ground in zip(attacks, grounds, strict=True)))
            await victim.live(next(self._hows), self._credentials)
            await asyncio.gather(*(_step(attack, ground) for attack, ground in zip(attacks, grounds, strict=True)))
            whole.add(await self._world.look())
        except (TetherError, aiohttp.ClientError, OSError, TimeoutError) as error:
            whole.stopped.append(f"the stage does not answer: {type(error).__name__}: {error}")
        finally:
            for ground in grounds:
                await _clean(ground)
        whole.add(victim.found)
        whole.add(of_onboarding(victim.took, self._baseline))
        whole.add(of_revocation(victim.revoked, self._baseline))
        whole.add(of_processes(before, await stage.processes(), self._baseline, spared))
        whole.add(of_beats(self._pulse.take()))
        leaks(self._pulse, whole)
        for case, ground in zip(cases, grounds, strict=True):
            ground.found.add(of_revocation(ground.took, self._baseline))
            verdict = "; ".join([*ground.found.lines(), *whole.lines()])[:400] or "held"
            notes = f" ({'; '.join(ground.notes)})" if ground.notes else ""
            say(f"{time.monotonic() - began:5.1f} s  {case.title}{notes}: {verdict}")
        return [ground.found for ground in grounds], whole

    async def _credentials(self, victim: Victim, _: Client) -> None:
        victim.found.add(await self._world.credentials(victim.token, self._stage.bystander_token))

    async def _recovered(self) -> bool:
        """Tell whether a victim lives as usual without an attack, and everybody is there."""
        victim = Victim(Tenancy(self._stage.cluster, self._stage.admin))
        await victim.live("annotation")
        missing = [name for name, one in (await self._stage.processes()).items() if one is None or one.ill]
        self._pulse.take()
        return not victim.found and not missing


def _only_of_time(found: Sequence[Found]) -> bool:
    return any(one.is_of_time for one in found) and not any(one.is_certain for one in found)


async def _step(attack: AsyncIterator[None], ground: Ground) -> None:
    """Go on with an attack up to its next ``yield``; what it cannot do is a miss, since nothing was shown."""
    try:
        async with asyncio.timeout(CASE_SECONDS):
            await anext(attack, None)
    except Exception as error:  # noqa: BLE001 -- whatever a case ends by, the others go on
        ground.found.stopped.append(f"the case itself failed: {type(error).__name__}: {str(error)[:300]}")


async def _clean(ground: Ground) -> None:
    try:
        async with asyncio.timeout(CASE_SECONDS):
            await ground.clean()
    except Exception as error:  # noqa: BLE001 -- the same
        ground.found.stopped.append(f"cannot be cleaned up: {type(error).__name__}: {str(error)[:300]}")


def _batches(cases: Sequence[Case], *, everything: bool) -> Iterator[list[Case]]:
    """Yield cases that share a victim's life: those that only ask, or everything that need not be alone."""
    batch: list[Case] = []
    for case in cases:
        if case.alone or not (case.shares or everything):
            yield [case]
            continue
        batch.append(case)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
