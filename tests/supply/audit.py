"""``make check`` looks for known vulnerabilities of what is locked, where the service that knows them can be reached.

Where it cannot, as behind an index of one's own, it says so in one line and fails nothing. `pip-audit` asks by name and
version alone, and installs nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

LOCKS: Final = ("locks/dev.txt", "locks/fuzz.txt", "locks/mutants.txt", "locks/build.txt")
SECONDS: Final = 180
UNREACHED: Final = "known vulnerabilities were not looked for: "
_NO_ANSWER: Final = (
    "ConnectionError",
    "ProxyError",
    "SSLError",
    "Timeout",
    "ConnectTimeout",
    "ReadTimeout",
    "ServiceError",
)


class Vulnerability(msgspec.Struct):
    """One that is known."""

    id: str
    fix_versions: list[str] = []
    aliases: list[str] = []


class Dependency(msgspec.Struct):
    """One that was looked for; ``skip_reason`` says why it could not be."""

    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str = ""


class Report(msgspec.Struct):
    """What pip-audit prints as JSON."""

    dependencies: list[Dependency]


def judge(code: int, output: bytes, errors: str) -> tuple[int, list[str]]:
    """Return the exit code of the check and what it says, from what pip-audit ended with."""
    last = errors.strip().splitlines()[-1] if errors.strip() else f"pip-audit ended with {code}"
    try:
        found = msgspec.json.decode(output, type=Report).dependencies
    except msgspec.DecodeError:
        if any(word in last.partition(":")[0] for word in _NO_ANSWER):
            return 0, [f"{UNREACHED}{last[:200]}"]
        return 1, [f"pip-audit cannot read what is locked: {last[:200]}"]
    vulnerable = [f"{one.name} {one.version}: {_text(vulnerability)}" for one in found for vulnerability in one.vulns]
    skipped = [one for one in found if one.skip_reason]
    if vulnerable:
        return 1, vulnerable
    if len(skipped) == len(found):
        return 0, [f"{UNREACHED}{skipped[0].skip_reason}" if skipped else f"{UNREACHED}nothing is locked"]
    more = f"; {len(skipped)} could not be asked for: {', '.join(one.name for one in skipped[:5])}" if skipped else ""
    return 0, [f"no known vulnerability in {len(found) - len(skipped)} packages{more}"]


def _text(vulnerability: Vulnerability) -> str:
    names = ", ".join((vulnerability.id, *vulnerability.aliases))
    return f"{names}; mended in {', '.join(vulnerability.fix_versions)}" if vulnerability.fix_versions else names


def main(locks: Sequence[str] = LOCKS) -> int:
    """Ask, and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    files = [part for lock in locks for part in ("-r", lock)]
    try:
        done = subprocess.run(  # noqa: S603 -- its own arguments
            [*command, "--format", "json", *files],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        code, lines = 0, [f"{UNREACHED}no answer in {SECONDS} s"]
    else:
        code, lines = judge(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
