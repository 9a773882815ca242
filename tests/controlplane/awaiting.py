"""Waits for an object of a cluster to be as it should: by a list and the watch that goes on from it, not by time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.layout import ControlPlaneError
from eventcore.errors import GoneError
from eventcore.kube_watch import watch

if TYPE_CHECKING:
    from eventcore.kube import KubeClient

Object = dict[str, Any]
Holds = Callable[[Object | None], object]
AWAIT_SECONDS = 60.0
"""Within which anything must have happened; a bound for broken runs, not a measure."""


async def until(
    client: KubeClient, collection: str, name: str, holds: Holds, *, seconds: float = AWAIT_SECONDS
) -> Object | None:
    """Return the object of ``collection`` once ``holds`` of it is true; it is None while there is none of that name.

    ControlPlaneError after ``seconds``, with the conditions that it had last.
    """
    seen: list[Object | None] = [None]
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await _followed(client, collection, name, holds, seen)
                except GoneError:
                    continue  # the watch fell behind: list again
    except TimeoutError:
        raise ControlPlaneError(f"{collection}/{name} within {seconds:g} s: {_said(seen[-1])}") from None


async def _followed(
    client: KubeClient, collection: str, name: str, holds: Holds, seen: list[Object | None]
) -> Object | None:
    only = {"fieldSelector": f"metadata.name={name}"}
    while True:
        found = await client.get_as(dict[str, Any], collection, params=only)
        seen[:] = [(found.get("items") or [None])[0]]
        if holds(seen[-1]):
            return seen[-1]
        version = found["metadata"]["resourceVersion"]
        async with aclosing(watch(client, collection, resource_version=version, params=only)) as events:
            async for event in events:
                if event.type == "BOOKMARK":
                    continue
                seen[:] = [None if event.type == "DELETED" else msgspec.json.decode(event.object, type=Object)]
                if holds(seen[-1]):
                    return seen[-1]


def _said(obj: Object | None) -> str:
    if obj is None:
        return "there is none"
    conditions = (obj.get("status") or {}).get("conditions") or []
    return (
        "; ".join(f"{c['type']}={c['status']} {c.get('reason')}: {c.get('message')}" for c in conditions) or "as it was"
    )


def condition(obj: Object | None, kind: str) -> Object:
    """Return the condition of that type, {} if there is none or if it speaks of an older generation."""
    if obj is None:
        return {}
    for found in (obj.get("status") or {}).get("conditions") or []:
        stale = found.get("observedGeneration", obj["metadata"].get("generation")) != obj["metadata"].get("generation")
        if found["type"] == kind and not stale:
            return dict(found)
    return {}


def is_true(kind: str) -> Holds:
    """Return a test for ``until``: the condition of that type is True."""
    return lambda obj: condition(obj, kind).get("status") == "True"
