"""What is installed is what was locked, hash by hash, and what is locked is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.audit import LOCKS, UNREACHED, judge

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = {
    "run": PROJECT["project"]["dependencies"],
    "dev": PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"],
    "fuzz": PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["fuzz"],
    "mutants": PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["mutants"],
    "build": PROJECT["build-system"]["requires"],
}
_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?P<rest>(?:.*\\\n)+.*)$", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    return {canonicalize_name(entry["name"]): entry["version"] for entry in _ENTRY.finditer(text)}


@pytest.mark.parametrize("name", ASKED)
def test_every_line_of_a_lock_is_one_version_with_hashes(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    names = [line for line in lines if not line.startswith("    --hash=sha256:")]
    assert len(names) == len(locked(name)) > 0
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry["rest"]) for entry in _ENTRY.finditer(text))
    assert "://" not in text


@pytest.mark.parametrize("name", ASKED)
def test_a_lock_holds_all_that_is_asked_for(name: str) -> None:
    versions = locked(name)
    for text in ASKED[name]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


def test_all_locks_agree_on_each_version() -> None:
    dev = locked("dev")
    for name in ("run", "fuzz", "mutants", "build"):
        assert {one: version for one, version in locked(name).items() if dev.get(one, version) != version} == {}
    assert locked("run").keys() <= dev.keys()


@pytest.mark.parametrize("file", ["Makefile", "deploy/Dockerfile"])
def test_nothing_is_installed_but_by_hash_or_by_ourselves(file: str) -> None:
    installs = [line for line in (ROOT / file).read_text().splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--require-hashes -r locks/" in line or "--no-deps" in line, line


def test_every_lock_is_looked_at() -> None:
    packages = {package for lock in LOCKS for package in locked(Path(lock).stem)}
    assert packages == {package for name in ASKED for package in locked(name)}


def report(*dependencies: Mapping[str, object]) -> bytes:
    return msgspec.json.encode({"dependencies": dependencies, "fixes": []})


GOOD = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found"}
BAD = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": ["CVE-1"]}]}


@pytest.mark.parametrize(
    ("code", "output", "errors", "fails", "says"),
    [
        (0, report(GOOD), "", 0, "no known vulnerability in 1 packages"),
        (0, report(GOOD, SKIPPED), "", 0, "1 could not be asked for: b"),
        (1, report(GOOD, SKIPPED, BAD), "Found 1", 1, "c 2: PYSEC-1, CVE-1; mended in 3"),
        (0, report(SKIPPED), "", 0, f"{UNREACHED}Dependency not found"),
        (1, b"", "Traceback\nrequests.exceptions.ConnectionError: no route", 0, UNREACHED),
        (1, b"", "Traceback\nrequests.exceptions.ProxyError: refused", 0, UNREACHED),
        (2, b"", "usage: pip-audit\nerror: no such file", 1, "cannot read what is locked: error: no such file"),
        (1, b"", "", 1, "pip-audit ended with 1"),
    ],
)
def test_a_vulnerability_fails_and_an_unreachable_service_does_not(
    code: int, output: bytes, errors: str, fails: int, says: str
) -> None:
    result, lines = judge(code, output, errors)
    assert result == fails
    assert len(lines) == 1
    assert says in lines[0]
