"""Logins to a real nats-server: by password and by credentials file, replaced while the process runs, and refused."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import msgspec
import pytest
import structlog
from nats.aio.client import Srv

from eventcore.bus import Bus
from eventcore.bus_credentials import LoginClient
from eventcore.errors import BusUnreachableError, LoginRefusedError, SettingsError
from eventcore.settings import Settings
from eventcore.settings_reading import load
from tests.eventcore.nats_operator import USER as USER_KEY
from tests.eventcore.nats_operator import NatsOperator, Pair
from tether.devcluster.nats import NatsServer
from tether.devcluster.pki import ClusterPki

SECONDS = 30
CLIENT_FILES = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
USERS = 'authorization {{ users: [ {{user: "worker", password: "{password}"}} ] }}'


@asynccontextmanager
async def running(folder: Path, config: str) -> AsyncIterator[NatsServer]:
    server = NatsServer(folder / "nats", extra_config=config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Heard:
    """Hears of the connection as metrics do."""

    def __init__(self) -> None:
        self.connected = self.reconnects = self
        self.lost, self.back = asyncio.Event(), asyncio.Event()

    def set(self, value: float) -> None:
        if not value:
            self.lost.set()

    def inc(self) -> None:
        self.back.set()


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[tuple[Bus, Heard]]:
    heard = Heard()
    bus = await Bus.connect(settings, "test", cast("Any", heard))
    try:
        yield bus, heard
    finally:
        await bus.close()


def by_password(server: NatsServer, file: Path) -> Settings:
    return Settings(nats_url=server.url, nats_user="worker", nats_password_file=str(file))


def by_file(server: NatsServer, file: Path) -> Settings:
    return Settings(nats_url=server.url, nats_creds_file=str(file))


async def test_a_password_that_is_replaced_at_the_server_and_in_its_file_costs_a_reconnect(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    async with (
        running(tmp_path, USERS.format(password="first")) as server,
        connected(by_password(server, file)) as (bus, heard),
    ):
        # when the server knows another one, and some time later the file too
        server.config_path.write_text(server.config_path.read_text().replace("first", "second"))
        os.kill(server.pid, signal.SIGHUP)
        async with asyncio.timeout(SECONDS):
            await heard.lost.wait()
            file.write_text("second")
            await heard.back.wait()

        # then the bus goes on
        assert (await bus.js.account_info()).streams == 0


@pytest.mark.slow
async def test_a_credentials_file_logs_in_and_its_successor_does_when_the_jwt_has_expired(tmp_path: Path) -> None:
    operator, file = NatsOperator(), tmp_path / "user.creds"
    file.write_text(operator.credentials(seconds=3))
    async with running(tmp_path, operator.config) as server, connected(by_file(server, file)) as (bus, heard):
        assert (await bus.js.account_info()).streams == 0

        # when the file is broken for a moment and then holds another user
        file.write_text("")
        async with asyncio.timeout(SECONDS):
            await heard.lost.wait()
            file.write_text(operator.credentials())
            await heard.back.wait()

        assert (await bus.js.account_info()).streams == 0


async def test_a_refused_login_is_one_line_that_says_so(tmp_path: Path) -> None:
    operator, file = NatsOperator(), tmp_path / "login"
    async with running(tmp_path / "a", USERS.format(password="right")) as server:
        file.write_text("wrong")
        for settings in (by_password(server, file), Settings(nats_url=server.url)):
            with pytest.raises(LoginRefusedError, match=r"refuses this login .*TETHER_NATS_USER"):
                await Bus.connect(settings, "test")
    async with running(tmp_path / "b", operator.config) as server:
        file.write_text(NatsOperator().credentials())
        with pytest.raises(LoginRefusedError, match=r"refuses this login .*TETHER_NATS_CREDS_FILE"):
            await Bus.connect(by_file(server, file), "test")


@pytest.mark.slow
async def test_certificates_and_ca_that_are_replaced_are_used_for_the_next_connection(tmp_path: Path) -> None:
    # given a server that asks for client certificates of its CA, and a client that has one
    files = {name: tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key", "client.crt", "client.key")}
    make_certificates(files)
    names = {"cert_file": "tls.crt", "key_file": "tls.key", "ca_file": "ca.crt"}
    tls = "tls { verify: true, " + ", ".join(f'{option}: "{files[name]}"' for option, name in names.items()) + " }"
    client = {f"nats_{option}": str(files[name]) for option, name in CLIENT_FILES.items()}
    async with running(tmp_path, tls) as server:
        settings = load({"TETHER_NATS_URL": server.url}, client)
        with pytest.raises(BusUnreachableError):
            await Bus.connect(Settings(nats_url=server.url), "test")
        with pytest.raises(SettingsError, match="TETHER_NATS_CA_FILE='nowhere'"):
            await Bus.connect(Settings(nats_url=server.url, nats_ca_file="nowhere"), "test")

        async with connected(settings) as (bus, heard):
            # when all of it is of another CA
            await server.stop()
            make_certificates(files)
            await server.start()
            async with asyncio.timeout(SECONDS):
                await heard.back.wait()

            # then the bus goes on
            assert (await bus.js.account_info()).streams == 0


def make_certificates(files: dict[str, Path]) -> None:
    pki = ClusterPki.load_or_create(None)
    serving, client = pki.issue_serving(["127.0.0.1", "localhost"]), pki.client_certificate("watcher", ())
    for file, content in zip(files.values(), (pki.ca_pem, *serving, *client), strict=True):
        file.write_text(content)


async def test_a_password_file_that_is_missing_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(SettingsError, match="TETHER_NATS_PASSWORD_FILE='nowhere/password' cannot be used"):
        await Bus.connect(Settings(nats_user="worker", nats_password_file="nowhere/password"), "test")


SEED = Pair(USER_KEY).seed
DAMAGED = SEED[:20] + ("A" if SEED[20] != "A" else "B") + SEED[21:]
LOGIN = (
    "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END"
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("", "no JWT and seed"),
        (SEED, "no JWT and seed"),
        (LOGIN.format(seed="x"), "none of a user's"),
        (LOGIN.format(seed=Pair(0).seed), "none of a user's"),
        (LOGIN.format(seed="\N{SNOWMAN}" + SEED[1:]), "none of a user's"),
        (LOGIN.format(seed=DAMAGED), "damaged"),
    ],
    ids=["missing", "empty", "no JWT", "no seed", "an account's seed", "no letters of a seed", "a damaged seed"],
)
async def test_a_credentials_file_that_cannot_be_used_is_a_setting_that_is_wrong(
    tmp_path: Path, content: str | None, why: str
) -> None:
    file = tmp_path / "user.creds"
    if content is not None:
        file.write_text(content)

    with pytest.raises(SettingsError, match=f"TETHER_NATS_CREDS_FILE=.*cannot be used: .*({why})") as caught:
        await Bus.connect(Settings(nats_creds_file=str(file)), "test")

    assert SEED not in str(caught.value)


class PlainServer:
    """A server that says INFO without TLS and keeps all that it is told."""

    def __init__(self, **info: Any) -> None:
        self._info = {"server_id": "x", "version": "2.12.0", "max_payload": 1 << 20, "headers": True, **info}
        self.connections = 0
        self.open = 0
        self.heard = b""
        self.url = ""

    @asynccontextmanager
    async def listening(self, scheme: str, port: int = 0) -> AsyncIterator[PlainServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        writer.write(b"INFO " + msgspec.json.encode(self._info) + b"\r\n")
        while said := await reader.read(4096):
            self.heard += said
        self.open -= 1
        writer.close()


@pytest.mark.parametrize("login", ["password", "credentials", "user in the URL", "none"])
@pytest.mark.parametrize("asked_by", ["tls://", "CA file", "client certificate"])
async def test_nothing_is_said_to_a_server_that_does_not_ask_for_the_tls_of_the_settings(
    login: str, asked_by: str, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key", "client.crt", "client.key")}
    make_certificates(files)
    (tmp_path / "password").write_text("hunter2")
    (tmp_path / "creds").write_text(NatsOperator().credentials())
    options = {
        "password": {"nats_user": "worker", "nats_password_file": str(tmp_path / "password")},
        "credentials": {"nats_creds_file": str(tmp_path / "creds")},
    }.get(login, {})
    options |= {"CA file": {"nats_ca_file": str(files["ca.crt"])}}.get(asked_by, {})
    if asked_by == "client certificate":
        options |= {"nats_cert_file": str(files["client.crt"]), "nats_key_file": str(files["client.key"])}
    plain = PlainServer(auth_required=True, nonce="abcdefgh")
    async with plain.listening("tls" if asked_by == "tls://" else "nats"):
        url = plain.url.replace("://", "://worker:hunter2@") if login == "user in the URL" else plain.url
        with pytest.raises(LoginRefusedError, match=r"does not ask for TLS.*nothing was sent to it: give"):
            await Bus.connect(load({}, {"nats_url": url, **options}), "test")
        async with asyncio.timeout(SECONDS):
            while plain.open:
                await asyncio.sleep(0.01)

    assert plain.connections
    assert plain.heard == b""


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_that_stands_in_after_a_restart_and_asks_for_no_tls_hears_nothing(
    scheme: str, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key", "client.crt", "client.key")}
    make_certificates(files)
    (tmp_path / "password").write_text("first")
    tls = f'tls {{ cert_file: "{files["tls.crt"]}", key_file: "{files["tls.key"]}" }}\n'
    async with running(tmp_path, tls + USERS.format(password="first")) as server:
        settings = by_password(server, tmp_path / "password")
        url = server.url.replace("nats://", f"{scheme}://")
        settings = msgspec.structs.replace(settings, nats_url=url, nats_ca_file=str(files["ca.crt"]))
        async with connected(settings) as (bus, heard):
            # when another takes the address
            await server.stop()
            plain = PlainServer(auth_required=True)
            async with plain.listening("nats", int(server.url.rpartition(":")[2])):
                async with asyncio.timeout(SECONDS):
                    await heard.lost.wait()
                    while plain.connections < 3 or plain.open:
                        await asyncio.sleep(0.01)
                assert not bus.connected
            assert plain.heard == b""

            # then the right one is taken again
            await server.start()
            async with asyncio.timeout(SECONDS):
                await heard.back.wait()
            assert (await bus.js.account_info()).streams == 0


@pytest.mark.parametrize(
    ("host", "user", "warned"),
    [
        ("127.0.0.1", "worker", False),
        ("localhost", "worker", False),
        ("[::1]", "worker", False),
        ("nats.example", "", False),
        ("nats.example", "worker", True),
        ("10.0.0.7", "worker", True),
        ("me:hunter2@nats.example", "", True),
    ],
)
def test_a_password_that_goes_in_clear_to_another_host_is_warned_about_once(
    host: str, user: str, *, warned: bool
) -> None:
    client = LoginClient(Settings(nats_url=f"nats://{host}", nats_user=user))
    client._current_server = Srv(urlparse(f"nats://{host}:4222"))  # noqa: SLF001 -- as nats-py sets it when it connects
    client.options |= dict.fromkeys(["verbose", "pedantic", "user", "password", "token", "name", "no_echo"])
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert client._connect_command().startswith(b"CONNECT ")  # noqa: SLF001 -- what nats-py calls
    assert [("in clear" in line["event"]) for line in logged] == [True] * warned
    assert "hunter2" not in str(logged)
