"""The flags, variables and gates of capsule-proxy as ``tether proxy`` takes them: one table, and what each becomes.

A flag that is one of our settings under the same name is not translated; the others become settings, are accepted
because what they ask for is so anyway, or are refused with the reason. Nothing is taken and then not heeded in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from eventcore.errors import SettingsError
from eventcore.settings_reading import describe, duration

Changes = dict[str, object]
"""Settings by name, as texts."""

_TRUE: Final = frozenset({"1", "t", "true"})
_FALSE: Final = frozenset({"0", "f", "false"})
_LOUD: Final = 5
"""capsule-proxy logs requests from this verbosity on; its chart sets 4."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One flag. ``becomes`` returns settings for its value; None: it is our setting of the same name."""

    name: str  # --listening-port
    help: str
    becomes: Callable[[str], Changes] | None = None
    boolean: bool = False
    repeats: bool = False

    @property
    def setting(self) -> str:
        """The name as a setting has it."""
        return self.name.removeprefix("--").replace("-", "_")


def _is(setting: str) -> Callable[[str], Changes]:
    return lambda value: {setting: value}


def _port(value: str) -> Changes:
    # There it listens on every address.
    return {"proxy_port": value, "proxy_host": "0.0.0.0"}  # noqa: S104 - a port for tenants


def _metrics(value: str) -> Changes:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal():
        raise SettingsError(
            f"--metrics-addr {value!r}: write :8080 or 127.0.0.1:8080; probes need that port, so it is never off"
        )
    return {"http_host": host.strip("[]") or "0.0.0.0", "http_port": port}  # noqa: S104 - for probes and metrics


def _nothing(flag: str, allowed: str, why: str) -> Callable[[str], Changes]:
    """Accept the one value that asks for what is so anyway."""

    def check(value: str) -> Changes:
        if value != allowed:
            raise SettingsError(f"{flag}={value}: {why}")
        return {}

    return check


def _off(flag: str, why: str) -> Callable[[str], Changes]:
    def check(value: str) -> Changes:
        if _boolean(flag, value):
            raise SettingsError(f"{flag}: {why}")
        return {}

    return check


def _uncached(value: str) -> Changes:
    if not _boolean("--disable-caching", value):
        return {}
    off: Changes = {"identity_cache_ttl": "0"}
    return off | ({"enable_reflector": "false"} if "enable_reflector" in _SETTINGS else {})


def _resync(value: str) -> Changes:
    try:
        duration(value)
    except ValueError:
        raise SettingsError(f"--rolebindings-resync-period {value!r} is not a duration such as 10h") from None
    return {}


def _gates(value: str) -> Changes:
    found: Changes = {}
    for pair in filter(None, (word.strip() for word in value.split(","))):
        name, _, text = pair.partition("=")
        setting = GATES.get(name)
        if setting is None:
            raise SettingsError(f"--feature-gates: there is no gate {name!r}; there are {', '.join(GATES)}")
        given = _boolean(f"--feature-gates {name}", text)
        if setting in _SETTINGS:
            found[setting] = str(given).lower()
        elif given:
            raise SettingsError(f"--feature-gates {name}: this release does not have it")
    return found


def _level(value: str) -> Changes:
    if value.isdecimal() and int(value) > 0:
        return {"log_level": "debug" if int(value) >= _LOUD else "info"}
    if value not in _LEVELS:
        raise SettingsError(f"--zap-log-level {value!r}: use {', '.join(_LEVELS)} or a whole number above 0")
    return {"log_level": _LEVELS[value]}


def _time_format(value: str) -> Changes:
    if value not in {"iso8601", "rfc3339", "rfc3339nano"}:
        raise SettingsError(f"--zap-time-encoding {value!r}: times in logs are RFC 3339 always")
    return {}


def _stacktraces(value: str) -> Changes:
    if value not in {"info", "error", "panic"}:
        raise SettingsError(f"--zap-stacktrace-level {value!r}: use info, error or panic")
    return {}


def _development(value: str) -> Changes:
    return {"log_format": "console", "log_level": "debug"} if _boolean("--zap-devel", value) else {}


def _boolean(flag: str, value: str) -> bool:
    if value.lower() not in _TRUE | _FALSE:
        raise SettingsError(f"{flag}={value!r}: must be true or false")
    return value.lower() in _TRUE


_LEVELS: Final = {"debug": "debug", "info": "info", "error": "error", "panic": "error"}
_SETTINGS: Final = frozenset(doc.name for doc in describe())

GATES: Final = {
    "ProxyAllNamespaced": "proxy_all_namespaced",
    "ProxyClusterScoped": "proxy_cluster_scoped",
    "SkipImpersonationReview": "skip_impersonation_review",
}
"""The gates, and the settings that they are."""

FLAGS: Final = (
    Row(name="--listening-port", help="port for tenants, on every address", becomes=_port),
    Row(name="--enable-ssl", help="false: plain HTTP"),
    Row(name="--ssl-cert-path", help="as --proxy-tls-cert", becomes=_is("proxy_tls_cert")),
    Row(name="--ssl-key-path", help="as --proxy-tls-key", becomes=_is("proxy_tls_key")),
    Row(name="--auth-preferred-types", help="ways to tell a caller, in order"),
    Row(name="--xfcc-header-name", help="header with a client certificate"),
    Row(name="--trusted-proxy-cidrs", help="networks from which it is believed"),
    Row(name="--allowed-paths", help="paths that are never filtered"),
    Row(name="--public-paths", help="paths that may be read anonymously"),
    Row(name="--capsule-configuration-name", help="the CapsuleConfiguration in use"),
    Row(name="--ignored-user-group", help="groups that are never filtered"),
    Row(name="--ignored-username", help="users who are never filtered"),
    Row(name="--ignored-impersonation-group", help="groups to impersonate that are dropped"),
    Row(name="--impersonation-group-regexp", help="groups to impersonate that are kept"),
    Row(
        name="--oidc-username-claim",
        help="preferred_username alone: the API server says what a token's name is",
        becomes=_nothing(
            "--oidc-username-claim",
            "preferred_username",
            "the API server says what a token's user name is: set --oidc-username-claim there",
        ),
    ),
    Row(name="--enable-reflector", help="namespaces of RoleBindings are listable"),
    Row(
        name="--rolebindings-resync-period",
        help="nothing to do: every change comes as an event",
        becomes=_resync,
    ),
    Row(name="--disable-caching", help="believe no credential and no review twice", becomes=_uncached, boolean=True),
    Row(name="--client-connection-qps", help="reviews a second at most"),
    Row(name="--client-connection-burst", help="reviews at once above that"),
    Row(name="--metrics-addr", help="address of probes and metrics", becomes=_metrics),
    Row(
        name="--enable-pprof",
        help="false alone: Go's profiler has no meaning here",
        becomes=_off("--enable-pprof", "pprof is Go's; look at a running process with py-spy"),
        boolean=True,
    ),
    Row(
        name="--enable-leader-election",
        help="false alone: replicas need no leader",
        becomes=_off(
            "--enable-leader-election", "replicas of the proxy do the same work and need no leader: leave it out"
        ),
        boolean=True,
    ),
    Row(
        name="--webhook-port",
        help="9443 alone: there is no webhook",
        becomes=_nothing("--webhook-port", "9443", "the proxy serves no webhook: leave it out"),
    ),
    Row(name="--feature-gates", help="Gate=true,...: " + ", ".join(GATES), becomes=_gates, repeats=True),
    Row(name="--zap-log-level", help="debug, info, error, panic or a number; from 5 on it is debug", becomes=_level),
    Row(name="--zap-encoder", help="json or console, as --log-format", becomes=_is("log_format")),
    Row(name="--zap-devel", help="console logs at level debug", becomes=_development, boolean=True),
    Row(name="--zap-stacktrace-level", help="stack traces come with level debug", becomes=_stacktraces),
    Row(name="--zap-time-encoding", help="iso8601 or rfc3339, as it is", becomes=_time_format),
)
"""Every flag of capsule-proxy."""

TRANSLATED: Final = tuple(row for row in FLAGS if row.becomes is not None or row.setting not in _SETTINGS)
"""Those that are not settings of ours under their own name."""

_WEAK: Final = frozenset({"--zap-devel", "--listening-port", "--disable-caching"})
"""Flags whose consequences give way to a flag that says so itself."""


def translate(given: Mapping[str, str], flags: Mapping[str, object], environ: Mapping[str, str]) -> Changes:
    """Return the settings that translated flags make beside ``flags``, our own; SettingsError where two disagree.

    ``given`` is keyed by the flag's name, several values joined by commas.
    """
    weak: Changes = {}
    strong: dict[str, tuple[str, object]] = {}
    for row in TRANSLATED:
        if (value := given.get(row.name)) is None:
            continue
        if row.becomes is None:
            raise SettingsError(f"{row.name}: this release does not have it")
        for setting, text in row.becomes(value).items():
            if row.name in _WEAK and setting != "proxy_port":
                weak[setting] = text
                continue
            own = flags.get(setting)
            other = (f"--{setting.replace('_', '-')}", own) if own is not None else strong.get(setting)
            if other is not None and str(other[1]) != str(text):
                raise SettingsError(f"{row.name} and {other[0]} say different things: set one of them")
            strong[setting] = row.name, text
    said = {name for name in weak if flags.get(name) is not None or f"TETHER_{name.upper()}" in environ}
    changes = {name: text for name, text in weak.items() if name not in said}
    return changes | {name: text for name, (_, text) in strong.items()}


def not_heeded(environ: Mapping[str, str]) -> list[str]:
    """Return what of the environment is not heeded, a line each."""
    return [
        f"{name} is not heeded: a proxy to the API server is proxy-url in the kubeconfig"
        for name in sorted(environ)
        if re.fullmatch(r"https?_proxy|all_proxy", name.lower()) and environ[name]
    ]
