"""The rights of an account: its RoleBinding at home, and the right to impersonate itself, as Flux asks it to.

What it brings to the namespaces of its tenant, on request, is in ``lockdown``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.consumer import Retry
from eventcore.errors import ForbiddenError, InvalidError
from workers import lockdown
from workers.capsule_users import CapsuleUsers, UsersError
from workers.context import guarded, until
from workers.desired import Target, account_ref, home_role_binding, impersonator
from workers.names import cluster_role_name, lockdown_name, role_binding_name, settled_cluster_role_name, with_hash
from workers.ownership import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.consumer import Reconcile, Result, Run
    from workers.context import Context
    from workers.desired import Manifest
    from workers.entitlement import Entitlement
    from workers.writing import Transition


PATIENCE: Final = 3
"""Tries after which an Event says why the account is no user of Capsule yet."""
TARGETED: Final = 3
"""Parts of a key that names a target namespace too."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one account's rights; its key is (namespace, name), or those and a target namespace."""
    return guarded(context, partial(_reconcile, context, CapsuleUsers(context)))


async def _reconcile(context: Context, users: CapsuleUsers, run: Run) -> Result:
    if len(run.key.parts) == TARGETED:
        return await lockdown.reconcile(context, run)
    account = Account.of_key(run.key)
    entitlement = context.judge.look(account)
    if entitlement is None:
        await _remove(context, run, account, keep=())
        await users.release(run, account)
        await _tell_refused(context, run, account)
        return until()
    await _tell_refused(context, run, account)
    held_up = ""
    wanted = _wanted(context, entitlement)
    had_nothing = not _rights(context, account)
    for manifest in wanted:
        permit = partial(context.judge.confirm, entitlement)
        written = await context.writer.ensure(run, manifest, permit, action="granted")
        if written == "created" and had_nothing and manifest is wanted[0]:
            message = f"has its rights for Tenant {', '.join(entitlement.tenants)}, at home {manifest.target}"
            await _announce(context, run, account, "Granted", message)
        if written == "other":
            held_up = f"{manifest.target} is still there for another account"
    await _remove(context, run, account, keep=[manifest.target for manifest in wanted])
    held_up = await _keep_user(context, users, run, entitlement) or held_up
    return Retry(held_up) if held_up else until(entitlement.until)


async def _tell_refused(context: Context, run: Run, account: Account) -> None:
    """Say on an account why it gets nothing where its home alone keeps it from that."""
    topic = f"home {account}"
    if (refused := context.judge.refused(account)) is None:
        context.writer.settle(topic)
        return
    entitlement, tenant = refused
    owned = ", ".join(entitlement.tenants)
    message = (
        f"Namespace {account.namespace} is a member of Tenant {tenant}, which the account does not own, so it gets "
        f"nothing for Tenant {owned}: make the account in a namespace outside of tenants and name that one in "
        "spec.owners, or take the namespace out of the Tenant"
    )
    home = context.relations.namespaces.get(account.namespace)
    target = f"ServiceAccount/{account}"
    record = partial(
        context.writer.record, run, "refused", target, account, entitlement.tenant, outcome="refused", message=message
    )
    await context.writer.tell(
        run,
        topic,
        account_ref(account, entitlement.uid),
        reason="HomeOfAnotherTenant",
        message=message,
        about=home.metadata.uid if home else "",
        record=record,
    )


async def _keep_user(context: Context, users: CapsuleUsers, run: Run, entitlement: Entitlement) -> str:
    """Keep the account among the users of Capsule where that is asked for; return what stands against it, or ""."""
    if not context.settings.capsule_users:
        await users.release(run, entitlement.account)
        return ""
    topic = f"user {entitlement.account}"
    try:
        await users.keep(run, entitlement)
    except (UsersError, ForbiddenError, InvalidError) as error:
        problem = f"the account is not made a user of Capsule: {error}"
        if isinstance(error, ForbiddenError):
            problem += "; apply deploy/optional/worker-users.yaml"
        if run.request.attempt >= PATIENCE:
            regarding = account_ref(entitlement.account, entitlement.uid)
            await context.writer.tell(run, topic, regarding, reason="CapsuleUserRefused", message=problem)
        return problem
    context.writer.settle(topic)
    return ""


def _wanted(context: Context, entitlement: Entitlement) -> list[Manifest]:
    account, tenant = entitlement.account, entitlement.tenant
    wanted = [home_role_binding(account, tenant, context.settings.home_cluster_role)]
    if context.settings.impersonator_roles:
        name = settled_cluster_role_name(account, context.relations.is_interesting)
        wanted += impersonator(account, tenant, name)
    return wanted


async def _remove(context: Context, run: Run, account: Account, *, keep: Iterable[Target]) -> None:
    """Remove what the account should not have. Bindings go first: with them go the rights.

    By label as OBJECTS shows it; when nothing is to be kept also by name, since whoever has the rights can take the
    label off. Where no impersonator roles are made, there may be no right to look for them.
    """
    kept = set(keep)
    found = _rights(context, account)
    if not kept:
        found.add(Target("RoleBinding", account.namespace, role_binding_name(account)))
    if not kept and context.settings.impersonator_roles:
        plain = cluster_role_name(account)
        for name in (plain, with_hash(plain, account)):
            found |= {Target("ClusterRole", "", name), Target("ClusterRoleBinding", "", name)}
    if not kept:
        await context.judge.confirm_lost(account, context.relations.remembered_tenants(account))
    first = Target("RoleBinding", account.namespace, role_binding_name(account))
    targets = sorted(found - kept, key=lambda target: (target.kind == "ClusterRole", target != first, target))
    revoked = await context.writer.remove_all(run, targets, account, action="revoked")
    if revoked and not kept:
        await _announce(context, run, account, "Revoked", f"lost its rights: {context.judge.why_not(account)}")


def _rights(context: Context, account: Account) -> set[Target]:
    """Return the account's objects of rights as OBJECTS shows them, but for those in namespaces of its tenants."""
    return {
        Target(o.key.kind, o.key.namespace, o.key.name)
        for o in context.relations.objects_of(account, "rbac")
        if o.key.name != lockdown_name(account)
    }


async def _announce(context: Context, run: Run, account: Account, reason: Transition, message: str) -> None:
    if (service_account := context.relations.accounts.get(account)) is not None:
        regarding = account_ref(account, service_account.metadata.uid)
        about = f"{run.cause} {run.view_sequence}"
        await context.writer.announce(run, regarding, reason=reason, message=message, about=about)
