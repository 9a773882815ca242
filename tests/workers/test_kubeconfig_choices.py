"""Where kubeconfigs go, what they are called and where they point is settable, and followed while all runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
ACCOUNT = f"{HOME}/{NAME}"
KUBECONFIG = f"{NAME}-kubeconfig"
URL, NAMESPACES = "capsule-tether.io/proxy-url", "capsule-tether.io/kubeconfig-namespaces"


async def servers(line: Line) -> tuple[str, str]:
    """Return the servers in the kubeconfigs at home and in the tenant's namespace."""
    found = [await line.kubeconfig(namespace) for namespace in (HOME, "oil-production")]
    home, tenant = (config["clusters"][0]["cluster"]["server"] if config else "" for config in found)
    return home, tenant


async def until_servers(line: Line, url: str) -> None:
    async def moved() -> bool:
        return await servers(line) == (url, url)

    await line.until(moved, f"kubeconfigs that point at {url}")


async def test_the_url_of_a_tenant_and_of_an_account_reach_every_kubeconfig_and_go_again(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        assert await servers(line) == (line.settings.proxy_url, line.settings.proxy_url)

        # when an administrator gives the Tenant a URL of its own, kubeconfigs point there
        await line.patch("Tenant", "", "oil", {"metadata": {"annotations": {URL: "https://oil.example:9001"}}})
        await until_servers(line, "https://oil.example:9001")

        # and when the account asks for another one, there
        await line.annotate(ACCOUNT, **{URL: "https://own.example"})
        await until_servers(line, "https://own.example")

        # and when it asks for what is none, the Tenant's again, with an Event
        await line.annotate(ACCOUNT, **{URL: "http://own.example"})
        await until_servers(line, "https://oil.example:9001")

        async def told() -> bool:
            return "AnnotationIgnored" in {event["reason"] for event in await line.all("Event", HOME)}

        await line.until(told, "an Event that names the annotation")

        # and when nobody asks any more, the setting's
        await line.annotate(ACCOUNT, **{URL: None})
        await line.patch("Tenant", "", "oil", {"metadata": {"annotations": {URL: None}}})
        await until_servers(line, line.settings.proxy_url)


async def test_another_name_and_other_keys_replace_the_secret(line: Line) -> None:
    # given the example ran with the defaults
    async with line.everything():
        await line.settle()

    # when the settings name another suffix and another key
    async with line.everything(kubeconfig_suffix="access", kubeconfig_keys="value.yaml"):
        # then the Secrets are there under the new name with that key alone, and the old ones go
        for namespace in (HOME, "oil-production"):
            secret = await line.until_there("Secret", namespace, f"{NAME}-access")
            assert list(secret["data"]) == ["value.yaml"]
            await line.until_gone("Secret", namespace, KUBECONFIG)

        # and all of it goes with the annotation
        await line.annotate(ACCOUNT, **{"capsule.addon.fluxcd/enabled": None})
        for namespace in (HOME, "oil-production"):
            await line.until_gone("Secret", namespace, f"{NAME}-access")


async def test_only_the_chosen_namespaces_of_a_tenant_get_a_copy(line: Line) -> None:
    # given copies go to namespaces with a label, by the setting
    async with line.everything(kubeconfig_namespace_selector="flux=yes"):
        await line.apply_files("capsule-configuration.yaml", "oil.yaml")
        await line.until_there("Secret", HOME, KUBECONFIG)
        await line.until(lambda: line.grant("config"), "the grant of the configuration")
        await line.make_namespace(HOME, "oil-production")
        await line.until_granted("oil", "oil-production")
        token = await line.token(HOME)
        assert await line.get("Secret", "oil-production", KUBECONFIG) is None

        # when a namespace gets the label, then it gets a copy
        label = {"metadata": {"labels": {"flux": "yes", "tier": "web"}}}
        await line.patch("Namespace", "", "oil-production", label)
        await line.until_there("Secret", "oil-production", KUBECONFIG)

        # and when the account chooses among them, both choices hold
        await line.annotate(ACCOUNT, **{NAMESPACES: "tier in (db)"})
        await line.until_gone("Secret", "oil-production", KUBECONFIG)
        await line.annotate(ACCOUNT, **{NAMESPACES: "tier!=db"})
        await line.until_there("Secret", "oil-production", KUBECONFIG)

        # and a selector that is none chooses nothing but home
        await line.annotate(ACCOUNT, **{NAMESPACES: "tier in"})
        await line.until_gone("Secret", "oil-production", KUBECONFIG)
        await line.annotate(ACCOUNT, **{NAMESPACES: None})
        await line.until_there("Secret", "oil-production", KUBECONFIG)

        # and when the label goes, so does the copy, and the token, which stayed in the tenant, is the same
        await line.patch("Namespace", "", "oil-production", {"metadata": {"labels": {"flux": None}}})
        await line.until_gone("Secret", "oil-production", KUBECONFIG)
        assert await line.token(HOME) == token
