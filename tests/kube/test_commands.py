"""How the programs are called: on loopback only, with certificates, and with the controllers that tests need."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from controlplane import capsule, commands
from controlplane.__main__ import cli
from controlplane.binaries import Binaries
from controlplane.layout import PROCESSES, ControlPlaneError, Layout, State

LOOPBACK = "127.0.0.1"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "plane")
    made.make()
    return made


@pytest.fixture
def state(layout: Layout) -> State:
    chosen = State()
    layout.choose(chosen)
    layout.write_credentials(chosen)
    return chosen


@pytest.fixture
def programs(tmp_path: Path) -> Binaries:
    etcd, api_server, manager, kubectl, helm, controller = (tmp_path / name for name in "abcdef")
    return Binaries(
        etcd=etcd,
        kube_apiserver=api_server,
        kube_controller_manager=manager,
        kubectl=kubectl,
        helm=helm,
        capsule=controller,
        chart=tmp_path,
        capsule_version="v0.14.0",
    )


def flags(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words[1:])}


def test_every_server_has_a_port_of_its_own_and_keeps_it(layout: Layout, state: State) -> None:
    again = State(ports=dict(state.ports))
    layout.choose(again)
    assert again.ports == state.ports
    assert len(set(state.ports.values())) == len(state.ports) >= len(PROCESSES)


def test_etcd_and_the_api_servers_listen_on_loopback(layout: Layout, state: State, programs: Binaries) -> None:
    etcd = flags(commands.command("etcd", programs, layout, state))
    assert etcd["--listen-client-urls"] == f"https://{LOOPBACK}:{state.ports['etcd']}"
    assert etcd["--listen-peer-urls"] == f"https://{LOOPBACK}:{state.ports['etcd-peer']}"
    for name in ("kube-apiserver", "kube-controller-manager"):
        given = flags(commands.command(name, programs, layout, state))
        assert given["--bind-address"] == LOOPBACK
        assert given["--secure-port"] == str(state.ports[name])
    health = commands.environment("capsule", layout, state)["HEALTH_PROBE_ADDRESS"]
    assert health == f"{LOOPBACK}:{state.ports['capsule-health']}"


def test_every_file_that_a_command_names_is_there(layout: Layout, state: State, programs: Binaries) -> None:
    for name in ("etcd", "kube-apiserver", "kube-controller-manager"):
        for flag, value in flags(commands.command(name, programs, layout, state)).items():
            if value.startswith("/"):
                assert Path(value).exists(), f"{name} {flag}"


def test_rights_are_those_of_rbac(layout: Layout, state: State, programs: Binaries) -> None:
    assert flags(commands.command("kube-apiserver", programs, layout, state))["--authorization-mode"] == "RBAC"


@pytest.mark.parametrize(
    "controller", ["clusterrole-aggregation", "namespace", "garbage-collector", "serviceaccount-token", "resourcequota"]
)
def test_the_controllers_that_tests_need_run(controller: str, layout: Layout, state: State, programs: Binaries) -> None:
    given = flags(commands.command("kube-controller-manager", programs, layout, state))["--controllers"].split(",")
    assert f"{controller}-controller" in given


def test_the_certificates_and_kubeconfigs_fit_each_other(layout: Layout, state: State) -> None:
    kubeconfig = yaml.safe_load(layout.admin_kubeconfig.read_text())
    cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    assert cluster["server"] == f"https://{LOOPBACK}:{state.ports['kube-apiserver']}"
    assert base64.b64decode(cluster["certificate-authority-data"]) == layout.ca.read_bytes()
    assert base64.b64decode(user["client-certificate-data"]) == layout.certificate("admin").read_bytes()
    context = ssl.create_default_context(cafile=str(layout.ca))
    for name in (*PROCESSES, "admin", "controller-manager", "etcd-client"):
        context.load_cert_chain(layout.certificate(name), layout.key(name))  # raises when the key is another's


def test_keys_and_kubeconfigs_are_for_their_owner_only(layout: Layout, state: State) -> None:
    private = [layout.admin_kubeconfig, layout.service_account_key, layout.key("admin"), layout.pki / "ca.key"]
    assert {path.stat().st_mode & 0o077 for path in private} == {0}


def test_credentials_that_are_there_are_kept(layout: Layout, state: State) -> None:
    before = layout.admin_kubeconfig.read_bytes()
    layout.write_credentials(state)
    assert layout.admin_kubeconfig.read_bytes() == before


def test_the_webhooks_are_told_where_the_controller_is_and_whom_to_trust(layout: Layout, state: State) -> None:
    values = capsule.chart_values(f"https://{LOOPBACK}:1", layout.ca.read_bytes())
    service = values["webhooks"]["service"]
    assert service["url"] == f"https://{LOOPBACK}:1"
    assert base64.b64decode(service["caBundle"]) == layout.ca.read_bytes()
    assert values["crds"]["inline"] is True


async def test_what_a_program_refuses_is_said_in_one_line() -> None:
    with pytest.raises(ControlPlaneError, match=r"^cat /nowhere/at/all failed: .*No such file") as caught:
        await capsule.run(["/bin/cat"], ["/nowhere/at/all"])
    assert "\n" not in str(caught.value)


def test_a_state_that_somebody_else_wrote_is_refused(layout: Layout) -> None:
    (layout.folder / "state.json").write_text("[]")
    with pytest.raises(ControlPlaneError, match="is damaged"):
        layout.load()


def test_the_status_of_nothing_is_that_nothing_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--dir", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.output.splitlines()] == list(PROCESSES)
    assert result.output.count("not running") == len(PROCESSES)
