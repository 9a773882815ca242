"""What the cluster holds, as it happens: every object of some kinds, and when it was first seen.

The demo waits on it instead of asking again and again, and measures with it: each time is that of a watch event.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from eventcore.errors import KubeError
from eventcore.kube import api_path
from eventcore.kube_watch import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.kube import KubeClient

Object = dict[str, Any]
ObjectId = tuple[str, str, str]
"""(kind, namespace or "", name)."""

_RBAC = "rbac.authorization.k8s.io"
_WATCHED = {
    "Namespace": api_path("", "v1", "namespaces"),
    "Secret": api_path("", "v1", "secrets"),
    "RoleBinding": api_path(_RBAC, "v1", "rolebindings"),
    "ClusterRole": api_path(_RBAC, "v1", "clusterroles"),
    "ClusterRoleBinding": api_path(_RBAC, "v1", "clusterrolebindings"),
}
_AGAIN_SECONDS = 0.2


class Sightings:
    """Objects by id, followed by watches while `run` runs."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._objects: dict[ObjectId, Object] = {}
        self._first: dict[ObjectId, float] = {}
        self._changed = asyncio.Condition()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the object as last seen, None when it is not there."""
        return self._objects.get((kind, namespace, name))

    def first_seen(self, kind: str, namespace: str, name: str) -> float | None:
        """Return when it first appeared, on the monotonic clock."""
        return self._first.get((kind, namespace, name))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of what was seen."""
        async with self._changed:
            await self._changed.wait_for(holds)

    async def run(self) -> None:
        """Follow all kinds until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind, path in _WATCHED.items():
                tasks.create_task(self._follow(kind, path))

    async def _follow(self, kind: str, path: str) -> None:
        while True:
            try:
                # Without a version a watch begins with an ADDED for everything that is there.
                async with aclosing(watch(self._client, path, resource_version="")) as events:
                    async for event in events:
                        await self._take(kind, event.type, msgspec.json.decode(event.object))
            except KubeError:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _take(self, kind: str, type_: str, obj: Object) -> None:
        if type_ == "BOOKMARK":
            return
        metadata = obj["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        async with self._changed:
            if type_ == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = obj
                self._first.setdefault(key, time.monotonic())
            self._changed.notify_all()
