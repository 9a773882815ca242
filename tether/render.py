"""What `tether tenant render` writes: every object of a tenant that Flux reconciles from Git, as YAML with comments.

Pure: the same options give the same bytes. The RBAC objects are those that the workers would make, without the workers'
marks: they find them as they should be, and neither label nor remove them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
import yaml

from eventcore.objects import ANNOTATION_ENABLED, ANNOTATION_GLOBAL, CAPSULE_GROUP
from workers.desired import home_role_binding, impersonator
from workers.names import cluster_role_name, kubeconfig_name
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from workers.desired import Manifest

Object = dict[str, Any]

SOURCE_API: Final = "source.toolkit.fluxcd.io/v1"
KUSTOMIZE_API: Final = "kustomize.toolkit.fluxcd.io/v1"
LABEL_FLUX_TENANT: Final = "toolkit.fluxcd.io/tenant"
PRIVILEGED: Final = frozenset(
    {"default", "kube-system", "kube-public", "kube-node-lease", "flux-system", "capsule-system"}
)
"""Namespaces that no tenant's account may live in: it gets cluster-admin at home."""

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_INTERVAL: Final = re.compile(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+")
_MAX_LABEL: Final = 63
_MAX_SUBDOMAIN: Final = 253
_NUMBERLIKE: Final = re.compile(r"[-+.]?[0-9][0-9a-fx_.:+-]*|.", re.IGNORECASE)
"""What some reader of YAML may take for a number or a boolean (``1e3``, ``y``), and so stands in quotes."""
_WIDTH: Final = 2**31  # never fold a line: a certificate or a path stays in one piece


class Git(msgspec.Struct, frozen=True, kw_only=True):
    """Where the tenant's desired state lies. ``secret`` names a Secret at home with the credentials, "" for none."""

    url: str
    branch: str = "main"
    path: str = "./"
    interval: str = "1m"
    secret: str = ""
    target_namespace: str = ""
    prune: bool = True


class Secretless(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy for Flux's ``kubeConfig.configMapRef``: Flux asks for short-lived tokens itself. ``ca`` is PEM."""

    address: str
    ca: str
    audiences: tuple[str, ...]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to render. ``kubeconfig_global`` None leaves the annotation out, which means the tenant's namespaces too."""

    tenant: str
    account: Account
    annotation: bool = True
    kubeconfig_global: bool | None = None
    rbac: bool = True
    home_cluster_role: str = "cluster-admin"
    tenant_cluster_role: str = "cluster-admin"
    additional_role_bindings: bool = True
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    namespace_quota: int | None = None
    git: Git | None = None
    secretless: Secretless | None = None


class Section(msgspec.Struct, frozen=True):
    """One object and what it is for."""

    comment: str
    obj: Object


def check(options: Options) -> None:
    """ValueError, one line, for what Kubernetes, Capsule or Flux would refuse, and for a home that is privileged."""
    account = options.account
    _dns(options.tenant, "the tenant's name", _LABEL, _MAX_LABEL)
    _dns(account.namespace, "the namespace in --owner", _LABEL, _MAX_LABEL)
    _dns(account.name, "the account in --owner", _SUBDOMAIN, _MAX_SUBDOMAIN)
    if account.namespace in PRIVILEGED:
        raise ValueError(
            f"the namespace in --owner is {account.namespace}, and the account gets {options.home_cluster_role} in it: "
            "give the account a namespace of its own"
        )
    for what, name in (
        ("--home-cluster-role", options.home_cluster_role),
        ("--cluster-role", options.tenant_cluster_role),
    ):
        if not name or "/" in name or "%" in name or name in {".", ".."}:
            raise ValueError(f"{what} {name!r} is not the name of a ClusterRole")
    for person in (*options.users, *options.groups):
        if not person.strip():
            raise ValueError("--user and --group need a name")
    if options.git is not None:
        _check_git(options.git)
    if options.secretless is not None:
        _check_secretless(options.secretless)


def _dns(name: str, what: str, shape: re.Pattern[str], longest: int) -> None:
    if len(name) > longest:
        raise ValueError(f"{what} is longer than {longest} characters")
    if not shape.fullmatch(name):
        raise ValueError(
            f"{what}, {name!r}, must be lower-case letters, digits and '-', and begin and end with none '-'"
        )


def _check_git(git: Git) -> None:
    try:
        parts = urlsplit(git.url)
        password = parts.password
    except ValueError:
        raise ValueError("--git-url is not a URL") from None
    if parts.scheme not in {"https", "http", "ssh"} or not parts.hostname:
        raise ValueError("--git-url must begin with https://, http:// or ssh://, as Flux asks")
    if password or (parts.username and parts.scheme != "ssh"):
        raise ValueError("--git-url holds credentials: put them in a Secret at home, and name it with --git-secret")
    if not _INTERVAL.fullmatch(git.interval):
        raise ValueError(f"--git-interval {git.interval!r} is not a duration such as 30s, 5m or 1h30m")
    if not git.branch or git.branch != git.branch.strip():
        raise ValueError("--git-branch needs a name")
    if git.secret:
        _dns(git.secret, "--git-secret", _SUBDOMAIN, _MAX_SUBDOMAIN)
    if git.target_namespace:
        _dns(git.target_namespace, "--target-namespace", _LABEL, _MAX_LABEL)


def _check_secretless(secretless: Secretless) -> None:
    try:
        parts = urlsplit(secretless.address)
    except ValueError:
        raise ValueError("--proxy-url is not a URL") from None
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("--proxy-url must begin with https://, since Flux sends tokens there")
    if "-----BEGIN CERTIFICATE-----" not in secretless.ca or "PRIVATE KEY" in secretless.ca:
        raise ValueError("--proxy-ca-file does not hold certificates alone, in PEM")


def sections(options: Options) -> list[Section]:
    """Return the objects in the order in which they can be applied, without the CapsuleConfiguration."""
    return list(_sections(options))


def as_yaml(parts: Iterable[Section]) -> str:
    """Return YAML documents, each below its comment."""
    return "---\n".join(f"{_comment(part.comment)}{_dump(part.obj)}" for part in parts)


def _sections(options: Options) -> Iterator[Section]:
    account = options.account
    yield Section(
        f"Tenant {options.tenant}, reconciled from Git by the ServiceAccount {account}.\n\n"
        "The home of the account. It stays outside the tenant, so that the tenant can make its first namespace.",
        _object("v1", "Namespace", account.namespace, labels={LABEL_FLUX_TENANT: options.tenant}),
    )
    yield Section(
        "The owner. The annotation is what Tether looks for: it gives the account its token and its kubeconfig."
        if options.annotation
        else "The owner. Without Tether's annotation, its kubeconfig is made by `tether kubeconfig generate`.",
        _object("v1", "ServiceAccount", account.name, account.namespace, annotations=_annotations(options)),
    )
    if options.rbac:
        yield from _rbac(options)
    yield Section(_tenant_comment(options), _tenant(options))
    if options.secretless is not None:
        yield Section(
            "How Flux reaches the proxy without a stored token: it asks for one that lives shortly, as the account.",
            _config_map(account, options.secretless),
        )
    if options.git is not None:
        yield from _flux(options, options.git)


def _annotations(options: Options) -> dict[str, str]:
    found = {ANNOTATION_ENABLED: "true"} if options.annotation else {}
    if options.kubeconfig_global is not None:
        found[ANNOTATION_GLOBAL] = "true" if options.kubeconfig_global else "false"
    return found


def _rbac(options: Options) -> Iterator[Section]:
    account = options.account
    yield Section(
        "At home the account makes Flux objects, whose targetNamespace is a namespace of the tenant.",
        _plain(home_role_binding(account, options.tenant, options.home_cluster_role)),
    )
    role, binding = impersonator(account, options.tenant, cluster_role_name(account))
    yield Section(
        "Flux logs in with the kubeconfig and then impersonates the account: it may be itself, and nobody else.",
        _plain(role),
    )
    yield Section("", _plain(binding))


def _plain(manifest: Manifest) -> Object:
    """Return an object of the workers without their marks: whoever applies this YAML owns it."""
    target = manifest.target
    return {**_object(target.api_version, target.kind, target.name, target.namespace), **manifest.content}


def _tenant_comment(options: Options) -> str:
    if not options.additional_role_bindings:
        return "The tenant. Capsule binds its owners in each of its namespaces."
    return (
        "The tenant. Capsule binds its owners to `admin` in each of its namespaces, which has no rights on custom "
        f"resources;\nthe additional binding to `{options.tenant_cluster_role}` has, in these namespaces alone."
    )


def _tenant(options: Options) -> Object:
    account = options.account
    spec: Object = {
        "owners": [
            {"kind": "ServiceAccount", "name": account.username},
            *({"kind": "User", "name": name} for name in sorted(set(options.users))),
            *({"kind": "Group", "name": name} for name in sorted(set(options.groups))),
        ]
    }
    if options.additional_role_bindings:
        subject = {"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}
        spec["additionalRoleBindings"] = [{"clusterRoleName": options.tenant_cluster_role, "subjects": [subject]}]
    if options.namespace_quota is not None:
        spec["namespaceOptions"] = {"quota": options.namespace_quota}
    return {**_object(f"{CAPSULE_GROUP}/v1beta2", "Tenant", options.tenant), "spec": spec}


def _config_map(account: Account, secretless: Secretless) -> Object:
    data = {
        "provider": "generic",
        "address": secretless.address,
        "ca.crt": secretless.ca,
        "audiences": "\n".join(secretless.audiences),
        "serviceAccountName": account.name,
    }
    return {**_object("v1", "ConfigMap", kubeconfig_name(account), account.namespace), "data": data}


def _flux(options: Options, git: Git) -> Iterator[Section]:
    account = options.account
    source: Object = {"interval": git.interval, "url": git.url, "ref": {"branch": git.branch}}
    if git.secret:
        source["secretRef"] = {"name": git.secret}
    yield Section(
        "The tenant's repository.",
        {**_object(SOURCE_API, "GitRepository", options.tenant, account.namespace), "spec": source},
    )
    reference = (
        {"secretRef": {"name": kubeconfig_name(account), "key": "kubeconfig"}}
        if options.secretless is None
        else {"configMapRef": {"name": kubeconfig_name(account)}}
    )
    spec: Object = {
        "interval": git.interval,
        "serviceAccountName": account.name,
        "kubeConfig": reference,
        "sourceRef": {"kind": "GitRepository", "name": options.tenant},
        "path": git.path,
        "prune": git.prune,
    }
    if git.target_namespace:
        spec["targetNamespace"] = git.target_namespace
    yield Section(
        "What Flux applies from it: through the proxy, as the account, and so within what the tenant may.",
        {**_object(KUSTOMIZE_API, "Kustomization", options.tenant, account.namespace), "spec": spec},
    )


def _object(
    api_version: str,
    kind: str,
    name: str,
    namespace: str = "",
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Object:
    metadata: Object = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, writes text of several lines as a block, and never an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - yaml's own
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's own
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else "'" if _NUMBERLIKE.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(obj: Object) -> str:
    text: str = yaml.dump(obj, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=_WIDTH)
    return text


def _comment(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
