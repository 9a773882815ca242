"""What `tether kubeconfig generate` decides: which token, which CA, which Secret, and whether it may be written.

Functions without a client. Whatever they refuse is a StartError: one line that says what is wrong and what to do.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import jwt
import msgspec
import yaml

from eventcore.errors import StartError
from eventcore.objects import ANNOTATION_ENABLED
from workers.desired import LABEL_FLUX_WATCH, SECRET_TYPE, Target, encoded
from workers.names import kubeconfig_name, token_name
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.existing import Existing

Object = dict[str, Any]

ANNOTATION_GENERATED: Final = "capsule-tether.io/generated-for"
"""On the Secrets of this command: ``<namespace>/<name>`` of the account. The workers' own marks are others, so that
they neither prune these Secrets nor take them for theirs."""
STATIC_TYPE: Final = "kubernetes.io/service-account-token"
ANNOTATION_ACCOUNT_NAME: Final = "kubernetes.io/service-account.name"
ANNOTATION_ACCOUNT_UID: Final = "kubernetes.io/service-account.uid"
LABEL_INVALID: Final = "kubernetes.io/legacy-token-invalid-since"
"""On a token Secret that the cluster has ceased to accept, because nobody used it for long."""
CA_KEYS: Final = ("ca", "ca.crt")
"""Where the CA lies if no key is named: the generator's default, then the key that cert-manager writes."""
FLUX_KEY: Final = "value"
"""The key that Flux reads where a Kustomization or HelmRelease names none."""
LEAST_LIFE: Final = 600.0
EXTENDED_LIFE: Final = 3607
RENEWED_AT: Final = 2 / 3
"""Share of its life after which a token that expires is made anew."""

Verdict = Literal["create", "update", "same"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate. The first seven are the generator's flags; ``ca_key`` "" means CA_KEYS.

    ``token_life`` is the life in seconds of a token that expires, None for one that does not.
    """

    serviceaccount: str
    namespace: str = "default"
    server: str
    tls_secret_name: str
    tls_secret_namespace: str = "default"  # noqa: S105 - a name
    ca_key: str = ""
    secret_key: str = "kubeconfig"  # noqa: S105 - the name of a key
    token_life: float | None = None
    adopt: bool = False

    @property
    def account(self) -> Account:
        return Account(self.namespace, self.serviceaccount)

    @property
    def target(self) -> Target:
        """The Secret that gets the kubeconfig."""
        return Target("Secret", self.namespace, kubeconfig_name(self.account))

    @property
    def tls_secret(self) -> Target:
        return Target("Secret", self.tls_secret_namespace, self.tls_secret_name)


def check(options: Options) -> None:
    """Refuse options that cannot be: what is missing, and a server that no kubeconfig of ours may name."""
    needed = {
        "--serviceaccount": (options.serviceaccount, "name the ServiceAccount that the kubeconfig is for"),
        "--server": (options.server, "give the proxy's URL, such as https://capsule-proxy.capsule-system.svc:9001"),
        "--server-tls-secret-name": (options.tls_secret_name, "name the Secret that holds the proxy's CA"),
        "--namespace": (options.namespace, "name the namespace of the ServiceAccount"),
        "--server-tls-secret-namespace": (options.tls_secret_namespace, "name the namespace of the CA's Secret"),
        "--kubeconfig-secret-key": (options.secret_key, "name the key to write"),
    }
    for flag, (value, advice) in needed.items():
        if not value:
            raise StartError(f"{flag} is missing: {advice}")
    if not _is_https(options.server):
        raise StartError(
            f"--server {options.server!r} is not an https:// URL of host and port: the token would travel unprotected"
        )
    life = options.token_life
    if life is not None and (life < LEAST_LIFE or life != int(life)):
        raise StartError("--token-life must be whole seconds, at least 10m: the API server grants no shorter life")
    if life == EXTENDED_LIFE:
        raise StartError(f"--token-life {EXTENDED_LIFE}s: API servers stretch just this life to a year, choose another")


def _is_https(server: str) -> bool:
    try:
        parts = urlsplit(server)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        return False


def check_account(service_account: Object, options: Options) -> None:
    """Refuse to write beside the workers, who make the same Secret for an account that is enabled."""
    annotations = service_account["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_ENABLED) == "true":
        raise StartError(
            f"ServiceAccount {options.account} has the annotation {ANNOTATION_ENABLED}: Tether's workers make its "
            "kubeconfig and keep it current; remove the annotation, or print one with --output -"
        )


def ca_of(secret: Object, options: Options) -> bytes:
    """Return the proxy's CA, PEM, from its Secret."""
    keys = (options.ca_key,) if options.ca_key else CA_KEYS
    data = secret.get("data") or {}
    key = next((key for key in keys if data.get(key)), None)
    if key is None:
        raise StartError(
            f"{options.tls_secret} has no key {' or '.join(keys)}: set --server-tls-secret-ca-key to the one that "
            "holds the proxy's CA"
        )
    pem = _decoded(data[key])
    try:
        ssl.create_default_context(cadata=(pem or b"").decode())
    except (ssl.SSLError, ValueError):
        pem = None
    if not pem:
        raise StartError(f"key {key} of {options.tls_secret} is not a PEM certificate: put the proxy's CA there")
    return pem


def token_of(secret: Object) -> str:
    """Return the token in a token Secret, "" while there is none."""
    text = _decoded((secret.get("data") or {}).get("token", "")) or b""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return ""


def is_static(secret: Object, account: Account, uid: str) -> bool:
    """Tell whether a Secret is a token Secret of this very account, filled or about to be."""
    metadata = secret["metadata"]
    annotations = metadata.get("annotations") or {}
    return (
        secret.get("type") == STATIC_TYPE
        and metadata.get("deletionTimestamp") is None
        and LABEL_INVALID not in (metadata.get("labels") or {})
        and annotations.get(ANNOTATION_ACCOUNT_NAME) == account.name
        and annotations.get(ANNOTATION_ACCOUNT_UID, uid) == uid
    )


def pick_static(secrets: Iterable[Object], account: Account, uid: str) -> Object | None:
    """Return the token Secret to use: a filled one first, then the one of the usual name, then the oldest.

    The same one at each run, whatever the order of the list.
    """
    usual = token_name(account)

    def rank(secret: Object) -> tuple[bool, bool, str, str]:
        metadata = secret["metadata"]
        name = str(metadata["name"])
        return not token_of(secret), name != usual, str(metadata.get("creationTimestamp", "")), name

    return min((secret for secret in secrets if is_static(secret, account, uid)), key=rank, default=None)


def static_secret(account: Account) -> Object:
    """Return the token Secret to create; the API server's controller fills it."""
    annotations = {ANNOTATION_ACCOUNT_NAME: account.name, ANNOTATION_GENERATED: str(account)}
    metadata = {"name": token_name(account), "namespace": account.namespace, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": STATIC_TYPE}


def wanted_data(options: Options, config: bytes) -> dict[str, str]:
    """Return the data of the kubeconfig Secret: the key asked for, and Flux's own."""
    return dict.fromkeys((options.secret_key, FLUX_KEY), encoded(config))


def secret_body(options: Options, data: dict[str, str], existing: Existing | None = None) -> Object:
    """Return the whole kubeconfig Secret; with an existing one, its labels and annotations are kept and added to.

    It then carries that one's resourceVersion, so that nobody's change between is lost.
    """
    metadata: Object = {
        "name": options.target.name,
        "namespace": options.namespace,
        "labels": {**(existing.labels if existing else {}), LABEL_FLUX_WATCH: "Enabled"},
        "annotations": {**(existing.annotations if existing else {}), ANNOTATION_GENERATED: str(options.account)},
    }
    if existing is not None:
        metadata["uid"] = existing.uid
        metadata["resourceVersion"] = existing.metadata["resourceVersion"]
        for kept in ("ownerReferences", "finalizers"):
            if kept in existing.metadata:
                metadata[kept] = existing.metadata[kept]
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": SECRET_TYPE, "data": data}


def is_ours(existing: Existing, account: Account) -> bool:
    """Tell whether an earlier run of this command made the Secret."""
    return existing.annotations.get(ANNOTATION_GENERATED) == str(account) and not existing.marked


def verdict(existing: Existing | None, options: Options, data: dict[str, str]) -> Verdict:
    """Tell what to do with the Secret; StartError where it is not ours to write.

    One that already says what it should is done, whoever made it.
    """
    if existing is None:
        return "create"
    ours = is_ours(existing, options.account)
    if existing.body.get("type") == SECRET_TYPE and (existing.body.get("data") or {}) == data:
        labelled = existing.labels.get(LABEL_FLUX_WATCH) == "Enabled"
        if labelled or not ours:
            return "same"
    check_writable(existing, options)
    return "update"


def check_writable(existing: Existing, options: Options) -> None:
    """Refuse a Secret that is the workers', somebody else's, or that Kubernetes lets nobody change."""
    target = options.target
    if existing.marked:
        raise StartError(
            f"{target} is kept by Tether's workers for {existing.annotations.get('capsule-tether.io/account', '-')}: "
            "there is nothing to generate; print a kubeconfig of its own with --output - --token-life 24h"
        )
    if not is_ours(existing, options.account) and not options.adopt:
        raise StartError(
            f"{target} exists and was not made by this command: delete or rename it, or take it over with --adopt"
        )
    if existing.body.get("immutable") is True:
        raise StartError(f"{target} is immutable: delete it, and run this again")
    if existing.body.get("type") != SECRET_TYPE:
        raise StartError(f"{target} is of type {existing.body.get('type')}, not {SECRET_TYPE}: delete it first")


def good_token(existing: Existing | None, options: Options, uid: str, moment: datetime) -> str:
    """Return the token that expires in a Secret of ours if it still serves, "" if another one is to be made.

    It is this account's, bound to this Secret, of the life asked for, and not past RENEWED_AT of it. What it says is
    believed without its signature: it only decides whether the API server is asked for another.
    """
    if existing is None or not is_ours(existing, options.account) or options.token_life is None:
        return ""
    parts = parse(existing.body.get("data") or {}, options.secret_key)
    try:
        claims = jwt.decode(parts.token, options={"verify_signature": False, "verify_exp": False})
        bound = claims["kubernetes.io"]
        begun, ends = float(claims["iat"]), float(claims["exp"])
        same = bound["serviceaccount"]["uid"] == uid and bound["secret"]["uid"] == existing.uid
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return ""
    lasts = ends - begun <= options.token_life and begun + (ends - begun) * RENEWED_AT > moment.timestamp()
    return parts.token if same and lasts else ""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a kubeconfig says, to tell two apart. Never shown."""

    server: str = ""
    ca: str = ""
    token: str = ""
    namespace: str = ""

    def __repr__(self) -> str:
        return f"Parts(server={self.server!r}, namespace={self.namespace!r})"


def parse(data: dict[str, str], key: str) -> Parts:
    """Return the parts of the kubeconfig under a key of a Secret's data, empty ones where it is none of ours."""
    try:
        config = yaml.safe_load(_decoded(data.get(key, "")) or b"")
        cluster = config["clusters"][0]["cluster"]
        return Parts(
            server=str(cluster["server"]),
            ca=str(cluster["certificate-authority-data"]),
            token=str(config["users"][0]["user"]["token"]),
            namespace=str(config["contexts"][0]["context"]["namespace"]),
        )
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError):
        return Parts()


def differences(old: dict[str, str], new: dict[str, str], key: str) -> list[str]:
    """Return in words what an update changes, without a value of it."""
    before, after = parse(old, key), parse(new, key)
    words = {"server": "server", "ca": "CA", "token": "token", "namespace": "namespace"}
    found = [word for field, word in words.items() if getattr(before, field) != getattr(after, field)]
    if set(old) != set(new):
        found.append("keys")
    return found or ["labels or layout"]


def until_text(moment: datetime) -> str:
    """Return a time as a person and a script read it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _decoded(text: object) -> bytes | None:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        return None
