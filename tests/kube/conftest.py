"""A toolchain that answers as ``go`` does and writes down what it was asked, so that no test compiles anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_GO = """#!{python}
import os, sys, time
from pathlib import Path
here, arguments = Path({here!r}), sys.argv[1:]
with (here / "asked").open("a") as asked:
    asked.write(" ".join(arguments) + "\\n")
if arguments[0] == "env":
    print((here / "version").read_text())
elif arguments[:3] == ["list", "-mod=readonly", "-m"]:
    print(here / "module")
elif arguments[0] == "list":
    print("one\\ntwo")
elif (here / "refusal").exists():
    sys.exit((here / "refusal").read_text())
else:
    (here / "building").touch()
    while (here / "hold").exists():
        time.sleep(0.01)
    target = Path(arguments[arguments.index("-o") + 1])
    target.write_text(" ".join(name + "=" + os.environ.get(name, "") for name in ("GOTOOLCHAIN", "CGO_ENABLED")))
    target.chmod(0o755)
"""


class Toolchain:
    """A folder with the stand-in of ``go``; ``environ`` is what to give to the code under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        go = bin_folder / "go"
        go.write_text(_GO.format(python=sys.executable, here=str(folder)))
        go.chmod(0o755)
        self.environ = {"PATH": str(bin_folder), "TETHER_CACHE": str(self.cache)}
        self.set("version", "go1.99.0")

    def set(self, name: str, text: str) -> None:
        """``version`` is what it says of itself, ``refusal`` makes a build fail, ``hold`` keeps it from ending."""
        (self.folder / name).write_text(text)

    def source(self, path: str, text: str) -> None:
        """Put a file into the module that it builds."""
        file = self.folder / "module" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def builds(self) -> list[str]:
        asked = self.folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line for line in lines if line.startswith("build")]


@pytest.fixture
def toolchain(tmp_path: Path) -> Toolchain:
    return Toolchain(tmp_path)
