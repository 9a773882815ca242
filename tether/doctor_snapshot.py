"""What `tether doctor` judges: a cluster and a bus as they were found at one moment, without a secret in it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from eventcore.bus_limits import NEEDED_PAYLOAD
from eventcore.objects import Subject
from tether.cluster_lists import Deployment
from tether.cluster_relations import Tenancy
from tether.migrate_look import Survey
from tether.set_aside import SetAside
from workers.ownership import Account

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor: what was looked at, how it is, and how to mend it."""

    severity: Severity
    check: str
    object: str
    message: str
    remedy: str = ""


class Right(msgspec.Struct, frozen=True, kw_only=True):
    """One right of deploy/rbac, and whether the cluster grants it. ``account``: whom it was asked for."""

    account: str
    right: str  # "create serviceaccounts/token"
    allowed: bool


class Bus(msgspec.Struct, frozen=True, kw_only=True):
    """NATS as it was found. ``error`` is why it could not be looked at, "" if it could."""

    url: str
    error: str = ""
    differences: tuple[str, ...] = ()
    ages: dict[str, float] = {}  # seconds since a watcher vouched for a kind
    idle: tuple[str, ...] = ()  # workers that nobody runs
    dead_letters: int = 0
    audit_fill: float = 0.0  # share of its size that AUDIT holds
    max_payload: int = NEEDED_PAYLOAD
    set_aside: tuple[SetAside, ...] = ()
    skew: float = 0.0  # seconds that its clock is ahead of the API server's
    former: tuple[Account, ...] = ()  # accounts whose grant was taken back


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's CA in the Secret or ConfigMap of the settings. ``problem`` says why it cannot be used."""

    source: str  # Secret/namespace/name
    problem: str = ""
    certificates: frozenset[str] = frozenset()  # fingerprints
    expires: datetime | None = None  # the first that does


class ConfigState(msgspec.Struct, frozen=True, kw_only=True):
    """A kubeconfig Secret of an account, where one should be or is. Tokens are digests."""

    namespace: str
    name: str
    ours: bool = True
    readable: bool = True
    server: str = ""
    certificates: frozenset[str] = frozenset()
    token: str = ""
    context: str = ""  # the namespace of its context
    keys: frozenset[str] = frozenset()
    same_in_all_keys: bool = True
    watched: bool = True  # it carries the label that lets Flux react at once


class TokenState(msgspec.Struct, frozen=True, kw_only=True):
    """The token Secret of an account that Tether made."""

    generation: int
    digest: str  # as its annotations say
    actual: str  # of the token that lies in it
    account_uid: str
    minted: datetime
    expires: datetime
    binding: str
    static: bool = False
    bound: bool  # the Secret that it is bound to is there, with the right uid


class AccountState(msgspec.Struct, frozen=True, kw_only=True):
    """What an account that may have it has got, and what it should."""

    account: Account
    token: TokenState | None = None
    configs: tuple[ConfigState, ...] = ()
    static: tuple[str, ...] = ()  # other Secrets with a token that never expires
    servers: frozenset[str] = frozenset()  # the proxy's URLs that its kubeconfigs may name
    distributed: bool = True  # not where a ConfigMap stands instead of the Secrets


class FormerOwner(msgspec.Struct, frozen=True, kw_only=True):
    """An account that owned a Tenant and is still there. ``bindings`` give accounts of its home all rights there."""

    account: Account
    bindings: tuple[str, ...] = ()


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """An object that holds up the end of its namespace."""

    kind: str
    namespace: str
    name: str
    finalizers: tuple[str, ...]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``unreadable``: what this person may not read, with why; it is judged as little as it was seen."""

    time: datetime
    skew: float = 0.0  # seconds that the clock here is ahead of the API server's
    server: str = ""
    version: str = ""
    served: dict[str, tuple[str, ...]] = {}  # plurals by "group/version"
    unreadable: dict[str, str] = {}
    configuration: str = "default"
    selector: str = ""
    flux_account: str = ""  # which Tether itself binds in each namespace of a tenant
    config_suffix: str = "kubeconfig"
    config_keys: tuple[str, ...] = ("kubeconfig", "value")
    rotate_at: float = 0.8  # share of its life at which a token is replaced
    tenancy: Tenancy = Tenancy()
    survey: Survey = Survey()
    bus: Bus | None = None
    absent: tuple[str, ...] = ()  # accounts of deploy/rbac that do not exist
    rights: tuple[Right, ...] = ()
    flux: tuple[Deployment, ...] = ()
    authority: Authority | None = None
    accounts: tuple[AccountState, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    readers: dict[str, tuple[Subject, ...]] = {}  # whom RoleBindings let read kubeconfigs, by namespace
    former: tuple[FormerOwner, ...] = ()
