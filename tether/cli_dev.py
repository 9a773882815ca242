"""Commands for trying and developing: the demo, development clusters, and the embedded API alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from tether.cli_settings import load
from tether.terminal import say

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group()
def dev() -> None:
    """All of Tether on this machine, in the background."""


@dev.command("up")
@click.option("--dir", "folder", required=True, type=_FOLDER, help="Where everything of it lies; made if missing.")
@click.option("--kubeconfig", type=_FILE, help="Use this API server, with Capsule installed, not the embedded one.")
def dev_up(*, folder: Path, kubeconfig: Path | None) -> None:
    """Start everything that does not run yet, and return when all of it is ready.

    That is nats-server, a Kubernetes API, and two processes of each role. Ports are chosen once for each folder;
    several folders run side by side. Run again, it brings back what died and changes nothing else. In DIR:
    admin.kubeconfig, env.sh (source it), log/, pids/.
    """
    from tether.dev import up  # noqa: PLC0415 - start-up time: the roles need none of it

    load()  # the roles get this environment: say now what is wrong in it
    addresses = asyncio.run(up(folder, kubeconfig=kubeconfig, say=say))
    if not addresses.started:
        say("everything runs already")
    say(
        f"ready: API {addresses.api_url}, proxy {addresses.proxy_url}, NATS {addresses.nats_url}",
        f"  kubectl --kubeconfig {addresses.admin_kubeconfig} get namespaces",
        f"  . {addresses.admin_kubeconfig.parent / 'env.sh'} && tether audit tail",
        f"  tether dev down --dir {folder}",
    )


@dev.command("down")
@click.option("--dir", "folder", required=True, type=_FOLDER, help="The folder given to `tether dev up`.")
def dev_down(*, folder: Path) -> None:
    """Stop every process of a folder, the proxies first.

    Data and logs stay, and so does what was made in an API server given by --kubeconfig: `tether dev up` goes on with
    them.
    """
    from tether.dev import down  # noqa: PLC0415 - as in dev_up

    asyncio.run(down(folder, say=say))
    say("nothing runs any more")


@click.command()
@click.option("--dir", "folder", type=_FOLDER, help="Keep keys and objects here; without it they live in memory.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one.")
def devcluster(*, folder: Path | None, host: str, port: int) -> None:
    """Run the embedded Kubernetes API with Capsule's part, in the foreground.

    For development, never for production. It writes DIR/admin.kubeconfig, for kubectl and for TETHER_KUBECONFIG.
    """
    from tether.devcluster_process import serve  # noqa: PLC0415 - as in dev_up

    asyncio.run(serve(folder, host, port, say=say))


@click.command()
@click.option(
    "--dir", "folder", type=_FOLDER, help="Run it here and leave the files; without it in a temporary folder."
)
@click.option("--keep", is_flag=True, help="Leave everything running, and say how to use kubectl with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
def demo(*, folder: Path | None, keep: bool, as_json: bool) -> int:
    """Run the guide's example on an embedded cluster, and check every step.

    A tenant's account gets rights, token and kubeconfig, makes namespaces through the proxy, sees these and nothing
    else. Takes seconds, needs no cluster, and exits with 0 only if every check held.
    """
    from tether.demo import main  # noqa: PLC0415 - as in dev_up

    load()
    return main(folder, keep=keep, as_json=as_json)
