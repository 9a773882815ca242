"""The token of an account: minted, rotated before it expires, revoked at once.

Each generation is bound to an empty Secret of its own; deleting that Secret revokes the generation. The current token
lies in ``<account>-token``. Times are the API server's: a worker whose clock is wrong must neither let a token expire
nor mint in a loop.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.consumer import Done
from eventcore.errors import AlreadyExistsError, ConflictError, WrongSequenceError
from eventcore.events import now
from eventcore.grants import AccountGrant, decode_grant
from workers.context import guarded, until
from workers.desired import (
    ANNOTATION_ACCOUNT_UID,
    ANNOTATION_DIGEST,
    ANNOTATION_GENERATION,
    ANNOTATION_ROTATE,
    SECRET_TYPE,
    Target,
    Token,
    binding_secret,
    digest,
    token_secret,
)
from workers.names import token_name
from workers.ownership import Account
from workers.routing import account_grant_key

if TYPE_CHECKING:
    from eventcore.consumer import Reconcile, Result, Run
    from eventcore.settings import Settings
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.relations import OwnObject
    from workers.writing import Existing

FORCED_OVERLAP: Final = 10.0
"""Seconds that the token before stays valid after a namespace that held it left: enough to rewrite the copies."""
ORPHAN_AGE: Final = 60.0
"""Seconds after which the binding Secret of a mint that was never finished is removed."""
LEAST_AGE: Final = 0.1
"""Share of the rotation age that a token reaches at least, whatever a clock says."""
LATEST: Final = 0.95
"""Share of its life at which a token is replaced at the latest."""
EARLY: Final = 30.0
"""Seconds, at most, that a token may be replaced before its time."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one account's token; its key is (namespace, name)."""
    return guarded(context, partial(_reconcile, context))


async def _reconcile(context: Context, run: Run) -> Result:
    account = Account.of_key(run.key)
    entitlement = context.judge.look(account)
    if entitlement is None:
        await _revoke(context, run, account)
        return Done()
    target = Target("Secret", account.namespace, token_name(account))
    existing = await context.writer.read(target)
    if existing is not None and not existing.belongs_to(account):
        await context.writer.refuse(run, target, account, entitlement.tenant, existing)
        return until(entitlement.until)
    token = await _current(context, run, entitlement, existing)
    generation = existing.annotations.get(ANNOTATION_ROTATE) if existing else None
    if token is None:
        token = await _mint(
            context, run, entitlement, existing, action="minted", overlap=context.settings.token_overlap
        )
    elif generation == str(token.generation):
        token = await _mint(context, run, entitlement, existing, action="rotated", overlap=FORCED_OVERLAP)
    elif _is_due(token, context.settings):
        overlap = context.settings.token_overlap
        token = await _mint(context, run, entitlement, existing, action="rotated", overlap=overlap)
    later = await _retire(context, run, account, token)
    return until(rotation(token, context.settings), later, entitlement.until)


def rotation(token: Token, settings: Settings) -> datetime:
    """Return when a token is replaced: at its share of life or the set age, and always before it expires."""
    return token.minted + timedelta(seconds=_age(token, settings))


def _age(token: Token, settings: Settings) -> float:
    life = (token.expires - token.minted).total_seconds()
    return min(settings.token_rotate_after or life * settings.token_rotate_at, life * LATEST)


def _is_due(token: Token, settings: Settings) -> bool:
    """Tell whether a token is to be replaced now.

    A little early counts, so that a timer that fires by another clock finds its work. A clock that runs ahead must not
    mint without end, so a token also reaches some age by the clock that wrote it, unless that one was ahead itself.
    """
    age, moment = _age(token, settings), now()
    early = timedelta(seconds=min(EARLY, age * 0.05))
    seen = token.written if token.written <= moment else token.minted
    return moment + early >= rotation(token, settings) and moment >= seen + timedelta(seconds=age * LEAST_AGE)


async def _current(context: Context, run: Run, entitlement: Entitlement, existing: Existing | None) -> Token | None:
    """Return the token in the Secret if it is good: whole, unedited, of this account, and still bound."""
    if existing is None or existing.body.get("type") != SECRET_TYPE:
        return None
    token = Token.of_annotations(existing.annotations)
    text = token_text(existing)
    if token is None or text is None or digest(text) != token.digest or token.account_uid != entitlement.uid:
        return None
    wanted = binding_secret(entitlement.account, entitlement.tenant, entitlement.uid, token.generation)
    binding = await context.writer.read(wanted.target)
    if binding is None or binding.uid != token.binding_uid:
        return None
    await context.writer.reclaim(run, wanted, binding)
    return token


def token_text(existing: Existing) -> str | None:
    """Return the token in a token Secret, None when there is none."""
    try:
        text = base64.b64decode((existing.body.get("data") or {}).get("token", ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, TypeError):
        return None
    return text or None


async def _mint(
    context: Context, run: Run, entitlement: Entitlement, existing: Existing | None, *, action: str, overlap: float
) -> Token:
    """Make the next generation current; those before it stay good for ``overlap`` seconds."""
    account = entitlement.account
    await context.judge.confirm(entitlement)
    generation, binding = await _bind(context, run, entitlement, existing)
    name = str(binding.metadata["name"])
    run.check()
    issued = await context.client.token_request(
        account.namespace,
        account.name,
        audiences=context.settings.audiences(),
        expiration_seconds=int(context.settings.token_ttl),
        bound_secret=(name, binding.uid),
    )
    written = now()
    token = Token(
        generation=generation,
        binding=name,
        binding_uid=binding.uid,
        account_uid=entitlement.uid,
        minted=datetime.fromisoformat(str(binding.metadata["creationTimestamp"])),
        expires=issued.expires,
        written=written,
        retire=written + timedelta(seconds=overlap),
        digest=digest(issued.token),
    )
    manifest = token_secret(account, entitlement.tenant, token, issued.token)
    if await context.writer.ensure(run, manifest, _permitted, action="") not in {"created", "updated"}:
        raise ConflictError(f"{manifest.target} has just been changed by somebody else")
    message = f"generation {generation}, expires {issued.expires.astimezone(UTC).isoformat(timespec='seconds')}"
    await context.writer.record(run, action, manifest.target, account, entitlement.tenant, message=message)
    return token


async def _permitted() -> None:
    """The right to mint was confirmed already."""


async def _bind(
    context: Context, run: Run, entitlement: Entitlement, existing: Existing | None
) -> tuple[int, Existing]:
    """Make the binding Secret of the next generation; return the generation and the Secret."""
    account = entitlement.account
    known = [_generation(one.metadata.annotations) for one in context.relations.objects_of(account, "token")]
    if existing is not None:
        known.append(_generation(existing.annotations))
    generation = max(known, default=0)
    while True:
        generation += 1
        manifest = binding_secret(account, entitlement.tenant, entitlement.uid, generation)
        try:
            return generation, await context.writer.create(run, manifest)
        except AlreadyExistsError:
            run.log.debug("generation is taken", generation=generation)


def _generation(annotations: dict[str, str]) -> int:
    text = annotations.get(ANNOTATION_GENERATION, "")
    return int(text) if text.isdecimal() else 0


async def _retire(context: Context, run: Run, account: Account, token: Token) -> datetime | None:
    """Revoke the generations that are not current and whose time is over; return when the next one's is."""
    later: list[datetime] = []
    for one in _bindings(context, account):
        if one.key.name == token.binding:
            continue
        due = _retirement(one, token)
        if due is None or due <= now():
            await context.writer.remove(run, _target(one), account, action="revoked")
        else:
            later.append(due)
    return min(later, default=None)


def _retirement(one: OwnObject, token: Token) -> datetime | None:
    """Return when a binding Secret that is not current is removed, None for now."""
    if one.metadata.annotations.get(ANNOTATION_ACCOUNT_UID) != token.account_uid:
        return None
    if _generation(one.metadata.annotations) < token.generation:
        return token.retire
    # A newer generation that never became current: another worker's, which was cut off between two writes.
    created = one.metadata.creation_timestamp
    return created + timedelta(seconds=ORPHAN_AGE) if created else None


async def _revoke(context: Context, run: Run, account: Account) -> None:
    """Take everything back: the grant first, which the proxy obeys at once, then what tokens are bound to."""
    secret = Target("Secret", account.namespace, token_name(account))
    known = {secret, *(_target(one) for one in _bindings(context, account))}
    await context.judge.confirm_lost(account, await context.writer.tenants(known, account))
    bound = await _withdraw(context, run, account)
    for name, uid in bound.items():
        run.check()
        target = Target("Secret", account.namespace, name)
        if await context.client.delete(target.path, uid=uid):
            await context.writer.record(run, "revoked", target, account)
    existing = await context.writer.read(secret)
    targets = {_target(one) for one in _bindings(context, account)}
    if existing is not None and (named := Token.of_annotations(existing.annotations)) is not None:
        targets.add(Target("Secret", account.namespace, named.binding))
    for target in sorted(targets):
        await context.writer.remove(run, target, account, action="revoked")
    await context.writer.remove(run, secret, account, action="revoked")


async def _withdraw(context: Context, run: Run, account: Account) -> dict[str, str]:
    """Delete the account's grant; return the binding Secrets that it named, by name, with their uids."""
    key = account_grant_key(account)
    while (entry := await context.bus.kv_get(key)) is not None and entry.value:
        grant = decode_grant(key.token(), entry.value)
        run.check()
        try:
            await context.bus.kv_delete(key, revision=entry.revision)
        except WrongSequenceError:
            continue
        await context.writer.record(run, "revoked", f"access/{key}", account)
        return {one.name: one.uid for one in grant.secrets} if isinstance(grant, AccountGrant) else {}
    return {}


def _bindings(context: Context, account: Account) -> list[OwnObject]:
    """Return the binding Secrets of an account as OBJECTS shows them."""
    return [
        one
        for one in context.relations.objects_of(account, "token")
        if ANNOTATION_DIGEST not in one.metadata.annotations and one.key.name != token_name(account)
    ]


def _target(one: OwnObject) -> Target:
    return Target(one.key.kind, one.key.namespace, one.key.name)
