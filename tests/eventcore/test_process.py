"""A role as a process: signals, grace, exit codes, and what a person reads on stderr. Real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PRELUDE = """
import asyncio, sys
from eventcore import errors
from eventcore.process import run_role
from eventcore.settings import Settings
"""


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[asyncio.subprocess.Process]]]:
    """Return a function that starts a role whose main has the given body."""
    started: list[asyncio.subprocess.Process] = []

    async def run(body: str, settings: str = "http_port=0", run_with: str = "") -> asyncio.subprocess.Process:
        indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
        code = f"{PRELUDE}async def main(role):\n{indented}\n"
        code += f"sys.exit(run_role('work', Settings({settings}), main{run_with}))\n"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, list[str]]:
    _, err = await process.communicate()
    return process.returncode, err.decode().splitlines()


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def events(lines: list[str]) -> list[Any]:
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_role_finish_and_exits_0(stop: signal.Signals, start: Any) -> None:
    process = await start(
        """
        role.readiness.set("nats", ok=True)
        assert role.readiness.ready
        print("up", flush=True)
        await role.stopping.wait()
        assert not role.readiness.ready
        print("finished", flush=True)
        """.replace("        ", "")
    )
    assert await said(process) == "up"
    process.send_signal(stop)
    assert await said(process) == "finished"
    code, lines = await ended(process)
    assert code == 0
    assert events(lines) == ["process started", "stopping", "process stopped"]


async def test_a_role_may_open_all_the_files_that_the_system_lets_it() -> None:
    body = "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)"
    code = f"""{PRELUDE}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
async def main(role):
    {body}
{body}
sys.exit(run_role('work', Settings(http_port=0), main))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert (process.returncode, out.split()) == (0, [b"256", b"512"])


LEAVING = """
role.readiness.set("nats", ok=True)
print("up", flush=True)
while role.readiness.ready:
    await asyncio.sleep(0.01)
print("not stopping" if not role.stopping.is_set() else "stopping", flush=True)
await role.stopping.wait()
print("finished", flush=True)
"""


async def test_on_sigterm_a_role_that_is_sent_work_goes_on_for_a_while_and_is_not_ready(start: Any) -> None:
    process = await start(LEAVING, run_with=", delay=0.2")
    assert await said(process) == "up"

    process.send_signal(signal.SIGTERM)

    assert [await said(process), await said(process)] == ["not stopping", "finished"]
    code, lines = await ended(process)
    assert code == 0
    assert events(lines) == ["process started", "leaving", "stopping", "process stopped"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_while(second: signal.Signals, start: Any) -> None:
    process = await start(LEAVING, run_with=", delay=600")
    assert await said(process) == "up"
    process.send_signal(signal.SIGTERM)
    assert await said(process) == "not stopping"

    process.send_signal(second)

    assert await said(process) == "finished"
    assert (await ended(process))[0] == 0


async def test_who_stops_it_by_hand_waits_for_nothing(start: Any) -> None:
    process = await start(LEAVING, run_with=", delay=600")
    assert await said(process) == "up"

    process.send_signal(signal.SIGINT)

    assert [await said(process), await said(process)] == ["stopping", "finished"]
    assert (await ended(process))[0] == 0


async def test_the_probes_say_stopping_while_work_is_finished(start: Any) -> None:
    process = await start("""
role.readiness.set("nats", ok=True)
print(role.http_port, flush=True)
await role.stopping.wait()
reader, writer = await asyncio.open_connection("127.0.0.1", role.http_port)
writer.write(b"GET /readyz HTTP/1.0\\r\\n\\r\\n")
print((await reader.read()).decode().splitlines()[-1], flush=True)
""")
    assert int(await said(process)) > 0
    process.terminate()
    assert await said(process) == "process: stopping"
    assert (await ended(process))[0] == 0


async def test_a_role_that_overruns_its_grace_is_cancelled_and_says_so(start: Any) -> None:
    body = 'print("up", flush=True)\nawait asyncio.Event().wait()'
    process = await start(body, "http_port=0, shutdown_grace=0.05")
    assert await said(process) == "up"
    process.terminate()
    code, lines = await ended(process)
    assert code == 1
    assert lines[-1].startswith("tether work: did not finish its work in --shutdown-grace")


async def test_a_second_signal_stops_at_once(start: Any) -> None:
    process = await start("""
print("up", flush=True)
await role.stopping.wait()
print("stopping", flush=True)
await asyncio.Event().wait()
""")
    assert await said(process) == "up"
    process.terminate()
    assert await said(process) == "stopping"
    process.terminate()
    code, lines = await ended(process)
    assert code == 1
    assert events(lines)[-2:] == ["second signal, stopping at once", "process stopped before its work was finished"]


async def test_an_error_of_ours_is_one_line_for_a_person_and_exit_code_1(start: Any) -> None:
    process = await start('raise errors.BusUnreachableError("no NATS server answers\\nat nats://u:pass@h:1; start it")')
    code, lines = await ended(process)
    assert code == 1
    assert lines[-1] == "tether work: no NATS server answers at nats://[hidden]@h:1; start it"
    assert events(lines[:-1]) == ["process started"]


async def test_a_settings_error_is_exit_code_2(start: Any) -> None:
    code, lines = await ended(await start('raise errors.SettingsError("--x: must be y")'))
    assert (code, lines[-1]) == (2, "tether work: --x: must be y")


async def test_errors_of_a_task_group_count_as_what_they_hold(start: Any) -> None:
    process = await start("""
async def fail():
    raise errors.StartError("no rights")
async with asyncio.TaskGroup() as group:
    group.create_task(fail())
""")
    code, lines = await ended(process)
    assert (code, lines[-1]) == (1, "tether work: no rights")


async def test_a_bug_is_one_log_line_without_traceback_and_exit_code_70(start: Any) -> None:
    code, lines = await ended(await start('raise KeyError("x")'))
    assert code == 70
    last = json.loads(lines[-1])
    assert (last["level"], last["error"]) == ("error", "KeyError: 'x'")
    assert "Traceback" not in "".join(lines)


async def test_a_bug_shows_its_traceback_at_debug(start: Any) -> None:
    code, lines = await ended(await start('raise KeyError("x")', 'http_port=0, log_level="debug"'))
    assert code == 70
    assert json.loads(lines[-1])["error_trace"].startswith("Traceback")


async def test_a_port_in_use_ends_the_process_with_one_line(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = await ended(await start("pass", f"http_port={port}"))
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"tether work: port {port} on 127.0.0.1 is in use")


async def test_a_role_that_is_done_exits_0(start: Any) -> None:
    assert (await ended(await start("pass")))[0] == 0


async def test_starting_a_process_does_not_load_heavy_libraries(start: Any) -> None:
    process = await start('print(sorted({"kubernetes_asyncio", "cryptography", "jwt"} & set(sys.modules)))')
    assert await said(process) == "[]"
    assert (await ended(process))[0] == 0
