"""The flags, variables and gates of capsule-proxy: what each becomes here, and that docs/proxy.md tells it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from eventcore.errors import SettingsError, StartError
from eventcore.logs import get
from eventcore.process import Role
from eventcore.settings import Settings
from eventcore.settings_reading import describe, load
from proxycore.main import proxy, serving_tls
from tether import cli
from tether.proxy_flags import FLAGS, GATES, TRANSLATED, not_heeded, translate

DOCS = Path(__file__).parents[2] / "docs" / "proxy.md"


Started = Callable[..., Settings]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Started:
    """Run ``tether proxy`` up to where the role would start; return its settings."""
    found: list[Settings] = []

    def run_role(name: str, settings: Settings, main: object, **_: object) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr("eventcore.process.run_role", run_role)

    def start(*arguments: str) -> Settings:
        code = cli.run(["proxy", *arguments])
        err = capsys.readouterr().err
        if code:
            raise SettingsError(err)
        return found[-1]

    return start


def changed(settings: Settings) -> dict[str, object]:
    """Return what differs from the defaults."""
    default = msgspec.structs.asdict(Settings())
    return {name: value for name, value in msgspec.structs.asdict(settings).items() if value != default[name]}


WORK = [
    (["--listening-port=9443"], {"proxy_port": 9443, "proxy_host": "0.0.0.0"}),  # noqa: S104 - as there
    (["--listening-port", "9443", "--proxy-host", "::1"], {"proxy_port": 9443, "proxy_host": "::1"}),
    (["--enable-ssl=false"], {"enable_ssl": False}),
    (["--enable-ssl=F"], {"enable_ssl": False}),
    (["--enable-ssl"], {}),
    (["--enable-ssl=TRUE", "--enable-ssl=0"], {"enable_ssl": False}),
    (["--ssl-cert-path=/c", "--ssl-key-path=/k"], {"proxy_tls_cert": "/c", "proxy_tls_key": "/k"}),
    (["--auth-preferred-types=TLSCertificate"], {"auth_preferred_types": "TLSCertificate"}),
    (["--xfcc-header-name=X-Cert"], {"xfcc_header_name": "X-Cert"}),
    (
        ["--trusted-proxy-cidrs=10.0.0.0/8", "--trusted-proxy-cidrs=fd00::/8,127.0.0.1"],
        {"trusted_proxy_cidrs": "10.0.0.0/8,fd00::/8,127.0.0.1"},
    ),
    (["--allowed-paths=/version"], {"allowed_paths": "/version"}),
    (["--public-paths=/.well-known/a"], {"public_paths": "/.well-known/a"}),
    (["--capsule-configuration-name=main"], {"capsule_configuration_name": "main"}),
    (["--ignored-user-group=a,b", "--ignored-user-group=c"], {"ignored_user_group": "a,b,c"}),
    (["--ignored-username=admin"], {"ignored_username": "admin"}),
    (["--ignored-impersonation-group=a"], {"ignored_impersonation_group": "a"}),
    (["--impersonation-group-regexp=^a,b$"], {"impersonation_group_regexp": "^a,b$"}),
    (["--oidc-username-claim=preferred_username"], {}),
    (["--rolebindings-resync-period=10h"], {}),
    (["--disable-caching"], {"identity_cache_ttl": 0.0}),
    (["--disable-caching=false"], {}),
    (
        ["--client-connection-qps=20", "--client-connection-burst=31"],
        {"client_connection_qps": 20.0, "client_connection_burst": 31},
    ),
    (["--metrics-addr=:8090"], {"http_host": "0.0.0.0", "http_port": 8090}),  # noqa: S104 - as there
    (["--metrics-addr=[::1]:8090"], {"http_host": "::1", "http_port": 8090}),
    (["--enable-pprof=false"], {}),
    (["--enable-leader-election=false"], {}),
    (["--webhook-port=9443"], {}),
    (["--feature-gates=SkipImpersonationReview=true"], {"skip_impersonation_review": True}),
    (["--feature-gates=SkipImpersonationReview=false,ProxyClusterScoped=false", "--feature-gates="], {}),
    (["--zap-log-level=4"], {}),
    (["--zap-log-level=5"], {"log_level": "debug"}),
    (["--zap-log-level=debug"], {"log_level": "debug"}),
    (["--zap-log-level=error", "--zap-encoder=console"], {"log_level": "error", "log_format": "console"}),
    (["--zap-devel"], {"log_level": "debug", "log_format": "console"}),
    (["--zap-devel", "--zap-log-level=error"], {"log_level": "error", "log_format": "console"}),
    (["--zap-stacktrace-level=error"], {}),
    (["--zap-time-encoding=rfc3339"], {}),
]


@pytest.mark.parametrize(
    ("arguments", "becomes"), WORK, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_a_flag_becomes_its_settings(started: Started, arguments: list[str], becomes: dict[str, object]) -> None:
    assert changed(started(*arguments)) == becomes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listening-port=70000"], "must be a whole number"),
        (["--listening-port=1", "--proxy-port=2"], "--listening-port and --proxy-port say different things"),
        (["--enable-ssl=maybe"], "must be true or false"),
        (["--oidc-username-claim=email"], "the API server says what a token's user name is"),
        (["--rolebindings-resync-period=often"], "is not a duration such as 10h"),
        (["--disable-caching=2"], "must be true or false"),
        (["--metrics-addr=0"], "write :8080"),
        (["--enable-pprof"], "pprof is Go's"),
        (["--enable-leader-election=true"], "need no leader"),
        (["--webhook-port=1"], "serves no webhook"),
        (["--feature-gates=Magic=true"], "there is no gate 'Magic'; there are ProxyAllNamespaced"),
        (["--feature-gates=AllAlpha=true"], "there is no gate 'AllAlpha'"),
        (["--feature-gates=SkipImpersonationReview"], "must be true or false"),
        (["--zap-log-level=loud"], "use debug, info, error, panic or a whole number"),
        (["--zap-encoder=xml"], "must be json or console"),
        (["--zap-stacktrace-level=x"], "use info, error or panic"),
        (["--zap-time-encoding=epoch"], "RFC 3339 always"),
        (["--zap-log-level=error", "--log-level=info"], "--zap-log-level and --log-level say different things"),
        (["--leader"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_flag_cannot_be_here_is_refused_at_start_with_the_reason(
    started: Started, arguments: list[str], says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        started(*arguments)

    assert says in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_the_arguments_of_the_chart_are_taken_as_they_are(started: Started) -> None:
    chart = [
        *(
            "--listening-port=9001",
            "--capsule-configuration-name=default",
            "--ignored-user-group=",
            "--ignored-username=",
        ),
        *("--auth-preferred-types=BearerToken,TLSCertificate", "--zap-log-level=4", "--enable-ssl=true"),
        *("--ssl-cert-path=/opt/capsule-proxy/tls.crt", "--ssl-key-path=/opt/capsule-proxy/tls.key"),
        *("--oidc-username-claim=preferred_username", "--rolebindings-resync-period=10h", "--disable-caching=false"),
        *("--client-connection-qps=20", "--client-connection-burst=30", "--webhook-port=9443", "--enable-pprof=false"),
        *("--enable-leader-election=false", "--metrics-addr=:8080", "--feature-gates=ProxyClusterScoped=false"),
    ]

    assert changed(started(*chart)) == {
        "proxy_host": "0.0.0.0",  # noqa: S104 - as there
        "proxy_tls_cert": "/opt/capsule-proxy/tls.crt",
        "proxy_tls_key": "/opt/capsule-proxy/tls.key",
        "client_connection_qps": 20.0,
        "http_host": "0.0.0.0",  # noqa: S104 - as there
    }


def test_every_flag_is_an_option_of_the_proxy_and_its_help_says_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.run(["proxy", "--help"])
    out = capsys.readouterr().out
    options = {name for option in cli.cli.commands["proxy"].params for name in option.opts}

    assert {row.name for row in FLAGS} <= options
    assert {row.name for row in FLAGS} <= set(re.findall(r"--[a-z-]+", out))
    assert "DANGER" in out
    assert not {row.name for row in TRANSLATED} & {doc.flag for doc in describe()}


def test_every_flag_is_tried_here() -> None:
    tried = {word.partition("=")[0] for arguments, _ in WORK for word in arguments}

    assert {row.name for row in FLAGS} - {"--enable-reflector"} <= tried


def test_a_consequence_gives_way_to_the_environment() -> None:
    environ = {"TETHER_PROXY_HOST": "10.0.0.1"}

    settings = load(environ, translate({"--listening-port": "9001"}, {}, environ))

    assert (settings.proxy_host, settings.proxy_port) == ("10.0.0.1", 9001)


def test_a_gate_of_a_setting_that_is_there_is_that_setting() -> None:
    names = {doc.name for doc in describe()}
    for gate, setting in GATES.items():
        value = f"{gate}=true"
        if setting in names:
            assert translate({"--feature-gates": value}, {}, {}) == {setting: "true"}
        else:
            with pytest.raises(SettingsError, match="this release does not have it"):
                translate({"--feature-gates": value}, {}, {})


def test_proxy_variables_are_said_not_to_be_heeded() -> None:
    found = not_heeded({"HTTPS_PROXY": "http://a", "https_proxy": "", "NO_PROXY": "b", "PATH": "/"})

    assert [line.split()[0] for line in found] == ["HTTPS_PROXY"]
    assert "proxy-url in the kubeconfig" in found[0]


def test_the_table_of_the_documentation_has_every_flag_and_gate_and_no_other() -> None:
    text = DOCS.read_text().partition("## Flags, variables, gates")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    named = [word.strip("`") for row in rows for word in row[0].split(", ")]

    assert sorted(named) == sorted([*(row.name for row in FLAGS), *GATES, "NAMESPACE", "KUBECONFIG", "HTTPS_PROXY"])
    for row in rows:
        assert all(row[:3]), row
        file, _, test = row[2].strip("`").partition("::")
        source = (DOCS.parents[1] / file).read_text()
        assert not test or f"def {test}(" in source, row


async def test_what_is_dangerous_or_not_heeded_is_a_warning_at_start(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(kubeconfig="/no/such/file", skip_impersonation_review=True, enable_ssl=False)
    role = Role(name="proxy", settings=settings, log=get("test"))

    with pytest.raises(StartError, match="no kubeconfig"):
        await proxy(role, not_heeded({"HTTPS_PROXY": "http://a"}))

    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    for words in ("HTTPS_PROXY is not heeded", "DANGER: impersonation is not reviewed", "the port speaks plain HTTP"):
        assert any(words in line for line in lines), words


async def test_a_setting_about_callers_that_means_nothing_ends_the_start() -> None:
    role = Role(name="proxy", settings=Settings(enable_ssl=False, trusted_proxy_cidrs="anywhere"), log=get("test"))

    with pytest.raises(SettingsError, match="write networks such as"):
        await proxy(role)


def test_plain_http_and_a_certificate_contradict_each_other() -> None:
    assert serving_tls(Settings(enable_ssl=False)) is None
    with pytest.raises(StartError, match="contradict each other"):
        serving_tls(Settings(enable_ssl=False, proxy_tls_cert="/c", proxy_tls_key="/k"))
