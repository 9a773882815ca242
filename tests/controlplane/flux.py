"""Runs Flux's controllers under its multi-tenancy lockdown, as processes beside a control plane that is there.

The CustomResourceDefinitions come out of the modules that the controllers are built from, and each controller logs in
as its own account in flux-system, with the rights of Flux's own manifests. Everything listens on loopback.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import yaml

from controlplane.awaiting import is_true, until
from controlplane.layout import ControlPlaneError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import dev_processes
from tether.dev_layout import HOST, choose_ports, write_private

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.binaries import FluxBinaries

Object = dict[str, Any]
NAMESPACE = "flux-system"
SOURCE, KUSTOMIZE, HELM = "source-controller", "kustomize-controller", "helm-controller"
DEFAULT_ACCOUNT = "gitops-reconciler"
START_SECONDS = 60.0
_GRACE_SECONDS = 20.0
_LOOK_AGAIN_SECONDS = 0.05  # a server that begins to answer tells nobody
_LOG_LINES = 8
_TOKEN_SECONDS = 86400
_RBAC = "rbac.authorization.k8s.io"
_CRDS = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions")
_MANAGER = "flux"
_GROUPS = ("source.toolkit.fluxcd.io", "kustomize.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io")

LOCKDOWN = {
    SOURCE: (),
    KUSTOMIZE: (
        "--no-cross-namespace-refs=true",
        "--no-remote-bases=true",
        f"--default-service-account={DEFAULT_ACCOUNT}",
    ),
    HELM: ("--no-cross-namespace-refs=true", f"--default-service-account={DEFAULT_ACCOUNT}"),
}
"""The flags of the guide, by controller; source-controller has none of them."""


def rights() -> list[Object]:
    """Return what Flux's own manifests bind: rights on its own kinds, and cluster-admin to those that reconcile."""
    everything = ["get", "list", "watch", "create", "update", "patch", "delete"]
    rules = [
        *({"apiGroups": [group], "resources": ["*"], "verbs": ["*"]} for group in _GROUPS),
        {"apiGroups": [""], "resources": ["namespaces", "secrets", "serviceaccounts"], "verbs": everything[:3]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": everything},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": everything},
    ]
    role = {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "crd-controller-flux-system"}}
    return [
        {**role, "rules": rules},
        _binding("crd-controller-flux-system", "crd-controller-flux-system", SOURCE, KUSTOMIZE, HELM),
        _binding("cluster-reconciler-flux-system", "cluster-admin", KUSTOMIZE, HELM),
    ]


def command(name: str, program: Path, ports: dict[str, int], storage: Path) -> list[str]:
    """Return the command of one controller: the lockdown, loopback, and no election for one that is alone."""
    words = [
        str(program),
        *LOCKDOWN[name],
        f"--metrics-addr={HOST}:{ports[f'{name}-metrics']}",
        f"--health-addr={HOST}:{ports[f'{name}-health']}",
        "--events-addr=",
        "--enable-leader-election=false",
        "--watch-all-namespaces=true",
        "--requeue-dependency=1s",  # its default of 30 s is for clusters that nobody waits for
    ]
    if name == SOURCE:
        artifacts = f"{HOST}:{ports['artifacts']}"
        words += [f"--storage-path={storage}", f"--storage-addr={artifacts}", f"--storage-adv-addr={artifacts}"]
    return words


class Flux:
    """Flux's three controllers in one folder, for the control plane of an admin's kubeconfig."""

    def __init__(self, folder: Path, binaries: FluxBinaries, admin_kubeconfig: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        self._admin_kubeconfig = admin_kubeconfig
        self._running: dict[str, dev_processes.Ident] = {}

    async def up(self) -> None:
        """Install what Flux needs and start it; return when every controller says that it is ready.

        ControlPlaneError when one ends or is not ready in time, with the end of its log.
        """
        client = await KubeClient.connect(Settings(kubeconfig=str(self._admin_kubeconfig)))
        try:
            await self._install(client)
        finally:
            await client.close()
        ports = choose_ports(
            [f"{name}-{server}" for name in LOCKDOWN for server in ("metrics", "health")] + ["artifacts"]
        )
        storage = self._folder / "artifacts"
        storage.mkdir(exist_ok=True)
        for name, program in self._binaries.controllers.items():
            environ = {**os.environ, "KUBECONFIG": str(self._kubeconfig(name)), "RUNTIME_NAMESPACE": NAMESPACE}
            environ |= {"TMPDIR": str(self._folder), "HOME": str(self._folder)}
            words = command(name, program, ports, storage)
            self._running[name] = dev_processes.start(words, environ=environ, log=self._log(name))
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession(trust_env=False) as session:
            for name in LOCKDOWN:
                await self._ready(session, name, f"http://{HOST}:{ports[f'{name}-health']}/readyz", deadline)

    async def down(self) -> None:
        """End the controllers; what they made stays."""
        await dev_processes.stop(self._running.values(), grace=_GRACE_SECONDS)
        self._running.clear()

    async def _install(self, client: KubeClient) -> None:
        for file in sorted(file for folder in self._binaries.crds for file in folder.glob("*.yaml")):
            definition = yaml.safe_load(file.read_text())
            name = definition["metadata"]["name"]
            await client.apply(f"{_CRDS}/{name}", definition, manager=_MANAGER, force=True)
            await until(client, _CRDS, name, is_true("Established"))
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await client.apply(api_path("", "v1", "namespaces", name=NAMESPACE), namespace, manager=_MANAGER, force=True)
        for obj in rights():
            path = api_path(_RBAC, "v1", f"{obj['kind'].lower()}s", name=obj["metadata"]["name"])
            await client.apply(path, obj, manager=_MANAGER, force=True)
        for name in LOCKDOWN:
            await self._make_account(client, name)

    async def _make_account(self, client: KubeClient, name: str) -> None:
        path = api_path("", "v1", "serviceaccounts", namespace=NAMESPACE, name=name)
        metadata = {"name": name, "namespace": NAMESPACE}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
        await client.apply(path, account, manager=_MANAGER, force=True)
        issued = await client.token_request(NAMESPACE, name, expiration_seconds=_TOKEN_SECONDS)
        config = msgspec.yaml.decode(self._admin_kubeconfig.read_bytes(), type=Object)
        config["users"] = [{"name": user["name"], "user": {"token": issued.token}} for user in config["users"]]
        write_private(self._kubeconfig(name), yaml.safe_dump(config))

    async def _ready(self, session: aiohttp.ClientSession, name: str, url: str, deadline: float) -> None:
        end = asyncio.ensure_future(dev_processes.ended(self._running[name]))
        try:
            while not await _answers(session, url):
                why = "ended before it was ready" if end.done() else "is not ready in time"
                if end.done() or time.monotonic() > deadline:
                    log = self._log(name)
                    raise ControlPlaneError(f"{name} {why}; the end of {log}:\n{dev_processes.tail(log, _LOG_LINES)}")
                await asyncio.wait({end}, timeout=_LOOK_AGAIN_SECONDS)
        finally:
            end.cancel()

    def _kubeconfig(self, name: str) -> Path:
        return self._folder / f"{name}.kubeconfig"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
            return response.ok
    except (aiohttp.ClientError, TimeoutError):
        return False


def _binding(name: str, role: str, *accounts: str) -> Object:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE} for account in accounts],
    }
