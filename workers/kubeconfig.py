"""The kubeconfig of an account in one namespace: at home, and in every namespace that is provably the tenant's."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.consumer import Retry
from workers.authority import Authority, AuthorityError, Trust
from workers.ca_copies import copy_authority, is_copy
from workers.cleaning import MOST_AT_ONCE
from workers.context import SOON, asked, guarded, until
from workers.desired import (
    ANNOTATION_DIGEST,
    ANNOTATION_ROTATE,
    Target,
    Token,
    account_ref,
    digest,
    flux_config_map,
    generation_of,
    kubeconfig,
    kubeconfig_secret,
    token_audiences,
)
from workers.entitlement import OutdatedError
from workers.minting import token_text
from workers.names import hashed_kubeconfig_name, kubeconfig_name, token_name
from workers.ownership import Account

if TYPE_CHECKING:
    from eventcore.consumer import Reconcile, Result, Run
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.existing import Existing
    from workers.options import Options

PATIENCE: Final = 3
"""Tries after which an Event says what is missing: at first the token is only on its way."""


class _MissingError(Exception):
    """Something that the kubeconfig is made of is not there; the text says what to do."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one kubeconfig; its key is (namespace, name, target namespace).

    A key of two parts is that of a copy of the proxy's CA, which comes from the same source.
    """
    authority = Authority(context.writer, context.settings)

    async def reconcile(run: Run) -> Result:
        if is_copy(run.key):
            return await copy_authority(context, authority, run)
        return await _reconcile(context, authority, run)

    return guarded(context, reconcile, lambda key: None if is_copy(key) else Account.of_key(key))


async def _reconcile(context: Context, authority: Authority, run: Run) -> Result:
    account, target = Account.of_key(run.key), run.key.parts[2]
    entitlement = context.judge.look(account)
    belongs = entitlement is not None and target in context.relations.targets(account, set(entitlement.tenants))
    if entitlement is None or not belongs:
        await _remove(context, run, account, target, entitlement)
        return until(entitlement.until if entitlement else None)
    if (namespace := context.relations.namespaces.get(target)) is None or namespace.terminating:
        return until(entitlement.until)  # nothing can be made there, and its end brings us back
    wished, at_home = asked(context, entitlement), target == account.namespace
    if wished.config_map == "instead" and not at_home:
        await _remove(context, run, account, target, entitlement, chosen=True)
        return until(entitlement.until)
    try:
        trust = await authority.trust(run)
        text, token = await _token(context, entitlement)
        if wished.config_map != "instead":
            result = await _write(context, run, entitlement, target, trust, text, token)
            if isinstance(result, Retry):
                return result
        if at_home:
            await _write_config_map(context, run, entitlement, wished, trust, text)
    except (_MissingError, AuthorityError) as error:
        if run.request.attempt >= PATIENCE:
            await _tell(context, run, entitlement, str(error), failed=target)
        return Retry(str(error))
    await _tell(context, run, entitlement, trust.problem)
    if wished.config_map == "instead":
        await _remove(context, run, account, target, entitlement, chosen=True)
    return until(entitlement.until, trust.ends)


async def _tell(context: Context, run: Run, entitlement: Entitlement, message: str, *, failed: str = "") -> None:
    """Say on the account what its kubeconfigs wait for; nothing is said with "".

    ``failed`` is the namespace that has to do without one, if it has.
    """
    account = entitlement.account
    topic = f"kubeconfig {account}"
    if not message:
        context.writer.settle(topic)
        return
    regarding = account_ref(account, entitlement.uid)
    record = None
    if failed:
        secret = Target("Secret", failed, _names(context, account)[0])
        record = partial(
            context.writer.record,
            run,
            "distributed",
            secret,
            account,
            context.relations.tenant_of(failed) or entitlement.tenant,
            outcome="failed",
            message=message,
        )
    await context.writer.tell(run, topic, regarding, reason="KubeconfigWaits", message=message, record=record)


async def _write_config_map(
    context: Context, run: Run, entitlement: Entitlement, wished: Options, trust: Trust, text: str
) -> None:
    """Write the account's ConfigMap at home if it asks for one, and remove the one that it does not ask for."""
    if not wished.config_map:
        await _remove_config_maps(context, run, entitlement.account)
        return
    audiences = context.settings.audiences() or token_audiences(text)
    if not audiences:
        raise _MissingError(
            "a static token does not say whom the API server takes tokens for: set TETHER_TOKEN_AUDIENCES to its "
            "audience, or use bound tokens"
        )
    manifest = flux_config_map(
        entitlement.account,
        entitlement.tenant,
        _config_map(context, entitlement.account),
        server=wished.proxy_url,
        trust=trust.bundle,
        audiences=audiences,
    )
    permit = partial(context.judge.confirm, entitlement)
    await context.writer.ensure(run, manifest, permit, action="distributed")
    await _remove_config_maps(context, run, entitlement.account, keep=manifest.target)


def _config_map(context: Context, account: Account) -> Target:
    return Target("ConfigMap", account.namespace, kubeconfig_name(account, context.settings.kubeconfig_suffix))


async def _remove_config_maps(context: Context, run: Run, account: Account, *, keep: Target | None = None) -> None:
    """Remove the account's ConfigMaps at home, where Tether may touch ConfigMaps at all."""
    if not context.settings.kubeconfig_configmaps:
        return
    found = {
        Target("ConfigMap", one.key.namespace, one.key.name)
        for one in context.relations.objects_of(account, "kubeconfig")
        if one.key.kind == "ConfigMap"
    }
    own = {_config_map(context, account)} - {keep}
    targets = [*own, *sorted(found - own - {keep})]
    await context.writer.remove_all(run, targets, account, action="removed", whole=len(own))


async def _write(
    context: Context, run: Run, entitlement: Entitlement, namespace: str, trust: Trust, text: str, token: Token
) -> Retry | None:
    """Write the Secret; return a Retry where its place is not free yet."""
    account = entitlement.account
    tenant = context.relations.tenant_of(namespace)
    server = asked(context, entitlement, tenant).proxy_url
    config = kubeconfig(server=server, ca=trust.bundle, token=text, namespace=namespace)
    # Asked before the write: afterwards the view may show our own copy.
    is_news = not any(
        one.metadata.annotations.get(ANNOTATION_DIGEST) == token.digest
        for one in context.relations.objects_of(account, "kubeconfig")
    )
    names = _names(context, account)
    if _has(context, account, Target("Secret", namespace, names[1])):
        names.reverse()  # whoever had to take the second name keeps it
    for name in names:
        secret = Target("Secret", namespace, name)
        manifest = kubeconfig_secret(
            account,
            tenant or entitlement.tenant,
            secret,
            config=config,
            generation=token.generation,
            token_digest=token.digest,
            keys=context.settings.kubeconfig_data_keys(),
        )
        permit = partial(_permit, context, entitlement, namespace, tenant)
        written = await context.writer.ensure(run, manifest, permit, action="distributed")
        if written != "other":
            if is_news and written in {"created", "renewed"}:
                await _announce(context, run, entitlement, token)
            await _remove_but(context, run, account, namespace, keep=name)
            return None
        if not _rightly_held(context, secret):
            return Retry(f"{secret} is still there for an account that has no place there", after=SOON)
    return Retry(f"both names of the kubeconfig in {namespace} belong to other accounts")


async def _announce(context: Context, run: Run, entitlement: Entitlement, token: Token) -> None:
    """Tell once of a token that it goes out, and not of each copy: the first one tells, for all."""
    where = "at home, and to the namespaces that it goes to of Tenant " + ", ".join(entitlement.tenants)
    await context.writer.announce(
        run,
        account_ref(entitlement.account, entitlement.uid),
        reason="KubeconfigDistributed",
        message=f"kubeconfig with the token of generation {token.generation} goes out: {where}",
        about=token.binding_uid,
    )


async def _permit(context: Context, entitlement: Entitlement, namespace: str, tenant: str) -> None:
    """Before a credential goes anywhere: the account may have it, and the namespace is where it belongs."""
    await context.judge.confirm(entitlement)
    if namespace != entitlement.account.namespace:
        await context.judge.confirm_namespace(namespace, tenant)


def _names(context: Context, account: Account) -> list[str]:
    """Return both names that an account's kubeconfig Secret may have, the plain one first."""
    suffix = context.settings.kubeconfig_suffix
    return [kubeconfig_name(account, suffix), hashed_kubeconfig_name(account, suffix)]


def _has(context: Context, account: Account, target: Target) -> bool:
    return any(
        (one.key.kind, one.key.namespace, one.key.name) == (target.kind, target.namespace, target.name)
        for one in context.relations.objects_of(account, "kubeconfig")
    )


def _rightly_held(context: Context, target: Target) -> bool:
    """Tell whether a kubeconfig of ours belongs where it is, to whomever."""
    for other in context.relations.copies_in(target.namespace):
        if _has(context, other, target):
            entitlement = context.judge.look(other)
            tenants = set(entitlement.tenants) if entitlement else set()
            return target.namespace in context.relations.targets(other, tenants)
    return False


async def _remove_but(context: Context, run: Run, account: Account, namespace: str, *, keep: str) -> None:
    found = {
        one.key.name
        for one in context.relations.objects_of(account, "kubeconfig")
        if (one.key.kind, one.key.namespace) == ("Secret", namespace) and one.key.name != keep
    }
    first = [name for name in _names(context, account) if name in found]
    targets = [Target("Secret", namespace, name) for name in dict.fromkeys([*first, *sorted(found)])]
    await context.writer.remove_all(run, targets, account, action="removed", whole=len(first))


async def _remove(
    context: Context,
    run: Run,
    account: Account,
    namespace: str,
    entitlement: Entitlement | None,
    *,
    chosen: bool = False,
) -> None:
    """Remove the account's copies from a namespace; ``chosen``: they belong there, but the account wants none.

    A copy in a namespace that is still there shows that its people may have read the token, so first the token is
    marked to be rotated: the mark stands when the copy goes, whatever happens to this worker in between.
    """
    others = {
        one.key.name
        for one in context.relations.objects_of(account, "kubeconfig")
        if (one.key.kind, one.key.namespace) == ("Secret", namespace)
    }
    others |= {
        key.name
        for key in context.relations.lost_of(account, "kubeconfig")
        if (key.kind, key.namespace) == ("Secret", namespace)
    }
    whole = len(_names(context, account))
    names = dict.fromkeys([*_names(context, account), *sorted(others)])
    targets = [Target("Secret", namespace, name) for name in names]
    tenants = context.relations.remembered_tenants(account)
    if entitlement is None:
        await context.judge.confirm_lost(account, tenants)
    elif not chosen and context.relations.is_distributed(account, namespace):
        await context.judge.confirm_left(account, namespace, tenants)
    left = entitlement is not None and _has_left(context, account, namespace)
    if left:
        await _demand_rotation(context, run, account, targets[: whole + MOST_AT_ONCE])
    await context.writer.remove_all(run, targets, account, action="removed", whole=whole)
    if entitlement is None and namespace == account.namespace:
        await _remove_config_maps(context, run, account)


def _has_left(context: Context, account: Account, namespace: str) -> bool:
    """Tell whether a namespace is there and somebody else's; one that is being deleted has not gone to anybody."""
    found = context.relations.namespaces.get(namespace)
    if found is None or found.terminating or namespace == account.namespace:
        return False
    return context.relations.tenant_of(namespace) not in context.relations.tenants_of_account(account)


async def _demand_rotation(context: Context, run: Run, account: Account, copies: list[Target]) -> None:
    """Mark the token to be rotated if a copy shows it, or held it when its namespace left, whatever is in it now.

    What else stands on the copy counts for nothing: anybody can write that on a Secret of their own.
    """
    target = Target("Secret", account.namespace, token_name(account))
    existing = await context.writer.read(target)
    if existing is None or not context.writer.is_ours(target, existing, account):
        return
    generation, token = generation_of(existing.annotations), token_text(existing)
    for place in copies:
        copy = await context.writer.read(place)
        if copy is None or (copy.marked and not context.writer.is_ours(place, copy, account)):
            continue
        if _shows(copy, token) or context.relations.held(place, copy.uid) == generation:
            run.check()
            patch = {"metadata": {"uid": existing.uid, "annotations": {ANNOTATION_ROTATE: str(generation)}}}
            await context.client.merge_patch(target.path, patch)
            return  # what else was copied there is on its way out with it


def _shows(copy: Existing, token: str | None) -> bool:
    """Tell whether a Secret holds a token in one of its values."""
    if not token:
        return False
    for value in (copy.body.get("data") or {}).values():
        with suppress(binascii.Error):
            if token.encode() in base64.b64decode(value):
                return True
    return False


async def _token(context: Context, entitlement: Entitlement) -> tuple[str, Token]:
    """Return the current token and what is known of it."""
    account = entitlement.account
    target = Target("Secret", account.namespace, token_name(account))
    existing = await context.writer.read(target)
    if existing is None or not context.writer.is_ours(target, existing, account):
        raise _MissingError(
            f"Secret {account.namespace}/{token_name(account)} with the account's token is not there yet: "
            "look at `tether work token`"
        )
    token, text = Token.of_annotations(existing.annotations), token_text(existing)
    if token is None or text is None or digest(text) != token.digest or token.account_uid != entitlement.uid:
        raise OutdatedError(f"the token of {account} is being replaced")
    return text, token
