"""The command `tether kubeconfig generate`: the flags of proxy-kubeconfig-generator, and what it lacked."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import click

from eventcore import logs
from eventcore.settings_reading import duration
from tether.cli_settings import load
from tether.terminal import say, say_text

if TYPE_CHECKING:
    from eventcore.settings import Settings
    from tether.generate_plan import Options


@click.group("kubeconfig")
def kubeconfig_group() -> None:
    """Kubeconfigs for the proxy, made by hand."""


@kubeconfig_group.command("generate")
@click.option("--serviceaccount", default="", metavar="NAME", help="The account that the kubeconfig is for. Required.")
@click.option("--namespace", default="default", show_default=True, help="Namespace of the account and of the Secret.")
@click.option("--server", default="", metavar="URL", help="URL of the proxy. Required.")
@click.option(
    "--server-tls-secret-name", default="", metavar="NAME", help="Secret that holds the proxy's CA. Required."
)
@click.option("--server-tls-secret-namespace", default="default", show_default=True, help="Namespace of that Secret.")
@click.option("--server-tls-secret-ca-key", default="", metavar="KEY", help="Its key.  [default: ca, then ca.crt]")
@click.option("--kubeconfig-secret-key", default="kubeconfig", show_default=True, help="Key of the Secret to write.")
@click.option("--token-life", metavar="DURATION", help="Use a token that expires, such as 24h; run it again in time.")
@click.option("--adopt", is_flag=True, help="Take over a Secret of that name that something else made.")
@click.option("--output", "-o", type=click.Choice(["-"]), help="-: print the kubeconfig, and write no Secret for it.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; the API server checks it and stores nothing.")
@click.option("--kubeconfig", "admin", default=None, metavar="FILE", help="Of the cluster; as for the roles.")
@click.option("--kube-context", default=None, metavar="NAME", help="Context of that kubeconfig.")
def generate(
    *,
    serviceaccount: str,
    namespace: str,
    server: str,
    server_tls_secret_name: str,
    server_tls_secret_namespace: str,
    server_tls_secret_ca_key: str,
    kubeconfig_secret_key: str,
    token_life: str | None,
    adopt: bool,
    output: str | None,
    dry_run: bool,
    admin: str | None,
    kube_context: str | None,
) -> None:
    """Write a kubeconfig for the proxy into the Secret <serviceaccount>-kubeconfig.

    Makes the account's token where there is none. Run again, it updates what differs and says what that was. A Secret
    that something else made is left, and so is one that Tether's workers keep. Exits with 1 when it cannot be done.
    """
    from tether.generate_plan import Options  # noqa: PLC0415 - start-up time: `tether --help` needs none of it

    options = Options(
        serviceaccount=serviceaccount,
        namespace=namespace,
        server=server,
        tls_secret_name=server_tls_secret_name,
        tls_secret_namespace=server_tls_secret_namespace,
        ca_key=server_tls_secret_ca_key,
        secret_key=kubeconfig_secret_key,
        token_life=_seconds(token_life),
        adopt=adopt,
    )
    settings = load({"kubeconfig": admin, "kube_context": kube_context})
    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    asyncio.run(_run(options, settings, output=output == "-", dry_run=dry_run))


async def _run(options: Options, settings: Settings, *, output: bool, dry_run: bool) -> None:
    from eventcore.kube import KubeClient  # noqa: PLC0415 - as in generate
    from tether.generate import Generator  # noqa: PLC0415 - as in generate
    from tether.generate_plan import check  # noqa: PLC0415 - as in generate

    check(options)
    client = await KubeClient.connect(settings)
    # What is printed on request is the kubeconfig alone, so that it can be piped.
    tell = partial(say, err=output)
    try:
        generator = Generator(client, options, audiences=settings.audiences(), dry_run=dry_run, say=tell)
        if not output:
            await generator.write()
            return
        text = await generator.print()
        if dry_run:
            tell(f"would print a kubeconfig for {options.account}")
        else:
            say_text(text)
    finally:
        await client.close()


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return duration(text)
    except ValueError:
        raise click.BadParameter("not a duration such as 30m or 24h", param_hint="'--token-life'") from None
