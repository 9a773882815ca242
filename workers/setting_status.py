"""The status of ProxySettings and GlobalProxySettings: whether all of it counts, and what does not and why.

Written by the access worker, which knows what became of it, and only where it differs from what stands there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.clock import now
from eventcore.consumer import Done, Retry, Terminal
from eventcore.errors import ConflictError, NotFoundError
from eventcore.foreign import shown
from eventcore.keys import ObjectKey, key
from eventcore.kube import ObjectRef
from eventcore.kube_paths import object_path
from eventcore.objects import ANNOTATION_CLUSTER_RESOURCES, CAPSULE_GROUP, Condition, ProxySetting, ProxyStatus
from workers.choices import above, ceiling
from workers.cluster_rules import NOT_PERMITTED, Ignored, permits, resources_of, wrong
from workers.context import SOON
from workers.ownership import Account, identities, well_formed
from workers.proxy_settings import KINDS, MOST_SUBJECTS, named, setting_subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.consumer import Result, Run
    from eventcore.grants import ConfigGrant
    from eventcore.keys import Key
    from workers.context import Context
    from workers.proxy_settings import Setting
    from workers.relations import Relations

PREFIX: Final = "status"
"""First part of the keys; grants have others."""
PLURALS: Final = {"ProxySetting": "proxysettings", "GlobalProxySettings": "globalproxysettings"}
READY: Final = "Ready"
MOST: Final = 1024
"""Characters of a condition's message."""


def status_key(target: ObjectKey) -> Key:
    """Return the key of a setting's status."""
    return key(PREFIX, target.kind, target.namespace, target.name)


async def reconcile(context: Context, run: Run, config: ConfigGrant | None) -> Result:
    """Bring the status of one setting up to date. ``config``: who is a user of Capsule."""
    match run.key.parts:
        case (_, kind, namespace, name) if kind in KINDS:
            target = ObjectKey(kind, namespace, name)
        case _:
            return Terminal(f"{run.key} is not the key of a setting's status")
    setting = context.relations.settings.all.get(target)
    if setting is None or setting.metadata.deletion_timestamp is not None:
        return Done()
    gate = context.settings.proxy_cluster_scoped
    wanted = status_of(setting, context.relations, config, gate=gate)
    if wanted == setting.status:
        return Done()
    if refused := [one.message for one in ignored(setting, context.relations, config, gate=gate) if one.is_refusal]:
        regarding = ObjectRef(
            api_version=f"{CAPSULE_GROUP}/v1beta1", kind=kind, name=name, namespace=namespace, uid=setting.metadata.uid
        )
        about = str(setting.metadata.generation)
        message = _short("; ".join(refused))
        await context.writer.tell(run, str(run.key), regarding, reason=NOT_PERMITTED, message=message, about=about)
    # With the version, so that a status made from an older spec never replaces one made from a newer.
    metadata = {"resourceVersion": setting.metadata.resource_version, "uid": setting.metadata.uid}
    run.check()
    try:
        path = object_path(CAPSULE_GROUP, "v1beta1", PLURALS[kind], name, namespace=namespace, subresource="status")
        await context.client.merge_patch(path, {"metadata": metadata, "status": msgspec.to_builtins(wanted)})
    except NotFoundError:
        return Done()
    except ConflictError:
        return Retry("the setting has just been changed", after=SOON)
    return Done()


def status_of(setting: Setting, relations: Relations, config: ConfigGrant | None, *, gate: bool) -> ProxyStatus:
    """Return what the status should be. Pure but for the time of a change."""
    meta = setting.metadata
    if found := ignored(setting, relations, config, gate=gate):
        status, reason = "False", found[0].reason
        message = "; ".join(one.message for one in found)
    else:
        status, reason, message = "True", "Succeeded", "reconciled"
        if strangers := _strangers(setting, _users(config)):
            message += f"; counts where Capsule counts the caller among its users: {', '.join(strangers)}"
    before = next((one for one in setting.status.conditions if one.type == READY), None)
    same = before is not None and before.status == status
    since = before.last_transition_time if before is not None and same else now().strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = Condition(
        type=READY,
        status=status,
        reason=reason,
        message=_short(message),
        observed_generation=meta.generation,
        last_transition_time=since,
    )
    return ProxyStatus(observed_generation=meta.generation, conditions=[condition])


def ignored(setting: Setting, relations: Relations, config: ConfigGrant | None, *, gate: bool) -> list[Ignored]:
    """Return what of a setting gives nothing."""
    return sorted(set(_ignored(setting, relations, _users(config), gate=gate)))


def _users(config: ConfigGrant | None) -> set[tuple[str, str]]:
    return {(ref.kind, ref.name) for ref in config.users} if config else set()


def _short(message: str) -> str:
    return message if len(message) <= MOST else message[: MOST - 3] + "..."


def _ignored(setting: Setting, relations: Relations, users: set[tuple[str, str]], *, gate: bool) -> Iterator[Ignored]:
    for kind, name in named(setting):
        if not well_formed(kind, name):
            hint = "a ServiceAccount goes by its user name" if kind == "ServiceAccount" else "or its name is too long"
            yield Ignored("SubjectInvalid", f"{shown(kind)} '{shown(name)}' names nobody: {hint}")
    tenant = relations.tenant_of(setting.metadata.namespace)
    if isinstance(setting, ProxySetting) and not tenant:
        yield Ignored("NotInTenant", f"namespace {setting.metadata.namespace} is no tenant's, so nothing counts")
        return
    yield from _too_many(setting, relations)
    yield from _cut(setting, tenant, relations)
    if entries := list(resources_of(setting)):
        yield from _closed(setting, tenant, relations, gate=gate)
    for path, resource in entries:
        if (why := wrong(resource)) is not None:
            yield Ignored(why.reason, f"{path}: {why.message}")
    yield from _no_users(setting, users)


def _too_many(setting: Setting, relations: Relations) -> Iterator[Ignored]:
    """Yield that some subjects do not count, since those of the namespace are too many."""
    meta = setting.metadata
    counting = relations.settings.subjects.counting(ObjectKey("ProxySetting", meta.namespace, meta.name))
    if isinstance(setting, ProxySetting) and (beyond := setting_subjects(setting) - counting):
        yield Ignored(
            "TooManySubjects",
            f"{len(beyond)} of its subjects do not count: all ProxySettings of namespace {meta.namespace} may name "
            f"{MOST_SUBJECTS} together, in the order of their names",
        )


def _cut(setting: Setting, tenant: str, relations: Relations) -> Iterator[Ignored]:
    """Yield the operations that a tenant cannot hand on."""
    found = relations.tenants.get(tenant)
    if not isinstance(setting, ProxySetting) or permits(found):
        return
    for path, kind, operations in above(setting, ceiling(found, relations.owners(tenant).all)):
        yield Ignored(
            NOT_PERMITTED,
            f"{path}: {', '.join(operations)} of {kind} does not count, since Tenant {tenant} does not give it to all "
            f"its owners; it would with the annotation {ANNOTATION_CLUSTER_RESOURCES} (true) on the Tenant",
        )


def _closed(setting: Setting, tenant: str, relations: Relations, *, gate: bool) -> Iterator[Ignored]:
    """Yield why no clusterResources count at all."""
    if not gate:
        flag = "--proxy-cluster-scoped of `tether work` and `tether proxy`"
        yield Ignored("GateOff", f"clusterResources count only with {flag}")
    if isinstance(setting, ProxySetting) and not permits(relations.tenants.get(tenant)):
        yield Ignored(
            NOT_PERMITTED,
            f"clusterResources of a ProxySetting count only with the annotation {ANNOTATION_CLUSTER_RESOURCES} "
            f"(true) on Tenant {tenant}; a GlobalProxySettings needs none",
        )


def _no_users(setting: Setting, users: set[tuple[str, str]]) -> Iterator[Ignored]:
    """Yield the ServiceAccounts that Capsule does not count among its users: all their groups are known."""
    for kind, name in sorted(set(named(setting))):
        account = Account.of_username(name) if kind == "ServiceAccount" else None
        if account is not None and not users & {(one.kind, one.name) for one in identities(account)}:
            yield Ignored("NoCapsuleUser", f"ServiceAccount {name} is no user of Capsule, so the proxy does not filter")


def _strangers(setting: Setting, users: set[tuple[str, str]]) -> list[str]:
    """Return the users and groups that may be users of Capsule only by a name that is not written here."""
    found = {one for one in named(setting) if one[0] != "ServiceAccount"}
    return [f"{kind} {name}" for kind, name in sorted(found - users)]
