"""What should be in the cluster for an account: RBAC objects, Secrets and the kubeconfig.

Functions without a client. Every object carries the component label and the account annotation.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import yaml

from eventcore.kube import ObjectRef, api_path
from eventcore.kube_paths import object_path
from eventcore.objects import ANNOTATION_ACCOUNT, ANNOTATION_TENANT, COMPONENT_CA, LABEL_COMPONENT
from workers.names import binding_name, lockdown_name, role_binding_name, token_name
from workers.own_annotations import generation_in, secret_name_in, time_in
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

ANNOTATION_GENERATION: Final = "capsule-tether.io/generation"
ANNOTATION_MINTED: Final = "capsule-tether.io/minted"
ANNOTATION_WRITTEN: Final = "capsule-tether.io/written"
ANNOTATION_EXPIRES: Final = "capsule-tether.io/expires"
ANNOTATION_RETIRE: Final = "capsule-tether.io/retire"
ANNOTATION_BINDING: Final = "capsule-tether.io/binding"
ANNOTATION_BINDING_UID: Final = "capsule-tether.io/binding-uid"
ANNOTATION_ACCOUNT_UID: Final = "capsule-tether.io/account-uid"
ANNOTATION_DIGEST: Final = "capsule-tether.io/digest"
"""On the token Secret and on each kubeconfig: which token is in it; see :func:`digest`."""
ANNOTATION_MODE: Final = "capsule-tether.io/token-mode"
"""On the Secrets of a token: how it was made. On a ServiceAccount: how its tokens are to be made."""
ANNOTATION_ROTATE: Final = "capsule-tether.io/rotate"
"""On the token Secret: the generation that must be replaced, because a namespace that held it left the tenant."""
ANNOTATION_LEFT: Final = "capsule-tether.io/left-binding"
"""On the ClusterRole of an account: the uid of the RoleBinding at home that an administrator made, which is left."""
LABEL_FLUX_WATCH: Final = "reconcile.fluxcd.io/watch"

RBAC_GROUP: Final = "rbac.authorization.k8s.io"
_PATHS: Final = {
    "Secret": ("", "v1", "secrets"),
    "ConfigMap": ("", "v1", "configmaps"),
    "RoleBinding": (RBAC_GROUP, "v1", "rolebindings"),
    "ClusterRole": (RBAC_GROUP, "v1", "clusterroles"),
    "ClusterRoleBinding": (RBAC_GROUP, "v1", "clusterrolebindings"),
}
SECRET_TYPE: Final = "Opaque"  # noqa: S105 -- a type of Secret, not one
LEGACY_TYPE: Final = "kubernetes.io/service-account-token"
"""The type of a Secret that Kubernetes itself fills with a token, which is good as long as the Secret stands."""
LEGACY_ACCOUNT: Final = "kubernetes.io/service-account.name"
_LONGEST_OVERLAP: Final = timedelta(days=3650)
"""A longer one is not of Tether's making."""

TokenMode = Literal["bound", "static"]


class Target(msgspec.Struct, frozen=True, order=True):
    """An object that Tether may write: a kind of ``_PATHS``, namespace ("" for cluster scope) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}" if self.namespace else f"{self.kind}/{self.name}"

    @property
    def collection(self) -> str:
        group, version, plural = _PATHS[self.kind]
        return api_path(group, version, plural, namespace=self.namespace)

    @property
    def path(self) -> str:
        """The path of the object; NotFoundError for a name that no object can have."""
        group, version, plural = _PATHS[self.kind]
        return object_path(group, version, plural, self.name, namespace=self.namespace)

    @property
    def api_version(self) -> str:
        group, version, _ = _PATHS[self.kind]
        return f"{group}/{version}" if group else version


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One object as it should be. ``content`` is everything beside apiVersion, kind and metadata.

    ``account`` is None for a copy of the CA alone.
    """

    target: Target
    component: str
    account: Account | None
    tenant: str = ""
    content: dict[str, Any]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[dict[str, Any]] = []

    def body(self, uid: str = "") -> dict[str, Any]:
        """Return the JSON to write; with a uid, server-side apply touches that very object and never makes one."""
        annotations = {**({ANNOTATION_ACCOUNT: str(self.account)} if self.account else {}), **self.annotations}
        if self.tenant:
            annotations[ANNOTATION_TENANT] = self.tenant
        metadata: dict[str, Any] = {
            "name": self.target.name,
            "labels": {LABEL_COMPONENT: self.component, **self.labels},
            "annotations": annotations,
        }
        if self.target.namespace:
            metadata["namespace"] = self.target.namespace
        if uid:
            metadata["uid"] = uid
        if self.owner_references:
            metadata["ownerReferences"] = self.owner_references
        return {"apiVersion": self.target.api_version, "kind": self.target.kind, "metadata": metadata, **self.content}


def account_ref(account: Account, uid: str = "") -> ObjectRef:
    """Return what an Event about an account refers to."""
    return ObjectRef(api_version="v1", kind="ServiceAccount", name=account.name, namespace=account.namespace, uid=uid)


def namespace_ref(name: str, uid: str = "") -> ObjectRef:
    """Return what an Event about a Namespace refers to."""
    return ObjectRef(api_version="v1", kind="Namespace", name=name, uid=uid)


def authority_copy(target: Target, bundle: bytes) -> Manifest:
    """Return a copy of the proxy's CA: public certificates, whatever the source holds beside them."""
    if target.kind == "Secret":
        content: dict[str, Any] = {"type": SECRET_TYPE, "data": dict.fromkeys(("ca", "ca.crt"), encoded(bundle))}
    else:
        content = {"data": {"ca.crt": bundle.decode()}}
    return Manifest(target=target, component=COMPONENT_CA, account=None, content=content)


def home_role_binding(account: Account, tenant: str, cluster_role: str) -> Manifest:
    """Return the RoleBinding that gives the account its rights at home."""
    return Manifest(
        target=Target("RoleBinding", account.namespace, role_binding_name(account)),
        component="rbac",
        account=account,
        tenant=tenant,
        content={"roleRef": _role_ref(cluster_role), "subjects": [_subject(account)]},
    )


def lockdown_role_binding(account: Account, tenant: str, flux: Account, cluster_role: str) -> Manifest:
    """Return the RoleBinding that lets Flux act as the account ``flux`` in that account's namespace, for an owner."""
    return Manifest(
        target=Target("RoleBinding", flux.namespace, lockdown_name(account)),
        component="rbac",
        account=account,
        tenant=tenant,
        content={"roleRef": _role_ref(cluster_role), "subjects": [_subject(flux)]},
    )


def impersonator(account: Account, tenant: str, name: str, *, left: str = "") -> tuple[Manifest, Manifest]:
    """Return the ClusterRole that lets the account impersonate itself, as Flux asks it to, and its binding.

    ``left``: the uid of a RoleBinding at home that is to be remembered as an administrator's.
    """
    rule = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [account.username]}
    role = Manifest(
        target=Target("ClusterRole", "", name),
        component="rbac",
        account=account,
        tenant=tenant,
        content={"rules": [rule]},
        annotations={ANNOTATION_LEFT: left} if left else {},
    )
    binding = Manifest(
        target=Target("ClusterRoleBinding", "", name),
        component="rbac",
        account=account,
        tenant=tenant,
        content={"roleRef": _role_ref(name), "subjects": [_subject(account)]},
    )
    return role, binding


def _role_ref(name: str) -> dict[str, str]:
    return {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": name}


def _subject(account: Account) -> dict[str, str]:
    return {"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the token in a token Secret, all but the token.

    ``minted`` and ``expires`` are the API server's times; ``written`` and ``retire`` (when the generations before it
    are revoked) come from the clock of the worker that minted it. ``mode``: ``bound`` to the Secret ``binding`` by
    TokenRequest, or ``static``, the token that Kubernetes put into that Secret.
    """

    generation: int
    binding: str
    binding_uid: str
    account_uid: str
    minted: datetime
    expires: datetime
    written: datetime
    retire: datetime
    digest: str
    mode: TokenMode = "bound"

    def annotations(self) -> dict[str, str]:
        """Return the annotations of the token Secret."""
        return {
            ANNOTATION_GENERATION: str(self.generation),
            ANNOTATION_BINDING: self.binding,
            ANNOTATION_BINDING_UID: self.binding_uid,
            ANNOTATION_ACCOUNT_UID: self.account_uid,
            ANNOTATION_MINTED: timestamp(self.minted),
            ANNOTATION_EXPIRES: timestamp(self.expires),
            ANNOTATION_WRITTEN: timestamp(self.written),
            ANNOTATION_RETIRE: timestamp(self.retire),
            ANNOTATION_DIGEST: self.digest,
            ANNOTATION_MODE: self.mode,
        }

    @classmethod
    def of_annotations(cls, annotations: dict[str, str]) -> Token | None:
        """Return what the annotations of a token Secret say, None when they are not whole."""
        try:
            found = cls(
                generation=generation_of(annotations),
                binding=secret_name_in(annotations[ANNOTATION_BINDING]),
                binding_uid=annotations[ANNOTATION_BINDING_UID],
                account_uid=annotations[ANNOTATION_ACCOUNT_UID],
                minted=time_in(annotations[ANNOTATION_MINTED]),
                expires=time_in(annotations[ANNOTATION_EXPIRES]),
                written=time_in(annotations[ANNOTATION_WRITTEN]),
                retire=time_in(annotations[ANNOTATION_RETIRE]),
                digest=annotations[ANNOTATION_DIGEST],
                mode="static" if annotations.get(ANNOTATION_MODE) == "static" else "bound",
            )
        except (KeyError, ValueError):
            return None
        return found if found.generation and found.retire - found.written <= _LONGEST_OVERLAP else None


def binding_secret(
    account: Account, tenant: str, account_uid: str, generation: int, mode: TokenMode = "bound"
) -> Manifest:
    """Return the Secret of a token generation: deleting it revokes the generation's tokens.

    It is empty, or for a static token of the type that Kubernetes fills.
    """
    static = {LEGACY_ACCOUNT: account.name} if mode == "static" else {}
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": account.name, "uid": account_uid}
    return Manifest(
        target=Target("Secret", account.namespace, binding_name(account, generation)),
        component="token",
        account=account,
        tenant=tenant,
        content={"type": LEGACY_TYPE if static else SECRET_TYPE},
        annotations={
            ANNOTATION_GENERATION: str(generation),
            ANNOTATION_ACCOUNT_UID: account_uid,
            ANNOTATION_MODE: mode,
            **static,
        },
        owner_references=[owner],
    )


def token_secret(account: Account, tenant: str, token: Token, text: str) -> Manifest:
    """Return the Secret that holds the current token."""
    return Manifest(
        target=Target("Secret", account.namespace, token_name(account)),
        component="token",
        account=account,
        tenant=tenant,
        content={"type": SECRET_TYPE, "data": {"token": encoded(text.encode())}},
        annotations=token.annotations(),
    )


def kubeconfig_secret(
    account: Account,
    tenant: str,
    target: Target,
    *,
    config: bytes,
    generation: int,
    token_digest: str = "",
    keys: tuple[str, ...] = ("kubeconfig", "value"),
) -> Manifest:
    """Return the Secret that holds the kubeconfig, by default under the addon's key and under Flux's own.

    ``token_digest`` tells from the metadata alone whether it holds the current token.
    """
    data = encoded(config)
    return Manifest(
        target=target,
        component="kubeconfig",
        account=account,
        tenant=tenant,
        content={"type": SECRET_TYPE, "data": dict.fromkeys(keys, data)},
        labels={LABEL_FLUX_WATCH: "Enabled"},
        annotations={ANNOTATION_GENERATION: str(generation), ANNOTATION_DIGEST: token_digest},
    )


def flux_config_map(
    account: Account, tenant: str, target: Target, *, server: str, trust: bytes, audiences: Iterable[str]
) -> Manifest:
    """Return the ConfigMap for Flux's ``kubeConfig.configMapRef``, with which Flux asks for tokens itself.

    It holds no credential. Flux asks for a token of the account in the namespace of its own object, so it is of use at
    home alone. ``audiences`` are those of the API server behind the proxy, since Flux would ask for the address.
    """
    data = {
        "provider": "generic",
        "address": server,
        "ca.crt": trust.decode(),
        "audiences": "\n".join(audiences),
        "serviceAccountName": account.name,
    }
    return Manifest(
        target=target,
        component="kubeconfig",
        account=account,
        tenant=tenant,
        content={"data": data},
        labels={LABEL_FLUX_WATCH: "Enabled"},
    )


def token_audiences(text: str) -> tuple[str, ...]:
    """Return whom a token says it is for, nobody where it does not say; the token is not verified."""
    try:
        payload = text.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    except (IndexError, ValueError, RecursionError, msgspec.DecodeError):
        return ()
    return (claims.aud,) if isinstance(claims.aud, str) else tuple(claims.aud)


class _Claims(msgspec.Struct):
    aud: str | list[str] = []


def kubeconfig(*, server: str, ca: bytes, token: str, namespace: str) -> bytes:
    """Return a self-contained kubeconfig (YAML): no files, no plugins, TLS verified."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {"server": server, "certificate-authority-data": encoded(ca)}}],
        "users": [{"name": "default", "user": {"token": token}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default", "namespace": namespace}}],
        "current-context": "default",
        "preferences": {},
    }
    text: str = yaml.safe_dump(config, sort_keys=False, width=2**31)
    return text.encode()


def digest(text: str) -> str:
    """Return what tells a token from another one in an annotation, and tells nothing of it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encoded(data: bytes) -> str:
    """Return base64 as a Secret's data has it."""
    return base64.b64encode(data).decode()


def generation_of(annotations: dict[str, str]) -> int:
    """Return the token generation that annotations name, 0 where they name none."""
    return generation_in(annotations.get(ANNOTATION_GENERATION, ""))


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC, to the second or finer."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment(annotations: dict[str, str], name: str) -> datetime | None:
    """Return the time that an annotation says, None without one."""
    try:
        return time_in(annotations[name])
    except (KeyError, ValueError):
        return None
