"""The command line: one entry point, ``tether``.

A command that fails says so in one line, ``tether: what is wrong and what to do``, and exits with 1, with 2 for wrong
usage or settings, with 70 for a bug. Heavy libraries are imported inside the commands that use them, so that a role
handles its first event soon after its start.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from eventcore import logs
from eventcore.errors import SettingsError, TetherError
from tether.cli_bus import audit, replay, topology
from tether.cli_certs import certs
from tether.cli_dev import demo, dev, devcluster
from tether.cli_doctor import doctor
from tether.cli_generate import kubeconfig_group
from tether.cli_migrate import migrate
from tether.cli_render import tenant
from tether.cli_roles import proxy, route, watch, work
from tether.cli_settings import settings_command
from tether.cli_status import status
from tether.terminal import say, say_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

EXIT_CANNOT = 1
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

_GROUPS: dict[str, tuple[str, ...]] = {
    "Try it": ("demo", "dev"),
    "Roles, each a process; run as many of each as you like": ("watch", "route", "work", "proxy"),
    "Tenants": ("tenant", "kubeconfig", "migrate"),
    "Operate": ("doctor", "status", "certs", "topology", "audit", "replay", "settings"),
    "Develop": ("devcluster",),
}


class _Grouped(click.Group):
    """Shows the commands under headings, in the order in which one meets them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's own
        for heading, names in _GROUPS.items():
            with formatter.section(heading):
                rows = [(name, self.commands[name].get_short_help_str(100)) for name in names]
                formatter.write_dl(rows, col_max=12)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own
        return [name for names in _GROUPS.values() for name in names]


@click.group(
    cls=_Grouped,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Every setting is a flag and a TETHER_* variable; `tether settings` lists them. Start with `tether demo`.",
)
@click.version_option(package_name="tether", prog_name="tether")
def cli() -> None:
    """Keep the tenants of a Kubernetes cluster (Capsule) connected to their GitOps (Flux).

    Mark the ServiceAccount that owns a Tenant with the annotation capsule.addon.fluxcd/enabled: "true", and Tether
    gives it what it needs to reconcile that tenant from Git: rights, a token, a kubeconfig in every namespace of the
    tenant, and a proxy that shows the tenant its own cluster-scoped objects and nothing else.
    """


for _command in (watch, route, work, proxy, topology, replay, audit, dev, demo, devcluster, settings_command):
    cli.add_command(_command)

for _command in (tenant, kubeconfig_group, migrate, doctor, status, certs):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever goes wrong becomes one line on stderr."""
    try:
        code = cli.main(args=list(arguments), prog_name="tether", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say_text(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "tether"
        hint = f" (`{where} --help` tells more)" if isinstance(error, click.UsageError) else ""
        return _say(error.format_message().rstrip(".") + hint, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone, as in `tether audit tail | head`; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CANNOT
    except Exception as error:  # noqa: BLE001 - the end of the process: every error becomes a line and a code
        return _report(error)
    return code if isinstance(code, int) else 0


def _report(error: BaseException) -> int:
    leaves = list(_leaves(error))
    unexpected = next((leaf for leaf in leaves if not isinstance(leaf, TetherError | OSError)), None)
    if unexpected is None:
        first = leaves[0]
        code = EXIT_USAGE if isinstance(first, SettingsError) else EXIT_CANNOT
        text = f"{first.filename}: {first.strerror}" if isinstance(first, OSError) else str(first)
        return _say(text, code, *getattr(first, "__notes__", ()))
    if os.environ.get("TETHER_LOG_LEVEL") == "debug":
        say_text(logs.redact("".join(traceback.format_exception(error))), err=True)
    return _say(f"a bug: {logs.describe_error(unexpected)}; TETHER_LOG_LEVEL=debug shows where", EXIT_BUG)


def _leaves(error: BaseException) -> Iterable[BaseException]:
    def walk(one: BaseException) -> Iterator[BaseException]:
        if isinstance(one, BaseExceptionGroup):
            for inner in one.exceptions:
                yield from walk(inner)
        else:
            yield one

    return walk(error)


def _say(text: str, code: int, *notes: str) -> int:
    say(" ".join(logs.redact(text).split()), err=True, lead="tether: ")
    for note in notes:
        say(*logs.redact(note).splitlines(), err=True, lead="  ")
    return code


if __name__ == "__main__":
    main()
