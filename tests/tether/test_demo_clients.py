"""How the demo acts as a tenant: kubectl and the API itself must tell the same things apart."""

from __future__ import annotations

import base64
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tether.demo_clients import ApiClient, Client, KubectlClient, NoAnswerError, RefusedError, client
from tether.dev_accounts import kubeconfig
from tether.devcluster.api import EmbeddedApi

Make = Callable[[Path], Client]


def with_kubectl(path: Path) -> Client:
    return KubectlClient(shutil.which("kubectl") or "", path)


@pytest.fixture(params=[pytest.param("kubectl", marks=pytest.mark.kubectl), "api"])
def make(request: pytest.FixtureRequest) -> Make:
    """Return one of the two kinds of client."""
    if request.param == "api":
        return ApiClient
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    return with_kubectl


@pytest.fixture
async def api() -> AsyncIterator[EmbeddedApi]:
    """An embedded API."""
    started = EmbeddedApi()
    await started.start()
    yield started
    await started.stop()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


async def test_an_administrator_makes_lists_and_reads_namespaces(make: Make, api: EmbeddedApi, tmp_path: Path) -> None:
    admin = make(written(tmp_path / "kubeconfig", api.admin_kubeconfig()))

    await admin.create_namespace("oil-production")
    await admin.get_namespace("oil-production")

    assert "oil-production" in await admin.list_namespaces()
    assert await admin.list_secrets("oil-production") == []
    assert await admin.whoami() == "kubernetes-admin"


async def test_a_refusal_has_the_code_of_the_api_server(make: Make, api: EmbeddedApi, tmp_path: Path) -> None:
    admin = make(written(tmp_path / "admin", api.admin_kubeconfig()))
    stranger = make(written(tmp_path / "stranger", api.kubeconfig(token="no token of this cluster")))
    certificate, key = (text.encode() for text in api.pki.client_certificate("somebody"))
    user = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
    somebody = make(written(tmp_path / "somebody", kubeconfig(api.url, api.pki.ca_pem.encode(), user)))

    codes = []
    for request in (
        lambda: admin.get_namespace("missing"),
        lambda: admin.create_namespace("default"),
        somebody.list_namespaces,
        stranger.list_namespaces,
    ):
        with pytest.raises(RefusedError) as refused:
            await request()
        codes.append(refused.value.code)

    assert codes == [404, 409, 403, 401]


async def test_no_answer_is_not_taken_for_a_refusal(make: Make, tmp_path: Path) -> None:
    nobody = make(written(tmp_path / "kubeconfig", kubeconfig("https://127.0.0.1:1", None, {"token": "example"})))

    with pytest.raises(NoAnswerError):
        await nobody.list_namespaces()


def test_kubectl_is_used_when_it_is_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without = client(tmp_path / "kubeconfig")

    (tmp_path / "kubectl").write_text("#!/bin/sh\n")
    (tmp_path / "kubectl").chmod(0o755)
    with_it = client(tmp_path / "kubeconfig")

    assert isinstance(without, ApiClient)
    assert isinstance(with_it, KubectlClient)


def _base64(data: bytes) -> str:

    return base64.b64encode(data).decode()
