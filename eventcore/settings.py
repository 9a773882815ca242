"""Every setting of every process, in one documented place.

A setting is a field of `Settings`: its type, default, bounds and one line of help stand together, and the flag
(``--token-ttl``), the variable (``TETHER_TOKEN_TTL``), ``--help`` and the reference page are made from them
(`eventcore.settings_reading`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def _text(section: str, description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra={"section": section})


def _list(section: str, description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra={"section": section, "list": True})


def _number(section: str, description: str, least: float, most: float | None = None) -> msgspec.Meta:
    return msgspec.Meta(description=description, ge=least, le=most, extra={"section": section})


def _seconds(section: str, description: str, least: float = 0.001, most: float | None = None) -> msgspec.Meta:
    return msgspec.Meta(description=description, ge=least, le=most, extra={"section": section, "unit": "duration"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Durations are seconds; files are paths, and "" means none."""

    # What every process shares.
    cluster: Annotated[str, _text("process", "name of this cluster, part of every message id")] = "default"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _text("process", "least level that is logged; debug adds traces")
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"], _text("process", "json: an object a line; console: for people")
    ] = "json"
    http_host: Annotated[str, _text("process", "address for probes and metrics; in a cluster 0.0.0.0")] = "127.0.0.1"
    http_port: Annotated[int, _number("process", "port for probes and metrics; 0 picks a free one", 0, 65535)] = 8080
    shutdown_grace: Annotated[
        float, _seconds("process", "time to finish once it stops; with shutdown-delay below the pod's grace")
    ] = 25.0

    # NATS.
    nats_url: Annotated[str, _text("nats", "servers, comma separated; with tls:// nothing is sent unencrypted")] = (
        "nats://127.0.0.1:4222"
    )
    nats_creds_file: Annotated[str, _text("nats", "credentials file (JWT and seed)")] = ""
    nats_user: Annotated[str, _text("nats", "user, with nats-password-file")] = ""
    nats_password_file: Annotated[str, _text("nats", "file that holds the user's password")] = ""
    nats_ca_file: Annotated[
        str, _text("nats", "CA bundle of the servers; empty: the system's. Never in clear with it")
    ] = ""
    nats_cert_file: Annotated[str, _text("nats", "client certificate, with nats-key-file")] = ""
    nats_key_file: Annotated[str, _text("nats", "key of the client certificate")] = ""
    nats_connect_timeout: Annotated[float, _seconds("nats", "time for the first connection and for a request")] = 5.0
    stream_replicas: Annotated[int, _number("nats", "copies of each stream and bucket: 1, or 3 in a cluster", 1, 5)] = 1
    audit_max_age: Annotated[float, _seconds("nats", "how long audit records are kept", HOUR)] = 30 * DAY
    audit_max_bytes: Annotated[
        int, _number("nats", "bytes of audit records that are kept; the oldest go for new ones", 1024 * 1024)
    ] = 1024 * 1024 * 1024
    dlq_max_age: Annotated[float, _seconds("nats", "how long dead letters are kept", HOUR)] = 90 * DAY
    dlq_max_bytes: Annotated[
        int, _number("nats", "bytes of dead letters that are kept; the oldest go for new ones", 1024 * 1024)
    ] = 256 * 1024 * 1024

    # Kubernetes.
    kubeconfig: Annotated[str, _text("kubernetes", "empty: in-cluster, else KUBECONFIG, else ~/.kube/config")] = ""
    kube_context: Annotated[str, _text("kubernetes", "context of the kubeconfig; empty: the current one")] = ""
    kube_request_timeout: Annotated[float, _seconds("kubernetes", "limit for one request that is not a watch")] = 10.0
    capsule_configuration_name: Annotated[str, _text("kubernetes", "the CapsuleConfiguration in use")] = "default"
    proxy_all_namespaced: Annotated[
        bool, _text("kubernetes", "lists and watches across namespaces hold the tenant's; set for watchers and proxy")
    ] = False
    enable_reflector: Annotated[
        bool,
        _text("kubernetes", "RoleBindings in tenants' namespaces make them listable; set for watchers, workers, proxy"),
    ] = False

    # Watchers.
    watch_timeout: Annotated[float, _seconds("watch", "the API server ends a watch after it", 1, 50 * MINUTE)] = 290.0
    # API servers send a bookmark about once a minute, so anything shorter breaks every quiet watch.
    watch_inactivity: Annotated[float, _seconds("watch", "a watch that is silent this long is opened again", 1)] = 90.0
    list_page_size: Annotated[int, _number("watch", "objects a page", 1, 10_000)] = 500
    mark_interval: Annotated[float, _seconds("watch", "a mark of freshness goes out at least this often")] = 5.0
    mass_delete_share: Annotated[
        float, _number("watch", "a pass that would bury more of a kind, and not of one tenant alone, stops", 0, 1)
    ] = 0.5
    mass_delete_min: Annotated[int, _number("watch", "so many may always be buried in a pass", 0)] = 10
    tombstone_ttl: Annotated[float, _seconds("watch", "how long a deleted object leaves a tombstone", 1)] = 7 * DAY

    # Workers.
    ack_wait: Annotated[float, _seconds("work", "a request that is not answered in it goes to another worker", 1)] = (
        30.0
    )
    pull_expiry: Annotated[float, _seconds("work", "how long one fetch waits for work", 0.1)] = 5.0
    reconcile_timeout: Annotated[float, _seconds("work", "limit for one reconcile", 0.1)] = 20.0
    max_deliver: Annotated[int, _number("work", "deliveries before a request becomes a dead letter", 5)] = 10
    retry_base: Annotated[float, _seconds("work", "first wait after a failure; doubles with each one")] = 1.0
    retry_max: Annotated[float, _seconds("work", "longest wait after a failure")] = 5 * MINUTE
    sweep_interval: Annotated[float, _seconds("work", "every key is looked at again in it, with jitter", 1)] = HOUR
    home_cluster_role: Annotated[str, _text("work", "ClusterRole of the account in its home namespace")] = (
        "cluster-admin"
    )
    impersonator_roles: Annotated[
        bool, _text("work", "make the ClusterRoles by which accounts impersonate themselves past this proxy")
    ] = True
    flux_service_account: Annotated[
        str,
        _text("work", "Flux's --default-service-account, bound in tenant namespaces; empty: not (docs/lockdown.md)"),
    ] = ""
    capsule_users: Annotated[
        bool,
        _text("work", "keep the accounts among the users of Capsule; needs deploy/optional/worker-users.yaml"),
    ] = False
    owner_status_grace: Annotated[
        float, _seconds("work", "how long owners in a Tenant's stale status still count", 0, 30)
    ] = 30.0

    # Tokens and kubeconfigs.
    token_audiences: Annotated[str, _text("token", "comma separated; empty: the API server's own")] = ""
    token_mode: Annotated[
        Literal["bound", "static"],
        _text("token", "bound: short-lived, rotated; static: without end, from a service-account-token Secret"),
    ] = "bound"  # noqa: S105 -- a way to make tokens, not one
    token_ttl: Annotated[float, _seconds("token", "life of a token", 600)] = DAY
    token_rotate_at: Annotated[float, _number("token", "share of its life at which a token is rotated", 0.05, 0.95)] = (
        0.8
    )
    token_rotate_after: Annotated[float, _seconds("token", "rotate at this age instead; 0: token-rotate-at", 0)] = 0.0
    token_overlap: Annotated[float, _seconds("token", "how long the token before stays valid after rotation", 0)] = (
        300.0
    )
    proxy_url: Annotated[str, _text("token", "server in the kubeconfigs")] = (
        "https://capsule-proxy.capsule-system.svc:9001"
    )
    kubeconfig_suffix: Annotated[str, _text("token", "Secrets with a kubeconfig are named <account>-<this>")] = (
        "kubeconfig"
    )
    kubeconfig_keys: Annotated[str, _text("token", "keys of such a Secret; Flux reads value where none is named")] = (
        "kubeconfig,value"
    )
    kubeconfig_namespace_selector: Annotated[
        str, _text("token", "labels of the tenant's namespaces that get a copy, such as app=web; empty: all")
    ] = ""
    kubeconfig_configmaps: Annotated[
        bool, _text("token", "accounts may ask for a ConfigMap for Flux's configMapRef; needs rights on ConfigMaps")
    ] = False
    proxy_ca_namespace: Annotated[str, _text("token", "namespace of the proxy's CA")] = "capsule-system"
    proxy_ca_secret: Annotated[str, _text("token", "Secret that holds the proxy's CA")] = "capsule-proxy"  # noqa: S105 - an object's name
    proxy_ca_configmap: Annotated[
        str, _text("token", "ConfigMap that holds the proxy's CA, instead of the Secret; empty: the Secret")
    ] = ""
    proxy_ca_keys: Annotated[str, _text("token", "keys of it, the first one that is there")] = "ca.crt,ca"
    proxy_ca_overlap: Annotated[
        float, _seconds("token", "how long kubeconfigs also trust the CA before; 0: only the current one", 0)
    ] = DAY

    # The proxy.
    proxy_host: Annotated[str, _text("proxy", "address for tenants; in a cluster 0.0.0.0")] = "127.0.0.1"
    proxy_port: Annotated[int, _number("proxy", "port for tenants; 0 picks a free one", 0, 65535)] = 9001
    max_connections: Annotated[
        int, _number("proxy", "connections of clients to a process; fewer where the limit of open files is low", 1)
    ] = 20_000
    peer_connection_share: Annotated[
        float,
        _number("proxy", "share of max-connections for one address or /64; trusted-proxy-cidrs have none", 0.001, 1),
    ] = 0.25
    shutdown_delay: Annotated[
        float, _seconds("proxy", "how long it takes connections after SIGTERM, not ready, before it drains", 0)
    ] = 5.0
    workers: Annotated[int, _number("proxy", "processes that share the port for tenants", 1, 64)] = 1
    proxy_tls_cert: Annotated[str, _text("proxy", "serving certificate, PEM")] = ""
    proxy_tls_key: Annotated[str, _text("proxy", "its key, PEM")] = ""
    enable_ssl: Annotated[bool, _text("proxy", "false: plain HTTP, for what stands behind something that ends TLS")] = (
        True
    )
    auth_preferred_types: Annotated[
        str, _list("proxy", "ways to tell a caller, in order: BearerToken, TLSCertificate, XForwardedClientCert")
    ] = "BearerToken,TLSCertificate"
    client_ca_file: Annotated[
        str, _text("proxy", "CA bundle of client certificates; empty: the API server's own, as it publishes it")
    ] = ""
    xfcc_header_name: Annotated[str, _text("proxy", "header in which a proxy in front tells a client certificate")] = (
        "X-Forwarded-Client-Cert"
    )
    trusted_proxy_cidrs: Annotated[
        str, _list("proxy", "networks from which that header is believed; empty: from nowhere")
    ] = ""
    allowed_paths: Annotated[str, _list("proxy", "paths that go to the API server as the caller, never filtered")] = (
        "/api,/apis,/version"
    )
    public_paths: Annotated[
        str, _list("proxy", "paths that may be read without a credential, as system:anonymous; no other may")
    ] = ""
    ignored_user_group: Annotated[str, _list("proxy", "groups whose members are never filtered: RBAC answers them")] = (
        ""
    )
    ignored_username: Annotated[str, _list("proxy", "users who are never filtered: RBAC answers them")] = ""
    ignored_impersonation_group: Annotated[
        str, _list("proxy", "expressions (RE2); a group to impersonate that one finds is dropped")
    ] = ""
    impersonation_group_regexp: Annotated[
        str, _text("proxy", "expression (RE2); a group to impersonate that it does not find is dropped")
    ] = ""
    skip_impersonation_review: Annotated[
        bool, _text("proxy", "DANGER: let every caller act as every user and group")
    ] = False
    client_connection_qps: Annotated[
        float, _number("proxy", "reviews a second that the proxy asks for at most; 0: no limit", 0)
    ] = 0.0
    client_connection_burst: Annotated[int, _number("proxy", "reviews at once above that rate", 1)] = 30
    failed_token_rate: Annotated[
        float, _number("proxy", "invalid tokens a second from one address that a process still reviews; 0: no limit", 0)
    ] = 10.0
    identity_cache_ttl: Annotated[float, _seconds("proxy", "how long an accepted credential is believed", 0, 10)] = 10.0
    proxy_cluster_scoped: Annotated[
        bool, _text("proxy", "honour clusterResources; the same for `tether work` and `tether proxy` (docs/proxy.md)")
    ] = False
    max_view_age: Annotated[float, _seconds("proxy", "older than this, filtered answers are refused", 1)] = 30.0
    access_log: Annotated[bool, _text("proxy", "a JSON line on stdout for each request; never a token or a query")] = (
        False
    )
    audit_all: Annotated[bool, _text("proxy", "every decision becomes an audit record, not only refusals")] = False

    def rotation_age(self) -> float:
        """Return the age in seconds at which a token that lives ``token_ttl`` is rotated."""
        return self.token_rotate_after or self.token_ttl * self.token_rotate_at

    def audiences(self) -> tuple[str, ...]:
        """Return the audiences to ask for, empty for the API server's own."""
        return _words(self.token_audiences)

    def ca_source(self) -> tuple[Literal["ConfigMap", "Secret"], str]:
        """Return the kind and the name of what holds the proxy's CA."""
        return ("ConfigMap", self.proxy_ca_configmap) if self.proxy_ca_configmap else ("Secret", self.proxy_ca_secret)

    def ca_keys(self) -> tuple[str, ...]:
        """Return the keys of the proxy's CA, in the order to try."""
        return _words(self.proxy_ca_keys)

    def kubeconfig_data_keys(self) -> tuple[str, ...]:
        """Return the keys under which a kubeconfig stands in its Secret."""
        return _words(self.kubeconfig_keys)

    def words(self, name: str) -> tuple[str, ...]:
        """Return the words of a setting that is a list."""
        return _words(str(getattr(self, name)))

    def nats_servers(self) -> list[str]:
        """Return the NATS servers' URLs."""
        return list(_words(self.nats_url))

    def nats_tls(self) -> bool:
        """Tell whether the settings ask for TLS to NATS: nothing may then go to a server in clear."""
        files = self.nats_ca_file or self.nats_cert_file
        return bool(files) or any(url.startswith(("tls://", "wss://")) for url in self.nats_servers())


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)
