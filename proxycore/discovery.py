"""What the API server serves: read under the proxy's account when somebody asks for it, and believed for some seconds.

What lacks the thing that is asked for is read again, at most once a second and by one reader for all who wait: so a new
CustomResourceDefinition works at once. Groups and versions are looked up in the list of all groups first, so nobody can
make the proxy ask for more by making up names. After a failure nothing is asked for a second either.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import msgspec

from eventcore.errors import KubeError, NotFoundError
from eventcore.kube import api_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

BELIEVED: Final = 30.0
"""Seconds that a document counts."""
PAUSE: Final = 1.0
"""Least seconds between two readings of one document."""


class Getter(Protocol):
    """Reads from the API server, as KubeClient does."""

    async def get(self, path: str, /) -> bytes:
        """Return the body of an answer; KubeError."""


class ApiResource(msgspec.Struct, frozen=True):
    """One resource as discovery names it."""

    name: str
    kind: str
    namespaced: bool
    verbs: frozenset[str] = frozenset()


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Group(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    versions: tuple[_Version, ...] = ()
    preferred_version: _Version | None = None


class _Groups(msgspec.Struct, frozen=True):
    groups: tuple[_Group, ...] = ()


class _Resources(msgspec.Struct, frozen=True):
    resources: tuple[ApiResource, ...] = ()


class Discovery:
    """What one API server serves."""

    def __init__(self, client: Getter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._groups = _Document(self._read_groups, clock)
        self._resources: dict[tuple[str, str], _Document[dict[str, ApiResource]]] = {}

    async def find(self, group: str, version: str, resource: str) -> ApiResource | None:
        """Return a resource, None when it is not served; KubeError when nobody can tell."""
        if version not in (await self._groups.get(lambda found: version in found.get(group, ()))).get(group, ()):
            return None
        if (group, version) not in self._resources:
            self._resources[group, version] = _Document(partial(self._read, group, version), self._clock)
        return (await self._resources[group, version].get(lambda found: resource in found)).get(resource)

    async def versions(self, group: str) -> tuple[str, ...]:
        """Return the served versions of a group, the preferred one first; KubeError when nobody can tell."""
        return (await self._groups.get(lambda found: group in found)).get(group, ())

    async def _read_groups(self) -> dict[str, tuple[str, ...]]:
        found = (await self._decoded("/apis", _Groups)).groups
        versions = {"": ("v1",)} | {
            group.name: tuple(dict.fromkeys(one.version for one in (group.preferred_version, *group.versions) if one))
            for group in found
        }
        # What is gone is forgotten, so that this does not grow with every definition that ever was.
        kept = {(group, version) for group, served in versions.items() for version in served}
        self._resources = {key: document for key, document in self._resources.items() if key in kept}
        return versions

    async def _read(self, group: str, version: str) -> dict[str, ApiResource]:
        try:
            found = (await self._decoded(api_path(group, version, "").rstrip("/"), _Resources)).resources
        except NotFoundError:
            return {}
        return {one.name: one for one in found}

    async def _decoded(self, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(await self._client.get(path), type=kind)
        except msgspec.DecodeError as error:
            raise KubeError(f"the API server's discovery at {path} cannot be read: {error}") from error


class _Document(Generic[T]):
    """One document, read by one reader at a time for all who wait."""

    def __init__(self, read: Callable[[], Awaitable[T]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._at = self._failed_at = float("-inf")

    async def get(self, has: Callable[[T], bool]) -> T:
        """Return the document, read again if it is old or lacks something; KubeError."""
        if (found := self._current(has)) is not None:
            return found
        async with self._lock:
            if (found := self._current(has)) is not None:
                return found
            if self._clock() - self._failed_at < PAUSE:
                raise KubeError("the API server's discovery could not be read a moment ago")
            try:
                self._value = await self._read()
            except KubeError:
                self._failed_at = self._clock()
                raise
            self._at = self._clock()
            return self._value

    def _current(self, has: Callable[[T], bool]) -> T | None:
        age = self._clock() - self._at
        return self._value if self._value is not None and age < (BELIEVED if has(self._value) else PAUSE) else None
