"""What the roles of a development cluster need in Kubernetes: their accounts and rights, and the proxy's certificate.

The accounts, ClusterRoles and bindings are those that ship in ``deploy/rbac``, so that a right which the code lacks is
missed here first; only whose tokens may be minted is left open. Applying again changes nothing.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from eventcore.errors import NotFoundError, StartError
from eventcore.kube import api_path
from tether import manifests
from tether.dev_layout import HOST, write_private
from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from eventcore.kube import KubeClient
    from tether.dev_layout import Layout, State

ROLES = ("watcher", "router", "worker", "proxy")
SYSTEM_NAMESPACE = "capsule-system"
CA_SECRET = "capsule-proxy"  # noqa: S105 - the name of an object
MANAGER = "tether-dev"
_LABELS = {"app.kubernetes.io/managed-by": MANAGER}
_PROXY_HOSTS = (HOST, "localhost", "capsule-proxy", "capsule-proxy.capsule-system", "capsule-proxy.capsule-system.svc")
_TOKEN_LIFE = timedelta(days=7)
_TOKEN_LEFT = timedelta(days=1)
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


class _Secret(msgspec.Struct):
    metadata: dict[str, Any]
    data: dict[str, str] = {}


async def prepare(client: KubeClient, layout: Layout, state: State) -> None:
    """Make accounts, rights, kubeconfigs of the roles and the proxy's certificate; StartError or KubeError."""
    await _require_capsule(client)
    applier = manifests.Applier(client, MANAGER)
    try:
        await client.get(api_path("", "v1", "namespaces", name=SYSTEM_NAMESPACE))
    except NotFoundError:
        await applier.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}])
    await applier.apply(_for_any_account(manifests.read(manifests.shipped("deploy/rbac"))))
    await _tokens(client, layout, state)
    await _certificate(client, layout, applier)


def _for_any_account(objects: list[manifests.Object]) -> list[manifests.Object]:
    """Take out whose tokens may be minted: a platform says the names of its accounts, and here they may be any."""
    for obj in objects:
        for rule in obj.get("rules") or []:
            if rule["resources"] == ["serviceaccounts/token"]:
                rule.pop("resourceNames", None)
    return objects


async def _require_capsule(client: KubeClient) -> None:
    try:
        await client.get("/apis/capsule.clastix.io/v1beta2")
    except NotFoundError as error:
        raise StartError(
            f"the API server at {client.server_url} serves no capsule.clastix.io/v1beta2: install Capsule there first"
        ) from error


async def _tokens(client: KubeClient, layout: Layout, state: State) -> None:
    now = datetime.now(UTC)
    present = all(layout.kubeconfig(role).exists() for role in ROLES)
    if present and state.tokens_expire and datetime.fromisoformat(state.tokens_expire) - now > _TOKEN_LEFT:
        return
    expires: list[datetime] = []
    for role in ROLES:
        issued = await client.token_request(
            SYSTEM_NAMESPACE, f"tether-{role}", expiration_seconds=int(_TOKEN_LIFE.total_seconds())
        )
        text = kubeconfig(client.server_url, client.ca_pem, {"token": issued.token}, namespace=SYSTEM_NAMESPACE)
        write_private(layout.kubeconfig(role), text)
        expires.append(issued.expires)
    state.tokens_expire = min(expires).isoformat()


async def _certificate(client: KubeClient, layout: Layout, applier: manifests.Applier) -> None:
    """Keep one certificate in the folder and in the Secret, the one of the folder if both have one."""
    path = api_path("", "v1", "secrets", namespace=SYSTEM_NAMESPACE, name=CA_SECRET)
    try:
        secret = await client.get_as(_Secret, path)
    except NotFoundError:
        secret = None
    if secret is not None and (secret.metadata.get("labels") or {}).get("app.kubernetes.io/managed-by") != MANAGER:
        raise StartError(
            f"Secret {SYSTEM_NAMESPACE}/{CA_SECRET} at {client.server_url} belongs to a proxy that is installed there; "
            "`tether dev` would replace its certificate: use another cluster, or remove that proxy and its Secret"
        )
    if not all(path.exists() for path in (layout.proxy_certificate, layout.proxy_key, layout.proxy_ca)):
        authority = ClusterPki.load_or_create(layout.proxy)
        certificate, key = authority.issue_serving(_PROXY_HOSTS)
        write_private(layout.proxy_key, key)
        write_private(layout.proxy_certificate, certificate)
    files = {"tls.crt": layout.proxy_certificate, "tls.key": layout.proxy_key, "ca.crt": layout.proxy_ca}
    data = {key: base64.b64encode(file.read_bytes()).decode() for key, file in files.items()}
    metadata = {"name": CA_SECRET, "namespace": SYSTEM_NAMESPACE, "labels": _LABELS}
    await applier.apply(
        [{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}]
    )


def kubeconfig(server: str, ca_pem: bytes | None, user: dict[str, str], *, namespace: str = "default") -> str:
    """Return the YAML of a kubeconfig with one context; ``user`` is the body of its user entry."""
    cluster: dict[str, Any] = {"server": server}
    if ca_pem:
        cluster["certificate-authority-data"] = base64.b64encode(ca_pem).decode()
    context = {"cluster": "default", "user": "default", "namespace": namespace}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default", "cluster": cluster}],
            "users": [{"name": "default", "user": user}],
            "contexts": [{"name": "default", "context": context}],
            "current-context": "default",
        },
        sort_keys=False,
    )


def copy_kubeconfig(source: Path, target: Path) -> None:
    """Copy a kubeconfig so that it works from another folder; StartError when it is none."""
    try:
        value = yaml.safe_load(source.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartError(
            f"--kubeconfig {source} cannot be read: {getattr(error, 'strerror', None) or 'no YAML'}"
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("clusters"), list):
        raise StartError(f"--kubeconfig {source} is not a kubeconfig: it names no clusters")
    for section, inner in (("clusters", "cluster"), ("users", "user")):
        for entry in value.get(section) or []:
            body = entry.get(inner) or {}
            for key in _FILES:
                if body.get(key):
                    body[key] = str(source.resolve().parent / Path(body[key]).expanduser())
            command = (body.get("exec") or {}).get("command", "")
            if "/" in command:
                body["exec"]["command"] = str(source.resolve().parent / command)
    write_private(target, yaml.safe_dump(value, sort_keys=False))
