"""How a process logs in to NATS, and stays logged in: files that are read anew for each connection.

All of them are tried before the first connection, so that one that cannot be used is told by its variable and not taken
for a server that does not answer. Later a JWT or a password may be replaced at any time: what the server says against
the old one ends the connection and not the client, and the next connection is made with what the files hold by then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import ssl
from asyncio import StreamWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nats.errors
import nats.js.errors
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.aio.transport import TcpTransport, WebSocketTransport

from eventcore.errors import BusUnreachableError, LoginRefusedError, NoJetStreamError, SettingsError
from eventcore.logs import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.js import JetStreamContext

    from eventcore.settings import Settings

log = get("bus")

_REFUSED: Final = re.compile("authori[sz]ation|authentication", re.IGNORECASE)
_STARTING: Final = 10008  # "JetStream system temporarily unavailable": a cluster of servers has no leader yet
_PERMISSIONS: Final = "permissions violation"
_JWT: Final = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END")
_SEED: Final = re.compile(r"-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END")
# A seed as NATS' nkeys spell it: five bits each that say seed and user, the key, a checksum (github.com/nats-io/nkeys).
_USER_SEED: Final = b"\x95\x00"
_LEAD_MASK: Final = b"\xff\xf8"
_KEY_BYTES: Final = 32


class InClearError(nats.errors.Error):
    """The settings ask for TLS and the server does not: nothing was said to it. nats-py tries again."""


class LoginClient(Client):
    """A client that reads the files of TLS for each connection, and goes on connecting when its login is refused.

    Where the settings ask for TLS it says nothing to a server that does not: nats-py would send it the login in clear.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._warned = False

    @property
    def ssl_context(self) -> ssl.SSLContext:
        return _tls(self._settings)

    def _connect_command(self) -> bytes:
        # The first that the server would hear of us: by now the connection is encrypted, or stays in clear.
        if not self._encrypted():
            if self._settings.nats_tls():
                if self._transport is not None:
                    # nats-py would leave it open, one for each attempt.
                    self._transport.close()  # type: ignore[no-untyped-call]  # nats-py says no type here
                raise InClearError("it does not ask for TLS")
            self._warn_in_clear()
        return super()._connect_command()

    def _encrypted(self) -> bool:
        match self._transport:
            case TcpTransport(_io_writer=StreamWriter() as writer):
                return writer.get_extra_info("ssl_object") is not None
            case WebSocketTransport():
                return self._current_server is not None and self._current_server.uri.scheme == "wss"
        return False

    def _warn_in_clear(self) -> None:
        uri = self._current_server.uri if self._current_server is not None else None
        password = self._settings.nats_user or (uri is not None and uri.username)
        if uri is None or not password or _is_loopback(uri.hostname or "") or self._warned:
            return
        self._warned = True
        log.warning(
            "the password for NATS goes over the network in clear: give nats-server TLS, and use tls://",
            host=uri.hostname,
        )

    async def _process_err(self, err_msg: str) -> None:
        # After most errors of the server's nats-py closes for good, also where a connection stood.
        if self.is_connected and _PERMISSIONS not in err_msg.lower():
            error = nats.errors.Error(f"nats: {err_msg}")
            await self._error_cb(error)
            await self._process_op_err(error)
            return
        await super()._process_err(err_msg)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _UnusableFileError(nats.errors.Error):
    """A file does not hold what it should. nats-py tries again after its own errors, and ends with any other."""


async def log_in(
    client: Client, settings: Settings, refusal: Callable[[], Exception | None], options: dict[str, Any]
) -> None:
    """Connect for the first time, with further ``options`` of nats-py; ``refusal`` tells what was heard meanwhile.

    BusUnreachableError or LoginRefusedError.
    """
    try:
        async with asyncio.timeout(settings.nats_connect_timeout):
            await client.connect(
                servers=settings.nats_servers(),
                max_reconnect_attempts=1,  # the first connection fails fast; whoever can wait tries again
                reconnect_time_wait=0,
                connect_timeout=max(1, int(settings.nats_connect_timeout)),
                ping_interval=5,
                max_outstanding_pings=2,
                **options,
            )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        refused = refusal()
        if refused is not None:
            raise refusal_of(settings, refused) from error
        raise BusUnreachableError(
            f"no NATS server answers at {settings.nats_url} ({str(error) or type(error).__name__}): "
            "start it, or set TETHER_NATS_URL"
        ) from error


async def expect_jetstream(js: JetStreamContext, settings: Settings) -> None:
    """Make sure that JetStream answers; NoJetStreamError where there is none, BusUnreachableError while it does not."""
    server = f"the NATS server at {settings.nats_url}"
    try:
        await js.account_info()
    except (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError) as error:
        if isinstance(error, nats.js.errors.APIError) and error.err_code == _STARTING:
            raise BusUnreachableError(f"{server} has no JetStream yet: {error.description}") from error
        raise NoJetStreamError(f"{server} has no JetStream: start it with -js, or with a jetstream block") from error
    except (TimeoutError, nats.errors.Error) as error:
        raise BusUnreachableError(
            f"JetStream at {settings.nats_url} does not answer ({error}): look at the server and this user's rights"
        ) from error


def is_refusal(error: Exception) -> bool:
    """Tell whether an error of the connection means that a server answers and there is no login."""
    return isinstance(error, InClearError) or _REFUSED.search(str(error)) is not None


def refusal_of(settings: Settings, error: Exception) -> LoginRefusedError:
    """Return what to say about it."""
    server = f"the NATS server at {settings.nats_url}"
    if isinstance(error, InClearError):
        return LoginRefusedError(
            f"{server} does not ask for TLS, which tls:// and TETHER_NATS_CA_FILE demand, so nothing was sent to it: "
            "give nats-server a tls block, and look who answers at that address"
        )
    return LoginRefusedError(
        f"{server} refuses this login ({error}): set TETHER_NATS_USER and TETHER_NATS_PASSWORD_FILE, or "
        "TETHER_NATS_CREDS_FILE, to what the server knows"
    )


def credentials(settings: Settings) -> dict[str, Any]:
    """Return the options of nats-py's ``connect`` that log in; SettingsError for files that cannot be used."""
    options: dict[str, Any] = {}
    if file := settings.nats_creds_file:
        login = _Login(Path(file))
        _try(f"TETHER_NATS_CREDS_FILE={file!r}", login.read)
        options |= {"user_jwt_cb": login.jwt, "signature_cb": login.sign}
    if settings.nats_user:
        password = _Password(Path(settings.nats_password_file))
        _try(f"TETHER_NATS_PASSWORD_FILE={settings.nats_password_file!r}", password)
        options |= {"user": settings.nats_user, "password": password}
    if settings.nats_ca_file or settings.nats_cert_file:
        files = (
            f"TETHER_NATS_CA_FILE={settings.nats_ca_file!r}, TETHER_NATS_CERT_FILE={settings.nats_cert_file!r}, "
            f"TETHER_NATS_KEY_FILE={settings.nats_key_file!r}"
        )
        _try(f"the TLS files for NATS ({files})", lambda: _tls(settings))
    return options


def _tls(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.nats_ca_file or None)
    if settings.nats_cert_file:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.nats_cert_file, settings.nats_key_file, password="")
    return context


class _Password:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> str:
        return self._file.read_text(errors="replace").strip()


class _Login:
    """A credentials file: the user's JWT, and the seed of the key that signs what the server asks to sign."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> tuple[str, Ed25519PrivateKey]:
        """Return JWT and key; OSError or _UnusableFileError."""
        text = self._file.read_text(errors="replace")
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise _UnusableFileError("no JWT and seed of a user stand in it, as `nsc generate creds` writes them")
        return jwt[1], _key(seed[1])

    def jwt(self) -> bytes:
        return self.read()[0].encode()

    def sign(self, nonce: str) -> bytes:
        return base64.b64encode(self.read()[1].sign(nonce.encode()))


def _key(seed: str) -> Ed25519PrivateKey:
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except ValueError:
        raw = b""
    body, checksum = raw[:-2], raw[-2:]
    lead = bytes(one & mask for one, mask in zip(body, _LEAD_MASK, strict=False))
    if len(body) != len(lead) + _KEY_BYTES or lead != _USER_SEED:
        raise _UnusableFileError("its seed is none of a user's")
    if binascii.crc_hqx(body, 0).to_bytes(2, "little") != checksum:
        raise _UnusableFileError("its seed is damaged")
    return Ed25519PrivateKey.from_private_bytes(body[len(lead) :])


def _try(what: str, read: Callable[[], object]) -> None:
    try:
        read()
    except (OSError, _UnusableFileError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise SettingsError(f"{what} cannot be used: {why}") from error
