"""What `tether status` shows, put together from what the bus says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.bus import BusMessage
from eventcore.errors import EventError
from eventcore.events import AuditRecord, DeadLetter, WorkRequest, decode_body
from eventcore.grants import TenantGrant
from eventcore.keys import WORKERS, Key, parse_work_subject
from eventcore.objects import PartialObject
from tether.cluster_relations import entitled, refused
from tether.set_aside import SetAside
from tether.status_revoking import Asked, Revoking, revoking
from workers.desired import ANNOTATION_GENERATION, Token
from workers.names import token_name
from workers.ownership import Account, is_enabled
from workers.routing import account_grant_key

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from eventcore.grants import Grant
    from eventcore.views import ObjectsView
    from workers.relations import Relations

STALE: Final = 30.0
"""Seconds after which a kind is not fresh: as --max-view-age of the proxy."""
FAILURES: Final = 20
"""Failures that are kept, the newest first."""
_SCHEDULE: Final = "Nats-Schedule"
_TIMER: Final = "timer."


class KindAge(msgspec.Struct, frozen=True, kw_only=True):
    """How fresh one kind is: seconds since a watcher vouched for it, None if none ever did."""

    kind: str
    age: float | None
    objects: int


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: requests that wait, that are in hand, that are scheduled; whether anybody listens."""

    worker: str
    pending: int = 0
    in_hand: int = 0
    scheduled: int = 0
    listening: bool = False


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``due`` is None for one that waits for its turn now; ``attempt`` counts failures so far."""

    worker: str
    key: str
    reason: str
    attempt: int = 0
    since: datetime
    due: datetime | None = None
    origin: datetime | None = None  # when the change happened that led to it


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong. ``what``: dead letter, refused or failed."""

    time: datetime
    what: str
    worker: str
    object: str
    account: str = ""
    tenant: str = ""
    message: str = ""


class AccountStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One account. Kubeconfigs are ``current`` of ``wanted``; ``behind`` names the namespaces of the others."""

    account: str
    tenants: tuple[str, ...] = ()
    enabled: bool = True
    home_of: str = ""  # a Tenant that it does not own and its home is a member of, so that it gets nothing
    granted: bool = False  # the proxy knows it
    generation: int | None = None
    mode: str = ""  # of the token: bound, or static, which never expires
    expires: datetime | None = None
    current: int = 0
    wanted: int = 0
    behind: tuple[str, ...] = ()


class TenantStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant. ``granted``: its namespaces as the proxy shows them are those that it has."""

    name: str
    state: str = ""
    owners: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    granted: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, at one moment."""

    time: datetime
    kinds: tuple[KindAge, ...] = ()
    workers: tuple[Lane, ...] = ()
    tenants: tuple[TenantStatus, ...] = ()
    accounts: tuple[AccountStatus, ...] = ()
    revoking: tuple[Revoking, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    failures: tuple[Failure, ...] = ()


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """What was read beside the views: messages of WORK, DLQ and AUDIT, and who listens."""

    work: tuple[BusMessage, ...] = ()
    dead: tuple[BusMessage, ...] = ()
    audit: tuple[BusMessage, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    in_hand: Mapping[str, int] = {}
    listening: frozenset[str] = frozenset()


def assemble(
    view: ObjectsView,
    relations: Relations,
    grants: Iterable[Grant],
    queues: Queues,
    time: datetime,
    *,
    watched: Container[str] = (),
) -> Status:
    """Put the whole together. Of kinds that are not ``watched`` by these settings only what is fresh is shown."""
    granted = {grant.key(): grant for grant in grants}
    waiting = sorted(filter(None, map(waiting_of, queues.work)), key=lambda one: (one.due or time, one.since))
    return Status(
        time=time,
        kinds=tuple(_kinds(view, time, watched)),
        workers=tuple(_workers(waiting, queues)),
        tenants=tuple(_tenants(relations, granted)),
        accounts=tuple(_accounts(view, relations, granted)),
        revoking=tuple(revoking(view, relations, granted, map(_asked, waiting), time)),
        waiting=tuple(waiting),
        set_aside=queues.set_aside,
        failures=tuple(sorted(_failures(queues), key=lambda one: one.time, reverse=True)[:FAILURES]),
    )


def of_tenant(status: Status, tenant: str) -> Status | None:
    """Return what concerns one tenant, None when there is none of that name."""
    tenants = tuple(one for one in status.tenants if one.name == tenant)
    accounts = tuple(one for one in status.accounts if tenant in one.tenants)
    if not tenants:
        return None
    names = {one.account for one in accounts}

    users = {account.username for name in names if (account := Account.of_text(name))}

    def concerns(key: str) -> bool:
        match key.split("/"):
            case ["tenant", name]:
                return name == tenant
            case ["subject", "ServiceAccount" | "User", user]:
                return user in users
            case ["account", namespace, name] | [namespace, name, *_]:
                return f"{namespace}/{name}" in names
            case _:
                return False

    return msgspec.structs.replace(
        status,
        tenants=tenants,
        accounts=accounts,
        revoking=tuple(one for one in status.revoking if tenant in one.tenants or one.account in names),
        set_aside=(),
        waiting=tuple(one for one in status.waiting if concerns(one.key)),
        failures=tuple(
            one for one in status.failures if one.tenant == tenant or one.account in names or concerns(one.object)
        ),
    )


def waiting_of(message: BusMessage) -> Waiting | None:
    """Return the request in a message of WORK, None where it cannot be understood."""
    timer = message.subject.startswith(_TIMER)
    subject = f"work.{message.subject.removeprefix(_TIMER)}" if timer else message.subject
    try:
        worker, _, key = parse_work_subject(subject)
        request = decode_body(WorkRequest, message.data)
    except EventError:
        return None
    due: datetime | None = None
    if timer:
        with suppress(ValueError):
            due = datetime.fromisoformat(message.headers.get(_SCHEDULE, "").removeprefix("@at "))
    return Waiting(
        worker=worker,
        key=str(key),
        reason=request.reason,
        attempt=request.attempt,
        since=message.time,
        due=due,
        origin=request.since,
    )


def _asked(one: Waiting) -> Asked:
    parts = one.key.split("/")
    return Asked("/".join(parts[1:] if parts[0] == "account" and len(parts) == len("abc") else parts[:2]), one.origin)


def _kinds(view: ObjectsView, time: datetime, watched: Container[str]) -> Iterable[KindAge]:
    for kind in sorted(view.marks()):
        age = view.age(kind, time)
        if kind in watched or age <= STALE:
            yield KindAge(kind=kind, age=round(age, 1), objects=sum(1 for _ in view.all(kind)))


def _workers(waiting: list[Waiting], queues: Queues) -> Iterable[Lane]:
    for worker in WORKERS:
        mine = [one for one in waiting if one.worker == worker]
        in_hand = queues.in_hand.get(worker, 0)
        yield Lane(
            worker=worker,
            # What is in hand stands in the stream until it is acknowledged.
            pending=max(0, sum(1 for one in mine if one.due is None) - in_hand),
            in_hand=in_hand,
            scheduled=sum(1 for one in mine if one.due is not None),
            listening=worker in queues.listening,
        )


def _tenants(relations: Relations, granted: dict[Key, Grant]) -> Iterable[TenantStatus]:
    known = {grant.name: grant.namespaces for grant in granted.values() if isinstance(grant, TenantGrant)}
    for name, tenant in sorted(relations.tenants.items()):
        namespaces = tuple(sorted(relations.namespaces_of(name)))
        yield TenantStatus(
            name=name,
            state="Terminating" if tenant.metadata.deletion_timestamp else tenant.status.state,
            owners=tuple(sorted(f"{owner.kind} {owner.name}" for owner in relations.owners(name).all)),
            namespaces=namespaces,
            granted=known.get(name) == namespaces,
        )


def _accounts(view: ObjectsView, relations: Relations, granted: dict[Key, Grant]) -> Iterable[AccountStatus]:
    owners, elsewhere = entitled(relations), refused(relations)
    for account in sorted(relations.interesting() | set(owners)):
        tenants = owners.get(account, ())
        service_account = relations.accounts.get(account)
        token = _token(view, account)
        wanted = [
            name
            for name in sorted(relations.targets(account, set(tenants)))
            if (namespace := relations.namespaces.get(name)) is not None and not namespace.terminating
        ]
        generation = token.generation if token else None
        have = {
            one.key.namespace
            for one in relations.objects_of(account, "kubeconfig")
            if generation is not None and one.metadata.annotations.get(ANNOTATION_GENERATION) == str(generation)
        }
        yield AccountStatus(
            account=str(account),
            tenants=tenants,
            enabled=service_account is not None and is_enabled(service_account),
            home_of=elsewhere.get(account, ""),
            granted=account_grant_key(account) in granted,
            generation=generation,
            mode=token.mode if token else "",
            expires=token.expires if token and token.mode == "bound" else None,
            current=sum(1 for name in wanted if name in have),
            wanted=len(wanted),
            behind=tuple(name for name in wanted if name not in have),
        )


def _token(view: ObjectsView, account: Account) -> Token | None:
    record = view.get("Secret", account.namespace, token_name(account))
    if record is None or not isinstance(record.obj, PartialObject):
        return None
    return Token.of_annotations(record.obj.metadata.annotations)


def _failures(queues: Queues) -> Iterable[Failure]:
    for message in queues.dead:
        with suppress(EventError):
            letter = decode_body(DeadLetter, message.data)
            account = Account.of_text("/".join(letter.key.split("/")[:2]))
            yield Failure(
                time=letter.time,
                what="dead letter",
                worker=letter.worker,
                object=letter.key,
                account=str(account) if account else "",
                message=letter.reason,
            )
    for message in queues.audit:
        with suppress(EventError):
            record = decode_body(AuditRecord, message.data)
            if record.outcome != "done":
                yield Failure(
                    time=record.time,
                    what=record.outcome,
                    worker=record.component,
                    object=record.object,
                    account=record.account,
                    tenant=record.tenant,
                    message=record.message,
                )
