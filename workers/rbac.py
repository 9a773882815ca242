"""The rights of an account: its RoleBinding at home, and the right to impersonate itself, as Flux asks it to.

At a home that is a tenant's namespace it has what Capsule gives the tenant's owners, and no role of ours. What it
brings to the namespaces of its tenant, on request, is in ``lockdown``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.consumer import Retry
from eventcore.errors import ForbiddenError, InvalidError, KubeError
from workers import lockdown
from workers.capsule_users import CapsuleUsers, UsersError
from workers.context import guarded, until
from workers.desired import Target, account_ref, impersonator
from workers.home_rights import HomeRights, role_targets
from workers.names import lockdown_name, settled_cluster_role_name
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
    return guarded(context, partial(_reconcile, context, CapsuleUsers(context)), Account.of_key)


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
    had_nothing = not _rights(context, account)
    home = await HomeRights.read(context, account, entitlement.tenant)
    wanted = _impersonator(context, entitlement, home.left)
    # What must be remembered of the home stands before anything is given there.
    for manifest in wanted:
        permit = partial(context.judge.confirm, entitlement)
        if await context.writer.ensure(run, manifest, permit, action="granted") == "other":
            held_up = f"{manifest.target} is still there for another account"
    if not context.relations.in_tenant(account):
        wanted = [home.wanted, *wanted]
        permit = partial(_permit_home, context, entitlement)
        written = await context.writer.ensure(run, home.wanted, permit, action="granted", claims=home.claims)
        if written == "created" and had_nothing:
            message = f"has its rights for Tenant {', '.join(entitlement.tenants)}, at home {home.wanted.target}"
            await _announce(context, run, account, "Granted", message)
    await _remove(context, run, account, keep=[manifest.target for manifest in wanted])
    held_up = await _keep_user(context, users, run, entitlement) or held_up
    return Retry(held_up) if held_up else until(entitlement.until)


async def _permit_home(context: Context, entitlement: Entitlement) -> None:
    await context.judge.confirm(entitlement)
    await context.judge.confirm_outside(entitlement.account.namespace)


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


def _impersonator(context: Context, entitlement: Entitlement, left: str) -> list[Manifest]:
    if not context.settings.impersonator_roles:
        return []
    name = settled_cluster_role_name(entitlement.account, context.relations.is_interesting)
    return [*impersonator(entitlement.account, entitlement.tenant, name, left=left)]


async def _remove(context: Context, run: Run, account: Account, *, keep: Iterable[Target]) -> None:
    """Remove what the account should not have. Bindings go first: with them go the rights.

    As OBJECTS shows it, or showed it before the marks were taken off; when nothing is to be kept also by name, since
    whoever has the rights can write the binding anew. Where no impersonator roles are made, there may be no right to
    look for them.
    """
    kept = set(keep)
    found = _rights(context, account) | _lost(context, account)
    if not kept and context.settings.impersonator_roles:
        for role in role_targets(account):
            found |= {role, Target("ClusterRoleBinding", "", role.name)}
    failure: KubeError | None = None
    revoked = False
    if not kept:
        context.revocations.begin(run, account)
        await context.judge.confirm_lost(account, context.relations.remembered_tenants(account))
        try:
            revoked = await _remove_home(context, run, account)
        except KubeError as error:
            failure = error
    # No tenant makes what is of the whole cluster; at home the account makes any number.
    targets = sorted(found - kept, key=lambda target: (bool(target.namespace), target.kind == "ClusterRole", target))
    whole = sum(not target.namespace for target in targets)
    revoked |= await context.writer.remove_all(run, targets, account, action="revoked", whole=whole)
    if failure is not None:
        raise failure
    if not kept:
        context.revocations.end(run, account, *(("apiserver",) if revoked else ()))
    if revoked and not kept:
        await _announce(context, run, account, "Revoked", f"lost its rights: {context.judge.why_not(account)}")


async def _remove_home(context: Context, run: Run, account: Account) -> bool:
    """Remove the RoleBinding at home, whatever marks are on it, unless an administrator made it."""
    home = await HomeRights.read(context, account)
    if home.existing is None or not home.claims(home.existing):
        return False
    tenant = min(context.relations.remembered_tenants(account), default="")
    uid = home.existing.uid
    return await context.writer.delete(run, home.wanted.target, uid, account, action="revoked", tenant=tenant)


def _rights(context: Context, account: Account) -> set[Target]:
    """Return the account's objects of rights as OBJECTS shows them, but for those in namespaces of its tenants."""
    return {
        Target(o.key.kind, o.key.namespace, o.key.name)
        for o in context.relations.objects_of(account, "rbac")
        if o.key.name != lockdown_name(account)
    }


def _lost(context: Context, account: Account) -> set[Target]:
    """Return those of them that OBJECTS does not show any more: they are gone, or only their marks are."""
    return {
        Target(key.kind, key.namespace, key.name)
        for key in context.relations.lost_of(account, "rbac")
        if key.name != lockdown_name(account) and (key.namespace or context.settings.impersonator_roles)
    }


async def _announce(context: Context, run: Run, account: Account, reason: Transition, message: str) -> None:
    if (service_account := context.relations.accounts.get(account)) is not None:
        regarding = account_ref(account, service_account.metadata.uid)
        about = f"{run.cause} {run.view_sequence}"
        await context.writer.announce(run, regarding, reason=reason, message=message, about=about)
