"""``make attack``: all cases against a whole Tether; the last line is one JSON object.

On the embedded cluster, or with ``--cluster real`` on a real control plane under the ClusterRoles, admission policies
and users of NATS that ship. Progress and a table of what did not hold go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from eventcore import logs
from tests.attack import acting, drawn, floods, leaving, objects, requests, revocation, sizes, wire
from tests.attack.cases import half
from tests.attack.engine import Engine, say
from tests.attack.stage import SETTINGS, staged
from tests.behaviour.conftest import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attack.cases import Case
    from tests.attack.judging import Found
    from tests.behaviour.conftest import Cluster


def all_cases() -> list[Case]:
    """Return every case; each name is its own."""
    return [
        case
        for room in (objects, sizes, drawn, requests, revocation, acting, floods, wire, leaving)
        for case in room.cases()
    ]


def main(arguments: list[str]) -> int:
    """Try the cases; 1 when one of them did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack.run", description=__doc__)
    parser.add_argument(
        "--cluster", choices=("embedded", "real"), default="embedded", help="which control plane to attack"
    )
    parser.add_argument("--quick", action="store_true", help="the quick half")
    parser.add_argument("--only", default="", help="cases whose section, attacker or name hold this text")
    asked = parser.parse_args(arguments)
    logs.configure("error", "json", "attack")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process outlives the run
    cases = half(all_cases()) if asked.quick else all_cases()
    cases = [case for case in cases if asked.only in case.title]
    began = time.monotonic()
    results: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="attack-") as folder, control_plane(asked.cluster, folder) as kubeconfig:
        for number in range(len(cases)):
            left = [case for case in cases if case.title not in results]
            if not left:
                break
            stage = Path(folder) / f"stage-{number}"
            stage.mkdir()
            say(f"stage {number + 1}: {len(left)} of {len(cases)} cases, {asked.cluster}")
            with running(stage, kubeconfig, **SETTINGS) as cluster:
                asyncio.run(_attack(cluster, left, results, together=asked.quick or kubeconfig is not None))
    _table(cases, results)
    say(f"{len(results)} cases in {time.monotonic() - began:.0f} s")
    return _judge(cases, results)


async def _attack(cluster: Cluster, cases: list[Case], results: dict[str, Found], *, together: bool) -> None:
    async with staged(cluster) as stage:
        await Engine(stage, results, together=together).run(cases)


@contextmanager
def control_plane(kind: str, folder: str) -> Iterator[Path | None]:
    """Yield the kubeconfig of a real control plane of its own, None for the embedded one."""
    if kind == "embedded":
        yield None
        return
    from controlplane.fixture import running as running_plane  # noqa: PLC0415 -- only where it is asked for

    plane = Path(folder) / "controlplane"
    plane.mkdir()
    with running_plane(plane) as kubeconfig:
        yield kubeconfig


def _table(cases: list[Case], results: dict[str, Found]) -> None:
    missed = [(case, results[case.title]) for case in cases if results[case.title]]
    for case, found in missed:
        say(f"\n{case.title}")
        for line in found.lines():
            say(f"    {line[:600]}")


def _judge(cases: list[Case], results: dict[str, Found]) -> int:
    found = [results[case.title] for case in cases]
    counts = {
        "cases": len(cases),
        "stopped": sum(bool(one.stopped or one.slow) for one in found),
        "leaked": sum(bool(one.leaked) for one in found),
        "late": sum(bool(one.late) for one in found),
    }
    sys.stdout.write(msgspec.json.encode(counts).decode() + "\n")
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
