"""The roles as commands: each runs one process until it is told to stop."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import click

from eventcore.keys import WORKERS
from tether.cli_settings import IN_HELP, with_settings
from tether.proxy_flags import TRANSLATED, not_heeded, translate

if TYPE_CHECKING:
    from eventcore.keys import WorkerName
    from eventcore.settings import Settings


@click.command(epilog=IN_HELP)
@with_settings("process", "nats", "kubernetes", "watch")
def watch(*, settings: Settings) -> int:
    """Watch Kubernetes and publish every change to OBJECTS.

    Needs NATS with the topology applied, and an account that may list and watch (deploy/rbac/watcher.yaml). Any number
    of watchers run side by side.
    """
    from eventcore.process import run_role  # noqa: PLC0415 - start-up time: `tether --help` needs none of it
    from watchers.main import watch as main  # noqa: PLC0415 - as above

    return run_role("watch", settings, main)


@click.command(epilog=IN_HELP)
@with_settings("process", "nats", "work")
def route(*, settings: Settings) -> int:
    """Turn every change in OBJECTS into work for the reconcilers.

    Needs NATS alone. Any number of routers run side by side.
    """
    from eventcore.process import run_role  # noqa: PLC0415 - as in watch
    from workers.main import route as main  # noqa: PLC0415 - as in watch

    return run_role("route", settings, main)


@click.command(epilog=IN_HELP)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(WORKERS))
@with_settings("process", "nats", "kubernetes", "work", "token")
def work(*, settings: Settings, names: tuple[WorkerName, ...]) -> int:
    """Reconcile: rights, tokens, kubeconfigs, access.

    NAME is rbac, token, kubeconfig or access; without one, all of them run in this process. Needs NATS, and an account
    that may grant (deploy/rbac/worker*.yaml). Any number of workers share the work.
    """
    from eventcore.process import run_role  # noqa: PLC0415 - as in watch
    from workers.main import work as main  # noqa: PLC0415 - as in watch

    return run_role("work", settings, partial(main, names=tuple(dict.fromkeys(names)) or WORKERS))


@click.command(epilog=IN_HELP)
@with_settings("process", "nats", "kubernetes", "proxy", rows=TRANSLATED, translate=translate)
def proxy(*, settings: Settings) -> int:
    """Serve the Kubernetes API to tenants: their own objects and nothing else.

    Needs NATS, a serving certificate (--proxy-tls-cert, --proxy-tls-key), and an account that may review callers and
    read namespaces (deploy/rbac/proxy.yaml). With --workers N, N processes share the port: one per core. It takes the
    flags of capsule-proxy too: what each becomes is in docs/proxy.md.
    """
    from eventcore.process import run_role  # noqa: PLC0415 - as in watch
    from proxycore.main import new_loop  # noqa: PLC0415 - as in watch
    from proxycore.main import proxy as serve  # noqa: PLC0415 - as in watch

    ignored = not_heeded(os.environ)
    if settings.workers > 1:
        from proxycore.fleet import fleet  # noqa: PLC0415 - as in watch

        return run_role("proxy", settings, partial(fleet, not_heeded=ignored), delay=settings.shutdown_delay)
    main = partial(serve, not_heeded=ignored)
    return run_role("proxy", settings, main, delay=settings.shutdown_delay, new_loop=new_loop)
