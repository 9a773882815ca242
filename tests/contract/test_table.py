"""The table of differences in docs/devcluster.md: each of its lines has its test, and each such test has its line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "tests/contract/test_differences.py"


def _tests_in(file: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE))


def test_each_line_of_the_table_has_its_test_and_each_test_its_line() -> None:
    # given: the last column of each row, `test_name` or `file::test_name`
    text = (ROOT / "docs/devcluster.md").read_text()
    named = [cell.rpartition("::") for cell in re.findall(r"\| `([\w/.]*(?:::)?test_\w+)` \|$", text, re.MULTILINE)]
    # then
    assert named
    for file, _, name in named:
        assert name in _tests_in(file or HERE), name
    assert {name for file, _, name in named if not file} == _tests_in(HERE)
    rows = text.partition("| Difference |")[2].strip().splitlines()[2:]
    assert len(rows) == len(named)
