"""The kubeconfig of an account in one namespace: at home, and in every namespace that is provably the tenant's."""

from __future__ import annotations

import base64
import binascii
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.consumer import Retry
from eventcore.errors import NotFoundError
from eventcore.kube import api_path
from workers.context import SOON, guarded, until
from workers.desired import (
    ANNOTATION_GENERATION,
    ANNOTATION_ROTATE,
    Target,
    Token,
    account_ref,
    digest,
    kubeconfig,
    kubeconfig_secret,
)
from workers.entitlement import OutdatedError
from workers.names import hashed_kubeconfig_name, kubeconfig_name, token_name
from workers.ownership import Account
from workers.token import token_text

if TYPE_CHECKING:
    from eventcore.consumer import Reconcile, Result, Run
    from workers.context import Context
    from workers.entitlement import Entitlement

PATIENCE: Final = 3
"""Tries after which an Event says what is missing: at first the token is only on its way."""


class _MissingError(Exception):
    """Something that the kubeconfig is made of is not there; the text says what to do."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one kubeconfig; its key is (namespace, name, target namespace)."""
    return guarded(context, partial(_reconcile, context))


async def _reconcile(context: Context, run: Run) -> Result:
    account, target = Account.of_key(run.key), run.key.parts[2]
    entitlement = context.judge.look(account)
    belongs = entitlement is not None and target in context.relations.targets(account, set(entitlement.tenants))
    if entitlement is None or not belongs:
        await _remove(context, run, account, target, entitlement)
        return until(entitlement.until if entitlement else None)
    if (namespace := context.relations.namespaces.get(target)) is None or namespace.terminating:
        return until(entitlement.until)  # nothing can be made there, and its end brings us back
    topic = f"kubeconfig {account}"
    try:
        ca = await _ca(context)
        text, generation = await _token(context, entitlement)
    except _MissingError as error:
        if run.request.attempt >= PATIENCE:
            await context.writer.tell(
                run, topic, account_ref(account, entitlement.uid), reason="KubeconfigWaits", message=str(error)
            )
        return Retry(str(error))
    context.writer.settle(topic)
    return await _write(context, run, entitlement, target, ca, text, generation)


async def _write(
    context: Context, run: Run, entitlement: Entitlement, namespace: str, ca: bytes, text: str, generation: int
) -> Result:
    account = entitlement.account
    tenant = context.relations.tenant_of(namespace)
    config = kubeconfig(server=context.settings.proxy_url, ca=ca, token=text, namespace=namespace)
    names = [kubeconfig_name(account), hashed_kubeconfig_name(account)]
    if _has(context, account, Target("Secret", namespace, names[1])):
        names.reverse()  # whoever had to take the second name keeps it
    for name in names:
        secret = Target("Secret", namespace, name)
        manifest = kubeconfig_secret(
            account, tenant or entitlement.tenant, secret, config=config, generation=generation
        )
        permit = partial(_permit, context, entitlement, namespace, tenant)
        written = await context.writer.ensure(run, manifest, permit, action="distributed")
        if written != "other":
            await _remove_but(context, run, account, namespace, keep=name)
            return until(entitlement.until)
        if not _rightly_held(context, secret):
            return Retry(f"{secret} is still there for an account that has no place there", after=SOON)
    return Retry(f"both names of the kubeconfig in {namespace} belong to other accounts")


async def _permit(context: Context, entitlement: Entitlement, namespace: str, tenant: str) -> None:
    """Before a credential goes anywhere: the account may have it, and the namespace is where it belongs."""
    await context.judge.confirm(entitlement)
    if namespace != entitlement.account.namespace:
        await context.judge.confirm_namespace(namespace, tenant)


def _has(context: Context, account: Account, target: Target) -> bool:
    return any(
        (one.key.namespace, one.key.name) == (target.namespace, target.name)
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
    for one in context.relations.objects_of(account, "kubeconfig"):
        if one.key.namespace == namespace and one.key.name != keep:
            target = Target("Secret", namespace, one.key.name)
            await context.writer.remove(run, target, account, action="removed")


async def _remove(
    context: Context, run: Run, account: Account, namespace: str, entitlement: Entitlement | None
) -> None:
    """Remove the account's copies from a namespace.

    A copy in a namespace that is still there shows that its people may have read the token, so first the token is
    marked to be rotated: the mark stands when the copy goes, whatever happens to this worker in between.
    """
    names = {kubeconfig_name(account), hashed_kubeconfig_name(account)}
    names |= {o.key.name for o in context.relations.objects_of(account, "kubeconfig") if o.key.namespace == namespace}
    targets = [Target("Secret", namespace, name) for name in sorted(names)]
    tenants = await context.writer.tenants(targets, account)
    if entitlement is None:
        await context.judge.confirm_lost(account, tenants)
    elif context.relations.is_distributed(account):
        await context.judge.confirm_left(account, namespace, {*entitlement.tenants, *tenants})
    for target in targets:
        existing = await context.writer.read(target)
        if existing is None or not existing.belongs_to(account):
            continue
        if entitlement is not None and _has_left(context, account, namespace):
            await _demand_rotation(context, run, account, existing.annotations.get(ANNOTATION_GENERATION, ""))
        await context.writer.remove(run, target, account, action="removed")


def _has_left(context: Context, account: Account, namespace: str) -> bool:
    """Tell whether a namespace is there and somebody else's; one that is being deleted has not gone to anybody."""
    found = context.relations.namespaces.get(namespace)
    if found is None or found.terminating or namespace == account.namespace:
        return False
    return context.relations.tenant_of(namespace) not in context.relations.tenants_of_account(account)


async def _demand_rotation(context: Context, run: Run, account: Account, generation: str) -> None:
    target = Target("Secret", account.namespace, token_name(account))
    existing = await context.writer.read(target)
    if existing is None or not existing.belongs_to(account):
        return
    if existing.annotations.get(ANNOTATION_GENERATION) != generation:
        return  # what was copied there is on its way out already
    run.check()
    patch = {"metadata": {"uid": existing.uid, "annotations": {ANNOTATION_ROTATE: generation}}}
    await context.client.merge_patch(target.path, patch)


async def _token(context: Context, entitlement: Entitlement) -> tuple[str, int]:
    """Return the current token and its generation."""
    account = entitlement.account
    existing = await context.writer.read(Target("Secret", account.namespace, token_name(account)))
    if existing is None or not existing.belongs_to(account):
        raise _MissingError(
            f"Secret {account.namespace}/{token_name(account)} with the account's token is not there yet: "
            "look at `tether work token`"
        )
    token, text = Token.of_annotations(existing.annotations), token_text(existing)
    if token is None or text is None or digest(text) != token.digest or token.account_uid != entitlement.uid:
        raise OutdatedError(f"the token of {account} is being replaced")
    return text, token.generation


async def _ca(context: Context) -> bytes:
    """Return the proxy's CA, PEM."""
    settings = context.settings
    name = f"{settings.proxy_ca_namespace}/{settings.proxy_ca_secret}"
    path = api_path("", "v1", "secrets", namespace=settings.proxy_ca_namespace, name=settings.proxy_ca_secret)
    try:
        secret = msgspec.json.decode(await context.client.get(path), type=dict[str, Any])
    except NotFoundError:
        raise _MissingError(
            f"Secret {name} with the proxy's CA does not exist: create it, or set TETHER_PROXY_CA_NAMESPACE and "
            "TETHER_PROXY_CA_SECRET"
        ) from None
    data = secret.get("data") or {}
    key = next((key for key in settings.ca_keys() if data.get(key)), None)
    if key is None:
        raise _MissingError(
            f"Secret {name} has none of the keys {', '.join(settings.ca_keys())}: add the proxy's CA, or set "
            "TETHER_PROXY_CA_KEYS"
        )
    try:
        pem = base64.b64decode(data[key], validate=True)
        ssl.create_default_context(cadata=pem.decode())
    except (binascii.Error, UnicodeDecodeError, ssl.SSLError, ValueError):
        raise _MissingError(f"key {key} of Secret {name} is not a PEM certificate: put the proxy's CA there") from None
    return pem
