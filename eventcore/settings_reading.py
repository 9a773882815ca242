"""Settings from flags and environment, checked before anything starts, and what a reader is told of each.

A flag beats the environment, the environment beats the default. All of it is made from the fields of
`eventcore.settings.Settings`, so no flag, variable or line of the reference can be forgotten.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from eventcore.errors import SettingsError
from eventcore.objects import CA_MEMORY
from eventcore.selectors import parse_selector
from eventcore.settings import DAY, HOUR, MINUTE, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "TETHER_"

_UNITS = {"ms": 0.001, "s": 1.0, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SUFFIX = re.compile(r"(?!token)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DATA_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://")
_NATS_URL = re.compile(
    r"((nats|tls)://)?([^\s/@]+@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?"
    r"|wss?://([^\s/@]+@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/\S*)?"
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_BOOLEANS = {"true": True, "1": True, "yes": True, "t": True, "false": False, "0": False, "no": False, "f": False}


def duration(text: str) -> float:
    """Return the seconds of ``"250ms"``, ``"30s"``, ``"5m"``, ``"1h30m"`` or ``"7d"``; "0" is zero.

    ValueError for anything else, also for a number without a unit.
    """
    stripped = text.strip()
    if stripped == "0":
        return 0.0
    if not _DURATION.fullmatch(stripped):
        raise ValueError(f"{text!r} is not a duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(stripped))


def format_duration(seconds: float) -> str:
    """Return the shortest text that `duration` reads back as these seconds (to the millisecond)."""
    rest = round(seconds * 1000)
    text = ""
    for unit in ("h", "m", "s", "ms"):
        count, rest = divmod(rest, round(_UNITS[unit] * 1000))
        text += f"{count}{unit}" if count else ""
    return text or "0s"


class SettingDoc(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as a reader sees it."""

    name: str
    section: str
    flag: str  # --token-ttl
    variable: str  # TETHER_TOKEN_TTL
    allowed: str  # "a duration such as 30s, 5m or 24h, at least 10m"
    default: str
    description: str
    repeats: bool = False
    """Whether it is a list: words apart by commas, and the flag may come several times."""


class _Field(msgspec.Struct, frozen=True):
    """What loading needs to know of a field."""

    name: str
    kind: type[object]  # bool, int, float or str
    choices: tuple[str, ...]
    meta: msgspec.Meta

    @property
    def is_duration(self) -> bool:
        return (self.meta.extra or {}).get("unit") == "duration"


@cache
def _fields() -> dict[str, _Field]:
    hints = get_type_hints(Settings, include_extras=True)
    found: dict[str, _Field] = {}
    for name in Settings.__struct_fields__:
        inner, meta = get_args(hints[name])[:2]
        literal = get_origin(inner) is Literal
        found[name] = _Field(name, str if literal else inner, get_args(inner) if literal else (), meta)
    return found


def describe() -> list[SettingDoc]:
    """Return every setting, in the order of the fields, for ``--help`` and the reference."""
    defaults = Settings()
    return [
        SettingDoc(
            name=name,
            section=str((field.meta.extra or {})["section"]),
            flag=_flag(name),
            variable=_variable(name),
            allowed=_allowed(field),
            default=_show(field, getattr(defaults, name)),
            description=field.meta.description or "",
            repeats=bool((field.meta.extra or {}).get("list")),
        )
        for name, field in _fields().items()
    ]


def load(environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Return the settings of flags over environment over defaults.

    Flags are keyed by field name and may hold texts or values of the right type; None means not given. Other
    ``TETHER_*`` variables are left alone, since scripts and Kubernetes services set some. SettingsError names the
    flag or variable, its value, and what is allowed.
    """
    fields = _fields()
    if unknown := sorted(set(flags) - set(fields)):
        raise SettingsError(f"{_flag(unknown[0])} is not a setting; --help lists them all")
    values: dict[str, object] = {}
    for name, field in fields.items():
        if (given := flags.get(name)) is not None:
            values[name] = _read(field, _flag(name), given)
        elif (text := environ.get(_variable(name))) is not None and not _is_service_link(name, text):
            values[name] = _read(field, _variable(name), text)
    settings = msgspec.convert(values, Settings)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse values that are right one by one and wrong together; SettingsError says which and what to do."""
    pairs = (
        ("nats_user", "nats_password_file"),
        ("nats_cert_file", "nats_key_file"),
        ("proxy_tls_cert", "proxy_tls_key"),
    )
    for left, right in pairs:
        if bool(getattr(settings, left)) != bool(getattr(settings, right)):
            raise SettingsError(f"{_flag(left)} and {_flag(right)} go together: set both or neither")
    if settings.nats_creds_file and settings.nats_user:
        raise SettingsError("--nats-creds-file and --nats-user are two ways to log in to NATS: set one")
    if not settings.nats_servers():
        raise SettingsError("--nats-url names no server, for example nats://127.0.0.1:4222")
    for url in settings.nats_servers():
        if not _NATS_URL.fullmatch(url):
            shown = _USERINFO.sub("***", url)
            raise SettingsError(f"--nats-url {shown!r} is not a URL such as nats://127.0.0.1:4222 or tls://nats:4222")
    _check_kubeconfigs(settings)
    if not re.fullmatch(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?", settings.flux_service_account):
        raise SettingsError(
            f"--flux-service-account {settings.flux_service_account!r} is not the name of a ServiceAccount, "
            "for example gitops-reconciler"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", settings.cluster):
        raise SettingsError(f"--cluster {settings.cluster!r}: use letters, digits, - and _ only")
    _longer(settings, "token_ttl", "token_rotate_after", why="a token is rotated before it expires")
    _longer(settings, "retry_max", "retry_base", why="waits grow from one to the other", equal=True)
    _longer(settings, "max_view_age", "mark_interval", why="each mark makes the view fresh again")
    _longer(settings, "shutdown_grace", "reconcile_timeout", why="a reconcile may finish on shutdown", equal=True)
    busy = settings.reconcile_timeout + settings.pull_expiry
    if settings.ack_wait <= busy:
        raise SettingsError(
            f"--ack-wait {format_duration(settings.ack_wait)} must be longer than --reconcile-timeout plus "
            f"--pull-expiry ({format_duration(busy)}): else another worker gets a request that is still being worked on"
        )


def _check_kubeconfigs(settings: Settings) -> None:
    """Refuse what no kubeconfig can be made of."""
    # A name such as <account>-token-2 is that of another Secret of ours.
    if not _SUFFIX.fullmatch(settings.kubeconfig_suffix):
        raise SettingsError(
            f"--kubeconfig-suffix {settings.kubeconfig_suffix!r}: use small letters, digits and -, and do not begin "
            "with token"
        )
    keys = settings.kubeconfig_data_keys()
    if not keys or not all(_DATA_KEY.fullmatch(key) for key in keys):
        raise SettingsError(
            f"--kubeconfig-keys {settings.kubeconfig_keys!r} are not keys of a Secret, for example kubeconfig,value"
        )
    try:
        parse_selector(settings.kubeconfig_namespace_selector)
    except ValueError as error:
        raise SettingsError(f"--kubeconfig-namespace-selector: {error}") from None
    if not settings.ca_keys():
        raise SettingsError("--proxy-ca-keys names no key, for example ca.crt")
    if settings.proxy_ca_secret == CA_MEMORY:
        raise SettingsError(f"--proxy-ca-secret {CA_MEMORY} is where Tether remembers CAs: name the proxy's own Secret")
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", settings.proxy_url):
        raise SettingsError(f"--proxy-url {settings.proxy_url!r} is not a URL such as https://proxy.example:9001")


def _longer(settings: Settings, longer: str, shorter: str, *, why: str, equal: bool = False) -> None:
    high, low = getattr(settings, longer), getattr(settings, shorter)
    if high < low or (high == low and not equal):
        raise SettingsError(
            f"{_flag(longer)} {format_duration(high)} must be {'at least' if equal else 'longer than'} "
            f"{_flag(shorter)} {format_duration(low)}: {why}"
        )


def _read(field: _Field, source: str, given: object) -> object:
    try:
        value = _parse(field, given.strip()) if isinstance(given, str) else _same_type(field, given)
    except ValueError:
        value = None
    if value is None or not _in_bounds(field.meta, value):
        raise SettingsError(f"{source}={_USERINFO.sub('***', str(given))!r}: must be {_allowed(field)}")
    return value


def _parse(field: _Field, text: str) -> object:
    if field.kind is bool:
        return _BOOLEANS.get(text.lower())
    if field.kind is int:
        return int(text)
    if field.kind is float:
        return duration(text) if field.is_duration else float(text)
    return text if not field.choices or text in field.choices else None


def _same_type(field: _Field, value: object) -> object:
    if field.kind is bool or isinstance(value, bool):
        return value if field.kind is type(value) else None
    if field.kind is float and isinstance(value, (int, float)):
        return float(value)
    return value if isinstance(value, field.kind) else None


def _in_bounds(meta: msgspec.Meta, value: Any) -> bool:
    # Written so that NaN is out of bounds too.
    above = meta.ge is None or bool(value >= meta.ge)
    below = meta.le is None or bool(value <= meta.le)
    return above and below and value != float("inf")


def _allowed(field: _Field) -> str:
    if field.choices:
        return " or ".join((", ".join(field.choices[:-1]), field.choices[-1]))
    if field.kind is bool:
        return "true or false"
    if field.kind is str:
        return "text"
    what = "a duration such as 30s, 5m or 24h" if field.is_duration else "a number"
    what = "a whole number" if field.kind is int else what
    if field.meta.ge is not None and (field.meta.ge > _UNITS["ms"] or not field.is_duration):
        what += f", at least {_show(field, field.meta.ge)}"
    return what + (f", at most {_show(field, field.meta.le)}" if field.meta.le is not None else "")


def _show(field: _Field, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if field.is_duration and isinstance(value, (int, float)):
        return format_duration(value)
    return str(value)


def _is_service_link(name: str, text: str) -> bool:
    # A Service named tether-proxy makes Kubernetes set TETHER_PROXY_PORT=tcp://10.0.0.1:9001 in every pod beside it.
    return name.endswith("_port") and _SERVICE_LINK.match(text) is not None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()
