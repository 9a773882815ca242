"""`tether certs` as a person runs it, under the rights that ship: what it makes, says and refuses."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from eventcore.errors import ForbiddenError, NotFoundError, StartError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings
from tether import cli, cli_certs, manifests
from tether.certs import CERT_MANAGER, Certs, Report
from tether.certs_plan import LABELS, Options, check, read_serving, service_hosts
from tether.certs_x509 import hosts_of, new_authority, new_serving
from tether.devcluster.api import EmbeddedApi

Object = dict[str, Any]
Ran = tuple[int, str, str]
NAMESPACE, PROXY, AUTHORITY = "capsule-system", "capsule-proxy", "capsule-proxy-authority"
HOSTS = service_hosts(PROXY, NAMESPACE, "cluster.local")
OPTIONAL = Path(__file__).parents[2] / "deploy" / "optional"


class Cluster:
    """An embedded API, a client of an administrator, and the command under its own account."""

    def __init__(self, client: KubeClient, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.client = client
        self.file = file
        self.capsys = capsys

    async def certs(self, *arguments: str) -> Ran:
        code = await asyncio.to_thread(cli.run, ["certs", "--kubeconfig", str(self.file), *arguments])
        out, err = self.capsys.readouterr()
        for key in re.findall(r"[A-Za-z0-9+/]{40,}", "".join(await self.keys())):
            assert key not in out + err
        assert "PRIVATE" not in out + err
        return code, out, err

    async def keys(self) -> list[str]:
        found = [secret for name in (PROXY, AUTHORITY) if (secret := await self.secret(name)) is not None]
        return [
            base64.b64decode(value).decode()
            for one in found
            for key, value in one.get("data", {}).items()
            if "key" in key
        ]

    async def secret(self, name: str) -> Object | None:
        try:
            return await self.client.get_as(Object, self.path(name))
        except NotFoundError:
            return None

    def path(self, name: str = "") -> str:
        return api_path("", "v1", "secrets", namespace=NAMESPACE, name=name)


@pytest.fixture
async def cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Cluster]:
    api = EmbeddedApi()
    await api.start()
    (tmp_path / "admin").write_text(api.admin_kubeconfig())
    client = await KubeClient.connect(Settings(kubeconfig=str(tmp_path / "admin")))
    await manifests.Applier(client, "test").apply(manifests.read(OPTIONAL / "certs.yaml"))
    issued = await client.token_request(NAMESPACE, "tether-certs", expiration_seconds=3600)
    (tmp_path / "certs").write_text(api.kubeconfig(token=issued.token))
    yield Cluster(client, tmp_path / "certs", capsys)
    await client.close()
    await api.stop()


async def test_both_secrets_are_made_and_a_second_run_changes_nothing(cluster: Cluster) -> None:
    code, out, err = await cluster.certs()

    assert (code, err) == (0, "")
    assert out.startswith("authority made: there was none\nserving certificate made: there was none")
    assert re.search(r"\nSecret capsule-system/capsule-proxy written, expires 2\d{3}-\S+Z\n$", out)
    proxy, authority = await cluster.secret(PROXY), await cluster.secret(AUTHORITY)
    assert proxy is not None
    assert authority is not None
    assert set(proxy["data"]) == {"tls.crt", "tls.key", "ca.crt", "ca"}
    assert set(authority["data"]) == {"tls.crt", "tls.key"}
    pair = read_serving(proxy).pair
    assert pair is not None
    assert hosts_of(pair.leaf) == set(HOSTS)

    code, out, err = await cluster.certs()
    assert (code, err) == (0, "")
    assert out.startswith("Secret capsule-system/capsule-proxy unchanged, expires ")
    assert (await cluster.secret(PROXY), await cluster.secret(AUTHORITY)) == (proxy, authority)


async def test_a_rotation_is_announced_and_json_says_it_all(cluster: Cluster) -> None:
    await cluster.certs()
    code, out, _ = await cluster.certs("--rotate-ca", "--overlap", "2h", "--json", "--san", "proxy.example")

    report = msgspec.json.decode(out, type=Report)
    assert code == 0
    assert report.changed
    assert report.hosts == [*HOSTS, "proxy.example"]
    assert report.switch_at is not None
    assert report.next_look == report.switch_at
    assert [line.split(":")[0] for line in report.done] == [
        "authority made",
        "authority announced",
        "serving certificate renewed",
        "ca.crt holds 2 certificates",
    ]
    code, out, _ = await cluster.certs("--overlap", "0", "--rotate-ca", "--san", "proxy.example")
    assert code == 0
    assert "authority changed: the announced one signs now" in out
    assert "ca.crt holds 1 certificate" in out


async def test_a_dry_run_stores_nothing(cluster: Cluster) -> None:
    code, out, _ = await cluster.certs("--dry-run")

    assert code == 0
    assert "authority made: there was none (dry run)" in out
    assert "Secret capsule-system/capsule-proxy would be written" in out
    assert (await cluster.secret(PROXY), await cluster.secret(AUTHORITY)) == (None, None)


async def test_what_something_else_made_is_left_unless_it_is_to_be_taken_over(cluster: Cluster) -> None:
    moment = dt.datetime.now(dt.UTC)
    foreign = new_authority("other", dt.timedelta(days=100), moment)
    served = new_serving(foreign, [PROXY], dt.timedelta(days=30), moment)
    data = {"ca": foreign.certificate, "tls.crt": served.certificate, "tls.key": served.key}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    await cluster.client.create(cluster.path(), {"metadata": {"name": PROXY}, "type": "Opaque", "data": encoded})

    code, out, err = await cluster.certs()
    assert (code, out) == (1, "")
    assert err == "tether: Secret capsule-system/capsule-proxy was made by something else: --adopt takes it over\n"

    code, out, _ = await cluster.certs("--adopt")
    assert code == 0
    assert "authority announced: it signs from" in out
    found = await cluster.secret(PROXY)
    assert found is not None
    assert found["type"] == "Opaque"
    assert found["data"]["tls.crt"] == encoded["tls.crt"]
    assert LABELS.items() <= found["metadata"]["labels"].items()
    assert len(read_serving(found).trusted) == 2
    assert (await cluster.certs())[0] == 0  # it is ours now


async def test_a_secret_of_cert_manager_is_never_taken_over(cluster: Cluster) -> None:
    metadata = {"name": PROXY, "annotations": {CERT_MANAGER: "capsule-proxy"}}
    await cluster.client.create(cluster.path(), {"metadata": metadata})

    code, _, err = await cluster.certs("--adopt")

    assert code == 1
    assert "is kept by cert-manager's Certificate capsule-proxy" in err


async def test_a_foreign_secret_in_the_place_of_the_key_is_left(cluster: Cluster) -> None:
    await cluster.client.create(cluster.path(), {"metadata": {"name": AUTHORITY}})

    code, _, err = await cluster.certs("--adopt")

    assert code == 1
    assert "capsule-proxy-authority was made by something else: choose another --authority-name" in err


async def test_the_shipped_account_can_do_this_and_nothing_else(cluster: Cluster) -> None:
    client = await KubeClient.connect(Settings(kubeconfig=str(cluster.file)))
    try:
        for path in (cluster.path("any"), cluster.path(), api_path("", "v1", "secrets", namespace="default", name="x")):
            with pytest.raises(ForbiddenError):
                await client.get(path)
        with pytest.raises(ForbiddenError):
            await client.create(api_path("", "v1", "secrets", namespace="default"), {"metadata": {"name": PROXY}})
    finally:
        await client.close()


async def test_two_runs_at_a_time_end_with_one_authority(cluster: Cluster) -> None:
    options = Options(hosts=HOSTS)
    reports = await asyncio.gather(*(Certs(cluster.client, options).run() for _ in range(3)))

    proxy = read_serving(await cluster.secret(PROXY))
    assert len(proxy.trusted) == 1
    assert {report.authority_expires for report in reports}
    assert not (await Certs(cluster.client, options).run()).changed


async def test_a_certificate_that_is_due_is_renewed_and_nothing_before(cluster: Cluster) -> None:
    moment = dt.datetime.now(dt.UTC)
    options = Options(hosts=HOSTS)
    first = await Certs(cluster.client, options, clock=lambda: moment).run()
    before = await Certs(cluster.client, options, clock=lambda: first.next_look - dt.timedelta(minutes=1)).run()
    due = await Certs(cluster.client, options, clock=lambda: first.next_look).run()

    assert (before.changed, due.changed) == (False, True)
    assert due.expires is not None
    assert first.expires is not None
    assert due.expires > first.expires


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--life", "soon"), 2, "not a duration such as 12h or 90d"),
        (("--watch", "--dry-run"), 2, "--watch goes on for ever"),
        (("--san", "https://x"), 1, "--san 'https://x' is neither a DNS name in small letters nor an IP address"),
        (("--life", "10m"), 1, "--life must be at least 1h"),
        (("--kubeconfig", "/nowhere"), 1, "there is no kubeconfig at"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["certs", *arguments]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


async def test_with_watch_it_looks_again_and_lives_through_a_failure(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    real = Certs.run

    async def run(self: Certs) -> Report:
        looks.append(True)
        if len(looks) == 1:
            raise StartError("not now")
        return await real(self)

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Certs, "run", run)
    monkeypatch.setattr(cli_certs, "asyncio", _Asyncio(sleep))
    code, out, err = await cluster.certs("--watch", "--interval", "10m")

    assert code == 0
    assert err == "tether certs: not now; trying again\n"
    assert [line.split()[2] for line in out.splitlines() if line.startswith("Secret")] == ["written,", "unchanged,"]
    assert waits == [30.0, 600.0, 600.0]


class _Asyncio:
    """The module asyncio with another sleep."""

    def __init__(self, sleep: Any) -> None:
        self.run = asyncio.run
        self.sleep = sleep


def test_what_is_due_before_the_interval_is_waited_for() -> None:
    report = Report(
        secret="a/b",
        authority="a/c",
        changed=False,
        dry_run=False,
        done=[],
        hosts=[],
        expires=None,
        authority_expires=None,
        switch_at=None,
        next_look=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100),
    )

    assert 90 < cli_certs.until_next(report, 3600.0) <= 100
    assert cli_certs.until_next(report, 10.0) == 10.0


def test_the_manifest_for_cert_manager_is_for_the_same_secret_and_names() -> None:
    objects = list(yaml.safe_load_all((OPTIONAL / "cert-manager.yaml").read_text()))
    serving = objects[-1]
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in objects}

    assert serving["spec"]["secretName"] == Settings().proxy_ca_secret == PROXY
    assert tuple(serving["spec"]["dnsNames"]) == HOSTS
    issuer = by_name[("Issuer", serving["spec"]["issuerRef"]["name"])]
    authority = by_name[("Certificate", "capsule-proxy-ca")]
    assert issuer["spec"]["ca"]["secretName"] == authority["spec"]["secretName"] != PROXY
    assert authority["spec"]["isCA"] is True
    assert ("Issuer", authority["spec"]["issuerRef"]["name"]) in by_name


def test_the_defaults_are_those_that_the_kubeconfigs_expect() -> None:
    options = Options(hosts=HOSTS)
    check(options)
    settings = Settings()

    assert (options.namespace, options.secret) == (settings.proxy_ca_namespace, settings.proxy_ca_secret)
    assert settings.proxy_url.split("/")[2].split(":")[0] in HOSTS
    assert isinstance(cli_certs.certs, click.Command)
