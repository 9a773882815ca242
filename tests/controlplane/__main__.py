"""``python -m controlplane build|up|down|status``: the real control plane from a shell. See ``make kube-up``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from controlplane import binaries
from controlplane.binaries import BinariesError, say_on_stderr
from controlplane.layout import ControlPlaneError
from controlplane.processes import ControlPlane
from eventcore.errors import TetherError

FOLDER = Path(__file__).parents[2] / ".cache" / "controlplane"
_ERRORS = (BinariesError, ControlPlaneError, TetherError, OSError)

_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="Where its data, keys, logs and kubeconfigs lie.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run a real etcd, kube-apiserver, kube-controller-manager and Capsule on loopback. For tests, never in production.

    Progress goes to stderr, results to stdout.
    """


@cli.command()
def build() -> None:
    """Find or build every program, Flux's controllers too, and start nothing."""
    binaries.resolve()
    binaries.resolve_flux()


@cli.command()
@_folder
def up(folder: Path) -> None:
    """Start what does not run; the last line printed is the path of the admin's kubeconfig."""
    plane = ControlPlane(folder, binaries.resolve())
    asyncio.run(plane.up(say=say_on_stderr))
    click.echo(str(plane.admin_kubeconfig))


@cli.command()
@_folder
def down(folder: Path) -> None:
    """End what runs. Data stay, so that ``up`` finds them again; remove the folder to begin anew."""
    asyncio.run(ControlPlane(folder).down(say=say_on_stderr))


@cli.command()
@_folder
def status(folder: Path) -> None:
    """Print each program with its process id; exit 1 when one does not run."""
    found = ControlPlane(folder).status()
    for name, pid in found.items():
        click.echo(f"{name:25}{'not running' if pid is None else f'running, pid {pid}'}")
    if None in found.values():
        sys.exit(1)


def main() -> None:
    """Run the command line; an error is one line, and the exit code 1."""
    os.umask(0o077)
    try:
        cli(prog_name="python -m controlplane")
    except _ERRORS as error:
        say_on_stderr(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
