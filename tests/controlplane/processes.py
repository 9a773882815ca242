"""Starts, watches and stops a control plane whose processes outlive the one that started them.

``up`` starts what does not run and changes nothing else; a process that died comes back on its port with its data.
Ready means more than listening: the controllers have done their first work and Capsule's webhooks answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from controlplane import capsule
from controlplane.commands import command, environment
from controlplane.layout import PROCESSES, ControlPlaneError, Layout, State
from eventcore.errors import KubeError, NotFoundError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import dev_processes
from tether.dev_layout import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from controlplane.binaries import Binaries
    from controlplane.gobuild import Say

START_SECONDS = 180.0
GRACE_SECONDS = 20.0
_LOOK_AGAIN_SECONDS = 0.05  # a server that begins to answer tells nobody
_LOG_LINES = 8
_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_PROVISIONER = "capsule-namespace-provisioner"
_WEBHOOKS = ("validatingwebhookconfigurations", "mutatingwebhookconfigurations")
_DYNAMIC = "capsule-dynamic-webhook"


class ControlPlane:
    """One control plane in one folder: etcd, kube-apiserver, kube-controller-manager and Capsule's controller.

    ``admin_kubeconfig`` is the way in, once ``up`` has returned. Folders are independent: several stand side by side.
    """

    def __init__(self, folder: Path, binaries: Binaries | None = None) -> None:
        self._layout = Layout(folder)
        self._binaries = binaries

    @property
    def admin_kubeconfig(self) -> Path:
        return self._layout.admin_kubeconfig

    @property
    def ca_file(self) -> Path:
        return self._layout.ca

    @property
    def api_url(self) -> str:
        return self._layout.api_url(self._layout.load())

    def status(self) -> dict[str, int | None]:
        """Return the process id of each program, None for one that does not run."""
        state = self._layout.load()
        running = {name: ident.pid for name, ident in state.processes.items() if ident.alive}
        return {name: running.get(name) for name in PROCESSES}

    async def up(self, *, say: Say = lambda _: None, deadline: float = START_SECONDS) -> None:
        """Bring up what does not run, and return when all of it is ready.

        ControlPlaneError after ``deadline`` seconds, or when a process ends, with the end of its log.
        """
        if self._binaries is None:
            raise ControlPlaneError("a control plane without binaries can be stopped, not started")
        self._layout.make()
        async with self._layout.locked():
            await _Up(self._layout, self._binaries, say, time.monotonic() + deadline).run()

    async def down(self, *, say: Say = lambda _: None) -> None:
        """End what runs, in the reverse order; fine when nothing does. Data stay, and ``up`` finds them again."""
        if not self._layout.folder.exists():
            return
        async with self._layout.locked():
            state = self._layout.load()
            for name in reversed(PROCESSES):
                ident = state.processes.pop(name, None)
                if ident is not None and ident.alive:
                    killed = await dev_processes.stop([ident], grace=GRACE_SECONDS)
                    say(f"{'killed' if killed else 'stopped'} {name}")
            self._layout.save(state)


class _Up:
    """One run of ``up`` over one folder."""

    def __init__(self, layout: Layout, binaries: Binaries, say: Say, deadline: float) -> None:
        self._layout = layout
        self._binaries = binaries
        self._say = say
        self._deadline = deadline
        self._state = State()

    async def run(self) -> None:
        layout = self._layout
        self._state = layout.load()
        layout.choose(self._state)
        layout.write_credentials(self._state)
        layout.save(self._state)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(self._session())
            admin = await stack.enter_async_context(self._admin())
            await self._start("etcd", lambda: self._answers(session, "etcd", "/health"))
            await self._start("kube-apiserver", lambda: self._answers(session, "kube-apiserver", "/readyz"))
            async with _together() as tasks:
                tasks.create_task(self._start_controllers(session, admin))
                tasks.create_task(self._start_capsule(session, admin))

    async def _start_controllers(self, session: aiohttp.ClientSession, admin: KubeClient) -> None:
        name = "kube-controller-manager"
        await self._start(name, lambda: self._answers(session, name, "/healthz"))
        await self._until(name, lambda: _controllers_worked(admin))

    async def _start_capsule(self, session: aiohttp.ClientSession, admin: KubeClient) -> None:
        if self._state.capsule != self._binaries.capsule_version:
            await capsule.install(self._binaries, self._layout, self._state)
            self._state.capsule = self._binaries.capsule_version
            self._layout.save(self._state)
            self._say(f"installed Capsule {self._binaries.capsule_version}")
        elif not self._runs("capsule"):
            await _keep_our_certificates(admin)
        url = f"http://{HOST}:{self._state.ports['capsule-health']}/readyz"
        await self._start("capsule", lambda: _get(session, url))
        await self._until("capsule", lambda: _capsule_worked(admin))

    async def _start(self, name: str, check: Callable[[], Awaitable[str]]) -> None:
        """Start a process unless it runs, and wait until ``check`` returns ""."""
        if not self._runs(name):
            if (before := self._state.processes.get(name)) is not None:
                await dev_processes.ended(before)
            words = command(name, self._binaries, self._layout, self._state)
            environ = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
            environ |= environment(name, self._layout, self._state)
            try:
                ident = dev_processes.start(words, environ=environ, log=self._layout.log(name))
            except OSError as error:
                raise ControlPlaneError(f"{name} cannot be started: {words[0]}: {error.strerror}") from error
            self._state.processes[name] = ident
            self._layout.save(self._state)
            self._say(f"started {name}")
        await self._until(name, check)

    def _runs(self, name: str) -> bool:
        ident = self._state.processes.get(name)
        return ident is not None and ident.alive

    async def _until(self, name: str, check: Callable[[], Awaitable[str]]) -> None:
        end = asyncio.ensure_future(dev_processes.ended(self._state.processes[name]))
        try:
            while why := await check():
                if end.done():
                    raise ControlPlaneError(f"{name} ended before it was ready{self._log_of(name)}")
                if time.monotonic() > self._deadline:
                    raise ControlPlaneError(f"{name} is not ready in time ({why}){self._log_of(name)}")
                await asyncio.wait({end}, timeout=_LOOK_AGAIN_SECONDS)
        finally:
            end.cancel()

    def _log_of(self, name: str) -> str:
        log = self._layout.log(name)
        return f"; the end of {log}:\n{dev_processes.tail(log, _LOG_LINES)}"

    async def _answers(self, session: aiohttp.ClientSession, name: str, path: str) -> str:
        return await _get(session, f"https://{HOST}:{self._state.ports[name]}{path}")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield a session of the admin: etcd, too, wants a certificate."""
        context = ssl.create_default_context(cafile=str(self._layout.ca))
        context.load_cert_chain(self._layout.certificate("admin"), self._layout.key("admin"))
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            yield session

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[KubeClient]:
        client = await KubeClient.connect(Settings(kubeconfig=str(self._layout.admin_kubeconfig)))
        try:
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks side by side; the first error comes out as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _get(session: aiohttp.ClientSession, url: str) -> str:
    """Return "" when the server says that it is well, else what it said."""
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
            text = " ".join((await response.text()).split())
            return "" if response.ok else text[-300:] or f"HTTP {response.status}"
    except (aiohttp.ClientError, TimeoutError):
        return "it does not answer"


async def _controllers_worked(admin: KubeClient) -> str:
    """Return what kube-controller-manager has not done yet, "" when its first round is over."""
    for path in (
        api_path("", "v1", "serviceaccounts", namespace="default", name="default"),
        api_path("", "v1", "configmaps", namespace="default", name="kube-root-ca.crt"),
    ):
        if await _read(admin, path) is None:
            return f"{path} is not there"
    for name in ("admin", "edit", "view"):
        role = await _read(admin, api_path(_RBAC, "v1", "clusterroles", name=name))
        if not role or not role.get("rules"):
            return f"the ClusterRole {name} is empty"
    return ""


async def _capsule_worked(admin: KubeClient) -> str:
    """Return what Capsule's controller has not done yet, "" when its webhooks are there and answer."""
    for path in (
        api_path(_RBAC, "v1", "clusterroles", name=_PROVISIONER),
        api_path(_RBAC, "v1", "clusterrolebindings", name=_PROVISIONER),
    ):
        if await _read(admin, path) is None:
            return f"{path} is not there"
    for kind in _WEBHOOKS:
        configuration = await _read(admin, api_path(_ADMISSION, "v1", kind, name=_DYNAMIC))
        if not configuration or not configuration.get("webhooks"):
            return f"{kind}/{_DYNAMIC} is not there"
    probe = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "controlplane-probe-"}}
    try:
        await admin.create(api_path("", "v1", "namespaces"), json.dumps(probe).encode(), params={"dryRun": "All"})
    except KubeError as error:
        return f"its webhooks do not answer: {error}"
    return ""


async def _keep_our_certificates(admin: KubeClient) -> None:
    """Turn off Capsule's own certificates before it starts again: no volume brings them to a process outside a pod.

    Its webhooks would refuse that while it is down; it makes them anew when it starts.
    """
    path = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")
    configuration = await _read(admin, path)
    if configuration is None or not configuration["spec"].get("enableTLSReconciler"):
        return
    for kind in _WEBHOOKS:
        with suppress(NotFoundError):
            await admin.delete(api_path(_ADMISSION, "v1", kind, name=_DYNAMIC))
    await admin.merge_patch(path, {"spec": {"enableTLSReconciler": False}})


async def _read(admin: KubeClient, path: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(await admin.get(path), type=dict[str, Any])
    except NotFoundError:
        return None
