"""The command `tether tenant render`: a tenant that is ready for GitOps, as YAML."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eventcore import logs
from tether.cli_settings import load
from tether.terminal import say_text

if TYPE_CHECKING:
    from eventcore.settings import Settings
    from tether.render import Git, Options, Secretless, Section
    from workers.ownership import Account

_AUDIENCE = "https://kubernetes.default.svc.cluster.local"
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group()
def tenant() -> None:
    """Tenants for Git."""


@tenant.command("render", epilog="`tether tenant render oil --owner oil-system/gitops-reconciler | kubectl apply -f -`")
@click.argument("name")
@click.option("--owner", required=True, metavar="NAMESPACE/ACCOUNT", help="The ServiceAccount that owns the tenant.")
@click.option("--annotation/--no-annotation", default=True, help="Mark the account for Tether.  [on]")
@click.option(
    "--kubeconfig-global/--no-kubeconfig-global",
    default=None,
    help="Say whether the kubeconfig goes to the tenant's namespaces too.  [not said, which means yes]",
)
@click.option("--rbac/--no-rbac", default=True, help="The account's RBAC objects, which Tether else makes.  [on]")
@click.option("--home-cluster-role", default=None, metavar="ROLE", help="Its ClusterRole at home.  [cluster-admin]")
@click.option(
    "--additional-role-bindings/--no-additional-role-bindings",
    default=True,
    help="Bind the account to --cluster-role in the tenant's namespaces.  [on]",
)
@click.option("--cluster-role", default="cluster-admin", show_default=True, metavar="ROLE", help="See above.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="One more owner, a person. May be repeated.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="One more owner, a group. May be repeated.")
@click.option("--namespace-quota", type=click.IntRange(0), help="How many namespaces the tenant may have.")
@click.option("--git-url", metavar="URL", help="Render the Flux objects for this repository too.")
@click.option("--git-branch", metavar="NAME", help="Its branch.  [main]")
@click.option("--git-path", metavar="PATH", help="Where in it the tenant's state lies.  [./]")
@click.option("--git-interval", metavar="DURATION", help="How often Flux looks.  [1m]")
@click.option("--git-secret", metavar="NAME", help="Secret at home with the credentials of the repository.")
@click.option("--prune/--no-prune", default=None, help="Whether Flux deletes what is gone from Git.  [on]")
@click.option("--target-namespace", metavar="NAME", help="Namespace for all that names none.")
@click.option("--secretless", is_flag=True, help="A ConfigMap for kubeConfig.configMapRef instead of the Secret.")
@click.option("--proxy-url", default=None, metavar="URL", help="The proxy, for --secretless.")
@click.option("--proxy-ca-file", type=_FILE, help="Its CA, PEM, for --secretless.")
@click.option(
    "--audience", "audiences", multiple=True, default=[_AUDIENCE], show_default=True, help="For --secretless."
)
@click.option(
    "--capsule-configuration", is_flag=True, help="Also the cluster's CapsuleConfiguration, with the account."
)
@click.option("--capsule-configuration-name", default=None, metavar="NAME", help="Which one.  [default]")
@click.option("--kubeconfig", "admin", default=None, metavar="FILE", help="Of the cluster, to read that one from.")
@click.option("--kube-context", default=None, metavar="NAME", help="Context of that kubeconfig.")
def render(
    *,
    name: str,
    owner: str,
    annotation: bool,
    kubeconfig_global: bool | None,
    rbac: bool,
    home_cluster_role: str | None,
    additional_role_bindings: bool,
    cluster_role: str,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    namespace_quota: int | None,
    git_url: str | None,
    git_branch: str | None,
    git_path: str | None,
    git_interval: str | None,
    git_secret: str | None,
    prune: bool | None,
    target_namespace: str | None,
    secretless: bool,
    proxy_url: str | None,
    proxy_ca_file: Path | None,
    audiences: tuple[str, ...],
    capsule_configuration: bool,
    capsule_configuration_name: str | None,
    admin: str | None,
    kube_context: str | None,
) -> None:
    """Print all objects of tenant NAME, for `kubectl apply -f -` or for a Git repository.

    Its home namespace, the account, RBAC, the Tenant, and with --git-url what Flux needs. No cluster is asked, except
    for --capsule-configuration; nothing is ever written there. The same options give the same bytes.
    """
    from tether.render import Options, as_yaml, check, sections  # noqa: PLC0415 - start-up time: the roles need none

    settings = load(
        {
            "home_cluster_role": home_cluster_role,
            "proxy_url": proxy_url,
            "capsule_configuration_name": capsule_configuration_name,
            "kubeconfig": admin,
            "kube_context": kube_context,
        }
    )
    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    given = {
        "branch": git_branch,
        "path": git_path,
        "interval": git_interval,
        "secret": git_secret,
        "prune": prune,
        "target_namespace": target_namespace,
    }
    options = Options(
        tenant=name,
        account=_account(owner),
        annotation=annotation,
        kubeconfig_global=kubeconfig_global,
        rbac=rbac,
        home_cluster_role=settings.home_cluster_role,
        tenant_cluster_role=cluster_role,
        additional_role_bindings=additional_role_bindings,
        users=users,
        groups=groups,
        namespace_quota=namespace_quota,
        git=_git(git_url, {field: value for field, value in given.items() if value is not None}),
        secretless=_secretless(settings.proxy_url, proxy_ca_file, audiences) if secretless else None,
    )
    try:
        check(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    parts = sections(options)
    if capsule_configuration:
        # Before what Flux does: an account that is no Capsule user yet may make no namespace.
        at = next((at for at, part in enumerate(parts) if part.obj["kind"] == "GitRepository"), len(parts))
        parts.insert(at, asyncio.run(_configuration(settings, options)))
    say_text(as_yaml(parts))


def _account(owner: str) -> Account:
    from workers.ownership import Account  # noqa: PLC0415 - as in render

    account = Account.of_text(owner) or Account.of_username(owner)
    if account is None:
        raise click.UsageError(f"--owner {owner!r} is not NAMESPACE/ACCOUNT, such as oil-system/gitops-reconciler")
    return account


def _git(url: str | None, given: dict[str, str | bool]) -> Git | None:
    import msgspec  # noqa: PLC0415 - as in render

    from tether.render import Git  # noqa: PLC0415 - as in render

    if url is not None:
        return msgspec.convert({"url": url, **given}, Git)
    if given:
        raise click.UsageError("the options for Git do nothing without --git-url")
    return None


def _secretless(url: str, ca_file: Path | None, audiences: tuple[str, ...]) -> Secretless:
    from tether.render import Secretless  # noqa: PLC0415 - as in render

    if ca_file is None:
        raise click.UsageError("--secretless needs the proxy's CA: give --proxy-ca-file")
    try:
        ca = ca_file.read_text()
    except UnicodeDecodeError:
        raise click.UsageError("--proxy-ca-file does not hold certificates alone, in PEM") from None
    return Secretless(address=url, ca=ca, audiences=audiences)


async def _configuration(settings: Settings, options: Options) -> Section:
    from eventcore.kube import KubeClient  # noqa: PLC0415 - as in render
    from tether.render_configuration import check_home, read, section  # noqa: PLC0415 - as in render

    client = await KubeClient.connect(settings)
    try:
        await check_home(client, options.account, options.tenant)
        return section(await read(client, settings.capsule_configuration_name), options.account)
    finally:
        await client.close()
