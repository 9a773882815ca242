"""``make hostile``: every hostile request against a running proxy; the last line is one JSON object."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from eventcore import logs
from proxycore.main import new_loop
from tests.hostile.cases import cases
from tests.hostile.judging import judge
from tests.proxycore.test_forwarding import run_between
from tether.devcluster.pki import ClusterPki


async def main() -> int:
    """Judge every case; 1 when the proxy was misled by one."""
    logs.configure("error", "json", "hostile")
    found = cases()
    pki = ClusterPki.load_or_create(None)
    serving = pki.issue_serving(["127.0.0.1", "localhost"])
    with tempfile.TemporaryDirectory() as folder:
        async with run_between(Path(folder), pki, serving, max_view_age=600.0) as between:
            wrong = await judge(between, found)
    result = msgspec.json.encode({"cases": len(found), "misled": len(wrong)}).decode()
    sys.stdout.write("\n".join([*wrong, result]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        sys.exit(runner.run(main()))
