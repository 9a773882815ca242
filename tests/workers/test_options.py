"""What an account and its Tenant may ask for, and what comes of what is malformed."""

from __future__ import annotations

import msgspec
import pytest

from eventcore.objects import ServiceAccount, Tenant
from eventcore.settings import Settings
from workers.options import Options, options

URL, MODE = "capsule-tether.io/proxy-url", "capsule-tether.io/token-mode"
NAMESPACES = "capsule-tether.io/kubeconfig-namespaces"
SETTINGS = Settings(proxy_url="https://global:9001")


def account(annotations: dict[str, str]) -> ServiceAccount:
    metadata = {"name": "gitops-reconciler", "namespace": "oil-system", "annotations": annotations}
    return msgspec.convert({"metadata": metadata}, ServiceAccount)


def tenant(name: str, url: str = "") -> Tenant:
    return msgspec.convert({"metadata": {"name": name, "annotations": {URL: url} if url else {}}}, Tenant)


def found(*tenants: Tenant, **annotations: str) -> Options:
    """Return the options of an account; underscores of the names stand for slashes."""
    named = {f"capsule-tether.io/{name.replace('_', '-')}": text for name, text in annotations.items()}
    return options(account(named), tenants, SETTINGS)


def test_who_asks_for_nothing_gets_the_settings() -> None:
    assert found(tenant("oil")) == Options(token_mode="bound", proxy_url="https://global:9001")


@pytest.mark.parametrize("setting", ["bound", "static"])
@pytest.mark.parametrize(("asked", "gets"), [("bound", "bound"), ("static", "static"), ("Static", None), ("", None)])
def test_an_account_beats_the_setting_with_a_mode_that_there_is(setting: str, asked: str, gets: str | None) -> None:
    settings = msgspec.structs.replace(SETTINGS, token_mode=setting)

    result = options(account({MODE: asked}), (), settings)

    assert result.token_mode == (gets or setting)
    assert bool(result.problems) == (gets is None)


def test_the_url_is_the_accounts_else_the_first_tenants_else_the_settings() -> None:
    gas, oil = tenant("gas", "https://gas:9001"), tenant("oil", "https://oil:9001/path")

    assert found(oil, gas, proxy_url="https://own").proxy_url == "https://own"
    assert found(oil, gas).proxy_url == "https://gas:9001"
    assert found(oil, tenant("gas")).proxy_url == "https://oil:9001/path"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://proxy:9001",
        "proxy:9001",
        "https://",
        "https://user:pass@proxy",
        "https://a b",
        "https://a\nb",
        "https://a?b",
    ],
)
def test_what_is_no_url_with_tls_is_ignored_and_said(url: str) -> None:
    asked = found(tenant("oil", "https://oil:9001"), proxy_url=url)

    assert asked.proxy_url == "https://oil:9001"
    assert "is not a URL such as" in asked.problems[0]


def test_a_problem_of_a_tenant_names_the_tenant() -> None:
    asked = found(tenant("oil", "ftp://oil"))

    assert asked.proxy_url == "https://global:9001"
    assert asked.problems[0].startswith("Tenant oil, annotation capsule-tether.io/proxy-url")


@pytest.mark.parametrize(
    ("asked", "on", "gets", "problem"),
    [
        ("beside", True, "beside", ""),
        ("instead", True, "instead", ""),
        ("beside", False, "", "TETHER_KUBECONFIG_CONFIGMAPS"),
        ("yes", True, "", "use beside or instead"),
    ],
)
def test_a_configmap_is_made_where_that_is_on(asked: str, gets: str, problem: str, *, on: bool) -> None:
    settings = msgspec.structs.replace(SETTINGS, kubeconfig_configmaps=on)

    result = options(account({"capsule-tether.io/kubeconfig-configmap": asked}), (), settings)

    assert result.config_map == gets
    assert problem in "".join(result.problems)
    assert bool(result.problems) == bool(problem)


def test_a_selector_that_is_none_is_said() -> None:
    assert "no tenant namespace gets a copy" in found(kubeconfig_namespaces="a=b c").problems[0]
    assert not found(kubeconfig_namespaces="a=b,!c").problems
