"""Plain YAML manifests: where ours are, and how they are applied.

Applied is what ``kubectl apply --server-side`` does: an API's own discovery tells the path of each kind, so anything
that the API server serves can stand in a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from eventcore.errors import NotFoundError, StartError
from eventcore.kube import api_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube import KubeClient

Object = dict[str, Any]
"""One Kubernetes object as YAML holds it."""


class _Row(msgspec.Struct):
    name: str
    kind: str
    namespaced: bool


class _ResourceList(msgspec.Struct):
    resources: list[_Row]


def shipped(name: str) -> Path:
    """Return a file or folder that comes with Tether, for example ``examples``; StartError when it is not there."""
    package = Path(__file__).resolve().parent
    # In a wheel they lie inside the package, in a working copy beside it.
    for root in (package / "shipped", package.parent):
        if (root / name).exists():
            return root / name
    raise StartError(f"{name} is missing from this installation of Tether: install it again")


def read(path: Path) -> list[Object]:
    """Return the objects of a YAML file, or of all ``*.yaml`` of a folder by name; StartError names what is wrong."""
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    objects: list[Object] = []
    for file in files:
        try:
            objects += [obj for obj in yaml.safe_load_all(file.read_text()) if obj is not None]
        except (OSError, yaml.YAMLError) as error:
            raise StartError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return objects


def title(obj: Object) -> str:
    """Return ``Kind namespace/name`` of an object."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{obj['kind']} {namespace}/{metadata['name']}" if namespace else f"{obj['kind']} {metadata['name']}"


class Applier:
    """Applies objects to one API server as one field manager."""

    def __init__(self, client: KubeClient, manager: str) -> None:
        self._client = client
        self._manager = manager
        self._rows: dict[str, dict[str, _Row]] = {}

    async def apply(self, objects: Iterable[Object]) -> None:
        """Apply in the order given; StartError for a kind that is not served, KubeError otherwise."""
        for obj in objects:
            await self._client.apply(await self.path(obj), obj, manager=self._manager, force=True)

    async def path(self, obj: Object) -> str:
        """Return the path of an object on this API server."""
        api_version = str(obj["apiVersion"])
        group, _, version = api_version.rpartition("/")
        row = (await self._served(api_version)).get(str(obj["kind"]))
        if row is None:
            raise StartError(
                f"{title(obj)} cannot be applied: the API server at {self._client.server_url} serves no kind "
                f"{obj['kind']} of {api_version}; install its CustomResourceDefinition"
            )
        metadata = obj["metadata"]
        namespace = metadata["namespace"] if row.namespaced else ""
        return api_path(group, version, row.name, namespace=namespace, name=metadata["name"])

    async def _served(self, api_version: str) -> dict[str, _Row]:
        if api_version not in self._rows:
            try:
                root = "/apis/" if "/" in api_version else "/api/"
                found = await self._client.get_as(_ResourceList, root + api_version)
            except NotFoundError:
                return {}
            self._rows[api_version] = {row.kind: row for row in found.resources if "/" not in row.name}
        return self._rows[api_version]
