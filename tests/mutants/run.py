"""``make mutants``: are the modules that decide held by their tests? The last line is one JSON object.

Each mutant, one small change of a module, is killed by the quick tests of its room, or stands in ``survivors.toml``
with the reason for which it may live. ``MODULE`` (a part of a path) picks modules, ``MUTANTS=quick`` the same small
sample of each in every run, ``JOBS`` is the number of processes (all cores). 1 when one survived, and when an entry of
the list is of no use any more: its code is gone, or the mutant is killed.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.mutants.modules import TESTS, tests
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.trying import (
    KILLED,
    SURVIVED,
    UNSURE,
    InFunctions,
    Report,
    arguments,
    ended,
    from_the_beginning,
    started,
)

LIST = Path(__file__).with_name("survivors.toml")
LOGS = Path(".cache/mutants")
QUICK = 10
"""Mutants of each module in a quick run."""
# What tests import beside us: each fork has it without reading it again.
_HEAVY = ("aiohttp", "cryptography.x509", "jwt", "kubernetes_asyncio.client", "nats", "structlog", "yaml")


class Survivors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mutants of one function that may live, for one reason; each as the lines of its diff."""

    module: str
    function: str
    reason: str
    changes: list[str]


class Result(msgspec.Struct):
    """What became of the mutants of one module."""

    mutants: int = 0
    killed: int = 0
    listed: int = 0
    survived: int = 0
    needless: int = 0


def allowed() -> dict[tuple[str, str, str], str]:
    """Return the reason of every mutant that may live."""
    found = msgspec.convert(tomllib.loads(LIST.read_text()).get("survivors", []), list[Survivors])
    return {(one.module, one.function, change.strip()): one.reason for one in found for change in one.changes}


def sample(found: Sequence[Mutant]) -> list[Mutant]:
    """Return the same few in every run, from anywhere in the module."""
    return sorted(found, key=lambda one: hashlib.sha256("\0".join(one.id).encode()).digest())[:QUICK]


def spread(count: int, work: Callable[[list[int], Report], None], name: str) -> Iterator[tuple[int, str]]:
    """Yield what became of each of so many mutants, tried in as many processes as there are cores."""
    jobs = int(os.environ.get("JOBS", os.cpu_count() or 1))
    reading, writing = os.pipe()

    def report(place: int, became: str) -> None:
        os.write(writing, f"{place} {became}\n".encode())

    def part(first: int) -> int:
        work(list(range(first, count, jobs)), report)
        return 0

    LOGS.mkdir(parents=True, exist_ok=True)
    logs = [LOGS / f"{name}-{first}.log" for first in range(min(jobs, count))]
    children = [started(partial(part, first), str(log)) for first, log in enumerate(logs)]
    os.close(writing)
    with open(reading) as answers:  # noqa: PTH123 -- a descriptor
        for place, became in map(str.split, answers):
            yield int(place), became
    for child, log in zip(children, logs, strict=True):
        if ended(child) != 0:
            sys.exit(f"the tests could not be run:\n{log.read_text()[-4000:]}")


def killed(module: str, found: Sequence[Mutant], listed: set[int]) -> set[int]:
    """Return the places of the mutants that the tests kill, and print those which survive and are not in the list."""

    def in_functions(places: list[int], report: Report) -> None:
        plugin = InFunctions(module, [(place, found[place]) for place in places], report)
        if pytest.main(arguments(tests(module)), plugins=[plugin]) != pytest.ExitCode.OK:
            sys.exit(1)

    def again(numbers: list[int], report: Report) -> None:
        for number in numbers:
            report(unsure[number], from_the_beginning(found[unsure[number]], tests(module)))

    dead: set[int] = set()
    unsure: list[int] = []
    for place, became in spread(len(found), in_functions, Path(module).stem):
        if became == UNSURE and place not in listed:
            unsure.append(place)
        elif not heard(place, became, found, listed):
            dead.add(place)
    dead.update(
        place
        for place, became in spread(len(unsure), again, Path(module).stem)
        if not heard(place, became, found, listed)
    )
    return dead


def heard(place: int, became: str, found: Sequence[Mutant], listed: set[int]) -> bool:
    """Tell whether a mutant lives, and print it at once if it may not."""
    one = found[place]
    if became == SURVIVED and place not in listed:
        say(f'SURVIVED\nmodule = "{one.path}"\nfunction = "{one.function}"\n{one.change}')
    return became != KILLED


def tried(module: str, reasons: dict[tuple[str, str, str], str]) -> Result:
    """Try the mutants of one module, and tell which survived."""
    every = mutants(Path(module))
    found = sample(every) if os.environ.get("MUTANTS") == "quick" else every
    listed = {place for place, one in enumerate(found) if one.id in reasons}
    dead = killed(module, found, listed)
    known = {one.id for one in every}
    needless = [id_ for id_ in reasons if id_[0] == module and id_ not in known]
    needless += [found[place].id for place in sorted(dead & listed)]
    for _, function, change in needless:
        say(f"NEEDLESS in {LIST.name}: {module} {function}\n{change}")
    alive = len(found) - len(dead | listed)
    return Result(len(found), len(dead - listed), len(listed), alive, needless=len(needless))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Try the modules that were asked for."""
    for name in _HEAVY:
        importlib.import_module(name)
    reasons = allowed()
    asked = [module for module in TESTS if os.environ.get("MODULE", "") in module]
    results: dict[str, Result] = {}
    for number, module in enumerate(asked, 1):
        begun = time.monotonic()
        one = results[module] = tried(module, reasons)
        say(
            f"{number}/{len(asked)} {module}: {one.mutants} mutants, {one.killed} killed, {one.listed} listed, "
            f"{one.survived} survived, {time.monotonic() - begun:.0f} s"
        )
    say("")
    rows = [(module, *msgspec.structs.astuple(one)) for module, one in results.items()]
    for row in (("module", "mutants", "killed", "listed", "survived", "needless"), *rows):
        say("".join(f"{cell:<34}" if place == 0 else f"{cell:>10}" for place, cell in enumerate(row)))
    total = {field: sum(getattr(one, field) for one in results.values()) for field in Result.__struct_fields__}
    needless = total.pop("needless")
    say(msgspec.json.encode(total).decode())
    return 1 if total["survived"] or needless else 0


if __name__ == "__main__":
    sys.exit(main())
