"""The part of kubectl's JSONPath that printer columns use: ``.a.b``, ``['a']``, ``[0]``, ``[*]``, ``[?(@.a=="b")]``."""

from __future__ import annotations

import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<dotted>(?:\\.|[^.\[\\])+)"""
    r"""|\[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]"""
    r"""|\[(?P<index>-?\d+|\*)\]"""
    r"""|\[\?\(@\.(?P<left>[^=!<>]+?)\s*(?P<op>==|!=)\s*(?P<q>['"]?)(?P<right>.*?)(?P=q)\)\]"""
)


def find(obj: Any, path: str) -> list[Any]:
    """Return every value at a path; empty when there is none, or when the path is not understood."""
    found, at = [obj], 0
    path = path.strip().removeprefix("{").removesuffix("}")
    if not path.startswith((".", "[")):
        path = f".{path}"
    while at < len(path):
        step = _STEP.match(path, at)
        if not step:
            return []
        found = [value for item in found for value in _take(item, step)]
        at = step.end()
    return found


def _take(item: Any, step: re.Match[str]) -> list[Any]:
    key = step["quoted"]
    if step["dotted"] is not None:
        key = re.sub(r"\\(.)", r"\1", step["dotted"])
        if key == "*":
            return _children(item)
    if key is not None:
        return [item[key]] if isinstance(item, dict) and key in item else []
    if step["left"] is not None:
        wanted = step["op"] == "=="
        return [child for child in _children(item) if (_equals(child, step)) is wanted]
    if step["index"] == "*":
        return _children(item)
    position = int(step["index"])
    if not isinstance(item, list) or not -len(item) <= position < len(item):
        return []
    return [item[position]]


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _equals(child: Any, step: re.Match[str]) -> bool:
    return any(_shown(value) == step["right"] for value in find(child, f".{step['left']}"))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
