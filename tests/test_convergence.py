"""What the run of a suite tells of the times that its tests measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = """
import pytest
from tests import convergence

@pytest.mark.parametrize("seconds", [1, 30, 2])
def test_example(request, monkeypatch, seconds):
    monkeypatch.setattr(convergence, "monotonic", iter([100.0, 100.0 + seconds]).__next__)
    with convergence.measuring(request.node, f"number {seconds}"):
        pass

def test_that_measures_nothing():
    pass
"""
ROOT = Path(__file__).parent.parent


def test_the_longest_convergence_is_told_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "test_example.py"
    file.write_text(EXAMPLE)
    # looptime asks each test for its event loop; these have none, and Python 3.12 and 3.13 warn of that.
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}"]
    for plugin in ("tests.convergence", "no:cacheprovider", "no:looptime_plugin"):
        command += ["-p", plugin]

    done = subprocess.run(  # noqa: S603 -- pytest itself
        [*command, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("longest convergence"))
    assert line == "longest convergence: 30.00 s (number 30)"
