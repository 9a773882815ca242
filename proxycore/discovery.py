"""Which cluster-scoped kinds the API server serves, asked when somebody asks for one: no list is loaded at the start.

Read under the proxy's account, which everybody who is authenticated may. An answer is believed for some seconds; one
that lacks what is asked for is read again, at most once a second, so a new CustomResourceDefinition works at once and
nobody can make the proxy ask for more by making up names. What cannot be read is refused: without knowing that a kind
is cluster-scoped no rule speaks of it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from eventcore.errors import KubeError, NotFoundError
from eventcore.kube import api_path
from eventcore.logs import get
from proxycore.statuses import RefusedError, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.kube import KubeClient

log = get("proxy.discovery")

T = TypeVar("T")

BELIEVED: Final = 30.0
"""Seconds that a document counts."""
PAUSE: Final = 1.0
"""Least seconds between two readings of one document."""


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Group(msgspec.Struct, frozen=True):
    name: str
    versions: tuple[_Version, ...] = ()


class _Groups(msgspec.Struct, frozen=True):
    groups: tuple[_Group, ...] = ()


class _Resource(msgspec.Struct, frozen=True):
    name: str
    namespaced: bool
    verbs: tuple[str, ...] = ()


class _Resources(msgspec.Struct, frozen=True):
    resources: tuple[_Resource, ...] = ()


class _Document(Generic[T]):
    """One document of the discovery, read by one reader at a time for all who wait."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._at = self._tried = -BELIEVED

    async def get(self, has: Callable[[T], bool]) -> T:
        """Return the document, read again if it is old or lacks something; RefusedError (503) when it cannot be."""
        if (found := self._current(has)) is not None:
            return found
        async with self._lock:
            if (found := self._current(has)) is not None:
                return found
            now = _now()
            if self._tried > self._at and now - self._tried < PAUSE:
                raise _unknown()
            self._tried = now
            try:
                self._value = await self._read()
            except KubeError as error:
                log.warning("the API server's discovery cannot be read", error=error)
                raise _unknown() from None
            self._at = self._tried = _now()
            return self._value

    def _current(self, has: Callable[[T], bool]) -> T | None:
        age = _now() - self._at
        return self._value if self._value is not None and age < (BELIEVED if has(self._value) else PAUSE) else None


class Discovery:
    """What one API server serves. Its client may be shared."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._groups = _Document(self._read_groups)
        self._resources: dict[tuple[str, str], _Document[frozenset[str]]] = {}

    async def version_of(self, group: str, version: str, resource: str) -> str:
        """Return the version in which a resource is served for the whole cluster and can be read, "" for none.

        ``version``: "" or ``*`` for any, the preferred one first. RefusedError (503) when the API server does not say.
        """
        any_version = version in {"", "*"}
        groups = await self._groups.get(lambda found: group in found and (any_version or version in found[group]))
        for one in groups.get(group, ()):
            if (any_version or one == version) and resource in await self._names(group, one, resource):
                return one
        return ""

    async def _names(self, group: str, version: str, resource: str) -> frozenset[str]:
        if (group, version) not in self._resources:
            self._resources[group, version] = _Document(partial(self._read, group, version))
        return await self._resources[group, version].get(lambda names: resource in names)

    async def _read_groups(self) -> dict[str, tuple[str, ...]]:
        found = await self._client.get_as(_Groups, "/apis")
        named = {one.name: tuple(version.version for version in one.versions) for one in found.groups}
        # What is gone is forgotten, so that this does not grow with every definition that ever was.
        kept = {(group, version) for group, versions in named.items() for version in versions} | {("", "v1")}
        self._resources = {key: document for key, document in self._resources.items() if key in kept}
        return named | {"": ("v1",)}

    async def _read(self, group: str, version: str) -> frozenset[str]:
        try:
            found = await self._client.get_as(_Resources, api_path(group, version, "").rstrip("/"))
        except NotFoundError:
            return frozenset()
        return frozenset(
            one.name for one in found.resources if not one.namespaced and "get" in one.verbs and "/" not in one.name
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _unknown() -> RefusedError:
    return RefusedError(unavailable("the API server does not say which kinds are cluster-scoped; try again"))
