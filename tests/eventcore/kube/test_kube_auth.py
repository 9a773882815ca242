"""Logging in: kubeconfigs as kubectl reads them, pods, plugins, tokens that change, and what is said when it fails."""

from __future__ import annotations

import asyncio
import base64
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from eventcore import kube_auth
from eventcore.errors import StartError, UnauthorizedError
from eventcore.kube import KubeClient
from eventcore.kube_auth import KubeAuth
from eventcore.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Connect = Callable[..., Awaitable[KubeClient]]
    Write = Callable[..., Path]


def sent(stub: Any) -> list[str | None]:
    return [request.headers.get("Authorization") for request in stub.requests]


async def only(token: str, stub: Any) -> None:
    """Let the stub accept this token and no other."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == f"Bearer {token}":
            return web.json_response({})
        return web.json_response({"kind": "Status", "reason": "Unauthorized", "message": "Unauthorized"}, status=401)

    stub.answer = answer


async def test_a_client_certificate_logs_in_without_a_token_and_leaves_no_key_behind(
    stub: Any, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    peers: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        return web.json_response({})

    stub.answer = answer
    certificate, key = stub.pki.client_certificate("admin", ["system:masters"])
    user = {
        "client-certificate-data": base64.b64encode(certificate.encode()).decode(),
        "client-key-data": base64.b64encode(key.encode()).decode(),
    }
    client = await connect(stub.kubeconfig(user))
    await client.get("/x")
    assert sent(stub) == [None]
    assert stub.pki.user_of_certificate(peers[0]).username == "admin"
    assert list(folder.iterdir()) == []


async def test_the_context_of_the_settings_is_used(stub: Any, connect: Connect) -> None:
    config = stub.kubeconfig()
    config["users"].append({"name": "other", "user": {"token": "0ther"}})
    config["contexts"].append({"name": "second", "context": {"cluster": "c", "user": "other"}})
    await (await connect(config)).get("/x")
    await (await connect(config, kube_context="second")).get("/x")
    assert sent(stub) == ["Bearer t0ken", "Bearer 0ther"]


async def test_the_environments_kubeconfig_may_be_several_files(stub: Any, write_kubeconfig: Write) -> None:
    config = stub.kubeconfig()
    users = config.pop("users")
    first = write_kubeconfig({**config, "users": []}, "first")
    second = write_kubeconfig({"apiVersion": "v1", "kind": "Config", "users": users}, "second")
    auth = await KubeAuth.load(Settings(), environ={"KUBECONFIG": f"{first}:{second}:/not/there"})
    assert auth.server_url == stub.url
    assert await auth.authorization() == "Bearer t0ken"


async def test_a_token_file_is_read_again_when_its_token_is_refused(
    stub: Any, connect: Connect, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    client = await connect(stub.kubeconfig({"tokenFile": str(token)}))
    await only("first", stub)
    await client.get("/x")
    token.write_text("second\n")
    await only("second", stub)
    await client.get("/x")
    assert sent(stub) == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_token_file_is_read_again_after_a_while(
    stub: Any, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    client = await connect(stub.kubeconfig({"tokenFile": str(token)}))
    await client.get("/x")
    token.write_text("second")
    await client.get("/x")
    monkeypatch.setattr(kube_auth, "REFRESH_SECONDS", 0.0)
    await client.get("/x")
    token.unlink()
    await client.get("/x")  # the one in hand may still be good
    assert sent(stub) == ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]


async def test_a_refused_token_that_does_not_change_is_one_error_after_one_try(stub: Any, connect: Connect) -> None:
    client = await connect()
    await only("another", stub)
    with pytest.raises(UnauthorizedError):
        await client.get("/x")
    assert sent(stub) == ["Bearer t0ken"]


PLUGIN = """#!{python}
import json, pathlib
runs = pathlib.Path({runs!r})
count = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (count + 1))
status = {{"token": f"token-{{count + 1}}"}}
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}}))
"""


def plugin(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return a user with a credential plugin that gives token-1, token-2, ..., and the file with one mark a run."""
    script, runs = folder / "plugin", folder / "runs"
    script.write_text(PLUGIN.format(python=sys.executable, runs=str(runs)))
    script.chmod(stat.S_IRWXU)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}, runs


async def test_a_plugin_runs_again_only_when_its_token_is_refused(
    stub: Any, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_auth, "REFRESH_SECONDS", 0.0)
    user, runs = plugin(tmp_path)
    client = await connect(stub.kubeconfig(user))
    await only("token-1", stub)
    await client.get("/x")
    await client.get("/x")
    assert runs.read_text() == "x"
    await only("token-2", stub)
    await client.get("/x")
    assert sent(stub) == ["Bearer token-1"] * 3 + ["Bearer token-2"]


async def test_requests_that_are_refused_together_renew_once(stub: Any, connect: Connect, tmp_path: Path) -> None:
    user, runs = plugin(tmp_path)
    client = await connect(stub.kubeconfig(user))
    await only("token-2", stub)
    await asyncio.gather(*(client.get("/x") for _ in range(10)))
    assert runs.read_text() == "xx"


async def test_a_plugin_that_fails_is_one_line(stub: Any, connect: Connect) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}}
    with pytest.raises(StartError, match=r"cannot use kubeconfig .*: exec: process returned 1"):
        await connect(stub.kubeconfig(user))


def mount(folder: Path, stub: Any, token: str) -> dict[str, str]:
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_text(stub.pki.ca_pem)
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": stub.url.rsplit(":", 1)[1]}


async def test_in_a_pod_the_mounted_token_is_used_and_renewed(stub: Any, tmp_path: Path) -> None:
    environ = mount(tmp_path, stub, "first\n")
    auth = await KubeAuth.load(Settings(), environ=environ, account_folder=tmp_path)
    client = KubeClient(auth, request_timeout=10.0)
    try:
        await only("first", stub)
        await client.get("/x")
        (tmp_path / "token").write_text("second\n")
        await only("second", stub)
        await client.get("/x")
    finally:
        await client.close()
    assert sent(stub) == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_kubeconfig_in_the_settings_beats_the_pod(stub: Any, tmp_path: Path, write_kubeconfig: Write) -> None:
    environ = mount(tmp_path, stub, "pod")
    path = write_kubeconfig(stub.kubeconfig())
    auth = await KubeAuth.load(Settings(kubeconfig=str(path)), environ=environ, account_folder=tmp_path)
    assert await auth.authorization() == "Bearer t0ken"


async def test_a_mounted_token_that_is_empty_says_so(stub: Any, tmp_path: Path) -> None:
    environ = mount(tmp_path, stub, "")
    with pytest.raises(StartError, match="cannot use the pod's ServiceAccount: Token file exists but empty"):
        await KubeAuth.load(Settings(), environ=environ, account_folder=tmp_path)


async def test_a_missing_kubeconfig_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(StartError) as caught:
        await KubeClient.connect(Settings(kubeconfig="/not/there"))
    assert str(caught.value) == "there is no kubeconfig at /not/there: set --kubeconfig, or run inside a cluster"


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: without(config, "current-context"),
        lambda config: without(config, "contexts"),
        lambda config: {**config, "current-context": "elsewhere"},
        lambda config: {**config, "clusters": []},
        lambda config: {**config, "clusters": [{"name": "c", "cluster": {"server": "::::"}}]},
        lambda config: {**config, "clusters": [{"name": "c", "cluster": {}}]},
        lambda config: {**config, "users": [{"user": {"token": SECRET}}]},
        lambda config: {**config, "users": [{"name": "u", "user": {"token": SECRET, "exec": {"env": [SECRET]}}}]},
        lambda config: {**config, "users": [{"name": "u", "user": {"client-key-data": SECRET}}]},
        lambda config: {**config, "users": [{"name": "u", "user": {"client-certificate": "/not/there"}}]},
        lambda config: {**config, "users": [{"name": "u", "token": SECRET}]},
        lambda config: {**config, "users": SECRET},
        lambda _: f"users: [{{token: {SECRET}",
        lambda _: SECRET,
        lambda _: "",
        lambda _: "[]",
    ],
)
async def test_a_broken_kubeconfig_is_one_line_without_its_content(
    damage: Callable[[dict[str, Any]], Any], stub: Any, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = damage(stub.kubeconfig({"token": SECRET}))
    with pytest.raises(StartError) as caught:
        await connect(broken)
    assert "kubeconfig" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in capsys.readouterr().err
