"""``make fuzz``: every target for some seconds each, guided by coverage; the last line is one JSON object.

``FUZZ_SECONDS`` (20) is the time of each target. An input that breaks a judgement is left in ``.cache/fuzz``, and the
exit code is 1.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.fuzz.targets import TARGETS, seeds

FOLDER = Path(".cache/fuzz")
_DONE = re.compile(r"Done (\d+) runs|stat::number_of_executed_units:\s*(\d+)")


def run(name: str, seconds: int) -> tuple[int, bool]:
    """Return how many inputs a target was given, and whether all of them were judged right."""
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(name):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    command = [
        *(sys.executable, "-m", "tests.fuzz.one", name, str(corpus)),
        *(f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={FOLDER}/{name}-", "-print_final_stats=1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        sys.stdout.write(done.stdout + done.stderr[-4000:])
    counts = [int(first or second) for first, second in _DONE.findall(done.stderr)]
    return max(counts, default=0), done.returncode == 0


def main() -> int:
    """Fuzz every target; 1 when one was broken."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "20"))
    inputs: dict[str, int] = {}
    broken: list[str] = []
    for number, name in enumerate(TARGETS, 1):
        inputs[name], good = run(name, seconds)
        broken += [] if good else [name]
        sys.stdout.write(f"{number}/{len(TARGETS)} {name}: {inputs[name]} inputs, {'ok' if good else 'BROKEN'}\n")
        sys.stdout.flush()
    sys.stdout.write(msgspec.json.encode({"inputs": inputs, "broken": broken}).decode() + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
