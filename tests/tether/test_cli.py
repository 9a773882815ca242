"""The command line as a stranger meets it: help that explains, and one line for whatever goes wrong."""

from __future__ import annotations

import asyncio
import re
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
import msgspec
import pytest

from eventcore.settings_reading import describe
from tether import cli
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

Tether = Callable[..., Awaitable[tuple[int, str, str]]]

COMMANDS = [
    [],
    ["watch"],
    ["route"],
    ["work"],
    ["proxy"],
    ["topology"],
    ["topology", "apply"],
    ["topology", "diff"],
    ["audit"],
    ["audit", "tail"],
    ["replay"],
    ["settings"],
    ["dev"],
    ["dev", "up"],
    ["dev", "down"],
    ["demo"],
    ["devcluster"],
]
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: example}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


def one_line(text: str) -> bool:
    """Tell whether a person was told one line, of ours, without a traceback."""
    return text.startswith("tether") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run([*command, "--help"])

    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith(f"Usage: {' '.join(['tether', *command])} ")
    assert len(out.splitlines()[2].split()) >= 5, "the first line says nothing"


def test_help_of_tether_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["--help"])

    out = capsys.readouterr().out
    for name in cli.cli.commands:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)


def test_without_a_command_the_help_is_shown_and_it_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run([])

    assert code == 2
    assert "Usage: tether" in capsys.readouterr().err


def test_a_role_shows_its_settings_and_takes_those_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["route", "--help"])
    out = capsys.readouterr().out

    assert "--sweep-interval" in out
    assert "--proxy-tls-cert" not in out
    options = {name for option in cli.cli.commands["route"].params for name in option.opts}
    assert {doc.flag for doc in describe()} <= options


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["watc"], "No such command 'watc'"),
        (["demo", "--jsn"], "No such option"),
        (["work", "rbca"], "'rbca' is not one of 'rbac', 'token', 'kubeconfig', 'access'"),
        (["replay"], "say what to replay"),
        (["dev", "up"], "Missing option '--dir'"),
        (["dev", "up", "--dir", "x", "--kubeconfig", "/no/such/file"], "'/no/such/file' does not exist"),
        (["devcluster", "--port", "70000"], "70000 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run(command)

    err = capsys.readouterr().err
    assert code == 2
    assert one_line(err)
    assert says in err
    assert "--help` tells more" in err


@pytest.mark.parametrize("command", ["watch", "route", "work", "proxy", "replay --all", "topology diff", "audit tail"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TETHER_TOKEN_TTL", "soon")

    code = cli.run(command.split())

    err = capsys.readouterr().err
    assert code == 2
    assert one_line(err)
    assert "TETHER_TOKEN_TTL='soon'" in err
    assert "a duration such as 30s" in err


def test_a_wrong_setting_of_the_roles_is_said_before_a_cluster_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TETHER_ACK_WAIT", "1ms")

    codes = [cli.run(["dev", "up", "--dir", str(tmp_path / "dev")]), cli.run(["demo", "--dir", str(tmp_path / "dev")])]

    assert codes == [2, 2]
    assert capsys.readouterr().err.count("TETHER_ACK_WAIT") == 2
    assert not (tmp_path / "dev").exists()


def test_a_flag_beats_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TETHER_NATS_URL", "nats://127.0.0.1:1")

    code = cli.run(["topology", "diff", "--nats-url", "nats://127.0.0.1:2"])

    assert code == 1
    assert "nats://127.0.0.1:2" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["topology apply", "topology diff", "replay --all", "audit tail", "status"])
async def test_nats_that_does_not_answer_is_one_line_and_exit_code_1(command: str, tether: Tether) -> None:
    environ = {"TETHER_NATS_URL": "nats://127.0.0.1:1", "TETHER_HTTP_PORT": "0", "TETHER_LOG_LEVEL": "error"}

    code, out, err = await tether(*command.split(), **environ)

    assert code == 1
    assert out == ""
    assert one_line(err)
    assert "no NATS server answers at nats://127.0.0.1:1" in err


@pytest.mark.parametrize("command", ["topology apply", "route"])
async def test_nats_without_jetstream_is_one_line_and_exit_code_1(command: str, tmp_path: Path, tether: Tether) -> None:
    async with NatsServer(tmp_path / "nats", jetstream=False) as server:
        environ = {"TETHER_NATS_URL": server.url, "TETHER_HTTP_PORT": "0", "TETHER_LOG_LEVEL": "error"}
        code, _, err = await tether(*command.split(), **environ)

    assert code == 1
    assert one_line(err)
    assert "has no JetStream" in err


@pytest.mark.parametrize("command", ["audit tail --no-follow", "replay --all"])
async def test_nats_without_the_topology_is_one_line_and_exit_code_1(
    command: str, nats_server: NatsServer, tether: Tether
) -> None:
    code, _, err = await tether(*command.split(), TETHER_NATS_URL=nats_server.url)

    assert code == 1
    assert one_line(err)
    assert "run `tether topology apply`" in err


@pytest.mark.parametrize("command", ["watch", "work", "proxy"])
async def test_a_wrong_kubeconfig_is_one_line_and_exit_code_1(
    command: str, tmp_path: Path, nats_server: NatsServer, tether: Tether
) -> None:
    (tmp_path / "kubeconfig").write_text("clusters: {")
    environ = {
        "TETHER_KUBECONFIG": str(tmp_path / "kubeconfig"),
        "TETHER_NATS_URL": nats_server.url,
        "TETHER_HTTP_PORT": "0",
        "TETHER_LOG_LEVEL": "error",
        "TETHER_PROXY_TLS_CERT": str(tmp_path / "tls.crt"),
        "TETHER_PROXY_TLS_KEY": str(tmp_path / "tls.key"),
    }
    for path, text in zip(
        ("tls.crt", "tls.key"), ClusterPki.load_or_create(None).issue_serving(["localhost"]), strict=True
    ):
        (tmp_path / path).write_text(text)

    code, _, err = await tether(command, **environ)

    assert code == 1
    assert one_line(err)
    assert str(tmp_path / "kubeconfig") in err


@pytest.mark.parametrize("text", ["clusters: {", "just: words"], ids=["no YAML", "no kubeconfig"])
def test_dev_up_refuses_a_wrong_kubeconfig(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kubeconfig").write_text(text)

    code = cli.run(["dev", "up", "--dir", str(tmp_path / "dev"), "--kubeconfig", str(tmp_path / "kubeconfig")])

    err = capsys.readouterr().err
    assert code == 1
    assert one_line(err)
    assert f"--kubeconfig {tmp_path / 'kubeconfig'}" in err


@pytest.mark.parametrize("command", ["route --http-port {port}", "devcluster --port {port}"])
async def test_a_port_in_use_is_one_line_and_exit_code_1(command: str, nats_server: NatsServer, tether: Tether) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await tether(*command.format(port=port).split(), TETHER_NATS_URL=nats_server.url)

    assert code == 1
    assert one_line(err.splitlines(keepends=True)[-1])
    assert f"port {port} on 127.0.0.1 is in use" in err


def test_a_bug_is_one_line_with_exit_code_70_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("password in nats://user:hunter2@host")

    monkeypatch.setitem(cli.cli.commands, "broken", broken)

    code = cli.run(["broken"])

    err = capsys.readouterr().err
    assert code == 70
    assert one_line(err)
    assert "ZeroDivisionError" in err
    assert "hunter2" not in err


def test_settings_are_listed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["settings"]) == 0
    table = capsys.readouterr().out
    assert cli.run(["settings", "--json"]) == 0
    listed = msgspec.json.decode(capsys.readouterr().out)

    for doc in describe():
        assert doc.flag in table
    assert {entry["variable"] for entry in listed} == {doc.variable for doc in describe()}


@pytest.mark.slow
async def test_topology_is_missing_then_applied_then_equal(nats_server: NatsServer, tether: Tether) -> None:
    environ = {"TETHER_NATS_URL": nats_server.url}

    before = await tether("topology", "diff", **environ)
    applied = await tether("topology", "apply", **environ)
    after = await tether("topology", "diff", **environ)

    assert before[0] == 1
    assert "stream OBJECTS is missing" in before[1]
    assert applied[0] == 0
    assert after[:2] == (0, "nothing differs\n")


async def test_a_reader_that_goes_away_ends_the_output_quietly() -> None:
    process = await asyncio.create_subprocess_shell(
        f"{shlex.quote(sys.executable)} -P -m tether.cli settings --json | head -c 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    out, err = await process.communicate()

    assert out == b"["
    assert err == b""
