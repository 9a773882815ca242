"""Decides where each program of the control plane comes from, and says so in one line.

In this order, each program by itself: the folder in KUBEBUILDER_ASSETS (the convention of envtest), for kubectl the
PATH, our cache, and last a build from pinned Go modules into that cache. A build happens once: others wait for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlplane import gobuild, pins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from controlplane.gobuild import Say
    from controlplane.pins import Tool

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
CACHE_VARIABLE = "TETHER_CACHE"
_ASSETS = frozenset({"etcd", "kube-apiserver", "kube-controller-manager", "kubectl"})
_FROM_PATH = frozenset({"kubectl"})


class BinariesError(Exception):
    """A program has no source; the text is the one line that a person needs."""


class Binaries(msgspec.Struct, frozen=True, kw_only=True):
    """The programs of one control plane, ready to run, and Capsule's own chart."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path
    helm: Path
    capsule: Path
    chart: Path
    capsule_version: str


class FluxBinaries(msgspec.Struct, frozen=True, kw_only=True):
    """Flux's controllers by name, ready to run, and the folders of their CustomResourceDefinitions."""

    controllers: dict[str, Path]
    crds: tuple[Path, ...]


def say_on_stderr(text: str) -> None:
    """Tell a person where we are; stdout is for results."""
    sys.stderr.write(f"control plane: {text}\n")
    sys.stderr.flush()


def resolve(environ: Mapping[str, str] | None = None, say: Say = say_on_stderr) -> Binaries:
    """Find or build everything; one line to ``say`` for each program. BinariesError if one has no source."""
    given = os.environ if environ is None else environ
    try:
        tools = {tool.name: tool for tool in pins.tools(given)}
        found = {name: resolve_one(tool, given, say) for name, tool in tools.items()}
        capsule_version = pins.version_of(tools["capsule"])
    except pins.PinError as error:
        raise BinariesError(str(error)) from None
    return Binaries(
        etcd=found["etcd"],
        kube_apiserver=found["kube-apiserver"],
        kube_controller_manager=found["kube-controller-manager"],
        kubectl=found["kubectl"],
        helm=found["helm"],
        capsule=found["capsule"],
        chart=found["capsule"].parent / gobuild.CHART,
        capsule_version=capsule_version,
    )


def resolve_flux(environ: Mapping[str, str] | None = None, say: Say = say_on_stderr) -> FluxBinaries:
    """Find or build Flux's controllers, as ``resolve`` does for the control plane."""
    given = os.environ if environ is None else environ
    found = {tool.name: resolve_one(tool, given, say) for tool in pins.FLUX}
    return FluxBinaries(controllers=found, crds=tuple(path.parent / gobuild.CRDS for path in found.values()))


def resolve_one(tool: Tool, environ: Mapping[str, str], say: Say) -> Path:
    """Return the program, built if there is no other source; BinariesError if that fails."""
    found = _given(tool, environ)
    if found is not None:
        path, source = found
        say(f"{tool.name}: {source}")
        return path
    return built(tool, environ, say)


def built(tool: Tool, environ: Mapping[str, str], say: Say) -> Path:
    """Return our own build of the pinned version, whatever else is there; BinariesError if there can be none."""
    cache = cache_folder(environ)
    key = pins.cache_key(tool)
    path = cache / key / tool.name
    if path.is_file():
        say(f"{tool.name} {pins.version_of(tool)}: cache {path.parent}")
        return path
    try:
        gobuild.find_go(environ)
        with _lock(cache, key, tool, say):
            if not path.is_file():  # somebody may have built it while we waited
                say(f"{tool.name} {pins.version_of(tool)}: go build into {path.parent}; the first time takes minutes")
                _build(tool, path.parent, environ, say)
            say(f"{tool.name} {pins.version_of(tool)}: built")
    except gobuild.NoToolchainError as error:
        raise BinariesError(_no_source(tool, cache, error)) from None
    except (gobuild.BuildError, OSError) as error:
        raise BinariesError(f"{tool.name} could not be built: {error}") from error
    return path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return our cache: TETHER_CACHE, else the user's cache folder."""
    if environ.get(CACHE_VARIABLE):
        return Path(environ[CACHE_VARIABLE]).absolute() / "controlplane"
    base = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "tether" / "controlplane"


def _given(tool: Tool, environ: Mapping[str, str]) -> tuple[Path, str] | None:
    """Return a program that somebody else provides, and how to call its source."""
    assets = environ.get(ASSETS_VARIABLE, "")
    if assets and tool.name in _ASSETS:
        path = Path(assets).absolute() / tool.name
        if os.access(path, os.X_OK):
            return path, f"{ASSETS_VARIABLE} {path}"
    if tool.name in _FROM_PATH:
        on_path = shutil.which(tool.name, path=environ.get("PATH", ""))
        if on_path is not None:
            return Path(on_path), f"PATH {on_path}"
    return None


def _no_source(tool: Tool, cache: Path, error: gobuild.NoToolchainError) -> str:
    newest = max(
        (pins.needed_go((pins.HERE / folder / "go.mod").read_text()) for folder in pins.FOLDERS),
        key=gobuild.numbers,
    )
    else_ = f", or set {ASSETS_VARIABLE} to a folder that holds it" if tool.name in _ASSETS else ""
    return f"{tool.name} has no source: it is not in {cache} and {error}; put go {newest} or later on the PATH{else_}"


@contextmanager
def _lock(cache: Path, key: str, tool: Tool, say: Say) -> Iterator[None]:
    """Hold the right to build this key; the kernel gives it back also when its holder dies."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{tool.name}: waiting for another process that builds it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(tool: Tool, target: Path, environ: Mapping[str, str], say: Say) -> None:
    """Build beside the target and rename, so that a folder under its key is always whole."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{tool.name}-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        gobuild.build(tool, made, environ, say)
        made.replace(target)
