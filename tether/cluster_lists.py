"""Reading a whole cluster as a person with rights does: lists page by page, and Secrets that never show in a repr."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import yaml

from eventcore import logs
from eventcore.errors import KubeError, NotFoundError
from eventcore.kube import api_path
from eventcore.objects import CAPSULE_GROUP, Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.kube import KubeClient

T = TypeVar("T")

PAGE = 500
MOST_CONFIGS: Final = 16_384
"""Kubeconfigs that are remembered as read."""
LEGACY_TYPE = "kubernetes.io/service-account-token"
LEGACY_ACCOUNT = "kubernetes.io/service-account.name"
ADDON = "capsule-addon-fluxcd"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
RBAC = "rbac.authorization.k8s.io"


class Secret(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """v1 Secret, with what it holds; values are base64."""

    metadata: Meta
    type: str = "Opaque"
    data: dict[str, str] = {}
    immutable: bool = False

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, data={logs.HIDDEN})"

    def __rich_repr__(self) -> Any:
        yield "metadata", self.metadata
        yield "data", logs.HIDDEN

    @property
    def is_legacy_token(self) -> bool:
        return self.type == LEGACY_TYPE

    def text(self, key: str) -> str:
        """Return a value decoded, "" where there is none or it is no text."""
        try:
            return base64.b64decode(self.data.get(key, ""), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a kubeconfig says, by its current context. ``token`` is "" where it logs in otherwise."""

    server: str = ""
    ca: bytes = b""
    token: str = ""
    namespace: str = ""

    def __repr__(self) -> str:
        return f"Config(server={self.server!r}, namespace={self.namespace!r}, token={logs.HIDDEN})"

    def __rich_repr__(self) -> Any:
        yield "server", self.server


class Container(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec.containers[]."""

    name: str = ""
    image: str = ""
    command: list[str] = []
    args: list[str] = []


class PodSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec of a pod."""

    containers: list[Container] = []


class PodTemplate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec.template."""

    spec: PodSpec = PodSpec()


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec of a Deployment."""

    replicas: int = 1
    template: PodTemplate = PodTemplate()


class Deployment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """apps/v1 Deployment."""

    metadata: Meta
    spec: DeploymentSpec = DeploymentSpec()

    @property
    def is_addon(self) -> bool:
        """Tell whether it is the controller of capsule-addon-fluxcd."""
        label = self.metadata.labels.get("app.kubernetes.io/name") == ADDON
        return label or any("capsule-addon-flux" in c.image for c in self.spec.template.spec.containers)


class RawItem(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec.resources[].rawItems[], by name alone."""

    kind: str = ""
    metadata: dict[str, Any] = {}


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec.resources[]."""

    raw_items: list[RawItem] = []


class GlobalResourceSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """spec of a GlobalTenantResource. Pruning is on unless it is switched off."""

    pruning_on_delete: bool | None = None
    resources: list[ResourceSpec] = []


class GlobalResource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """capsule.clastix.io/v1beta2 GlobalTenantResource, without the content of what it replicates."""

    metadata: Meta
    spec: GlobalResourceSpec = GlobalResourceSpec()

    @property
    def of_addon(self) -> bool:
        return self.metadata.labels.get(LABEL_MANAGED_BY) == ADDON

    def secrets(self) -> set[tuple[str, str]]:
        """Return (namespace, name) of the Secrets that it was made from."""
        items = (item for resource in self.spec.resources for item in resource.raw_items if item.kind == "Secret")
        return {(str(i.metadata.get("namespace", "")), str(i.metadata.get("name", ""))) for i in items}


class _PageMeta(msgspec.Struct, rename={"next": "continue"}):
    next: str = ""


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    metadata: _PageMeta = msgspec.field(default_factory=_PageMeta)


async def list_all(client: KubeClient, kind: type[T], path: str, *, params: Mapping[str, str] | None = None) -> list[T]:
    """Return every object of a collection; KubeError."""
    found: list[T] = []
    token = ""
    while True:
        query: dict[str, str | int | bool] = {"limit": PAGE, **(params or {})}
        if token:
            query["continue"] = token
        page = await client.get_as(_Page, path, params=query)
        try:
            found += [msgspec.json.decode(item, type=kind) for item in page.items]
        except msgspec.DecodeError as error:
            raise KubeError(f"GET {path} answered with an object of another shape: {error}") from error
        token = page.metadata.next
        if not token:
            return found


async def list_if_served(client: KubeClient, kind: type[T], path: str) -> list[T]:
    """Return every object of a kind that may not be installed, none then."""
    try:
        return await list_all(client, kind, path)
    except NotFoundError:
        return []


async def get_if_there(client: KubeClient, kind: type[T], path: str) -> T | None:
    """Return an object, None when there is none."""
    try:
        return await client.get_as(kind, path)
    except NotFoundError:
        return None


def capsule_path(plural: str, name: str = "") -> str:
    """Return the path of a cluster-scoped kind of Capsule."""
    return api_path(CAPSULE_GROUP, "v1beta2", plural, name=name)


def secret_path(namespace: str = "", name: str = "") -> str:
    """Return the path of one Secret, of those of a namespace, or of all."""
    return api_path("", "v1", "secrets", namespace=namespace, name=name)


@lru_cache(MOST_CONFIGS)
def read_config(text: str) -> Config | None:
    """Return what a kubeconfig says, None where it is not one.

    Remembered, since reading YAML takes milliseconds, and each account is compared with every kubeconfig of its name.
    """
    try:
        whole = yaml.safe_load(text)
        contexts, clusters, users = (
            {entry["name"]: entry[inner] for entry in whole[section]}
            for section, inner in (("contexts", "context"), ("clusters", "cluster"), ("users", "user"))
        )
        context = contexts[whole["current-context"]]
        cluster, user = clusters[context["cluster"]], users[context["user"]]
        ca = base64.b64decode(cluster.get("certificate-authority-data") or "", validate=True)
        return Config(
            server=str(cluster.get("server") or ""),
            ca=ca,
            token=str(user.get("token") or ""),
            namespace=str(context.get("namespace") or ""),
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return None
