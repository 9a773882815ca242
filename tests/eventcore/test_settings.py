"""Settings: where a value comes from, what is refused, and in which words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import SettingsError
from eventcore.settings import Settings
from eventcore.settings_reading import check, describe, duration, format_duration, load


def test_without_flags_and_environment_the_defaults_hold() -> None:
    assert load({}, {}) == Settings()


def test_the_environment_beats_the_default_and_a_flag_beats_both() -> None:
    environ = {"TETHER_TOKEN_TTL": "2h", "TETHER_LOG_LEVEL": "warning"}
    settings = load(environ, {"token_ttl": "1h", "log_level": None})
    assert (settings.token_ttl, settings.log_level) == (3600.0, "warning")


def test_a_flag_may_be_a_text_or_a_value() -> None:
    settings = load({}, {"http_port": 0, "proxy_port": "19001", "retry_base": 2, "mass_delete_share": 0.25})
    assert (settings.http_port, settings.proxy_port) == (0, 19001)
    assert (settings.retry_base, settings.mass_delete_share) == (2.0, 0.25)


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"TETHER_HTTP_PORT": "http"}, "TETHER_HTTP_PORT='http': must be a whole number, at least 0, at most 65535"),
        ({"TETHER_HTTP_PORT": "70000"}, "TETHER_HTTP_PORT='70000': must be a whole number, at least 0, at most 65535"),
        ({"TETHER_LOG_LEVEL": "loud"}, "TETHER_LOG_LEVEL='loud': must be debug, info, warning or error"),
        (
            {"TETHER_TOKEN_TTL": "5m"},
            "TETHER_TOKEN_TTL='5m': must be a duration such as 30s, 5m or 24h, at least 10m",
        ),
        (
            {"TETHER_ACK_WAIT": "30"},
            "TETHER_ACK_WAIT='30': must be a duration such as 30s, 5m or 24h, at least 1s",
        ),
        (
            {"TETHER_IDENTITY_CACHE_TTL": "11s"},
            "TETHER_IDENTITY_CACHE_TTL='11s': must be a duration such as 30s, 5m or 24h, at most 10s",
        ),
        (
            {"TETHER_TOKEN_ROTATE_AT": "nan"},
            "TETHER_TOKEN_ROTATE_AT='nan': must be a number, at least 0.05, at most 0.95",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_says_what_is_allowed(environ: dict[str, str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ, {})
    assert str(caught.value) == line


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    with pytest.raises(SettingsError, match=r"^--log-format='xml': must be json or console$"):
        load({}, {"log_format": "xml"})


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(SettingsError, match="--http-port"):
        load({}, {"http_port": True})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SettingsError, match="--token-tll is not a setting"):
        load({}, {"token_tll": "1h"})


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"TETHER_HTTP_PORT": "nats://me:hunter2@host"}, {})
    assert "hunter2" not in str(caught.value)


def test_variables_that_kubernetes_sets_for_a_service_are_not_ours() -> None:
    environ = {"TETHER_PROXY_PORT": "tcp://10.96.0.7:9001", "TETHER_PROXY_SERVICE_HOST": "10.96.0.7"}
    assert load(environ, {}).proxy_port == Settings().proxy_port


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"ack_wait": "25s"}, "--ack-wait 25s must be longer than --reconcile-timeout plus --pull-expiry (25s)"),
        ({"token_ttl": "1h", "token_rotate_after": "1h"}, "--token-ttl 1h must be longer than --token-rotate-after 1h"),
        ({"retry_base": "10m"}, "--retry-max 5m must be at least --retry-base 10m"),
        ({"mark_interval": "30s"}, "--max-view-age 30s must be longer than --mark-interval 30s"),
        ({"shutdown_grace": "10s"}, "--shutdown-grace 10s must be at least --reconcile-timeout 20s"),
        ({"nats_user": "worker"}, "--nats-user and --nats-password-file go together"),
        ({"proxy_tls_key": "/tls.key"}, "--proxy-tls-cert and --proxy-tls-key go together"),
        ({"nats_creds_file": "/a", "nats_user": "u", "nats_password_file": "/p"}, "two ways to log in to NATS"),
        ({"nats_url": " , "}, "--nats-url names no server"),
        ({"nats_url": "http://nats:4222"}, "--nats-url 'http://nats:4222' is not a URL such as"),
        ({"nats_url": "nats://a:4222,nats://b c"}, "--nats-url 'nats://b c' is not a URL such as"),
        ({"nats_url": "tls://me:hunter2@"}, "--nats-url 'tls://***@' is not a URL such as"),
        ({"proxy_ca_keys": ""}, "--proxy-ca-keys names no key"),
        ({"proxy_ca_secret": "tether-proxy-ca"}, "--proxy-ca-secret tether-proxy-ca is where Tether remembers CAs"),
        ({"proxy_url": "proxy:9001"}, "--proxy-url 'proxy:9001' is not a URL"),
        ({"kubeconfig_suffix": "token-1"}, "--kubeconfig-suffix 'token-1': use small letters"),
        ({"kubeconfig_suffix": "Kube"}, "--kubeconfig-suffix 'Kube': use small letters"),
        ({"kubeconfig_keys": " , "}, "--kubeconfig-keys ',' are not keys of a Secret"),
        ({"kubeconfig_keys": "value,a/b"}, "--kubeconfig-keys 'value,a/b' are not keys of a Secret"),
        (
            {"kubeconfig_namespace_selector": "a=b c"},
            "--kubeconfig-namespace-selector: 'a=b c' is not a label selector",
        ),
        ({"cluster": "a b"}, "--cluster 'a b'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_rotation_age_is_a_share_of_the_life_unless_it_is_set() -> None:
    assert Settings(token_ttl=1000.0, token_rotate_at=0.8).rotation_age() == 800.0
    assert Settings(token_ttl=1000.0, token_rotate_after=5.0).rotation_age() == 5.0


def test_lists_are_split_at_commas() -> None:
    settings = Settings(token_audiences="a, b,", proxy_ca_keys="ca.crt,ca", nats_url="nats://a:1,nats://b:2")
    assert settings.audiences() == ("a", "b")
    assert settings.ca_keys() == ("ca.crt", "ca")
    assert settings.nats_servers() == ["nats://a:1", "nats://b:2"]


def test_every_setting_is_described_and_its_default_is_allowed() -> None:
    docs = describe()
    assert [doc.name for doc in docs] == list(Settings.__struct_fields__)
    assert all(doc.description and doc.section and doc.allowed for doc in docs)
    # What the documentation calls the default is a value that both the flag and the variable take.
    assert load({doc.variable: doc.default for doc in docs}, {}) == Settings()
    assert load({}, {doc.name: doc.default for doc in docs}) == Settings()
    check(Settings())


def test_a_setting_shows_its_flag_variable_and_bounds() -> None:
    doc = next(doc for doc in describe() if doc.name == "token_ttl")
    assert (doc.flag, doc.variable, doc.default) == ("--token-ttl", "TETHER_TOKEN_TTL", "24h")
    assert doc.allowed == "a duration such as 30s, 5m or 24h, at least 10m"


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().http_port = 1  # type: ignore[misc]  # that it is refused is the point
    assert msgspec.structs.replace(Settings(), http_port=1).http_port == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("24h", 86400),
        ("1h30m", 5400),
        ("7d", 604800),
        ("1.5h", 5400),
        ("0", 0),
    ],
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "-5s", "5 m", "h", "1w", "5mm", "1e3s", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration(text)


@given(st.integers(min_value=0, max_value=10**11))
def test_a_written_duration_reads_back_the_same(milliseconds: int) -> None:
    assert round(duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds
