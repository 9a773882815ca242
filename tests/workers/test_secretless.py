"""An account may ask for a ConfigMap with which Flux gets its tokens itself, beside the kubeconfigs or instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.workers.conftest import Line, MakeLine

HOME, NAME = "oil-system", "gitops-reconciler"
ACCOUNT = f"{HOME}/{NAME}"
KUBECONFIG = f"{NAME}-kubeconfig"
ASKS = "capsule-tether.io/kubeconfig-configmap"
ENABLED = "capsule.addon.fluxcd/enabled"


@pytest.fixture
async def allowing(make_line: MakeLine) -> Line:
    """A line where accounts may ask for a ConfigMap."""
    return await make_line(kubeconfig_configmaps=True)


async def test_with_the_configmap_alone_a_client_gets_a_token_that_is_good(allowing: Line) -> None:
    line = allowing
    async with line.everything():
        # given the example runs
        await line.settle()
        assert await line.get("ConfigMap", HOME, KUBECONFIG) is None

        # when its account asks for a ConfigMap beside the kubeconfigs
        await line.annotate(ACCOUNT, **{ASKS: "beside"})
        made = await line.until_there("ConfigMap", HOME, KUBECONFIG)

        # then it says where the proxy is and whom to ask for which token, as Flux reads it
        config = await line.kubeconfig(HOME)
        assert config is not None
        assert made["data"]["provider"] == "generic"
        assert made["data"]["address"] == line.settings.proxy_url
        assert made["data"]["ca.crt"] == line.api.pki.ca_pem
        assert made["data"]["serviceAccountName"] == NAME
        assert made["metadata"]["labels"]["reconcile.fluxcd.io/watch"] == "Enabled"
        # and such a token is good
        issued = await line.client.token_request(
            HOME, NAME, audiences=made["data"]["audiences"].splitlines(), expiration_seconds=600
        )
        assert await line.accepts(issued.token)
        # and no other namespace has one, nor does it hold a token
        assert await line.get("ConfigMap", "oil-production", KUBECONFIG) is None
        assert await line.token(HOME) not in str(made)


async def test_instead_of_the_kubeconfigs_there_is_the_configmap_alone_and_back_again(allowing: Line) -> None:
    line = allowing
    async with line.everything():
        await line.settle()

        # when the account wants the ConfigMap instead
        await line.annotate(ACCOUNT, **{ASKS: "instead"})

        # then every kubeconfig goes
        await line.until_there("ConfigMap", HOME, KUBECONFIG)
        for namespace in (HOME, "oil-production"):
            await line.until_gone("Secret", namespace, KUBECONFIG)

        # and when it asks no more, they come back and the ConfigMap goes
        await line.annotate(ACCOUNT, **{ASKS: None})
        for namespace in (HOME, "oil-production"):
            await line.until_there("Secret", namespace, KUBECONFIG)
        await line.until_gone("ConfigMap", HOME, KUBECONFIG)


@pytest.mark.parametrize("asks", ["beside", "instead"])
async def test_the_configmap_is_put_right_and_goes_with_everything_else(allowing: Line, asks: str) -> None:
    line = allowing
    async with line.everything():
        # given an account with a ConfigMap
        await line.settle()
        await line.annotate(ACCOUNT, **{ASKS: asks})
        made = await line.until_there("ConfigMap", HOME, KUBECONFIG)

        # when it is edited, then it is put right
        await line.patch("ConfigMap", HOME, KUBECONFIG, {"data": {"address": "https://elsewhere", "more": "x"}})

        async def put_right() -> bool:
            found = await line.get("ConfigMap", HOME, KUBECONFIG)
            return found is not None and found["data"] == made["data"]

        await line.until(put_right, "the ConfigMap as it was")

        # and when the account is switched off, it goes
        await line.annotate(ACCOUNT, **{ENABLED: None})
        await line.until_gone("ConfigMap", HOME, KUBECONFIG)
        await line.until_gone("Secret", HOME, f"{NAME}-token")


async def test_where_it_is_not_allowed_asking_for_it_changes_nothing_and_is_answered(line: Line) -> None:
    async with line.everything():
        await line.settle()

        await line.annotate(ACCOUNT, **{ASKS: "instead"})

        async def told() -> bool:
            events = await line.all("Event", HOME)
            return any("TETHER_KUBECONFIG_CONFIGMAPS" in event["message"] for event in events)

        await line.until(told, "an Event that names the setting")
        assert await line.get("ConfigMap", HOME, KUBECONFIG) is None
        assert await line.get("Secret", "oil-production", KUBECONFIG)


async def test_a_static_token_needs_the_audience_to_be_set(allowing: Line) -> None:
    line = allowing
    asked = {ASKS: "beside", "capsule-tether.io/token-mode": "static"}
    # given an account with a static token that asks for a ConfigMap
    async with line.everything(retry_base=0.05, retry_max=0.2):
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        await line.annotate(ACCOUNT, **asked)

        # then an Event says what is missing
        async def told() -> bool:
            events = await line.all("Event", HOME)
            return any("TETHER_TOKEN_AUDIENCES" in event["message"] for event in events)

        await line.until(told, "an Event that names the setting")
        # and the kubeconfig does not wait for it
        await line.until_there("Secret", HOME, KUBECONFIG)

    # and with that setting it is made
    async with line.everything(token_audiences="https://kubernetes.default.svc.cluster.local"):
        made = await line.until_there("ConfigMap", HOME, KUBECONFIG)
        assert made["data"]["audiences"] == "https://kubernetes.default.svc.cluster.local"
