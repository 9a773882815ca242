"""Runs wrk and reads what it says."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Final

import msgspec

TOKEN: Final = "a-token-of-the-bench"  # noqa: S105 - the stub believes everybody
_RATE = re.compile(r"Requests/sec:\s+([0-9.]+)")
_TOTAL = re.compile(r"(\d+) requests in ")
_P99 = re.compile(r"99%\s+([0-9.]+)(us|ms|s)")
_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_MILLISECONDS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks for: a target with a number of clients, ``body`` as a POST.

    ``think``: milliseconds between an answer and the next request of a client, on average: anything from none to twice
    as many, since clients that all wait for the same time would ask all at once.
    """

    target: str
    clients: int = 32
    headers: tuple[str, ...] = ()
    body: str = ""
    think: int = 0
    token: str = TOKEN


class Run(msgspec.Struct, frozen=True):
    """One run of wrk: requests a second, the 99th percentile in milliseconds, and how many requests there were."""

    rate: float
    p99: float
    total: int


async def wrk(url: str, load: Load, seconds: int) -> Run:
    """Load a server; RuntimeError when an answer was no success."""
    arguments = ["-t1", f"-c{load.clients}", f"-d{seconds}s", "--latency", "-H", f"Authorization: Bearer {load.token}"]
    for header in load.headers:
        arguments += ["-H", header]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if load.body:
            script.write('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n')
            script.write(f"wrk.body = [==[{load.body}]==]\n")
        if load.think:
            script.write(f"function delay() return math.random(0, {2 * load.think}) end\n")
        script.flush()
        arguments += ["-s", str(Path(script.name))]
        process = await asyncio.create_subprocess_exec(
            "wrk", *arguments, url + load.target, stdout=asyncio.subprocess.PIPE
        )
        text = (await process.communicate())[0].decode()
    rate, p99, total = _RATE.search(text), _P99.search(text), _TOTAL.search(text)
    if rate is None or p99 is None or total is None or _BAD.search(text):
        raise RuntimeError(f"wrk says: {text}")
    if not float(rate[1]):
        raise RuntimeError(f"no answer in {seconds} s: the machine is busy with something else, try --seconds 10")
    return Run(float(rate[1]), float(p99[1]) * _MILLISECONDS[p99[2]], int(total[1]))
