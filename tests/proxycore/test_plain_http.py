"""The port without TLS, for what stands behind something that ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.proxycore.test_forwarding import CALLER, run_between
from tether.devcluster.pki import ClusterPki


async def test_without_tls_the_port_speaks_plain_http(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    plain: dict[str, Any] = {"enable_ssl": False, "proxy_tls_cert": "", "proxy_tls_key": ""}
    async with run_between(tmp_path, pki, serving, **plain) as between:
        url = f"http://127.0.0.1:{between.service.port}"
        async with between.session.get(f"{url}/api", headers={"Authorization": f"Bearer {CALLER}"}) as found:
            assert (found.status, await found.read()) == (200, b'{"kind": "Anything"}')
        async with between.session.get(f"{url}/api") as found:
            assert found.status == 401
        async with between.session.get(f"{url}/_healthz") as found:
            assert found.status == 200
