"""The folder of a development cluster: ports that stay, state that survives, one command at a time."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from eventcore.errors import StartError
from tether import dev_layout
from tether.dev_layout import HOST, Layout, State, choose_ports, write_private
from tether.dev_processes import Ident


def made(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "dev")
    layout.make()
    return layout


def test_chosen_ports_are_free_and_all_different() -> None:
    ports = choose_ports([f"p{number}" for number in range(12)])

    assert len(set(ports.values())) == 12
    for port in ports.values():
        with socket.socket() as probe:
            probe.bind((HOST, port))


def test_ports_beside_a_used_one_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_ports(["a", "b"])
    monkeypatch.setattr(dev_layout, "_PORTS", range(first["a"], first["a"] + 32))

    with socket.create_server((HOST, first["b"])):
        second = choose_ports(["a", "b"])

    assert second == {"a": first["a"] + 16, "b": first["b"] + 16}


def test_chosen_ports_lie_outside_those_of_outgoing_connections() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    assert all(not first <= port <= last for port in choose_ports(["a", "b", "c"]).values())


def test_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    layout = made(tmp_path)
    state = State(ports={"nats-1": 15001}, processes={"nats-1": Ident(7, 70)}, prepared=True)

    layout.save(state)

    assert Layout(layout.folder).load() == state


def test_each_process_has_a_pid_file_and_one_that_was_stopped_has_none(tmp_path: Path) -> None:
    layout = made(tmp_path)
    layout.save(State(processes={"worker-1": Ident(11, 1), "worker-2": Ident(12, 1)}))
    assert layout.pid_file("worker-2").read_text() == "12\n"

    layout.save(State(processes={"worker-1": Ident(11, 1)}))

    assert [path.name for path in layout.pids.iterdir()] == ["worker-1.pid"]


def test_damaged_state_is_said_in_one_line(tmp_path: Path) -> None:
    layout = made(tmp_path)
    layout.save(State())
    (layout.folder / "state.json").write_text("{")

    with pytest.raises(StartError, match="is damaged"):
        layout.load()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="cannot be used"):
        Layout(tmp_path / "file" / "dev").make()


def test_what_is_written_privately_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"

    write_private(path, "secret")

    assert path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_env_sh_survives_spaces_in_a_path(tmp_path: Path) -> None:
    layout = made(tmp_path)
    layout.write_env({"TETHER_PROXY_CA_FILE": "/tmp/a b/ca.crt"})  # noqa: S108 - never opened

    command = f'. {shlex.quote(str(layout.env))} && printf %s "$TETHER_PROXY_CA_FILE"'
    shown = subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, text=True)  # noqa: S603 - our own

    assert shown.stdout == "/tmp/a b/ca.crt"  # noqa: S108 - as above


async def test_a_second_command_waits_until_the_first_is_done(tmp_path: Path) -> None:
    layout, order = made(tmp_path), []

    async def second() -> None:
        async with layout.locked():
            order.append("second")

    async with layout.locked():
        waiting = asyncio.ensure_future(second())
        descriptor = os.open(layout.folder / "lock", os.O_RDWR)  # some other work meanwhile
        os.close(descriptor)
        await asyncio.sleep(0)
        order.append("first")
    await asyncio.wait_for(waiting, 10)

    assert order == ["first", "second"]
