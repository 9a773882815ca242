"""Rights for Flux objects in the tenant's own namespaces while Flux is locked down: an opt-in of the administrator.

Under ``--default-service-account=NAME`` Flux acts for an object as ``<its namespace>/NAME``, an account without rights.
With ``--flux-service-account NAME`` it is bound there to the role that the owner's account has at home.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventcore.consumer import Retry
from workers.context import until
from workers.desired import Target, lockdown_role_binding
from workers.names import lockdown_name
from workers.ownership import Account

if TYPE_CHECKING:
    from eventcore.consumer import Result, Run
    from workers.context import Context
    from workers.entitlement import Entitlement


async def reconcile(context: Context, run: Run) -> Result:
    """Reconcile the RoleBinding of one account in one namespace; the key is (namespace, name, target namespace)."""
    account, namespace = Account.of_key(run.key), run.key.parts[2]
    entitlement = context.judge.look(account)
    # It gets the role that the account has at home, and one that lives in a tenant's namespace has none there.
    wanted = (
        entitlement is not None
        and not context.relations.in_tenant(account)
        and namespace in context.relations.lockdown_targets(account, set(entitlement.tenants))
    )
    if entitlement is None or not wanted:
        await _remove(context, run, account, namespace, entitlement)
        return until(entitlement.until if entitlement else None)
    if (found := context.relations.namespaces.get(namespace)) is None or found.terminating:
        return until(entitlement.until)  # nothing can be made there, and its end brings us back
    tenant, settings = context.relations.tenant_of(namespace), context.settings
    flux = Account(namespace, settings.flux_service_account)
    manifest = lockdown_role_binding(account, tenant, flux, settings.home_cluster_role)
    permit = partial(_permit, context, entitlement, namespace, tenant)
    if await context.writer.ensure(run, manifest, permit, action="granted") == "other":
        return Retry(f"{manifest.target} is marked as made for another account: delete it")
    return until(entitlement.until)


async def _permit(context: Context, entitlement: Entitlement, namespace: str, tenant: str) -> None:
    await context.judge.confirm(entitlement)
    await context.judge.confirm_outside(entitlement.account.namespace)
    await context.judge.confirm_namespace(namespace, tenant)


async def _remove(
    context: Context, run: Run, account: Account, namespace: str, entitlement: Entitlement | None
) -> None:
    target = Target("RoleBinding", namespace, lockdown_name(account))
    if context.settings.flux_service_account:
        if entitlement is None:
            await context.judge.confirm_lost(account, context.relations.remembered_tenants(account))
        elif context.relations.is_distributed(account, namespace) and not context.relations.in_tenant(account):
            await context.judge.confirm_left(account, namespace, context.relations.remembered_tenants(account))
    await context.writer.remove(run, target, account, action="revoked")
