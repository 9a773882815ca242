"""The token of an account: minted, rotated before it expires, revoked at once.

Each generation has a Secret of its own, and deleting that Secret revokes the generation: an empty one that the token is
bound to or, for a static token, one of the type that Kubernetes fills. The current token lies in ``<account>-token``
whatever its mode, so that a change of mode is a rotation like any other: the copies move, then the old one goes. Times
are the API server's (`eventcore.clock`): a worker whose clock is wrong neither lets a token expire nor mints in a loop.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from eventcore.clock import now
from eventcore.consumer import Done
from eventcore.errors import ConflictError, KubeError, WrongSequenceError
from eventcore.grants import AccountGrant, decode_grant
from workers.cleaning import UnfinishedError
from workers.context import asked, guarded, until
from workers.desired import (
    ANNOTATION_ACCOUNT_UID,
    ANNOTATION_DIGEST,
    ANNOTATION_RETIRE,
    ANNOTATION_ROTATE,
    SECRET_TYPE,
    Target,
    Token,
    account_ref,
    binding_secret,
    digest,
    generation_of,
    moment,
)
from workers.minting import Mint, mint_token, supersede, token_text
from workers.names import binding_name, token_name
from workers.ownership import Account
from workers.routing import account_grant_key

if TYPE_CHECKING:
    from eventcore.consumer import Reconcile, Result, Run
    from eventcore.settings import Settings
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.existing import Existing
    from workers.options import Options
    from workers.own_objects import OwnObject

FORCED_OVERLAP: Final = 10.0
"""Seconds that the token before stays valid after a namespace that held it left: enough to rewrite the copies."""
ORPHAN_AGE: Final = 60.0
"""Seconds after which the binding Secret of a mint that was never finished is removed."""
LATEST: Final = 0.95
"""Share of its life at which a token is replaced at the latest."""
EARLY: Final = 30.0
"""Seconds, at most, that a token may be replaced before its time."""
HOLD: Final = 12
"""Overlaps, at most, that a token before stays valid while there is a kubeconfig that still holds it."""
DECISIVE: Final = 3
"""Generations before the current one that are removed whatever else is to be removed: Tether made no older ones."""
_AHEAD: Final = timedelta(seconds=30)
"""How far the clock of the worker that wrote a token may be ahead of this one's."""
PENDING: Final = 1.0
"""Seconds until a look again at what has no event for the account's token."""


def make(context: Context) -> Reconcile:
    """Return the reconciler of one account's token; its key is (namespace, name)."""
    return guarded(context, partial(_reconcile, context), Account.of_key)


async def _reconcile(context: Context, run: Run) -> Result:
    account = Account.of_key(run.key)
    entitlement = context.judge.look(account)
    if entitlement is None:
        await _revoke(context, run, account)
        return Done()
    target = Target("Secret", account.namespace, token_name(account))
    existing = await context.writer.read(target)
    if existing is not None and not context.writer.is_ours(target, existing, account):
        await context.writer.refuse(run, target, account, entitlement.tenant, existing)
        return until(entitlement.until)
    wished = asked(context, entitlement)
    await _tell_problems(context, run, entitlement, wished)
    token = await _current(context, run, entitlement, existing)
    if (mint := _wanted(token, existing, wished, context.settings)) is not None:
        token = await mint_token(context, run, entitlement, existing, mint)
        if token is None:
            # Kubernetes fills the Secret, and that is an event; the time is for when it is slow.
            return until(_soon(), entitlement.until)
        await supersede(context, run, account, existing, token)
    if token is None:
        raise ConflictError(f"the token of {account} is being replaced")
    later = await _retire(context, run, entitlement, token)
    end = rotation(token, context.settings) if token.mode == "bound" else None
    return until(end, later, entitlement.until)


def _wanted(token: Token | None, existing: Existing | None, wished: Options, settings: Settings) -> Mint | None:
    """Return the token to make now, None when the current one is good."""
    if token is None:
        return Mint(wished.token_mode, "minted", settings.token_overlap)
    if existing is not None and existing.annotations.get(ANNOTATION_ROTATE) == str(token.generation):
        return Mint(wished.token_mode, "rotated", FORCED_OVERLAP)
    if token.mode != wished.token_mode or (token.mode == "bound" and _is_due(token, settings)):
        return Mint(wished.token_mode, "rotated", settings.token_overlap)
    return None


async def _tell_problems(context: Context, run: Run, entitlement: Entitlement, wished: Options) -> None:
    topic = f"options {entitlement.account}"
    if not wished.problems:
        context.writer.settle(topic)
        return
    regarding = account_ref(entitlement.account, entitlement.uid)
    await context.writer.tell(run, topic, regarding, reason="AnnotationIgnored", message="; ".join(wished.problems))


def _soon() -> datetime:
    return now() + timedelta(seconds=PENDING)


def rotation(token: Token, settings: Settings) -> datetime:
    """Return when a token is replaced: at its share of life or the set age, and always before it expires."""
    return token.minted + timedelta(seconds=_age(token, settings))


def _age(token: Token, settings: Settings) -> float:
    life = (token.expires - token.minted).total_seconds()
    return min(settings.token_rotate_after or life * settings.token_rotate_at, life * LATEST)


def _is_due(token: Token, settings: Settings) -> bool:
    """Tell whether a token is to be replaced now.

    A little early counts, so that a timer that fires by another clock finds its work.
    """
    early = timedelta(seconds=min(EARLY, _age(token, settings) * 0.05))
    return now() + early >= rotation(token, settings)


async def _current(context: Context, run: Run, entitlement: Entitlement, existing: Existing | None) -> Token | None:
    """Return the token in the Secret if it is good: whole, unedited, of this account, and still bound."""
    if existing is None or existing.body.get("type") != SECRET_TYPE:
        return None
    token = Token.of_annotations(existing.annotations)
    text = token_text(existing)
    if token is None or text is None or digest(text) != token.digest or token.account_uid != entitlement.uid:
        return None
    wanted = binding_secret(entitlement.account, entitlement.tenant, entitlement.uid, token.generation, token.mode)
    binding = await context.writer.read(wanted.target)
    if binding is None or binding.uid != token.binding_uid:
        return None
    if token.mode == "static" and token_text(binding) != text:
        return None
    await context.writer.reclaim(run, wanted, binding)
    return token


async def _retire(context: Context, run: Run, entitlement: Entitlement, token: Token) -> datetime | None:
    """Revoke the generations that are not current and whose time is over; return when the next one's is."""
    account = entitlement.account
    later: list[datetime] = []
    over: list[Target] = []
    end, longest = _overlap(token, context.settings)
    held = _held(context, entitlement)
    for one in _bindings(context, account):
        if one.key.name == token.binding:
            continue
        due = _retirement(one, token, end)
        if due is not None and due <= now() < due + HOLD * longest:
            due = _soon() if generation_of(one.metadata.annotations) in held else due
        if due is None or due <= now():
            over.append(_target(one))
        else:
            later.append(due)
    # Who took our marks off a generation that is not current has no overlap.
    over += _lost(context, account, token.binding)
    before = [binding_name(account, token.generation - age) for age in range(1, DECISIVE + 1)]
    first = [target for target in over if target.name in before]
    targets = [*first, *(target for target in over if target.name not in before)]
    await context.writer.remove_all(run, targets, account, action="revoked", whole=len(first))
    return min(later, default=None)


def _overlap(token: Token, settings: Settings) -> tuple[datetime, timedelta]:
    """Return when the generations before a token are over, and the time from its writing until then.

    The account may write both on its Secret: no more counts than the overlap that is set, and no time in the future.
    """
    most = timedelta(seconds=max(settings.token_overlap, FORCED_OVERLAP))
    longest = max(min(token.retire - token.written, most), timedelta())
    return (token.written + longest if token.written <= now() + _AHEAD else now()), longest


def _held(context: Context, entitlement: Entitlement) -> set[int]:
    """Return the generations whose tokens kubeconfigs that are about to be rewritten still hold."""
    places = context.relations.targets(entitlement.account, set(entitlement.tenants))
    namespaces = context.relations.namespaces
    return {
        generation_of(one.metadata.annotations)
        for one in context.relations.objects_of(entitlement.account, "kubeconfig")
        if one.key.namespace in places
        and one.key.namespace in namespaces
        and not namespaces[one.key.namespace].terminating
    }


def _retirement(one: OwnObject, token: Token, end: datetime) -> datetime | None:
    """Return when a binding Secret that is not current is removed, None for now."""
    if one.metadata.annotations.get(ANNOTATION_ACCOUNT_UID) != token.account_uid:
        return None
    if generation_of(one.metadata.annotations) < token.generation:
        return min(end, moment(one.metadata.annotations, ANNOTATION_RETIRE) or end)
    # A newer generation that never became current: another worker's, which was cut off between two writes.
    created = one.metadata.creation_timestamp
    return created + timedelta(seconds=ORPHAN_AGE) if created else None


async def _revoke(context: Context, run: Run, account: Account) -> None:
    """Take everything back: the grant first, which the proxy obeys at once, then what tokens are bound to.

    What goes is told by the grant, which no tenant writes, by the view, and by name; none of it by what stands on the
    account's own objects, and one that cannot be deleted now holds up no other.
    """
    context.unfinished.pop(account, None)
    context.revocations.begin(run, account)
    tenants = context.relations.remembered_tenants(account)
    await context.judge.confirm_lost(account, tenants)
    tenant, revoked = min(tenants, default=""), False
    failure: KubeError | UnfinishedError | None = None
    for name, uid in (await _withdraw(context, run, account, tenant)).items():
        target = Target("Secret", account.namespace, name)
        try:
            revoked |= await context.writer.delete(run, target, uid, account, action="revoked", tenant=tenant)
        except KubeError as error:
            failure = failure or error
    secret = Target("Secret", account.namespace, token_name(account))
    shown = sorted({_target(one) for one in _bindings(context, account)} - {secret})
    others = [*_lost(context, account, secret.name), *shown]
    first = [secret]
    try:
        # Nobody else's of that name bears our marks, whatever they say.
        if (found := await context.writer.read(secret)) is not None and found.marked:
            token = Token.of_annotations(found.annotations)
            first += [one for one in others if token is not None and one.name == token.binding]
            revoked |= await context.writer.delete(run, secret, found.uid, account, action="revoked", tenant=tenant)
    except KubeError as error:
        failure = failure or error
    targets = list(dict.fromkeys([*first, *others]))
    whole = len(first)
    try:
        revoked |= await context.writer.remove_all(run, targets, account, action="revoked", tenant=tenant, whole=whole)
    except UnfinishedError as error:
        revoked |= error.removed
        failure = failure or error
    if failure is not None and not isinstance(failure, UnfinishedError):
        raise failure
    context.revocations.end(run, account, *(("apiserver",) if revoked else ()))
    if revoked and (service_account := context.relations.accounts.get(account)) is not None:
        regarding = account_ref(account, service_account.metadata.uid)
        message = "its tokens are revoked: " + context.judge.why_not(account)
        about = f"{run.cause} {run.view_sequence}"
        await context.writer.announce(run, regarding, reason="TokenRevoked", message=message, about=about)
    if failure is not None:
        raise failure


async def _withdraw(context: Context, run: Run, account: Account, tenant: str) -> dict[str, str]:
    """Delete the account's grant; return the binding Secrets that it names, by name, with their uids.

    A grant that was deleted before still tells which it named.
    """
    key = account_grant_key(account)
    while (entry := await context.bus.kv_get(key)) is not None and entry.value:
        run.check()
        try:
            await context.bus.kv_delete(key, revision=entry.revision, last=entry.value)
        except WrongSequenceError:
            continue
        context.revocations.reached(run, account, "proxy")
        context.writer.record_later(run, "revoked", f"access/{key}", account, tenant)
    grant = decode_grant(key.token(), entry.last) if entry else None
    return {one.name: one.uid for one in grant.secrets} if isinstance(grant, AccountGrant) else {}


def _bindings(context: Context, account: Account) -> list[OwnObject]:
    """Return the binding Secrets of an account as OBJECTS shows them."""
    return [
        one
        for one in context.relations.objects_of(account, "token")
        if ANNOTATION_DIGEST not in one.metadata.annotations and one.key.name != token_name(account)
    ]


def _lost(context: Context, account: Account, current: str) -> list[Target]:
    """Return the binding Secrets that OBJECTS does not show any more, but for one: gone, or only their marks are."""
    found = context.relations.lost_of(account, "token")
    names = {current, token_name(account)}
    return [Target("Secret", key.namespace, key.name) for key in found if key.name not in names]


def _target(one: OwnObject) -> Target:
    return Target(one.key.kind, one.key.namespace, one.key.name)
