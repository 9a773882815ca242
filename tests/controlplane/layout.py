"""The folder of one control plane: what lies where, its ports and processes, its certificates and kubeconfigs.

::

    admin.kubeconfig               cluster-admin on the API, by the group system:masters
    controller-manager.kubeconfig  of kube-controller-manager
    capsule.kubeconfig             of Capsule's controller: a token of its own ServiceAccount
    pki/                           the authority, the key of ServiceAccount tokens, serving certificates
    etcd/                          everything that the API holds
    log/<name>.log, pids/<name>.pid
    state.json                     ports and processes, so that what died comes back where it was
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import yaml

from tether.dev_layout import HOST, choose_ports, write_private
from tether.dev_processes import Ident
from tether.devcluster.pki import DEFAULT_HOSTS, ClusterPki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

PROCESSES = ("etcd", "kube-apiserver", "kube-controller-manager", "capsule")
"""In the order in which they start."""
_PORTS = (*PROCESSES, "etcd-peer", "capsule-health")
_SERVERS = PROCESSES
_LOCK_AGAIN_SECONDS = 0.1  # waiting for a file lock cannot be awaited without a thread that nobody can end


class ControlPlaneError(Exception):
    """The control plane cannot be what was asked for; the text says which part, why, and where its log is."""


class State(msgspec.Struct, kw_only=True):
    """What must be the same the next time."""

    ports: dict[str, int] = {}
    processes: dict[str, Ident] = {}
    capsule: str = ""  # the version that is installed


class Layout:
    """The paths under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.admin_kubeconfig = self.folder / "admin.kubeconfig"
        self.controller_manager_kubeconfig = self.folder / "controller-manager.kubeconfig"
        self.capsule_kubeconfig = self.folder / "capsule.kubeconfig"
        self.pki = self.folder / "pki"
        self.ca = self.pki / "ca.crt"
        self.service_account_key = self.pki / "sa.key"
        self.etcd = self.folder / "etcd"
        self.logs = self.folder / "log"
        self.pids = self.folder / "pids"
        self._state = self.folder / "state.json"

    def certificate(self, name: str) -> Path:
        """Return the certificate of a server or client; its key lies beside it as ``tls.key``."""
        return self.pki / name / "tls.crt"

    def key(self, name: str) -> Path:
        return self.pki / name / "tls.key"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Make the folders; only their owner may look in."""
        for folder in (self.folder, self.pki, self.etcd, self.logs, self.pids):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> State:
        """Return the state, an empty one at first; ControlPlaneError when somebody else wrote the file."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except msgspec.DecodeError as error:
            raise ControlPlaneError(f"{self._state} is damaged ({error}): end its processes, then remove it") from error

    def save(self, state: State) -> None:
        """Write the state and the pid files that follow from it."""
        write_private(self._state, msgspec.json.format(msgspec.json.encode(state)).decode() + "\n")
        for name in PROCESSES:
            path = self.pids / f"{name}.pid"
            if name in state.processes:
                write_private(path, f"{state.processes[name].pid}\n")
            else:
                path.unlink(missing_ok=True)

    def choose(self, state: State) -> None:
        """Give every server a port of its own, kept for ever."""
        if lacking := [name for name in _PORTS if name not in state.ports]:
            state.ports |= choose_ports(lacking)

    def write_credentials(self, state: State) -> None:
        """Write the authority, certificates and kubeconfigs that are missing."""
        pki = ClusterPki.load_or_create(self.pki)
        for name in _SERVERS:
            if not self.certificate(name).exists():
                self._write_pair(name, pki.issue_serving((HOST, *DEFAULT_HOSTS)))
        for name, user, groups in (
            ("etcd-client", "kube-apiserver", ()),
            ("admin", "kubernetes-admin", ("system:masters",)),
            ("controller-manager", "system:kube-controller-manager", ()),
        ):
            if not self.certificate(name).exists():
                self._write_pair(name, pki.client_certificate(user, groups))
        for name, path in (
            ("admin", self.admin_kubeconfig),
            ("controller-manager", self.controller_manager_kubeconfig),
        ):
            if not path.exists():
                credentials = {
                    "client-certificate-data": self.certificate(name).read_bytes(),
                    "client-key-data": self.key(name).read_bytes(),
                }
                write_private(path, self.kubeconfig(state, credentials))

    def api_url(self, state: State) -> str:
        return f"https://{HOST}:{state.ports['kube-apiserver']}"

    def kubeconfig(self, state: State, user: Mapping[str, str] | Mapping[str, bytes]) -> str:
        """Return a kubeconfig for this API; bytes of ``user`` go in as base64, as kubeconfigs want it."""
        cluster = {"server": self.api_url(state), "certificate-authority-data": self.ca.read_bytes()}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "controlplane", "cluster": cluster}],
            "users": [{"name": "user", "user": dict(user)}],
            "contexts": [{"name": "controlplane", "context": {"cluster": "controlplane", "user": "user"}}],
            "current-context": "controlplane",
        }
        return yaml.safe_dump(msgspec.to_builtins(document), sort_keys=False)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the folder for one ``up`` or ``down`` at a time; a second one waits."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _lock(descriptor):
                await asyncio.sleep(_LOCK_AGAIN_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _write_pair(self, name: str, pair: tuple[str, str]) -> None:
        certificate, key = pair
        self.certificate(name).parent.mkdir(exist_ok=True, mode=0o700)
        write_private(self.key(name), key)
        write_private(self.certificate(name), certificate)  # last: it says that the pair is whole


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
