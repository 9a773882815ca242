"""Builds one pinned tool with the Go toolchain on the PATH, and says how far it is.

Modules come by the toolchain's own configuration (GOPROXY, GOMODCACHE, GOSUMDB are the user's), nothing else is
downloaded, and the toolchain does not replace itself by another one.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane import pins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from controlplane.pins import Tool

    Say = Callable[[str], None]

PROGRESS_SECONDS = 10.0
CHART = "chart"
"""The folder beside a binary that holds its chart."""
CRDS = "crds"
"""The folder beside a binary that holds its CustomResourceDefinitions."""
_ERROR_LINES = 6
_READ_BYTES = 65536


class BuildError(Exception):
    """The toolchain refused; the text says what it said."""


class NoToolchainError(BuildError):
    """There is no toolchain, or it is too old; the text says which."""


def find_go(environ: Mapping[str, str]) -> str:
    """Return the ``go`` of the PATH; NoToolchainError without one."""
    go = shutil.which("go", path=environ.get("PATH", ""))
    if go is None:
        raise NoToolchainError("no `go` is on the PATH")
    return go


def build(tool: Tool, target: Path, environ: Mapping[str, str], say: Say) -> None:
    """Build ``tool`` into the folder ``target``, with its chart and CRDs if it has some; BuildError if it fails.

    ``say`` gets a line at each phase and every ten seconds.
    """
    toolchain = _Toolchain(tool, environ, say)
    toolchain.check_version()
    packages = toolchain.count_packages()
    with tempfile.TemporaryDirectory(dir=target, prefix="source-") as scratch:
        flags = _patched(toolchain, tool, Path(scratch)) if tool.patches else []
        toolchain.compile(target / tool.name, packages, flags)
    for kept, name in ((tool.chart, CHART), (tool.crds, CRDS)):
        if kept:
            _copy(toolchain.module_folder() / kept, target / name)


class _Toolchain:
    """The go command in the folder of one tool."""

    def __init__(self, tool: Tool, environ: Mapping[str, str], say: Say) -> None:
        self._go = find_go(environ)
        self._tool = tool
        self._say = say
        self._folder = pins.HERE / tool.folder
        self._go_mod = (self._folder / "go.mod").read_text()
        # The versions that stand in go.mod, built by the Go that is there, for the machine that it is on.
        goos, goarch = pins.host_platform()
        settings = {"GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0", "GOOS": goos, "GOARCH": goarch}
        self._environ = {**environ, **settings}

    def check_version(self) -> None:
        have = self._ask("env", "GOVERSION").removeprefix("go").split()[0]
        need = pins.needed_go(self._go_mod)
        if numbers(have) < numbers(need):
            raise NoToolchainError(f"it needs go {need} or later, and {self._go} is {have}")

    def module_folder(self) -> Path:
        """Return where the toolchain keeps the source of the tool's module."""
        return Path(self._ask("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", self._tool.module))

    def count_packages(self) -> int:
        """Return how many packages the tool is made of; modules that are missing are downloaded here."""
        fetched = 0

        def progress(lines: Sequence[str]) -> str:
            nonlocal fetched
            fetched += sum(line.startswith("go: downloading") for line in lines)
            return f"downloading modules, {fetched} so far"

        listing = self._run(["list", "-mod=readonly", "-deps", self._tool.package], progress)
        return len(listing.split())

    def compile(self, target: Path, packages: int, flags: Sequence[str]) -> None:
        """Compile and link; ``flags`` are for a patched source."""
        compiled = 0

        def progress(lines: Sequence[str]) -> str:
            nonlocal compiled
            compiled += len(lines)
            return f"compiling, {compiled} of at most {packages} packages"

        link = pins.link_flags(self._tool, pins.pinned_version(self._go_mod, self._tool.module))
        options = ["-v", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", link, "-o", str(target), *flags]
        self._run(["build", *options, self._tool.package], progress)

    def _ask(self, *arguments: str) -> str:
        return self._run(list(arguments), lambda _: "asking the toolchain").strip()

    def _run(self, arguments: Sequence[str], progress: Callable[[Sequence[str]], str]) -> str:
        """Return what the command prints; ``progress`` makes a line for people of the lines of its stderr."""
        started = time.monotonic()
        spoken = started
        heard: list[str] = []
        with (
            tempfile.TemporaryFile("w+") as output,
            subprocess.Popen(  # noqa: S603 - the go of the PATH, with arguments of ours
                [self._go, *arguments],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
            ) as process,
        ):
            try:
                for lines in _lines(process, PROGRESS_SECONDS):
                    heard = [*heard, *lines][-_ERROR_LINES:]
                    text = progress(lines)
                    now = time.monotonic()
                    if now - spoken >= PROGRESS_SECONDS:
                        spoken = now
                        self._say(f"{self._tool.name}: {text}, {now - started:.0f} s")
            except BaseException:
                process.terminate()  # the build must not go on without us
                raise
            if process.wait() != 0:
                raise BuildError(f"`go {arguments[0]}` of {self._tool.package} failed: {' | '.join(heard)}")
            output.seek(0)
            return output.read()


def _lines(process: subprocess.Popen[bytes], seconds: float) -> Iterator[list[str]]:
    """Yield the lines that came on stderr, at least every ``seconds`` also if none came, until its end."""
    if process.stderr is None:
        raise BuildError("the toolchain was started without a pipe")
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            if not selector.select(seconds):
                yield []
                continue
            data = os.read(process.stderr.fileno(), _READ_BYTES)
            *whole, rest = (rest + data).split(b"\n")
            lines = whole if data else [rest]
            yield [line.decode(errors="replace") for line in lines if line.strip()]
            if not data:
                return


def _patched(toolchain: _Toolchain, tool: Tool, scratch: Path) -> list[str]:
    """Copy and patch the module, and return the flags that build from the copy."""
    source = scratch / "module"
    _copy(toolchain.module_folder(), source)
    for patch in tool.patches:
        path = source / patch.path
        text = path.read_text()
        if text.count(patch.old) != 1:
            raise BuildError(f"{patch.path} of {tool.module} does not hold {patch.old!r} once; the patch needs a look")
        path.write_text(text.replace(patch.old, patch.new))
    folder = pins.HERE / tool.folder
    go_mod = scratch / "go.mod"
    go_mod.write_text((folder / "go.mod").read_text() + f"\nreplace {tool.module} => {source}\n")
    shutil.copyfile(folder / "go.sum", scratch / "go.sum")
    return [f"-modfile={go_mod}"]


def _copy(source: Path, target: Path) -> None:
    """Copy a folder out of the module cache, where everything is read-only, into one that may be written."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version like 1.26.4 as numbers; what follows them (rc1, -custom) does not count."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        found.append(int(digits or 0))
        if digits != part:
            break
    return tuple(found)
