"""A control plane, and Flux beside it, for as long as a test session lasts."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.binaries import resolve, resolve_flux, say_on_stderr
from controlplane.flux import Flux
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


@contextmanager
def running_flux(folder: Path, kubeconfig: Path) -> Iterator[Flux]:
    """Start Flux's controllers in ``folder``, for the control plane of an admin's kubeconfig; end them afterwards.

    BinariesError or ControlPlaneError when there can be none.
    """
    flux = Flux(folder, resolve_flux(), kubeconfig)
    try:
        asyncio.run(flux.up())
        yield flux
    finally:
        asyncio.run(flux.down())
