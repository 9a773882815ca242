"""The Kubernetes client of JavaScript through the proxy: see js/client.js for what it does."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.behaviour.clients.conftest import MakeProgram

pytestmark = [pytest.mark.xdist_group("cluster")]

Tenancy = Any
HERE = Path(__file__).parent / "js"
CACHE = Path(__file__).parents[3] / ".cache"


@pytest.fixture(scope="session")
def client() -> Path:
    """The script beside the modules that its lock file names, installed once for each state of that file."""
    for needed in ("node", "npm"):
        if shutil.which(needed) is None:  # no file of this project installs Node.js; -ra names what was left out
            pytest.skip(f"{needed} is not on the PATH: this test runs the JavaScript client itself")
    sources = [HERE / name for name in ("package.json", "package-lock.json", "client.js")]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in sources[:2])).hexdigest()[:12]
    folder = CACHE / f"javascript-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in sources:
            shutil.copyfile(file, folder / file.name)
        if not (folder / "installed").exists():
            command = [shutil.which("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(  # noqa: S603 -- npm, with the lock file of this folder
                command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            (folder / "installed").touch()
    return folder / "client.js"


def test_the_lock_file_names_no_registry_but_every_digest() -> None:
    locked = msgspec.json.decode((HERE / "package-lock.json").read_bytes())
    modules = {name: module for name, module in locked["packages"].items() if name}

    assert modules["node_modules/@kubernetes/client-node"]["version"]
    assert not [name for name, module in modules.items() if "resolved" in module]
    assert all(module["integrity"].startswith("sha512-") for module in modules.values())


async def test_the_javascript_client_reads_applies_and_watches(
    owner: Tenancy, namespace: str, foreign: str, program: MakeProgram, client: Path
) -> None:
    node = program([shutil.which("node") or "node", str(client)], await owner.kubeconfig())
    async with node.running(namespace, foreign) as running:
        steps = [msgspec.json.decode(line) for line in await running.until(lambda line: '"added"' in line)]
        (joined,) = await owner.make_namespaces("joins")
        steps += [msgspec.json.decode(line) for line in await running.until(lambda line: '"watched"' in line)]

    assert [(step["step"], step["value"]) for step in steps] == [
        ("listed", [namespace]),
        ("read", "Active"),
        ("refused", 403),
        ("applied", {"a": "1"}),
        ("patched", {"a": "1", "b": "2"}),
        ("added", namespace),
        ("added", joined),
        ("watched", [f"ADDED {joined}", f"ADDED {namespace}"]),
    ]
