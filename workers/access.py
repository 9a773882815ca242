"""The grants that the proxy decides by: compiled from the view, written by compare-and-set, deleted explicitly.

The revision is read before the state, and the view is brought up to date in between: so a grant that was compiled from
an older state can never replace one that was compiled from a newer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.consumer import Retry, Terminal
from eventcore.errors import RefusedError, WrongSequenceError
from eventcore.grants import (
    AccountGrant,
    BoundSecret,
    CapsuleUserRef,
    ClusterRule,
    ConfigGrant,
    Grant,
    SubjectGrant,
    TenantGrant,
    decode_grant,
    encode_grant,
)
from eventcore.kube import ObjectRef
from eventcore.objects import ANNOTATION_TENANT, CAPSULE_GROUP
from workers import setting_status
from workers.choices import ceiling, choices, merged, setting_operations, under
from workers.cluster_rules import permits, rules_of
from workers.context import SOON, guarded, until
from workers.desired import ANNOTATION_ACCOUNT_UID, ANNOTATION_DIGEST, generation_of
from workers.names import binding_name
from workers.ownership import Account, Owner, findings, stale_until

if TYPE_CHECKING:
    from datetime import datetime

    from eventcore.bus import KvEntry
    from eventcore.consumer import Reconcile, Result, Run
    from eventcore.keys import Key
    from eventcore.objects import CapsuleConfiguration, CapsuleUser
    from workers.context import Context
    from workers.relations import Relations

BARRIER: float = 5.0
"""Seconds to wait for the view."""
MOST_GENERATIONS: Final = 64
"""Token generations, at most, in a grant: the newest. One that is left out the proxy asks the API server about."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one grant, whose key is the grant's key in the bucket, and of a setting's status."""
    return guarded(context, partial(_reconcile, context), _account)


def _account(target: Key) -> Account | None:
    """Return the account whose grant a key is, None for every other grant."""
    return Account(*target.parts[1:]) if target.parts[0] == "account" and len(target.parts) == len("abc") else None


async def _reconcile(context: Context, run: Run) -> Result:
    if run.key.parts[0] == setting_status.PREFIX:
        return await setting_status.reconcile(context, run, config_grant(context.relations.configuration))
    return await _reconcile_grant(context, run)


async def _reconcile_grant(context: Context, run: Run) -> Result:
    entry = await context.bus.kv_get(run.key)
    await context.reader.barrier(BARRIER)
    if missing := await context.judge.missing():
        return Retry(f"no watcher has listed objects of kind {missing} yet: start `tether watch`")
    ends: datetime | None = None
    grant: Grant | None
    account: Account | None = None
    tenant = ""
    match run.key.parts:
        case ("tenant", tenant):
            grant = tenant_grant(context.relations, tenant)
            await _tell_findings(context, run, tenant)
        case ("subject", kind, name):
            grace = context.settings.owner_status_grace
            settings = context.settings
            gate, reflects = settings.proxy_cluster_scoped, settings.enable_reflector
            owner = Owner(kind, name)
            grant, ends = subject_grant(context.relations, owner, now(), grace, gate=gate, reflects=reflects)
            account = Account.of_username(name)
        case ("account", namespace, name):
            account = Account(namespace, name)
            entitlement = context.judge.look(account)
            grant = account_grant(context.relations, account, entitlement.uid) if entitlement else None
            ends = entitlement.until if entitlement else None
        case ("config",):
            grant = config_grant(context.relations.configuration)
        case _:
            return Terminal(f"{run.key} is not the key of a grant")
    value = encode_grant(grant) if grant is not None else b""
    if value == (entry.value if entry else b""):
        return until(ends)
    if (failure := await _write(context, run, entry, value)) is not None:
        return failure
    before = decode_grant(run.key.token(), entry.value) if entry else None
    await _record(context, run, before, grant, account, tenant)
    return until(ends)


async def _write(context: Context, run: Run, entry: KvEntry | None, value: bytes) -> Result | None:
    """Put a grant, or delete it for an empty value, on the revision that was read; return what came in between."""
    run.check()
    try:
        if value:
            await context.bus.kv_put(run.key, value, revision=entry.revision if entry else 0)
        elif entry is not None:
            await _delete(context, run, entry)
    except WrongSequenceError:
        return Retry("the grant has just been written by another worker", after=SOON)
    except RefusedError as error:
        # What cannot be said whole is not said at all: the grant of before may hold what was taken since.
        if entry is not None and entry.value:
            await _delete(context, run, entry)
        return Terminal(f"{error}; so {run.key} has no grant")
    return None


async def _delete(context: Context, run: Run, entry: KvEntry) -> None:
    await context.bus.kv_delete(run.key, revision=entry.revision, last=entry.value)
    if (revoked := _account(run.key)) is not None:
        context.revocations.begin(run, revoked)
        context.revocations.end(run, revoked, "proxy")


async def _record(
    context: Context, run: Run, before: Grant | None, after: Grant | None, account: Account | None, tenant: str
) -> None:
    for action, name in changes(before, after, tenant or _tenant_of(context, account)):
        if action == "revoked":
            context.writer.record_later(run, action, f"access/{run.key}", account, name)
        else:
            await context.writer.record(run, action, f"access/{run.key}", account, name)


def _tenant_of(context: Context, account: Account | None) -> str:
    """Return a tenant that an account owns, or that its objects were made for while it did."""
    if account is None:
        return ""
    marks = (one.metadata.annotations.get(ANNOTATION_TENANT, "") for one in context.relations.objects_of(account))
    owned = context.relations.tenants_of_account(account)
    return min(owned or {mark for mark in marks if mark}, default="")


def changes(before: Grant | None, after: Grant | None, tenant: str) -> list[tuple[str, str]]:
    """Return what a change of a grant gives and takes: (``granted`` or ``revoked``, tenant). Pure.

    A subject may own several tenants; each that came or went is told, and all of them where only what it may do there
    has changed. ``tenant`` is that of any other grant.
    """
    if not isinstance(before or after, SubjectGrant):
        return [("granted" if after else "revoked", tenant)]
    old = set(before.tenants) if isinstance(before, SubjectGrant) else set()
    new = set(after.tenants) if isinstance(after, SubjectGrant) else set()
    granted, revoked = (new - old) or (new if old <= new else set()), old - new
    return [*(("revoked", name) for name in sorted(revoked)), *(("granted", name) for name in sorted(granted))]


def tenant_grant(relations: Relations, name: str) -> TenantGrant | None:
    """Return what a live tenant has and may use, None for any other name."""
    tenant = relations.tenants.get(name)
    if tenant is None or tenant.metadata.deletion_timestamp is not None:
        return None
    return TenantGrant(
        name=name,
        uid=tenant.metadata.uid,
        namespaces=tuple(sorted(relations.namespaces_of(name))),
        choices=choices(tenant),
    )


def subject_grant(
    relations: Relations,
    owner: Owner,
    moment: datetime,
    grace: float,
    *,
    gate: bool = False,
    reflects: bool = False,
) -> tuple[SubjectGrant | None, datetime | None]:
    """Return what a subject owns and may see, None for nothing, and when the first stale tenant stops counting.

    To the proxy a subject of a ProxySetting in a tenant's namespace is as an owner of that tenant. Since a tenant can
    write one, of its operations counts what the Tenant gives to its owners. ``gate``: whether clusterResources count.
    ``reflects``: whether the namespaces of other tenants in which a RoleBinding names the subject are granted too, each
    by itself.
    """
    tenants: list[str] = []
    ends: datetime | None = None
    for name in sorted(relations.tenants_of(owner)):
        state = relations.owners(name)
        if owner in state.certain:
            tenants.append(name)
        elif (end := stale_until(state, moment, grace)) is not None:
            tenants.append(name)
            ends = min(ends, end) if ends else end
    allowed = {name: relations.operations[name].get(owner, {}) for name in tenants}
    for name, setting in relations.settings_of(owner):
        given = setting_operations(setting, owner)
        if not permits(relations.tenants.get(name)):
            given = under(given, ceiling(relations.tenants.get(name), relations.owners(name).all))
        allowed[name] = merged(allowed.get(name, {}), given)
    rules = _rules(relations, owner) if gate else ()
    bindings = relations.bindings.of(owner) if reflects else ()
    found = [(one, relations.tenant_of(one.namespace)) for one in bindings]
    reflected = [one for one, tenant in found if tenant and tenant not in allowed]
    if not (allowed or rules or reflected):
        return None, None
    grant = SubjectGrant(
        subject_kind=owner.kind,
        name=owner.name,
        tenants=tuple(sorted(allowed)),
        operations={name: given for name, given in allowed.items() if given},
        rules=rules,
        reflected=tuple(sorted({one.namespace for one in reflected})),
        shared=tuple(sorted({one.namespace for one in reflected if one.shared})),
    )
    return grant, ends


def _rules(relations: Relations, subject: Owner) -> tuple[ClusterRule, ...]:
    found = [rule for one in relations.global_settings_of(subject) for rule in rules_of(one, subject)]
    for tenant, setting in relations.settings_of(subject):
        if permits(relations.tenants.get(tenant)):
            found += rules_of(setting, subject, tenant)
    return tuple(dict.fromkeys(found))


def account_grant(relations: Relations, account: Account, uid: str) -> AccountGrant:
    """Return the token generations of an account that are good: those whose binding Secret stands."""
    found = (
        BoundSecret(name=one.key.name, uid=one.metadata.uid, generation=generation)
        for one in relations.objects_of(account, "token")
        if one.metadata.deletion_timestamp is None
        and one.metadata.annotations.get(ANNOTATION_ACCOUNT_UID) == uid
        and (generation := generation_of(one.metadata.annotations))
        and one.key.name == binding_name(account, generation)
        and ANNOTATION_DIGEST not in one.metadata.annotations
    )
    # Whoever may make Secrets at home may make any number that look like these, and a grant has to fit into a message.
    secrets = tuple(sorted(found, key=lambda secret: secret.generation)[-MOST_GENERATIONS:])
    return AccountGrant(namespace=account.namespace, name=account.name, uid=uid, secrets=secrets)


def config_grant(configuration: CapsuleConfiguration | None) -> ConfigGrant | None:
    """Return who is a Capsule user: the status of those Capsules that have one, else the fields of the spec."""
    if configuration is None:
        return None
    spec = configuration.spec
    users = {_user(user) for user in spec.users}
    users |= {CapsuleUserRef(kind="Group", name=name) for name in spec.user_groups}
    users |= {
        CapsuleUserRef(kind="ServiceAccount" if Account.of_username(name) else "User", name=name)
        for name in spec.user_names
    }
    if configuration.status.users is not None:
        users |= {_user(user) for user in configuration.status.users}
    return ConfigGrant(users=tuple(sorted(users, key=lambda user: (user.kind, user.name))))


def _user(user: CapsuleUser) -> CapsuleUserRef:
    return CapsuleUserRef(kind=user.kind, name=user.name)


async def _tell_findings(context: Context, run: Run, name: str) -> None:
    """Say what is wrong with a Tenant's owners, once for each change of it."""
    tenant = context.relations.tenants.get(name)
    if tenant is None:
        return
    regarding = ObjectRef(api_version=f"{CAPSULE_GROUP}/v1beta2", kind="Tenant", name=name, uid=tenant.metadata.uid)
    for message in findings(tenant, context.relations.owners(name).all):
        record = partial(
            context.writer.record, run, "refused", f"Tenant/{name}", None, name, outcome="refused", message=message
        )
        await context.writer.tell(
            run,
            f"tenant {name} {message}",
            regarding,
            reason="OwnerIgnored",
            message=message,
            about=str(tenant.metadata.generation),
            record=record,
        )
