"""The embedded API as a process of its own: until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
from typing import TYPE_CHECKING

from eventcore import logs
from eventcore.errors import StartError
from tether.dev_layout import make_folder, write_private
from tether.devcluster.api import ApiOptions, EmbeddedApi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KUBECONFIG = "admin.kubeconfig"


async def serve(folder: Path | None, host: str, port: int, *, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; StartError when it cannot listen or the folder cannot be used."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    logs.configure("info", "json", "api")
    try:
        if folder is not None:
            make_folder(folder)
        api = EmbeddedApi(ApiOptions(data_dir=folder))
        await api.start(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use: stop what listens there, or set --port (0 picks a free one)"
            ) from error
        raise StartError(
            f"the embedded API cannot start: {error.strerror or error}; look at --dir and --host"
        ) from error
    try:
        say(f"the embedded Kubernetes API serves at {api.url}; it is a tool for development, never for production")
        if folder is not None:
            write_private(folder / KUBECONFIG, api.admin_kubeconfig())
            say(f"kubectl --kubeconfig {folder / KUBECONFIG} get namespaces")
        await stopping.wait()
    finally:
        await api.stop()
