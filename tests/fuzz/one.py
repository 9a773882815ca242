"""One target under libFuzzer, by atheris: ``python -m tests.fuzz.one TARGET CORPUS [libFuzzer options]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["proxycore", "eventcore"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run until libFuzzer's options say stop, or an input breaks the judgement."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
