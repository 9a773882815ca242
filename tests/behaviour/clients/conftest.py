"""The clients that people and controllers use, each as its own program against the proxy on a real control plane.

What a client has of a tenant is the distributed kubeconfig alone. Programs that are ours or pinned come from the cache
of ``tests/controlplane``; nothing of a person's own settings is read.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from controlplane import binaries, pins

from tests.behaviour.conftest import Tenancy, path
from tests.kubeapi import Ran

Object = dict[str, Any]
SECONDS = 40.0
"""Within which a program must say or do a thing; a bound for broken runs, not a measure."""


def object_of(kind: str, namespace: str, name: str, api: str = "v1", **more: Any) -> Object:
    """Return an object; without a namespace it is cluster-scoped."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


class Program:
    """A program with its environment: a home of its own and the kubeconfig of a tenant."""

    def __init__(self, command: Sequence[str], home: Path, kubeconfig: Path, environ: Mapping[str, str]) -> None:
        self._command = list(command)
        self._home = home
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig), **environ}

    async def run(self, *arguments: str, stdin: str = "", expect: int | None = 0) -> Ran:
        """Run it to its end; another exit code than ``expect`` fails."""
        async with self._started(*arguments) as process, asyncio.timeout(SECONDS):
            out, err = await process.communicate(stdin.encode())
        ran = Ran(process.returncode or 0, out.decode(), err.decode())
        assert expect is None or ran.code == expect, f"{arguments}: {ran}"
        return ran

    async def json(self, *arguments: str, **options: Any) -> Any:
        """Return what it prints."""
        return msgspec.json.decode((await self.run(*arguments, **options)).out)

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[Running]:
        """Yield it while it runs; at the end of the block it is ended."""
        async with self._started(*arguments) as process:
            yield Running(process)

    @asynccontextmanager
    async def _started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environ, cwd=self._home
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


class Running:
    """Reads and writes what a program says and is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """Return its next line; when it has ended instead, that fails with what it said on stderr."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            found = await self._process.stdout.readline()
            if not found:
                raise AssertionError(await self.error())
        return found.decode().rstrip("\r\n")

    async def until(self, wanted: Callable[[str], object]) -> list[str]:
        """Return its lines up to the first that is wanted."""
        lines = [await self.line()]
        while not wanted(lines[-1]):
            lines.append(await self.line())
        return lines

    async def says(self, *lines: str) -> None:
        """Give it lines on its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        await self._process.stdin.drain()

    async def error(self) -> str:
        """Return what it says on stderr until it closes that."""
        assert self._process.stderr is not None
        async with asyncio.timeout(SECONDS):
            return (await self._process.stderr.read()).decode()


MakeProgram = Callable[..., Program]


@pytest.fixture
async def owner(tenancy: Tenancy) -> Tenancy:
    """A tenant as in the guide, with its kubeconfig."""
    await tenancy.make()
    return tenancy


@pytest.fixture
def program(tmp_path: Path) -> MakeProgram:
    """Return a function that makes a Program of a command and a kubeconfig; keyword arguments are its environment."""

    def make(command: Sequence[str], kubeconfig: Path, **environ: str) -> Program:
        return Program(command, tmp_path, kubeconfig, environ)

    return make


def kubectls() -> list[str]:
    """Return the names of the kubectls of this machine: those of the PATH, of KUBECTL variables, and our own build."""
    found: dict[Path, str] = {}
    folders = os.environ["PATH"].split(os.pathsep)
    candidates = [shutil.which("kubectl", path=folder) for folder in folders]
    candidates += [value for name, value in sorted(os.environ.items()) if name == "KUBECTL" or name[:8] == "KUBECTL_"]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK) and Path(candidate).is_file():
            found.setdefault(Path(candidate).resolve(), candidate)
    return [*found.values(), PINNED]


PINNED = "pinned"
"""The kubectl of the Kubernetes that the control plane is built from."""


@pytest.fixture(scope="session", params=kubectls())
def kubectl_binary(request: pytest.FixtureRequest) -> str:
    """Each kubectl."""
    if request.param != PINNED:
        return str(request.param)
    return pinned(pins.KUBECTL)


def pinned(tool: pins.Tool) -> str:
    """Return a program of ours or of the pins, built if it is not there."""
    return str(binaries.built(tool, os.environ, binaries.say_on_stderr))


@pytest.fixture
async def kubectl(owner: Tenancy, kubectl_binary: str, program: MakeProgram) -> Program:
    """Each kubectl, as the tenant."""
    return program([kubectl_binary], await owner.kubeconfig())


@pytest.fixture
async def namespace(owner: Tenancy) -> str:
    """A namespace of the tenant in which it has its rights."""
    return await owner.make_usable("web")


@pytest.fixture
async def foreign(other: Tenancy) -> str:
    """A namespace of another tenant."""
    await other.make()
    (name,) = await other.make_namespaces("secret")
    return name


async def belongs(owner: Tenancy, name: str) -> None:
    """Make a namespace as the tenant does, but directly at the API server, so that the proxy need not be there."""
    async with owner.cluster.client(owner.cluster.as_token(await owner.token(), direct=True)) as client:
        await client.create(path("Namespace"), object_of("Namespace", "", name))
