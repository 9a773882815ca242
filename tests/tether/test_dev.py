"""``tether dev up`` and ``dev down``: what they promise to whoever builds on them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from eventcore.errors import ForbiddenError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import dev, dev_accounts, dev_processes
from tether.dev_layout import Layout
from tether.dev_processes import Ident
from tether.devcluster.api import ApiOptions, EmbeddedApi

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dev")]

Tether = Callable[..., Awaitable[tuple[int, str, str]]]
TETHER = (sys.executable, "-P", "-m", "tether.cli")
NAMESPACES = api_path("", "v1", "namespaces")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TETHER_")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose cluster runs; tests may kill processes, and leave all of them running."""
    folder = tmp_path_factory.mktemp("dev") / "cluster"
    up = subprocess.run([*TETHER, "dev", "up", "--dir", str(folder)], env=environment(), check=False)  # noqa: S603 - our own
    yield folder
    subprocess.run([*TETHER, "dev", "down", "--dir", str(folder)], env=environment(), check=True)  # noqa: S603 - our own
    assert up.returncode == 0


def pids(folder: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in (folder / "pids").iterdir()}


def exported(folder: Path) -> dict[str, str]:
    """Return what ``env.sh`` adds to a shell's environment."""
    script = f"set -a; . {shlex.quote(str(folder / 'env.sh'))}; env -0"
    shown = subprocess.run(["/bin/sh", "-c", script], env={}, check=True, capture_output=True, text=True)  # noqa: S603 - our own
    variables = dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)
    return {name: value for name, value in variables.items() if name.startswith("TETHER_")}


async def client_of(kubeconfig: Path) -> KubeClient:
    return await KubeClient.connect(Settings(kubeconfig=str(kubeconfig)))


def test_every_process_of_the_contract_runs_with_a_pid_file(running: Path) -> None:
    found = pids(running)

    assert sorted(found) == sorted(dev.PROCESSES)
    assert len(set(found.values())) == len(dev.PROCESSES)
    assert all(Ident.of(pid) is not None for pid in found.values())
    assert {role.rpartition("-")[0] for role in found} == {"nats", "api", "watcher", "router", "worker", "proxy"}


def test_env_sh_exports_the_addresses(running: Path) -> None:
    variables = exported(running)

    assert sorted(variables) == ["TETHER_API_URL", "TETHER_NATS_URL", "TETHER_PROXY_CA_FILE", "TETHER_PROXY_URL"]
    assert variables["TETHER_NATS_URL"].startswith("nats://127.0.0.1:")
    assert variables["TETHER_API_URL"].startswith("https://127.0.0.1:")
    assert "BEGIN CERTIFICATE" in Path(variables["TETHER_PROXY_CA_FILE"]).read_text()


async def test_admin_kubeconfig_may_do_everything(running: Path) -> None:
    client = await client_of(running / "admin.kubeconfig")
    try:
        namespaces = msgspec.json.decode(await client.get(NAMESPACES))
        await client.get(api_path("", "v1", "secrets", namespace="capsule-system"))
    finally:
        await client.close()

    assert "capsule-system" in {item["metadata"]["name"] for item in namespaces["items"]}


@pytest.mark.parametrize("role", ["watcher", "router", "worker", "proxy"])
async def test_each_role_has_an_account_of_its_own_with_few_rights(role: str, running: Path) -> None:
    client = await client_of(running / "roles" / f"{role}.kubeconfig")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        path = api_path("authentication.k8s.io", "v1", "selfsubjectreviews")
        answer = msgspec.json.decode(await client.create(path, review))
        with pytest.raises(ForbiddenError):
            await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})
        if role != "watcher":
            with pytest.raises(ForbiddenError):
                await client.get(api_path("", "v1", "secrets"))
    finally:
        await client.close()

    assert answer["status"]["userInfo"]["username"] == f"system:serviceaccount:capsule-system:tether-{role}"


def test_nothing_private_is_readable_by_others(running: Path) -> None:
    open_to_others = [
        path
        for path in running.rglob("*")
        if path.is_file()
        and path.stat().st_mode & 0o077
        and not any(
            parent.stat().st_mode & 0o077 == 0 for parent in path.parents if running in (parent, *parent.parents)
        )
    ]

    assert open_to_others == []


async def test_up_on_a_running_folder_changes_nothing(running: Path, tether: Tether) -> None:
    before, variables = pids(running), exported(running)
    client = await client_of(running / "admin.kubeconfig")
    secrets = msgspec.json.decode(await client.get(api_path("", "v1", "secrets")))

    code, out, _ = await tether("dev", "up", "--dir", str(running))

    after = msgspec.json.decode(await client.get(api_path("", "v1", "secrets")))
    await client.close()
    assert code == 0
    assert "everything runs already" in out
    assert (pids(running), exported(running)) == (before, variables)
    assert after["items"] == secrets["items"]


@pytest.mark.parametrize(
    "victim",
    ["nats-1", "api-1", "watcher-2", "router-1", "worker-1", "proxy-2"],
)
async def test_up_brings_back_what_died_where_it_was(victim: str, running: Path, tether: Tether) -> None:
    before, variables = pids(running), exported(running)
    os.kill(before[victim], signal.SIGKILL)
    await dev_processes.ended(Layout(running).load().processes[victim])

    code, out, err = await tether("dev", "up", "--dir", str(running))

    after = pids(running)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("started")] == [f"started {victim}"]
    assert after.pop(victim) != before.pop(victim)
    assert after == before
    assert exported(running) == variables


async def test_a_process_that_was_given_a_used_id_is_left_alone(running: Path, tether: Tether) -> None:
    layout = Layout(running)
    state = layout.load()
    worker = state.processes["worker-2"]
    await dev_processes.stop([worker], grace=30)
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])  # noqa: ASYNC220 - our own
    try:
        state.processes["worker-2"] = Ident(stranger.pid, worker.started)
        layout.save(state)

        code, out, _ = await tether("dev", "up", "--dir", str(running))

        assert code == 0
        assert "started worker-2" in out
        assert pids(running)["worker-2"] != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_process_that_cannot_start_is_named_with_the_end_of_its_log(running: Path, tether: Tether) -> None:
    layout = Layout(running)
    await dev_processes.stop([layout.load().processes["router-2"]], grace=30)

    code, _, err = await tether("dev", "up", "--dir", str(running), TETHER_LOG_LEVEL="loud")
    assert code == 2, "a setting that no role takes is said before anything is started"
    port = layout.load().ports["router-2"]
    with socket.create_server(("127.0.0.1", port)):
        code, _, err = await tether("dev", "up", "--dir", str(running))
    again = await tether("dev", "up", "--dir", str(running))

    assert code == 1
    assert err.startswith("tether: router-2 ended before it was ready; the end of ")
    assert f"port {port} on 127.0.0.1 is in use" in err
    assert "Traceback" not in err
    assert again[0] == 0


async def test_a_running_folder_cannot_be_given_another_api_server(
    running: Path, tmp_path: Path, tether: Tether
) -> None:
    other = tmp_path / "kubeconfig"
    other.write_text((running / "admin.kubeconfig").read_text())

    code, _, err = await tether("dev", "up", "--dir", str(running), "--kubeconfig", str(other))

    assert code == 1
    assert "take another --dir" in err


async def test_another_api_server_and_a_second_folder_beside_the_first(
    running: Path, tmp_path: Path, tether: Tether
) -> None:
    first = pids(running)
    api = EmbeddedApi()
    await api.start()
    (tmp_path / "kubeconfig").write_text(api.admin_kubeconfig())
    folder = tmp_path / "second"

    up = await tether("dev", "up", "--dir", str(folder), "--kubeconfig", str(tmp_path / "kubeconfig"))
    second, variables = pids(folder), exported(folder)
    down = await tether("dev", "down", "--dir", str(folder))
    again = await tether("dev", "down", "--dir", str(folder))
    await api.stop()

    assert (up[0], up[2]) == (0, "")
    assert variables["TETHER_API_URL"] == api.url
    assert "api-1" not in second
    assert len(second) == len(dev.PROCESSES) - 1
    assert down[0] == again[0] == 0
    assert all(Ident.of(pid) is None for pid in second.values())
    assert not list((folder / "pids").iterdir())
    assert pids(running) == first
    assert all(Ident.of(pid) is not None for pid in first.values())


async def test_an_api_server_without_capsule_is_said_in_one_line(tmp_path: Path, tether: Tether) -> None:
    api = EmbeddedApi(ApiOptions(capsule=False))
    await api.start()
    (tmp_path / "kubeconfig").write_text(api.admin_kubeconfig())
    folder = str(tmp_path / "dev")

    code, _, err = await tether("dev", "up", "--dir", folder, "--kubeconfig", str(tmp_path / "kubeconfig"))
    await tether("dev", "down", "--dir", folder)
    await api.stop()

    assert code == 1
    assert err.count("\n") == 1
    assert "install Capsule there first" in err


async def test_an_api_server_that_does_not_answer_is_said_in_one_line(tmp_path: Path, tether: Tether) -> None:
    (tmp_path / "kubeconfig").write_text(dev_accounts.kubeconfig("https://127.0.0.1:1", None, {"token": "example"}))
    folder = str(tmp_path / "dev")

    code, _, err = await tether("dev", "up", "--dir", folder, "--kubeconfig", str(tmp_path / "kubeconfig"))
    await tether("dev", "down", "--dir", folder)

    assert code == 1
    assert err.count("\n") == 1
    assert "127.0.0.1:1" in err


async def test_down_without_a_cluster_is_said_in_one_line(tmp_path: Path, tether: Tether) -> None:
    code, _, err = await tether("dev", "down", "--dir", str(tmp_path))

    assert code == 1
    assert "holds no development cluster" in err
