"""A development cluster on this machine: every part a process of its own, each as it would run in a cluster.

``up`` starts what does not run and changes nothing else, so a killed process comes back with the same port, account
and data. Two of each role run from the first day, and both proxies share one port. For development, never for
production: NATS takes who does not log in for the operator, and the embedded API keeps its keys beside its data.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from eventcore.bus import Bus
from eventcore.errors import KubeUnreachableError, StartError
from eventcore.kube import KubeClient
from eventcore.settings import Settings
from eventcore.settings_reading import load
from eventcore.topology import apply as apply_topology
from tether import dev_accounts, dev_nats, dev_processes
from tether.dev_layout import HOST, Layout, State, choose_ports
from tether.devcluster.nats import NatsServerError, find_binary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tether.dev_processes import Ident

DEADLINE_SECONDS = 180.0
GRACE_SECONDS = 30.0
"""A role has 25 s to finish its work (--shutdown-grace)."""
_LOOK_AGAIN_SECONDS = 0.05  # a port that begins to listen tells nobody

PROCESSES = (
    "nats-1",
    "api-1",
    "watcher-1",
    "watcher-2",
    "router-1",
    "router-2",
    "worker-1",
    "worker-2",
    "proxy-1",
    "proxy-2",
)
_STOP_ORDER = ("proxy", "worker", "router", "watcher", "api", "nats")
_COMMANDS = {"watcher": "watch", "router": "route", "worker": "work", "proxy": "proxy"}
# Of the caller's environment the roles get every setting but those that lead to another NATS, cluster or proxy.
_NOT_PASSED_ON = frozenset(
    {
        "TETHER_NATS_CREDS_FILE",
        "TETHER_NATS_USER",
        "TETHER_NATS_PASSWORD_FILE",
        "TETHER_NATS_CA_FILE",
        "TETHER_NATS_CERT_FILE",
        "TETHER_NATS_KEY_FILE",
        "TETHER_KUBE_CONTEXT",
        "TETHER_PROXY_CA_NAMESPACE",
        "TETHER_PROXY_CA_SECRET",
        "TETHER_PROXY_CA_KEYS",
    }
)

Say = Callable[[str], None]
Check = Callable[[], Awaitable[str]]
"""Returns "" when ready, else what is missing."""


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where a development cluster answers, and what this ``up`` had to start."""

    nats_url: str
    api_url: str
    proxy_url: str
    proxy_ca_file: Path
    admin_kubeconfig: Path
    started: tuple[str, ...]


async def up(
    folder: Path, *, kubeconfig: Path | None = None, say: Say = lambda _: None, deadline: float = DEADLINE_SECONDS
) -> Addresses:
    """Bring up what does not run under ``folder``, and return when all of it is ready.

    ``kubeconfig`` names the API server to use instead of the embedded one. StartError after ``deadline`` seconds, or
    when a process ends, with the end of its log.
    """
    _require_linux()
    layout = Layout(folder)
    layout.make()
    async with layout.locked():
        return await _Up(layout, say, time.monotonic() + deadline).run(kubeconfig)


async def down(folder: Path, *, say: Say = lambda _: None, grace: float = GRACE_SECONDS) -> None:
    """End every process under ``folder``, those that face tenants first; fine when nothing runs. Files stay."""
    _require_linux()
    layout = Layout(folder)
    if not layout.exists():
        raise StartError(f"{layout.folder} holds no development cluster; `tether dev up --dir DIR` makes one")
    async with layout.locked():
        state = layout.load()
        for role in _STOP_ORDER:
            idents = {name: ident for name, ident in state.processes.items() if name.rpartition("-")[0] == role}
            running = {name: ident for name, ident in idents.items() if ident.alive}
            killed = await dev_processes.stop(running.values(), grace=grace)
            for name, ident in idents.items():
                del state.processes[name]
                if name in running:
                    say(f"{'killed' if ident in killed else 'stopped'} {name}")
            layout.save(state)


class _Up:
    """One run of ``up`` over one folder."""

    def __init__(self, layout: Layout, say: Say, deadline: float) -> None:
        self._layout = layout
        self._say = say
        self._deadline = deadline
        self._state = State()
        self._session: aiohttp.ClientSession | None = None

    async def run(self, kubeconfig: Path | None) -> Addresses:
        self._state = self._load(kubeconfig)
        alive = {name for name, ident in self._state.processes.items() if ident.alive}
        wanted = [name for name in PROCESSES if name != "api-1" or not self._state.kubeconfig]
        missing = [name for name in wanted if name not in alive]
        self._layout.save(self._state)
        for ident in (self._state.processes[name] for name in missing if name in self._state.processes):
            await dev_processes.ended(ident)
        async with aiohttp.ClientSession(trust_env=False) as session:
            self._session = session
            base = [name for name in wanted if _role(name) in {"nats", "api"}]
            self._start(name for name in base if name in missing)
            await self._ready(base)
            async with self._admin() as admin:
                api_url = admin.server_url
                if missing or not self._state.prepared:
                    await self._prepare(admin)
            roles = [name for name in wanted if name not in base]
            self._start(name for name in roles if name in missing)
            await self._ready(roles)
        return self._addresses(api_url, missing)

    def _load(self, kubeconfig: Path | None) -> State:
        """Return the state with ports for all, bound for ever to one API server."""
        layout = self._layout
        fresh = not layout.exists()
        state = layout.load()
        named = str(kubeconfig.resolve()) if kubeconfig is not None else ""
        if not fresh and named and named != state.kubeconfig:
            used = state.kubeconfig or "the embedded API server"
            raise StartError(f"{layout.folder} was started with {used}: take another --dir for --kubeconfig {named}")
        if fresh and kubeconfig is not None:
            dev_accounts.copy_kubeconfig(kubeconfig, layout.admin_kubeconfig)
            state.kubeconfig = named
        if not state.ports:
            state.ports = choose_ports([*PROCESSES, "proxy"])
        return state

    def _start(self, processes: Iterable[str]) -> None:
        for name in processes:
            command, environ = self._command(name)
            log = self._layout.log(name)
            try:
                self._state.processes[name] = dev_processes.start(command, environ=environ, log=log)
            except OSError as error:
                raise StartError(f"{name} cannot be started: {command[0]}: {error.strerror}") from error
            self._layout.save(self._state)
            self._say(f"started {name}")

    def _command(self, name: str) -> tuple[list[str], dict[str, str]]:
        layout, role, port = self._layout, _role(name), self._state.ports[name]
        environ = _environ()
        if role == "nats":
            config = dev_nats.write_config(layout, port)
            try:
                return [str(find_binary()), "-c", str(config)], environ
            except NatsServerError as error:
                raise StartError(str(error)) from error
        if role == "api":
            arguments = ("devcluster", "--dir", str(layout.api), "--port", str(port))
            return dev_processes.python_command("tether.cli", *arguments), environ
        environ.setdefault("TETHER_SHUTDOWN_DELAY", "0")  # no load balancer stands before it
        environ |= dev_nats.login(layout, role) | {
            "TETHER_NATS_URL": self._nats_url,
            "TETHER_KUBECONFIG": str(layout.kubeconfig(role)),
            "TETHER_HTTP_HOST": HOST,
            "TETHER_HTTP_PORT": str(port),
            "TETHER_PROXY_URL": self._proxy_url,
            "TETHER_PROXY_HOST": HOST,
            "TETHER_PROXY_PORT": str(self._state.ports["proxy"]),
            "TETHER_PROXY_TLS_CERT": str(layout.proxy_certificate),
            "TETHER_PROXY_TLS_KEY": str(layout.proxy_key),
        }
        return dev_processes.python_command("tether.cli", _COMMANDS[role]), environ

    @property
    def _nats_url(self) -> str:
        return f"nats://{HOST}:{self._state.ports['nats-1']}"

    @property
    def _proxy_url(self) -> str:
        return f"https://{HOST}:{self._state.ports['proxy']}"

    async def _prepare(self, admin: KubeClient) -> None:
        await dev_accounts.prepare(admin, self._layout, self._state)
        settings = load(_environ(), {"nats_url": self._nats_url})  # the lanes' times are those of the workers
        bus = await Bus.connect(settings, "tether")
        try:
            await apply_topology(bus, settings)
        finally:
            await bus.close()
        self._state.prepared = True
        self._layout.save(self._state)

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[KubeClient]:
        client = await KubeClient.connect(Settings(kubeconfig=str(self._layout.admin_kubeconfig)))
        try:
            yield client
        finally:
            await client.close()

    def _addresses(self, api_url: str, started: list[str]) -> Addresses:
        addresses = Addresses(
            nats_url=self._nats_url,
            api_url=api_url,
            proxy_url=self._proxy_url,
            proxy_ca_file=self._layout.proxy_ca,
            admin_kubeconfig=self._layout.admin_kubeconfig,
            started=tuple(started),
        )
        self._layout.write_env(
            {
                "TETHER_NATS_URL": addresses.nats_url,
                "TETHER_API_URL": addresses.api_url,
                "TETHER_PROXY_URL": addresses.proxy_url,
                "TETHER_PROXY_CA_FILE": str(addresses.proxy_ca_file),
            }
        )
        return addresses

    async def _ready(self, processes: Iterable[str]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in processes:
                    tasks.create_task(self._until_ready(name, self._state.processes[name]))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _until_ready(self, name: str, ident: Ident) -> None:
        check = {"nats": self._nats_ready, "api": self._api_ready}.get(_role(name), lambda: self._role_ready(name))
        end = asyncio.ensure_future(dev_processes.ended(ident))
        try:
            while why := await check():
                if end.done():
                    raise self._not_ready(name, f"{name} ended before it was ready")
                if time.monotonic() > self._deadline:
                    raise self._not_ready(name, f"{name} is not ready in time ({why})")
                await asyncio.wait({end}, timeout=_LOOK_AGAIN_SECONDS)
        finally:
            end.cancel()

    def _not_ready(self, name: str, what: str) -> StartError:
        log = self._layout.log(name)
        error = StartError(f"{what}; the end of {log}:")
        error.add_note(dev_processes.tail(log))  # said below the line that says what is wrong
        return error

    async def _nats_ready(self) -> str:
        # Every nats-server begins by saying INFO.
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, self._state.ports["nats-1"])
            try:
                return "" if (await reader.read(4)) == b"INFO" else "it does not speak NATS"
            finally:
                writer.close()
        return "it does not listen"

    async def _api_ready(self) -> str:
        embedded = self._layout.api / "admin.kubeconfig"
        if not embedded.exists():
            return "it does not listen"
        if not self._layout.admin_kubeconfig.exists():
            dev_accounts.copy_kubeconfig(embedded, self._layout.admin_kubeconfig)
        async with self._admin() as admin:
            try:
                await admin.get("/readyz")
            except KubeUnreachableError:
                return "it does not answer"
        return ""

    async def _role_ready(self, name: str) -> str:
        url = f"http://{HOST}:{self._state.ports[name]}/readyz"
        timeout = aiohttp.ClientTimeout(total=5)
        if self._session is None:
            raise RuntimeError("no session")
        try:
            async with self._session.get(url, timeout=timeout) as response:
                text = (await response.text()).strip()
                return "" if response.ok else "; ".join(text.splitlines())
        except (aiohttp.ClientError, TimeoutError):
            return "it does not listen"


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}


def _require_linux() -> None:
    if sys.platform != "linux":
        raise StartError("`tether dev` and `tether demo` need Linux (pidfd, /proc): run them in a container or a VM")


def _role(process: str) -> str:
    return process.rpartition("-")[0]
