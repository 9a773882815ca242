"""The metrics of several processes as one text: each series once for every worker, with its number as a label. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_UP = "tether_proxy_worker_up"


def merged(texts: Mapping[int, str], up: Mapping[int, bool]) -> str:
    """Return the texts of workers (Prometheus format) as one, and beside them which of the workers answer.

    The format wants all lines of one metric together, and its description once.
    """
    about: dict[str, list[str]] = {_UP: [f"# HELP {_UP} 1 while the worker answers", f"# TYPE {_UP} gauge"]}
    samples: dict[str, list[str]] = {_UP: [f'{_UP}{{worker="{number}"}} {int(one)}.0' for number, one in up.items()]}
    for number, text in texts.items():
        metric, known = "", False
        for line in filter(None, text.split("\n")):
            if line.startswith("# HELP "):
                metric = line.split(" ", 3)[2]
                known = metric in about
                about.setdefault(metric, [])
                samples.setdefault(metric, [])
            if not line.startswith("#"):
                samples.setdefault(metric, []).append(_labelled(line, number))
            elif not known:
                about.setdefault(metric, []).append(line)
    return "".join(f"{line}\n" for metric, lines in about.items() for line in (*lines, *samples[metric]))


def _labelled(line: str, number: int) -> str:
    """Return a sample with the worker's number among its labels."""
    brace, space = line.find("{"), line.find(" ")
    if 0 <= brace < space:
        return f'{line[: brace + 1]}worker="{number}",{line[brace + 1 :]}'
    return f'{line[:space]}{{worker="{number}"}}{line[space:]}'
