"""`tether kubeconfig generate` as a person runs it, on an embedded API: what it makes, says and refuses."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventcore.errors import NotFoundError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import cli
from tether.devcluster.api import EmbeddedApi

Object = dict[str, Any]
Ran = tuple[int, str, str]
Run = Callable[..., Awaitable[Ran]]

HOME = "oil-system"
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
TOKEN = f"{ACCOUNT}-token"
SERVER = "https://capsule-proxy.capsule-system.svc:9001"


class Cluster:
    """An embedded API with the account and the CA that the guide's command needs."""

    def __init__(self, api: EmbeddedApi, client: KubeClient, file: Path, run: Run) -> None:
        self.api = api
        self.client = client
        self.file = file
        self.run = run

    async def prepare(self) -> None:
        await self.client.create(api_path("", "v1", "namespaces"), {"metadata": {"name": HOME}})
        await self.account()
        ca = base64.b64encode(self.api.pki.ca_pem.encode()).decode()
        await self.make("secrets", "capsule-system", {"metadata": {"name": "capsule-proxy"}, "data": {"ca": ca}})

    async def account(self, **annotations: str) -> None:
        await self.make("serviceaccounts", HOME, {"metadata": {"name": ACCOUNT, "annotations": annotations}})

    async def make(self, plural: str, namespace: str, body: Object) -> Object:
        made = await self.client.create(api_path("", "v1", plural, namespace=namespace), body)
        return msgspec.json.decode(made, type=Object)

    async def make_token(self, name: str) -> str:
        """Make a token Secret as an administrator does, and return the token once it is there."""
        annotations = {"kubernetes.io/service-account.name": ACCOUNT}
        body = {"metadata": {"name": name, "annotations": annotations}, "type": "kubernetes.io/service-account-token"}
        await self.make("secrets", HOME, body)
        async with asyncio.timeout(20):
            while not (found := await self.secret(name)) or not found.get("data"):
                await asyncio.sleep(0.01)
        return base64.b64decode(found["data"]["token"]).decode()

    async def secret(self, name: str) -> Object | None:
        try:
            return await self.client.get_as(Object, api_path("", "v1", "secrets", namespace=HOME, name=name))
        except NotFoundError:
            return None

    async def config(self, key: str = "kubeconfig") -> Any:
        """Return the kubeconfig in the Secret."""
        secret = await self.secret(KUBECONFIG)
        assert secret
        return msgspec.yaml.decode(base64.b64decode(secret["data"][key]))

    async def generate(self, *arguments: str, server: str = SERVER) -> Ran:
        """Run the guide's command, with more flags; a flag given again is the one that counts."""
        line = (
            *("kubeconfig", "generate", "--namespace", HOME, "--server", server, "--serviceaccount", ACCOUNT),
            *("--server-tls-secret-namespace", "capsule-system", "--server-tls-secret-name", "capsule-proxy"),
            *("--kubeconfig-secret-key", "kubeconfig", "--kubeconfig", str(self.file)),
            *arguments,
        )
        return await self.run(*line)


def written(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


@asynccontextmanager
async def running(file: Path, run: Run) -> AsyncIterator[Cluster]:
    api = EmbeddedApi()
    await api.start()
    client = await KubeClient.connect(Settings(kubeconfig=written(file, api.admin_kubeconfig())))
    made = Cluster(api, client, file, run)
    try:
        await made.prepare()
        yield made
    finally:
        await client.close()
        await api.stop()


@pytest.fixture
async def bare(tmp_path: Path, tether: Run) -> AsyncIterator[Cluster]:
    """A cluster whose account has no token yet; the command runs as a process."""
    async with running(tmp_path / "admin.kubeconfig", tether) as made:
        yield made


@pytest.fixture
async def cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Cluster]:
    """A cluster whose account has a token; the command runs in a thread of this process, which takes less time."""

    async def run(*arguments: str) -> Ran:
        code = await asyncio.to_thread(cli.run, arguments)
        return code, *capsys.readouterr()

    async with running(tmp_path / "admin.kubeconfig", run) as made:
        await made.make_token(TOKEN)
        yield made


def refused(result: Ran, says: str) -> None:
    code, out, err = result
    assert (code, out) == (1, ""), result
    assert err.startswith("tether: ")
    assert err.count("\n") == 1
    assert says in err


async def test_an_account_without_a_token_gets_one_and_a_kubeconfig_for_its_own_namespace(bare: Cluster) -> None:
    code, out, err = await bare.generate()

    token = await bare.secret(TOKEN)
    config = await bare.config()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"Secret/{HOME}/{TOKEN} created, with a token that does not expire",
        f"Proxy kubeconfig Secret created: {HOME}/{KUBECONFIG}",
    ]
    assert token
    assert token["type"] == "kubernetes.io/service-account-token"
    assert config["users"][0]["user"]["token"] == base64.b64decode(token["data"]["token"]).decode()
    assert config["clusters"][0]["cluster"]["server"] == SERVER
    assert config["contexts"][0]["context"] == {"cluster": "default", "user": "default", "namespace": HOME}
    assert await bare.config("value") == config


async def test_the_token_that_is_there_is_used_and_no_other_is_made(bare: Cluster) -> None:
    token = await bare.make_token("of-an-administrator")

    code, out, _ = await bare.generate()

    assert (code, out) == (0, f"Proxy kubeconfig Secret created: {HOME}/{KUBECONFIG}\n")
    assert await bare.secret(TOKEN) is None
    assert (await bare.config())["users"][0]["user"]["token"] == token


async def test_a_second_run_changes_nothing_and_says_so(cluster: Cluster) -> None:
    await cluster.generate()
    before = await cluster.secret(KUBECONFIG)

    code, out, _ = await cluster.generate()

    assert (code, out) == (0, f"Proxy kubeconfig Secret unchanged: {HOME}/{KUBECONFIG}\n")
    assert await cluster.secret(KUBECONFIG) == before


async def test_what_differs_is_updated_and_named(cluster: Cluster) -> None:
    await cluster.generate()

    code, out, _ = await cluster.generate(server="https://other:9001")

    assert (code, out) == (0, f"Proxy kubeconfig Secret updated: {HOME}/{KUBECONFIG} (server)\n")
    assert (await cluster.config())["clusters"][0]["cluster"]["server"] == "https://other:9001"


async def test_another_key_takes_the_place_of_the_one_before(cluster: Cluster) -> None:
    await cluster.generate()

    code, _, _ = await cluster.generate("--kubeconfig-secret-key", "config.yaml")

    secret = await cluster.secret(KUBECONFIG)
    assert code == 0
    assert secret
    assert set(secret["data"]) == {"config.yaml", "value"}


async def test_an_account_that_was_made_again_gets_a_new_token(bare: Cluster) -> None:
    await bare.generate()
    before = (await bare.config())["users"][0]["user"]["token"]
    await bare.client.delete(api_path("", "v1", "serviceaccounts", namespace=HOME, name=ACCOUNT))
    async with asyncio.timeout(20):
        while await bare.secret(TOKEN) is not None:
            await asyncio.sleep(0.02)
    await bare.account()

    code, out, _ = await bare.generate()

    assert code == 0
    assert f"updated: {HOME}/{KUBECONFIG} (token)" in out
    assert (await bare.config())["users"][0]["user"]["token"] != before


async def test_a_secret_of_somebody_else_is_left_and_no_token_is_made_for_it(bare: Cluster) -> None:
    theirs = await bare.make("secrets", HOME, {"metadata": {"name": KUBECONFIG}, "data": {"kubeconfig": "eA=="}})

    result = await bare.generate()

    refused(result, f"Secret/{HOME}/{KUBECONFIG} exists and was not made by this command: delete or rename it")
    assert await bare.secret(KUBECONFIG) == theirs
    assert await bare.secret(TOKEN) is None


async def test_a_secret_of_somebody_else_is_taken_over_on_request(cluster: Cluster) -> None:
    labels = {"team": "oil"}
    body = {"metadata": {"name": KUBECONFIG, "labels": labels}, "data": {"kubeconfig": "eA==", "more": "eA=="}}
    await cluster.make("secrets", HOME, body)

    adopted = await cluster.generate("--adopt")
    again = await cluster.generate()

    secret = await cluster.secret(KUBECONFIG)
    assert adopted[0] == 0
    assert again[:2] == (0, f"Proxy kubeconfig Secret unchanged: {HOME}/{KUBECONFIG}\n")
    assert secret
    assert secret["metadata"]["labels"]["team"] == "oil"
    assert set(secret["data"]) == {"kubeconfig", "value"}


async def test_an_account_that_the_workers_serve_is_refused_and_can_still_be_printed(cluster: Cluster) -> None:
    path = api_path("", "v1", "serviceaccounts", namespace=HOME, name=ACCOUNT)
    await cluster.client.merge_patch(path, {"metadata": {"annotations": {"capsule.addon.fluxcd/enabled": "true"}}})

    refused(await cluster.generate(), "Tether's workers make its kubeconfig")
    code, out, _ = await cluster.generate("--output", "-", "--token-life", "1h")

    assert code == 0
    assert msgspec.yaml.decode(out)["current-context"] == "default"
    assert await cluster.secret(KUBECONFIG) is None


async def test_printed_is_the_kubeconfig_alone_and_no_secret_holds_it(bare: Cluster) -> None:
    code, out, err = await bare.generate("--output", "-")

    token = await bare.secret(TOKEN)
    assert code == 0
    assert token
    assert msgspec.yaml.decode(out)["users"][0]["user"]["token"] == base64.b64decode(token["data"]["token"]).decode()
    assert err == f"Secret/{HOME}/{TOKEN} created, with a token that does not expire\n"
    assert await bare.secret(KUBECONFIG) is None


async def test_without_output_no_token_is_shown(cluster: Cluster) -> None:
    shown = [await cluster.generate(*flags) for flags in ((), ("--token-life", "1h"), ("--dry-run",))]

    token = (await cluster.config())["users"][0]["user"]["token"]
    assert token
    assert not any(part in text for _, out, err in shown for text in (out, err) for part in (token, "eyJ", "BEGIN"))


@pytest.mark.parametrize("flags", [(), ("--token-life", "1h"), ("--output", "-")], ids=["static", "expires", "printed"])
async def test_a_dry_run_says_what_it_would_do_and_does_nothing(bare: Cluster, flags: tuple[str, ...]) -> None:
    code, out, err = await bare.generate("--dry-run", *flags)

    assert code == 0
    assert "would" in out + err
    assert out == "" or "--output" not in flags
    assert await bare.secret(TOKEN) is None
    assert await bare.secret(KUBECONFIG) is None


async def test_a_dry_run_of_an_update_names_what_would_change_and_changes_nothing(cluster: Cluster) -> None:
    await cluster.generate()
    before = await cluster.secret(KUBECONFIG)

    code, out, _ = await cluster.generate("--dry-run", server="https://other:9001")

    assert (code, out) == (0, f"Proxy kubeconfig Secret would be updated: {HOME}/{KUBECONFIG} (server)\n")
    assert await cluster.secret(KUBECONFIG) == before


async def test_a_dry_run_is_refused_by_the_api_server_as_the_run_would_be(bare: Cluster) -> None:
    # Given a person who may read all that the command reads, and write nothing
    user = api_path("rbac.authorization.k8s.io", "v1", "clusterroles")
    rule = {"apiGroups": [""], "resources": ["secrets", "serviceaccounts"], "verbs": ["get", "list"]}
    await bare.client.create(user, {"metadata": {"name": "reader"}, "rules": [rule]})
    subject = {"kind": "User", "name": "dana", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"}
    await bare.client.create(
        api_path("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
        {"metadata": {"name": "reader"}, "roleRef": role, "subjects": [subject]},
    )
    certificate, key = bare.api.pki.client_certificate("dana")
    pair = {"client-certificate-data": certificate, "client-key-data": key}
    user_fields = {name: base64.b64encode(text.encode()).decode() for name, text in pair.items()}
    bare.file.write_text(bare.api.kubeconfig(**user_fields))

    refused(await bare.generate("--dry-run"), 'cannot create resource "secrets"')


async def test_a_token_that_expires_is_bound_to_the_secret_and_kept_while_it_serves(cluster: Cluster) -> None:
    first = await cluster.generate("--token-life", "1h")
    kept = await cluster.config()
    second = await cluster.generate("--token-life", "1h")

    assert first[0] == 0
    assert "expires 20" in first[1]
    assert second[:2] == (0, f"Proxy kubeconfig Secret unchanged: {HOME}/{KUBECONFIG}\n")
    assert await cluster.config() == kept


async def test_a_token_that_expires_gives_way_to_one_that_does_not_and_back(cluster: Cluster) -> None:
    outs = [(await cluster.generate(*flags))[1] for flags in (("--token-life", "1h"), (), ("--token-life", "2h"))]

    assert "created" in outs[0]
    assert all(f"updated: {HOME}/{KUBECONFIG} (token)" in out for out in outs[1:])


async def test_a_refused_token_leaves_no_empty_secret_behind(cluster: Cluster) -> None:
    # Longer than any API server grants is refused as invalid.
    code, _, err = await cluster.generate("--token-life", f"{2**33}s")

    assert code == 1
    assert err.count("\n") == 1
    assert await cluster.secret(KUBECONFIG) is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--serviceaccount", ""], "--serviceaccount is missing"),
        (["--server", ""], "--server is missing"),
        (["--server-tls-secret-name", ""], "--server-tls-secret-name is missing"),
        (["--serviceaccount", "nobody"], f"ServiceAccount {HOME}/nobody does not exist"),
        (["--server-tls-secret-name", "nothing"], "Secret/capsule-system/nothing with the proxy's CA does not exist"),
        (["--server-tls-secret-ca-key", "tls.crt"], "has no key tls.crt"),
        (["--server", "http://proxy:9001"], "is not an https:// URL"),
        (["--token-life", "1m"], "at least 10m"),
        (["--kubeconfig", "/no/such/file"], "there is no kubeconfig at /no/such/file"),
    ],
)
async def test_each_error_is_one_line_and_exit_code_1(cluster: Cluster, flags: list[str], says: str) -> None:
    refused(await cluster.generate(*flags), says)


@pytest.mark.parametrize("flags", [["--nonsense"], ["--token-life", "soon"], ["--output", "file"]])
def test_an_unknown_flag_is_wrong_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["kubeconfig", "generate", *flags])

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_the_help_names_the_seven_flags_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kubeconfig", "generate", "--help"]) == 0

    out = " ".join(capsys.readouterr().out.split())
    for flag in ("--serviceaccount", "--server", "--server-tls-secret-name"):
        assert re.search(rf"{flag} [A-Z]+ [^\[]*Required\.", out), flag
    for flag, default in {
        "--namespace": "[default: default]",
        "--server-tls-secret-namespace": "[default: default]",
        "--server-tls-secret-ca-key": "[default: ca, then ca.crt]",
        "--kubeconfig-secret-key": "[default: kubeconfig]",
    }.items():
        assert re.search(rf"{flag} [A-Z]+ [^\[]*{re.escape(default)}", out), flag


async def test_a_name_that_is_taken_by_another_secret_is_said(bare: Cluster) -> None:
    await bare.make("secrets", HOME, {"metadata": {"name": TOKEN}})

    refused(await bare.generate(), f"Secret/{HOME}/{TOKEN} is in the way of a token")
