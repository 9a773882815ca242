"""`tether certs` beside a running Tether: made, renewed, rotated, and no client is refused on the way."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from eventcore.errors import KubeError
from eventcore.kube import KubeClient, api_path
from eventcore.objects import CA_MEMORY
from tether.certs import Report
from workers.authority import certificates

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
SYSTEM = "capsule-system"
NAMESPACES = api_path("", "v1", "namespaces")
FILES = ("tls.crt", "tls.key")


class Proxy:
    """The Secret of the running proxy, its files, which a kubelet would mount, and the command."""

    def __init__(self, cluster: Any, admin: KubeClient) -> None:
        self.cluster = cluster
        self.admin = admin
        self.folder: Path = cluster.folder / "proxy"

    def path(self, name: str = "capsule-proxy") -> str:
        return api_path("", "v1", "secrets", namespace=SYSTEM, name=name)

    async def data(self) -> dict[str, str]:
        found = msgspec.json.decode(await self.admin.get(self.path()))["data"]
        return {key: base64.b64decode(value).decode() for key, value in found.items()}

    async def certs(self, *arguments: str) -> Report:
        line = ("--json", "--adopt", "--san", "127.0.0.1", "--san", "localhost", *arguments)
        admin = str(self.cluster.folder / "admin.kubeconfig")
        done = await asyncio.to_thread(self.cluster.tether, "certs", "--kubeconfig", admin, *line)
        assert done.returncode == 0, done.stderr
        assert "PRIVATE" not in done.stdout + done.stderr
        return msgspec.json.decode(done.stdout, type=Report)

    async def served(self) -> str:
        """Return the certificate that a new client is shown."""
        url = urlsplit(self.cluster.environ["TETHER_PROXY_URL"])
        return await asyncio.to_thread(ssl.get_server_certificate, (str(url.hostname), int(url.port or 443)))

    async def mount(self, data: dict[str, str]) -> None:
        """Put what the Secret holds where the proxy reads it, each file in one step."""
        for name in FILES:
            new = self.folder / f"{name}.new"
            new.touch(mode=0o600)
            new.write_text(data[name])
            os.replace(new, self.folder / name)  # noqa: PTH105 - the one step


async def test_made_renewed_and_rotated_no_client_is_refused(
    cluster: Any, admin: KubeClient, tenancy: Tenancy, until: Any
) -> None:
    # Given a tenant with a kubeconfig of before, and what another installer put into the proxy's Secret
    await tenancy.make()
    before_file = await tenancy.kubeconfig()
    proxy = Proxy(cluster, admin)
    before = await proxy.data()
    secret = msgspec.json.decode(await admin.get(proxy.path()))

    async def lists(file: Path) -> bool:
        # A connection of its own each time, as a new client makes.
        async with cluster.client(file) as client:
            try:
                await client.get(NAMESPACES)
            except KubeError:
                return False
            return True

    async def trusts(count: int) -> Path | None:
        """Return the kubeconfig once it trusts what the Secret says first, with so many certificates in all."""
        config = msgspec.yaml.decode(await tenancy.secret(tenancy.home, f"{ACCOUNT}-kubeconfig", "value"))
        bundle = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        found, first = certificates(bundle), certificates((await proxy.data())["ca.crt"])
        if found[: len(first)] != first or len(found) < count:
            return None
        file: Path = await tenancy.kubeconfig()
        return file

    async def mounted(data: dict[str, str]) -> None:
        """Let the proxy have what the Secret holds, and wait until it serves that."""
        await proxy.mount(data)

        async def served() -> bool:
            return certificates(await proxy.served()) == certificates(data["tls.crt"])

        await until(served)

    assert await lists(before_file)
    try:
        # When a CA of Tether's own takes over, then it is announced, and what serves stays
        announced = await proxy.certs("--overlap", "1h")
        assert announced.switch_at is not None
        data = await proxy.data()
        assert data["tls.crt"] == before["tls.crt"]
        assert len(certificates(data["ca.crt"])) == 2
        during_file = await until(lambda: trusts(2))
        assert await lists(before_file)
        assert await lists(during_file)

        # When it signs, then whoever read during the overlap is served by the new certificate
        switched = await proxy.certs("--overlap", "0", "--rotate-ca")
        assert switched.switch_at is None
        data = await proxy.data()
        assert data["tls.crt"] != before["tls.crt"]
        assert not (await proxy.certs("--overlap", "1h")).changed
        await mounted(data)
        assert await lists(during_file)

        async def over() -> bool:
            return not await lists(before_file)

        await until(over)  # the overlap, which was cut short here; each process of the proxy reads its files by itself

        # When its certificate is renewed, then nobody needs anything new
        assert (await proxy.certs("--san", "proxy.example")).changed
        renewed = await proxy.data()
        assert renewed["ca.crt"] == data["ca.crt"]
        await mounted(renewed)
        assert await lists(during_file)

        # When the CA is rotated, then clients of before the announcement and of after it are served alike
        await until(lambda: trusts(2))
        between_file = await tenancy.kubeconfig()
        rotated = await proxy.certs("--overlap", "1h", "--rotate-ca", "--san", "proxy.example")
        assert rotated.switch_at is not None
        after_file = await until(lambda: trusts(3))
        for file in (during_file, between_file, after_file):
            assert await lists(file)
    finally:
        body = {"metadata": {"labels": secret["metadata"]["labels"]}, "data": secret["data"] | {"ca": None}}
        await admin.merge_patch(proxy.path(), body)
        await admin.delete(proxy.path("capsule-proxy-authority"))
        await mounted(before)
        await until(lambda: trusts(2))
        await admin.delete(proxy.path(CA_MEMORY))  # the overlap of this test is not that of the next one
