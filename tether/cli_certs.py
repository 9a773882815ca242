"""The command `tether certs`: the proxy's authority and serving certificate, made and renewed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from eventcore import logs
from eventcore.settings_reading import duration
from tether.cli_settings import load
from tether.terminal import say

if TYPE_CHECKING:
    import datetime as dt

    from eventcore.settings import Settings
    from tether.certs import Report
    from tether.certs_plan import Options

RETRY_SECONDS = 30.0
"""With --watch: how soon it is tried again after a failure."""
LEAST_SECONDS = 1.0


@click.command("certs")
@click.option(
    "--namespace", default="capsule-system", show_default=True, help="Namespace of the proxy and the Secrets."
)
@click.option(
    "--name", default="capsule-proxy", show_default=True, help="Secret for the proxy: tls.crt, tls.key, ca.crt."
)
@click.option("--authority-name", default="capsule-proxy-authority", show_default=True, help="Secret for the CA's key.")
@click.option(
    "--service", default="capsule-proxy", show_default=True, help="Service of the proxy; its names are served."
)
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="Domain of the cluster's Services.")
@click.option("--san", multiple=True, metavar="HOST", help="Another DNS name or IP address; may come several times.")
@click.option(
    "--life", default="90d", show_default=True, help="Life of a serving certificate; renewed at a third left."
)
@click.option("--ca-life", default="1825d", show_default=True, help="Life of the CA; replaced when a third is left.")
@click.option(
    "--overlap", default="24h", show_default=True, help="How long a new CA is announced before it signs; 0: at once."
)
@click.option("--rotate-ca", is_flag=True, help="Begin to replace the CA now, or hasten what has begun.")
@click.option("--adopt", is_flag=True, help="Take over a Secret for the proxy that something else made.")
@click.option(
    "--watch", "follow", is_flag=True, help="Do not end: look again every --interval, and when something is due."
)
@click.option("--interval", default="1h", show_default=True, help="With --watch: time between two looks.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; the API server checks it and stores nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each look instead of lines.")
@click.option("--kubeconfig", default=None, metavar="FILE", help="Of the cluster; as for the roles.")
@click.option("--kube-context", default=None, metavar="NAME", help="Context of that kubeconfig.")
def certs(
    *,
    namespace: str,
    name: str,
    authority_name: str,
    service: str,
    cluster_domain: str,
    san: tuple[str, ...],
    life: str,
    ca_life: str,
    overlap: str,
    rotate_ca: bool,
    adopt: bool,
    follow: bool,
    interval: str,
    dry_run: bool,
    as_json: bool,
    kubeconfig: str | None,
    kube_context: str | None,
) -> None:
    """Make the proxy's CA and serving certificate, and renew them in time.

    Run it again, as a CronJob or with --watch: it changes only what is due. A new CA is announced for --overlap beside
    the one before, and signs only then, so that no client is refused. No key is ever printed. Exits with 1 when it
    cannot be done.
    """
    from tether.certs_plan import Options, check, service_hosts  # noqa: PLC0415 - start-up time, as in cli_generate

    options = Options(
        namespace=namespace,
        secret=name,
        authority=authority_name,
        hosts=tuple(dict.fromkeys((*service_hosts(service, namespace, cluster_domain), *san))),
        life=_duration(life, "--life"),
        ca_life=_duration(ca_life, "--ca-life"),
        overlap=_duration(overlap, "--overlap"),
        rotate=rotate_ca,
        adopt=adopt,
    )
    if follow and (dry_run or rotate_ca):
        raise click.UsageError("--watch goes on for ever: --dry-run and --rotate-ca are for a run of their own")
    check(options)
    pause = _duration(interval, "--interval").total_seconds()
    settings = load({"kubeconfig": kubeconfig, "kube_context": kube_context})
    logs.configure("debug" if settings.log_level == "debug" else "error", "console", "tether")
    work = _run(options, settings, dry_run=dry_run, as_json=as_json, pause=pause if follow else None)
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        if not follow:
            raise  # with --watch it is how one ends


async def _run(options: Options, settings: Settings, *, dry_run: bool, as_json: bool, pause: float | None) -> None:
    from eventcore.errors import TetherError  # noqa: PLC0415 - as in certs
    from eventcore.kube import KubeClient  # noqa: PLC0415 - as in certs
    from tether.certs import Certs  # noqa: PLC0415 - as in certs

    client = await KubeClient.connect(settings)
    try:
        while True:
            wait = RETRY_SECONDS
            try:
                report = await Certs(client, options, dry_run=dry_run).run()
                _show(report, as_json=as_json)
                wait = until_next(report, pause or 0.0)
            except TetherError as error:
                if pause is None:
                    raise
                say(f"tether certs: {logs.redact(str(error))}; trying again", err=True)
            if pause is None:
                return
            await asyncio.sleep(wait)
    finally:
        await client.close()


def until_next(report: Report, pause: float) -> float:
    """Return the seconds until the next look: the pause, or less where something is due before."""
    import datetime as dt  # noqa: PLC0415 - as in certs

    due = (report.next_look - dt.datetime.now(dt.UTC)).total_seconds()
    return max(LEAST_SECONDS, min(pause, due))


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        import msgspec  # noqa: PLC0415 - as in certs

        say(msgspec.json.encode(report).decode())
        return
    would = "would be " if report.dry_run else ""
    state = f"{would}written" if report.changed else "unchanged"
    for line in report.done:
        say(f"{line}{' (dry run)' if report.dry_run else ''}")
    expires = f", expires {_text(report.expires)}" if report.expires is not None else ""
    say(f"Secret {report.secret} {state}{expires}")


def _text(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _duration(text: str, option: str) -> dt.timedelta:
    import datetime as dt  # noqa: PLC0415 - as in certs

    try:
        return dt.timedelta(seconds=duration(text))
    except ValueError:
        raise click.BadParameter("not a duration such as 12h or 90d", param_hint=f"'{option}'") from None
