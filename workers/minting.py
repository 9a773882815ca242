"""Making a token of either mode, and making it the current one."""

from __future__ import annotations

import base64
import binascii
import platform
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from eventcore.clock import KUBE, TOLERANCE, now
from eventcore.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from eventcore.kube import IssuedToken
from workers.desired import (
    ANNOTATION_ACCOUNT_UID,
    ANNOTATION_DIGEST,
    ANNOTATION_MODE,
    ANNOTATION_RETIRE,
    LEGACY_TYPE,
    Target,
    Token,
    TokenMode,
    account_ref,
    binding_secret,
    digest,
    generation_of,
    timestamp,
    token_secret,
)
from workers.names import binding_name, token_name
from workers.own_annotations import FOREVER, MOST_GENERATION
from workers.writing import WRITTEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.consumer import Run
    from eventcore.kube import ObjectRef
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.existing import Existing
    from workers.own_objects import OwnObject
    from workers.ownership import Account
    from workers.writing import Transition

PATIENCE: Final = 3
"""Tries after which an Event says why there is no token."""


class Mint(msgspec.Struct, frozen=True):
    """A token that is to be made: ``action`` is the audit's, ``overlap`` how many seconds the one before stays good."""

    mode: TokenMode
    action: Literal["minted", "rotated"]
    overlap: float


async def mint_token(
    context: Context, run: Run, entitlement: Entitlement, existing: Existing | None, mint: Mint
) -> Token | None:
    """Make the next generation current; None while Kubernetes has not filled the Secret of a static one yet."""
    account = entitlement.account
    await context.judge.confirm(entitlement)
    if mint.mode == "static":
        generation, binding = await _legacy(context, run, entitlement, existing)
        if (text := token_text(binding)) is None:
            return None
        issued = IssuedToken(token=text, expires=FOREVER)
    else:
        generation, binding = await _bind(context, run, entitlement, existing)
        issued = await _request(context, run, entitlement, generation, binding)
    written = now()
    made = datetime.fromisoformat(str(binding.metadata["creationTimestamp"]))
    if mint.mode == "bound":
        # The Secret may be that of an earlier try. Both times are the API server's.
        made = max(made, issued.expires - timedelta(seconds=context.settings.token_ttl))
    token = Token(
        generation=generation,
        binding=str(binding.metadata["name"]),
        binding_uid=binding.uid,
        account_uid=entitlement.uid,
        minted=made,
        expires=issued.expires,
        written=written,
        retire=written + timedelta(seconds=mint.overlap),
        digest=digest(issued.token),
        mode=mint.mode,
    )
    manifest = token_secret(account, entitlement.tenant, token, issued.token)
    if await context.writer.ensure(run, manifest, _permitted, action="") not in WRITTEN:
        raise ConflictError(f"{manifest.target} has just been changed by somebody else")
    ends = "never expires"
    if mint.mode == "bound":
        ends = f"expires {issued.expires.astimezone(UTC).isoformat(timespec='seconds')}"
    message = f"generation {generation}, {ends}"
    await context.writer.record(run, mint.action, manifest.target, account, entitlement.tenant, message=message)
    reason: Transition = "TokenMinted" if mint.action == "minted" else "TokenRotated"
    regarding = account_ref(account, entitlement.uid)
    await context.writer.announce(run, regarding, reason=reason, message=f"token of {message}", about=binding.uid)
    await _tell_clock(context, run, regarding)
    return token


async def _tell_clock(context: Context, run: Run, regarding: ObjectRef) -> None:
    """Say that the clock here is wrong. Nothing goes by it, but whoever reads the times of this machine is misled."""
    topic = f"clock {regarding.namespace}/{regarding.name}"
    if abs(KUBE.skew) <= TOLERANCE:
        context.writer.settle(topic)
        return
    where = "ahead of" if KUBE.skew > 0 else "behind"
    message = f"the clock of {platform.node()} is {where} the API server's, by which tokens go: set it by NTP"
    await context.writer.tell(run, topic, regarding, reason="ClockSkew", message=message)


async def _permitted() -> None:
    """The right to mint was confirmed already."""


async def _request(
    context: Context, run: Run, entitlement: Entitlement, generation: int, binding: Existing
) -> IssuedToken:
    """Ask the API server for a token that is bound to a Secret; when it goes on refusing, an Event says why."""
    account = entitlement.account
    topic = f"token {account}"
    run.check()
    try:
        issued = await context.client.token_request(
            account.namespace,
            account.name,
            audiences=context.settings.audiences(),
            expiration_seconds=int(context.settings.token_ttl),
            bound_secret=(str(binding.metadata["name"]), binding.uid),
        )
    except KubeError as error:
        # For the next try: one that was made and removed each time would be an event each time, and so the next try.
        context.unfinished[account] = generation, binding
        if run.request.attempt >= PATIENCE:
            message = f"the API server gives out no token: {error}"
            regarding = account_ref(account, entitlement.uid)
            secret = Target("Secret", account.namespace, token_name(account))
            record = partial(
                context.writer.record,
                run,
                "minted",
                secret,
                account,
                entitlement.tenant,
                outcome="failed",
                message=message,
            )
            await context.writer.tell(run, topic, regarding, reason="TokenRefused", message=message, record=record)
        raise
    context.writer.settle(topic)
    return issued


async def supersede(context: Context, run: Run, account: Account, existing: Existing | None, token: Token) -> None:
    """Note on the generation before when its time is over; without it, more rotations would prolong that."""
    before = Token.of_annotations(existing.annotations) if existing else None
    if before is None:
        return
    patch = {"uid": before.binding_uid, "annotations": {ANNOTATION_RETIRE: timestamp(token.retire)}}
    run.check()
    with suppress(NotFoundError, ConflictError):
        await context.client.merge_patch(_path(account, binding_name(account, before.generation)), {"metadata": patch})


def _path(account: Account, name: str) -> str:
    return Target("Secret", account.namespace, name).path


async def _bind(
    context: Context, run: Run, entitlement: Entitlement, existing: Existing | None
) -> tuple[int, Existing]:
    """Make the binding Secret of the next generation; return the generation and the Secret."""
    account = entitlement.account
    if (kept := await _kept(context, entitlement)) is not None:
        return kept
    generation = _newest(account, existing, context.relations.objects_of(account, "token"))
    while True:
        generation += 1
        manifest = binding_secret(account, entitlement.tenant, entitlement.uid, generation)
        try:
            return generation, await context.writer.create(run, manifest)
        except AlreadyExistsError:
            run.log.debug("generation is taken", generation=generation)


async def _kept(context: Context, entitlement: Entitlement) -> tuple[int, Existing] | None:
    """Return the binding Secret of a try that was refused, with its generation, if it is still there."""
    account = entitlement.account
    kept = context.unfinished.pop(account, None)
    if kept is None:
        return None
    generation, binding = kept
    found = await context.writer.read(Target("Secret", account.namespace, str(binding.metadata["name"])))
    same = found is not None and found.uid == binding.uid and "deletionTimestamp" not in found.metadata
    if found is None or not same or found.annotations.get(ANNOTATION_ACCOUNT_UID) != entitlement.uid:
        return None
    return generation, found


async def _legacy(
    context: Context, run: Run, entitlement: Entitlement, existing: Existing | None
) -> tuple[int, Existing]:
    """Return the next generation of a static token and its Secret: one that is on its way already, else a new one."""
    account = entitlement.account
    others = context.relations.objects_of(account, "token")
    generation = _newest(account, existing, (o for o in others if not _may_become_current(o.metadata.annotations)))
    while True:
        generation += 1
        manifest = binding_secret(account, entitlement.tenant, entitlement.uid, generation, "static")
        found = await context.writer.read(manifest.target)
        if found is None:
            with suppress(AlreadyExistsError):
                return generation, await context.writer.create(run, manifest)
        elif (
            found.body.get("type") == LEGACY_TYPE
            and context.writer.is_ours(manifest.target, found, account)
            and _may_become_current(found.annotations)
            and found.annotations.get(ANNOTATION_ACCOUNT_UID) == entitlement.uid
            and "deletionTimestamp" not in found.metadata
        ):
            return generation, found


def _newest(account: Account, existing: Existing | None, others: Iterable[OwnObject]) -> int:
    """Return the newest generation that there is, 0 for none.

    The account may write on these Secrets. What is not named by its generation does not count, and what is near the end
    of all generations neither: the next one could not be counted.
    """
    known = [generation_of(existing.annotations)] if existing else []
    for one in others:
        generation = generation_of(one.metadata.annotations)
        if one.key.name == binding_name(account, generation):
            known.append(generation)
    return max((generation for generation in known if generation < MOST_GENERATION // 2), default=0)


def token_text(existing: Existing) -> str | None:
    """Return the token in a token Secret, None when there is none."""
    try:
        text = base64.b64decode((existing.body.get("data") or {}).get("token", ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, TypeError):
        return None
    return text or None


def _may_become_current(annotations: dict[str, str]) -> bool:
    """Tell whether a Secret is that of a static token whose time is not over."""
    return (
        annotations.get(ANNOTATION_MODE) == "static"
        and ANNOTATION_RETIRE not in annotations
        and ANNOTATION_DIGEST not in annotations
    )
