"""The folder of one development cluster: what lies where, which ports, which processes.

::

    admin.kubeconfig        cluster-admin on the API
    env.sh                  exports the addresses for a shell
    pids/<role>-<n>.pid     one for each process
    log/<role>-<n>.log      what it says
    roles/<role>.kubeconfig the Kubernetes account of each role
    proxy/                  serving certificate, key and CA of the proxy
    api/, nats/             data of the embedded API and of NATS
    state.json              ports and processes, so that what died comes back where it was
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shlex
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from eventcore.errors import StartError
from tether.dev_processes import Ident

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

HOST = "127.0.0.1"
# Below the ports that the kernel gives to outgoing connections: one of these would block a process that comes back.
_PORTS = range(15_000, 32_000)
_BLOCK = 16
_BLOCK_TRIES = 200
_LOCK_AGAIN_SECONDS = 0.1  # waiting for a file lock cannot be awaited without a thread that nobody can end


class State(msgspec.Struct, kw_only=True):
    """What must be the same the next time: ports by process, the API in use, and the processes that were started."""

    ports: dict[str, int] = {}
    kubeconfig: str = ""  # of the API server in use; "" for the embedded one
    processes: dict[str, Ident] = {}
    tokens_expire: str = ""  # of the roles' kubeconfigs, ISO 8601
    prepared: bool = False


class Layout:
    """The paths under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.admin_kubeconfig = self.folder / "admin.kubeconfig"
        self.env = self.folder / "env.sh"
        self.pids = self.folder / "pids"
        self.logs = self.folder / "log"
        self.roles = self.folder / "roles"
        self.proxy = self.folder / "proxy"
        self.api = self.folder / "api"
        self.nats = self.folder / "nats"
        self._state = self.folder / "state.json"

    @property
    def proxy_certificate(self) -> Path:
        return self.proxy / "tls.crt"

    @property
    def proxy_key(self) -> Path:
        return self.proxy / "tls.key"

    @property
    def proxy_ca(self) -> Path:
        return self.proxy / "ca.crt"

    def make(self) -> None:
        """Make the folders; only their owner may look in. StartError when that cannot be."""
        for folder in (self.folder, self.pids, self.logs, self.roles, self.proxy, self.api, self.nats):
            make_folder(folder)

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def pid_file(self, process: str) -> Path:
        return self.pids / f"{process}.pid"

    def kubeconfig(self, role: str) -> Path:
        return self.roles / f"{role}.kubeconfig"

    def exists(self) -> bool:
        """Tell whether a development cluster was ever started here."""
        return self._state.exists()

    def load(self) -> State:
        """Return the state, an empty one at first; StartError when somebody else wrote the file."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except msgspec.DecodeError as error:
            raise StartError(
                f"{self._state} is damaged ({error}): end its processes, then remove {self.folder}"
            ) from error

    def save(self, state: State) -> None:
        """Write the state and the pid files that follow from it."""
        write_private(self._state, msgspec.json.format(msgspec.json.encode(state)).decode() + "\n")
        for process, ident in state.processes.items():
            write_private(self.pid_file(process), f"{ident.pid}\n")
        for path in self.pids.glob("*.pid"):
            if path.stem not in state.processes:
                path.unlink(missing_ok=True)

    def write_env(self, variables: Mapping[str, str]) -> None:
        """Write ``env.sh``."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        write_private(self.env, "".join(lines))

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the folder for one ``dev up`` or ``dev down`` at a time; a second one waits."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _lock(descriptor):  # noqa: ASYNC110 - the lock is another process's, not an event of ours
                await asyncio.sleep(_LOCK_AGAIN_SECONDS)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may look into, if it is missing; StartError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartError(
            f"the folder {folder} cannot be used: {error.strerror or error}; take another --dir"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Write a file at once and whole, readable by its owner only from its first byte on."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def choose_ports(names: list[str]) -> dict[str, int]:
    """Return a free loopback port for each name, all different; StartError when there are none.

    They come from one block that is wholly free: a cluster beside it, also one of which a process is just down, holds
    other ports of its own block, so that the two never share one.
    """
    blocks = len(_PORTS) // _BLOCK
    for _ in range(_BLOCK_TRIES):
        first = _PORTS.start + secrets.randbelow(blocks) * _BLOCK
        if all(_is_free(port) for port in range(first, first + _BLOCK)):
            return dict(zip(names, range(first, first + _BLOCK), strict=False))
    raise StartError(f"no free ports on {HOST} from {_PORTS.start} to {_PORTS.stop - 1}: end what uses them")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True
