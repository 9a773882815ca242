"""A control plane for as long as a test session lasts."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.binaries import resolve, say_on_stderr
from controlplane.processes import ControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Start a control plane in ``folder`` and yield the admin's kubeconfig; end it afterwards.

    BinariesError or ControlPlaneError, each one line, when there can be none.
    """
    plane = ControlPlane(folder, resolve())
    try:
        asyncio.run(plane.up(say=say_on_stderr))
        yield plane.admin_kubeconfig
    finally:
        asyncio.run(plane.down())
