"""People with client certificates, whom the API server knows by its own authority and the proxy acts for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from eventcore.kube import KubeClient, api_path
from tests.kubeapi import Client, Ran, run_kubectl
from tether import manifests
from tether.dev_layout import write_private
from tether.devcluster.pki import ClusterPki

PEOPLE = "people.example"
"""A group that is one of Capsule's users once `are_users` said so."""


@pytest.fixture
async def acting(admin: KubeClient) -> AsyncIterator[None]:
    """Let the proxy act for callers whose token cannot be sent on, for as long as a test lasts."""
    objects = manifests.read(manifests.shipped("deploy/optional/proxy-impersonation.yaml"))
    applier = manifests.Applier(admin, "person")
    await applier.apply(objects)
    yield
    for obj in reversed(objects):
        await admin.delete(await applier.path(obj))


@pytest.fixture
def authority(cluster: Any, control_plane: Path | None) -> ClusterPki:
    """The authority by which the API server judges its clients."""
    root = cluster.folder if control_plane is None else control_plane.parent
    return ClusterPki.load_or_create(next(root.rglob("ca.key")).parent)


async def are_users(admin: KubeClient, group: str) -> None:
    """Make a group one of Capsule's users."""
    await admin.json_patch(
        api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default"),
        [{"op": "add", "path": "/spec/userGroups/-", "value": group}],
    )


class Person:
    """Somebody with a certificate, once `shows` was called. ``signer`` is whose certificates they have."""

    def __init__(self, cluster: Any, folder: Path, signer: ClusterPki) -> None:
        self.name = ""
        self._cluster = cluster
        self._folder = folder
        self._signer = signer

    def shows(self, name: str, *groups: str, signer: ClusterPki | None = None) -> Person:
        """Get a certificate with this name and these groups."""
        self.name = name
        certificate, key = (signer or self._signer).client_certificate(name, groups)
        write_private(self._folder / "tls.crt", certificate)
        write_private(self._folder / "tls.key", key)
        return self

    @asynccontextmanager
    async def wire(self, at: str = "", *, direct: bool = False) -> AsyncIterator[Client]:
        """Yield a client that shows every answer; ``at`` is what follows the URL of the proxy, or the API server."""
        url, trust = self._cluster.way(direct=direct)
        trust.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), trust_env=False) as session:
            yield Client(url + at, session)

    async def kubectl(self, *arguments: str, at: str = "", expect: int = 0) -> Ran:
        environ = self._cluster.environ
        cluster = {
            "server": environ["TETHER_PROXY_URL"] + at,
            "certificate-authority": environ["TETHER_PROXY_CA_FILE"],
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"client-certificate": "tls.crt", "client-key": "tls.key"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = self._folder / "kubeconfig"
        file.write_bytes(msgspec.json.encode(config))
        return await run_kubectl(file, self._folder, *arguments, expect=expect)
