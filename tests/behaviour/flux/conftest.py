"""Flux's real controllers under lockdown, and a tenant that keeps its state in Git.

One start of the controllers and one Git server serve all tests of this folder; a tenant has a repository of its own.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from controlplane import awaiting
from controlplane.awaiting import condition, is_true
from controlplane.fixture import running_flux
from controlplane.flux import DEFAULT_ACCOUNT as ACCOUNT

from eventcore.kube import KubeClient
from tests.behaviour.conftest import WAIT, Cluster, Object, Tenancy, path
from tests.behaviour.lockdown import opted_in
from tests.gitserver import BRANCH, GitServer, Repository, serving

REQUESTED = "reconcile.fluxcd.io/requestedAt"
KUBECONFIG = {"secretRef": {"name": f"{ACCOUNT}-kubeconfig", "key": "kubeconfig"}}
RETRY: Object = {"strategy": {"name": "RetryOnFailure", "retryInterval": "1s"}}
_requests = itertools.count(1)


class GitOps:
    """A tenant as the guide describes it: its home with a GitRepository and a Kustomization, and all else in Git."""

    def __init__(self, tenancy: Tenancy, repository: Repository) -> None:
        self.tenancy = tenancy
        self.repository = repository
        self.name = tenancy.name
        self.home = tenancy.home
        self.production = f"{self.name}-production"
        self.development = f"{self.name}-development"

    def as_admin(self, admin: KubeClient) -> GitOps:
        """Return the same tenant, looked at with another client."""
        tenancy = copy.copy(self.tenancy)
        tenancy.admin = admin
        return GitOps(tenancy, self.repository)

    # What the tenant writes.

    def source(self, namespace: str) -> Object:
        spec = {"url": self.repository.url, "ref": {"branch": BRANCH}, "interval": "1h"}
        return _object("GitRepository", namespace, self.name, spec=spec)

    def kustomization(self, name: str, namespace: str, folder: str, **spec: Any) -> Object:
        """Return a Kustomization for a folder of the repository, with the kubeconfig; None takes a field out."""
        source = {"kind": "GitRepository", "name": self.name}
        whole = {"interval": "1h", "retryInterval": "1s", "timeout": "20s", "prune": True, "kubeConfig": KUBECONFIG}
        return _object("Kustomization", namespace, name, spec={**whole, "path": folder, "sourceRef": source, **spec})

    def release(self, name: str, namespace: str, **spec: Any) -> Object:
        """Return a HelmRelease of the chart in the repository, with the kubeconfig; None takes a field out."""
        source = {"kind": "GitRepository", "name": self.name}
        template = {"spec": {"chart": "charts/app", "sourceRef": source}}
        whole = {"interval": "1h", "timeout": "20s", "kubeConfig": KUBECONFIG, "install": RETRY, "upgrade": RETRY}
        return _object("HelmRelease", namespace, name, spec={**whole, "chart": template, **spec})

    def state(self) -> dict[str, str]:
        """Return the files that the tenant begins with: its namespaces, rights, Flux objects and what these apply."""
        read = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
        developer = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{self.name}-developer"}
        pods = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}}
        web = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": pods}
        return {
            "config/kustomization.yaml": _kustomize("namespaces.yaml", "rights.yaml", "flux.yaml"),
            "config/namespaces.yaml": documents(
                _object("Namespace", "", self.production), _object("Namespace", "", self.development)
            ),
            "config/rights.yaml": documents(
                _object("Role", self.production, "reader", rules=[read]),
                _object("RoleBinding", self.production, "reader", roleRef=role, subjects=[developer]),
            ),
            "config/flux.yaml": documents(
                self.kustomization("apps", self.home, "config/apps", targetNamespace=self.development),
                self.release("app", self.home, targetNamespace=self.development),
                self.source(self.production),
                self.kustomization("own", self.production, "config/own"),
                self.release("app", self.production),
            ),
            "config/apps/web.yaml": documents(
                config_map("", "web", stage="one"), _object("Deployment", "", "web", spec=web)
            ),
            "config/own/own.yaml": documents(config_map(self.production, "own")),
            **chart("1.0.0", stage="one"),
        }

    # What happens.

    async def begin(self) -> None:
        """Do the administrator's part of the guide, and push the state; the rest is Flux's."""
        self.repository.push(self.state(), "Begin")
        await self.tenancy.make()
        await self.tenancy.apply(self.source(self.home), self.kustomization(self.name, self.home, "config"))

    async def until(self, kind: str, namespace: str, name: str, holds: Callable[[Object | None], object]) -> Object:
        """Return an object once ``holds`` is true of it, {} where that is so of none."""
        return await awaiting.until(self.tenancy.admin, path(kind, namespace), name, holds, seconds=WAIT) or {}

    async def there(self, kind: str, namespace: str, name: str) -> Object:
        return await self.until(kind, namespace, name, bool)

    async def gone(self, kind: str, namespace: str, name: str) -> None:
        await self.until(kind, namespace, name, lambda obj: obj is None)

    async def ready(self, kind: str, namespace: str, name: str) -> Object:
        return await self.until(kind, namespace, name, is_true("Ready"))

    async def refused(self, kind: str, namespace: str, name: str, why: str) -> None:
        """Return once an object is not ready for a reason that matches ``why``."""

        def says(obj: Object | None) -> bool:
            found = condition(obj, "Ready")
            return found.get("status") == "False" and re.search(why, found["message"], re.DOTALL) is not None

        await self.until(kind, namespace, name, says)

    async def request(self, kind: str, namespace: str, name: str) -> str:
        """Ask Flux to reconcile now, as ``flux reconcile`` does; return what it will say that it has handled."""
        asked = f"request-{next(_requests)}"
        annotations = {"metadata": {"annotations": {REQUESTED: asked}}}
        await self.tenancy.admin.merge_patch(path(kind, namespace, name), annotations)
        return asked

    async def reconcile(self, kind: str, namespace: str, name: str) -> Object:
        """Let Flux reconcile an object, and return it when that is done and it is ready."""
        asked = await self.request(kind, namespace, name)
        ready = is_true("Ready")
        return await self.until(
            kind,
            namespace,
            name,
            lambda obj: ready(obj) and obj is not None and obj["status"].get("lastHandledReconcileAt") == asked,
        )


def config_map(namespace: str, name: str, **data: str) -> Object:
    return _object("ConfigMap", namespace, name, data=data)


def chart(version: str, **data: str) -> dict[str, str]:
    """Return the files of a chart with one ConfigMap; Flux makes a release of each version."""
    return {
        "charts/app/Chart.yaml": documents({"apiVersion": "v2", "name": "app", "version": version}),
        "charts/app/templates/app.yaml": documents(config_map("", "{{ .Release.Name }}-chart", **data)),
    }


def documents(*objects: Object) -> str:
    """Return a file of manifests."""
    return str(yaml.safe_dump_all(objects, sort_keys=False))


def _kustomize(*resources: str) -> str:
    return documents(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [*resources]}
    )


VERSIONS = {
    "GitRepository": "source.toolkit.fluxcd.io/v1",
    "Kustomization": "kustomize.toolkit.fluxcd.io/v1",
    "HelmRelease": "helm.toolkit.fluxcd.io/v2",
    "Deployment": "apps/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
}


def _object(kind: str, namespace: str, name: str, **parts: Any) -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    if "spec" in parts:
        parts["spec"] = {field: value for field, value in parts["spec"].items() if value is not None}
    return {"apiVersion": VERSIONS.get(kind, "v1"), "kind": kind, "metadata": metadata, **parts}


@pytest.fixture(scope="package")
def flux(control_plane: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with running_flux(tmp_path_factory.mktemp("flux"), control_plane):
        yield


@pytest.fixture(scope="package")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="package")
def begun(cluster: Cluster, flux: None, git: GitServer) -> Callable[[], GitOps]:
    """Return a function that makes a tenant whose state is in Git; what Flux makes of it follows."""

    async def begin() -> GitOps:
        async with cluster.client() as client:
            tenancy = Tenancy(cluster, client)
            made = GitOps(tenancy, git.make(tenancy.name))
            await made.begin()
            return made

    return lambda: asyncio.run(begin())


@pytest.fixture(scope="package")
def shared(begun: Callable[[], GitOps]) -> GitOps:
    """One tenant for all tests that leave it as it was."""
    return begun()


@pytest.fixture(scope="package")
def neighbour(begun: Callable[[], GitOps]) -> GitOps:
    """A second tenant beside it."""
    return begun()


@pytest.fixture
def oil(shared: GitOps, admin: KubeClient) -> GitOps:
    return shared.as_admin(admin)


@pytest.fixture
def gas(neighbour: GitOps, admin: KubeClient) -> GitOps:
    return neighbour.as_admin(admin)


@pytest.fixture
async def switched_on(cluster: Cluster, admin: KubeClient) -> AsyncIterator[None]:
    async with opted_in(cluster, admin):
        yield
