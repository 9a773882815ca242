"""``tether demo`` from end to end: for programs, for people, with and without kubectl, with processes killed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tether import dev, dev_processes
from tether.dev_layout import Layout

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

Tether = Callable[..., Awaitable[tuple[int, str, str]]]
STEPS = [
    "start",
    "apply",
    "annotate",
    "rbac",
    "token",
    "kubeconfig",
    "namespaces",
    "distribute",
    "list",
    "direct",
    "isolation",
    "audit",
]


class Kept(NamedTuple):
    """What the demo printed, and where it still runs."""

    code: int
    out: str
    err: str
    folder: Path


def path_without_kubectl(tmp_path: Path) -> str:
    """Return a PATH that has what a shell needs, and no kubectl."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env"):
        (folder / name).symlink_to(shutil.which(name) or "/bin/sh")
    assert shutil.which("kubectl", path=str(folder)) is None
    return str(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A demo that ran without kubectl, with --json and --keep."""
    base = tmp_path_factory.mktemp("kept")
    folder = base / "demo"
    command = (sys.executable, "-P", "-m", "tether.cli")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TETHER_")}
    ran = subprocess.run(  # noqa: S603 - our own
        [*command, "demo", "--json", "--keep", "--dir", str(folder)],
        env={**environ, "PATH": path_without_kubectl(base)},
        capture_output=True,
        text=True,
        check=False,
    )
    yield Kept(ran.returncode, ran.stdout, ran.stderr, folder)
    subprocess.run([*command, "dev", "down", "--dir", str(folder)], env=environ, check=True)  # noqa: S603 - our own


def test_json_tells_each_step_and_both_times_without_kubectl(kept: Kept) -> None:
    result = msgspec.json.decode(kept.out)

    assert (kept.code, kept.err) == (0, "")
    assert result["ok"] is True
    assert [step["name"] for step in result["steps"]] == STEPS
    assert all(step["ok"] and step["milliseconds"] >= 0 for step in result["steps"])
    assert "with the API" in result["steps"][STEPS.index("namespaces")]["detail"]
    for name in ("annotation_to_kubeconfig", "namespace_to_kubeconfig"):
        assert 0 < result["times"][f"{name}_ms"] <= result["times"][f"{name}_max_ms"]


def test_keep_leaves_everything_running(kept: Kept) -> None:
    processes = Layout(kept.folder).load().processes

    assert {name for name, ident in processes.items() if ident.alive} == set(dev.PROCESSES)
    assert msgspec.json.decode(kept.out)["dir"] == str(kept.folder)


async def test_the_audit_trail_of_the_demo_names_every_cause(kept: Kept, tether: Tether) -> None:
    nats_url = exported(kept.folder, "TETHER_NATS_URL")

    for_programs = await tether("audit", "tail", "--no-follow", "--json", TETHER_NATS_URL=nats_url)
    for_people = await tether("audit", "tail", "--no-follow", TETHER_NATS_URL=nats_url)

    found = [msgspec.json.decode(line) for line in for_programs[1].splitlines()]
    assert {record["component"] for record in found} >= {"rbac", "token", "kubeconfig", "access", "proxy"}
    assert {record["outcome"] for record in found} >= {"done", "refused"}
    assert all(record["cause"] for record in found)
    assert for_people[1].count("\n") == len(found) + 1


def test_no_role_was_refused_by_the_api_server(kept: Kept) -> None:
    logs = [line for log in (kept.folder / "log").iterdir() for line in log.read_text().splitlines()]

    assert [line for line in logs if "Forbidden" in line] == [], "deploy/rbac lacks a right"


async def test_a_folder_of_another_demo_is_refused(kept: Kept, tether: Tether) -> None:
    code, out, err = await tether("demo", "--dir", str(kept.folder))

    assert (code, out) == (1, "")
    assert "give the demo a folder of its own" in err


@pytest.mark.kubectl
async def test_plain_lines_are_shown_where_there_is_no_terminal_and_kubectl_is_used(
    tmp_path: Path, tether: Tether
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")

    code, out, err = await tether("demo", TMPDIR=str(tmp_path))

    assert (code, err) == (0, "")
    assert re.findall(r"^ok   (\w+) +\d+ ms", out, re.MULTILINE) == STEPS
    assert "with kubectl" in out
    assert "annotation to kubeconfig at home:" in out
    assert "Every check held." in out
    assert "tether demo --keep" in out
    assert "\x1b" not in out
    assert is_empty(tmp_path), "its folder is left behind"


@pytest.mark.parametrize(
    ("role", "after"), [("watcher", "apply"), ("router", "annotate"), ("worker", "annotate"), ("proxy", "kubeconfig")]
)
async def test_every_check_holds_though_both_processes_of_a_role_are_killed_and_started_again(
    role: str, after: str, tmp_path: Path, tether: Tether
) -> None:
    folder = tmp_path / "demo"
    # What a killed worker held comes to another one after ack_wait.
    times = {"TETHER_ACK_WAIT": "4s", "TETHER_RECONCILE_TIMEOUT": "2s", "TETHER_PULL_EXPIRY": "1s"}

    async with plain_demo(folder, times) as (process, lines):
        async for line in lines:
            if line.startswith(f"ok   {after} "):
                break
        for number in (1, 2):
            os.kill(int((folder / "pids" / f"{role}-{number}.pid").read_text()), signal.SIGKILL)
        up = await tether("dev", "up", "--dir", str(folder), **times)
        rest = [line async for line in lines]
        code = await process.wait()

    assert (up[0], up[2]) == (0, "")
    assert f"started {role}-1" in up[1]
    assert f"started {role}-2" in up[1]
    assert [line for line in rest if line.startswith("FAIL")] == []
    assert "Every check held." in "\n".join(rest)
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_an_interrupted_demo_ends_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "demo"

    async with plain_demo(folder, {}) as (process, lines):
        async for _ in lines:
            break
        started = Layout(folder).load().processes
        process.send_signal(number)
        code = await process.wait()
        errors = await process.stderr.read() if process.stderr else b""

    assert code == 130
    assert errors.strip() == b"tether: interrupted"
    assert started
    assert not any(ident.alive for ident in started.values())


async def test_a_step_that_fails_is_named_and_the_exit_code_is_1(tmp_path: Path, tether: Tether) -> None:
    folder = tmp_path / "demo"
    environ = {"TETHER_HOME_CLUSTER_ROLE": "view"}

    code, out, err = await tether("demo", "--json", "--dir", str(folder), **environ)

    result = msgspec.json.decode(out)
    assert (code, err) == (1, "")
    assert result["ok"] is False
    failed = [step for step in result["steps"] if not step["ok"]]
    assert failed[0]["name"] == "rbac"
    assert "not bound to cluster-admin" in failed[0]["detail"]
    assert {step["detail"] for step in failed[1:]} == {"not reached"}
    assert Layout(folder).load().processes == {}


@asynccontextmanager
async def plain_demo(
    folder: Path, environ: dict[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, AsyncIterator[str]]]:
    """Run the demo, and give its lines as they come; whatever it left running is ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "tether.cli", "demo", "--dir", str(folder)),
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    async def lines() -> AsyncIterator[str]:
        while process.stdout is not None and (line := await process.stdout.readline()):
            yield line.decode().rstrip("\n")

    try:
        yield process, lines()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if Layout(folder).exists():
            await dev_processes.stop(Layout(folder).load().processes.values(), grace=30)


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def exported(folder: Path, name: str) -> str:
    """Return one variable of ``env.sh``."""
    found = re.search(rf"^export {name}=(.*)$", (folder / "env.sh").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]
