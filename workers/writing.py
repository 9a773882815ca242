"""How Tether writes to the cluster: carefully, only what is its own, and never without a record.

Create with POST. Update by server-side apply, forced, but only after a GET showed our mark, and with the uid in the
body, so that it never makes or takes over another object. What already stands as it should is done, whoever made it;
what is somebody else's is left, and said so. Before every write the run's time is checked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from eventcore.clock import now
from eventcore.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
)
from eventcore.events import AuditRecord
from eventcore.kube import api_path
from eventcore.kube_paths import object_path
from eventcore.logs import get
from eventcore.recording import Recorder
from workers.cleaning import Cleaning, UnfinishedError
from workers.deleting import delete_whole
from workers.desired import account_ref, namespace_ref
from workers.existing import Existing, fixed_differs, renews, same_content, same_marks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from eventcore.bus import Bus
    from eventcore.consumer import Run
    from eventcore.events import Outcome
    from eventcore.kube import KubeClient, ObjectRef
    from workers.cleaning import Memory
    from workers.desired import Manifest, Target
    from workers.ownership import Account

log = get("workers.writing")

MANAGER: Final = "tether"
REMEMBERED: Final = 10_000
"""Warnings that are remembered, so that each is given once, and revocations that are not recorded yet."""
RECORDS_SECONDS: Final = 1.0
"""Seconds that a stop waits for records."""
Written = Literal["same", "created", "renewed", "updated", "foreign", "other"]
"""What became of an object. ``renewed``: it got another token; ``updated``: it was put right otherwise. ``foreign``:
somebody else's, left alone. ``other``: ours, made for another account."""
WRITTEN: Final[frozenset[Written]] = frozenset({"created", "renewed", "updated"})
Transition = Literal["Granted", "Revoked", "TokenMinted", "TokenRotated", "TokenRevoked", "KubeconfigDistributed"]
"""Reasons of the Normal Events on an account."""


class Writer:
    """Reads and writes single objects for the reconcilers."""

    def __init__(self, bus: Bus, client: KubeClient, memory: Memory | None = None) -> None:
        self.bus = bus
        self.client = client
        self._memory = memory
        self._told: OrderedDict[str, str] = OrderedDict()
        self._later = Recorder(bus, REMEMBERED)

    async def read(self, target: Target) -> Existing | None:
        """Return the object as it is now, None when there is none."""
        try:
            return Existing(msgspec.json.decode(await self.client.get(target.path), type=dict[str, Any]))
        except NotFoundError:
            return None

    def is_ours(self, target: Target, existing: Existing, account: Account | None) -> bool:
        """Tell whether Tether made this for an account: by its uid, and where that is not known by its marks."""
        made_for = self._memory.made_for(target, existing.uid) if self._memory is not None and account else None
        return existing.belongs_to(account) if made_for is None else made_for == account

    async def ensure(
        self,
        run: Run,
        manifest: Manifest,
        permit: Callable[[], Awaitable[None]],
        *,
        action: str,
        claims: Callable[[Existing], bool] | None = None,
    ) -> Written:
        """Bring one object to what it should be. ``claims`` tells of one without our marks whether it is ours.

        ``permit`` is awaited before anything is written and raises if it may not be. ``action`` is the audit action
        of a creation and of another token in it, and repairs are recorded as ``written``; "" leaves the record to the
        caller. Raises KubeError.
        """
        existing = await self.read(manifest.target)
        if existing is None:
            await permit()
            try:
                await self._create(run, manifest)
            except AlreadyExistsError:
                # Somebody was faster; look at theirs on the next try.
                raise ConflictError(f"{manifest.target} has just been created by somebody else") from None
            if action:
                await self.record(run, action, manifest.target, manifest.account, manifest.tenant)
            return "created"
        ours = self.is_ours(manifest.target, existing, manifest.account) or (claims is not None and claims(existing))
        if not ours:
            if existing.marked:
                return "other"
            if same_content(existing.body, manifest.content):
                return "same"
            await self.refuse(run, manifest.target, manifest.account, manifest.tenant, existing)
            return "foreign"
        self.settle(_topic(run, manifest.target))
        if same_content(existing.body, manifest.content) and same_marks(existing, manifest):
            return "same"
        await permit()
        renewed = renews(existing, manifest)
        await self._update(run, manifest, existing)
        if action:
            what = action if renewed else "written"
            await self.record(run, what, manifest.target, manifest.account, manifest.tenant)
        return "renewed" if renewed else "updated"

    async def remove_all(
        self, run: Run, targets: Iterable[Target], account: Account, *, action: str, tenant: str = "", whole: int = 0
    ) -> bool:
        """Delete in this order what of these was made for an account; tell whether there was anything to delete.

        One that cannot be deleted holds up no other, and the records come after all of them. The first ``whole`` of
        them decide something, and none of them is left out. Whoever may write in a namespace may make any number of the
        others, so of them one run takes some and records them as one. Raises the first KubeError, or an
        UnfinishedError where more are left.
        """
        failure: KubeError | None = None
        removed = False
        cleaning = Cleaning()
        for target, into in cleaning.share(targets, account, whole, self._memory):
            try:
                done = await self.remove(run, target, account, action=action, tenant=tenant, into=into)
                removed |= done and into is None
            except ForbiddenError as error:
                if into is None or self._memory is None or not self._memory.forget(target):
                    failure = failure or error
                else:
                    await self._set_aside(run, target, account, tenant, error)
            except KubeError as error:
                failure = failure or error
        if cleaning.removed:
            cleaning.record(self, run, action, account, tenant)
        if failure is not None:
            raise failure
        if cleaning.is_left:
            raise UnfinishedError(removed=removed)
        return removed or bool(cleaning.removed)

    async def _set_aside(self, run: Run, target: Target, account: Account, tenant: str, error: KubeError) -> None:
        """Say once that what bears none of our marks any more may not be deleted, and leave it."""
        message = f"{target} bore Tether's marks and bears them no more, and is left as it is: {error}"

        async def record() -> None:
            self._later.add(_record(run, "refused", target, account, tenant, "refused", message))

        topic = _topic(run, target)
        await self.tell(run, topic, account_ref(account), reason="ForeignObject", message=message, record=record)

    async def remove(
        self,
        run: Run,
        target: Target,
        account: Account | None,
        *,
        action: str,
        tenant: str = "",
        into: Cleaning | None = None,
    ) -> bool:
        """Delete an object if Tether made it for this account; tell whether there was one to delete.

        ``into``: what deletes it with others, and records them together.
        """
        existing = await self.read(target)
        if existing is None and self._memory is not None:
            self._memory.forget(target)
        if existing is None or not self.is_ours(target, existing, account):
            return False
        tenant = tenant or existing.tenant
        if into is None:
            return await self.delete(run, target, existing.uid, account, action=action, tenant=tenant)
        run.check()
        return await into.delete(self.client, target, existing.uid)

    async def delete(
        self, run: Run, target: Target, uid: str, account: Account | None, *, action: str, tenant: str
    ) -> bool:
        """Delete an object that is known by its uid to be ours; tell whether it was there. Recorded later."""
        run.check()
        deleted = await delete_whole(self.client, target.path, uid)
        if deleted:
            self.record_later(run, action, target, account, tenant)
        return deleted

    def record_later(
        self, run: Run, action: str, target: Target | str, account: Account | None, tenant: str, *, message: str = ""
    ) -> None:
        """Let AUDIT be told of what was taken back, once it takes records: a revocation waits for none."""
        self._later.add(_record(run, action, target, account, tenant, "done", message))
        run.log.info("change recorded", action=action, object=str(target), outcome="done")

    async def close(self) -> None:
        """Write the records that wait, if NATS takes them at once."""
        await self._later.close(RECORDS_SECONDS)

    async def _create(self, run: Run, manifest: Manifest) -> dict[str, Any]:
        run.check()
        params = {"fieldManager": MANAGER}
        answer = await self.client.create(manifest.target.collection, manifest.body(), params=params)
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def _update(self, run: Run, manifest: Manifest, existing: Existing) -> None:
        if not fixed_differs(existing.body, manifest.content):
            run.check()
            # InvalidError: a field that may not change, and the server knows one that we do not.
            with suppress(InvalidError):
                answer = await self.client.apply(
                    manifest.target.path, manifest.body(existing.uid), manager=MANAGER, force=True
                )
                if same_content(msgspec.json.decode(answer, type=dict[str, Any]), manifest.content):
                    return
        run.check()
        await self.client.delete(manifest.target.path, uid=existing.uid)
        await self._create(run, manifest)

    async def create(self, run: Run, manifest: Manifest) -> Existing:
        """Make a new object and return it; AlreadyExistsError. Not recorded: that is the caller's."""
        return Existing(await self._create(run, manifest))

    async def record(
        self,
        run: Run,
        action: str,
        target: Target | str,
        account: Account | None = None,
        tenant: str = "",
        *,
        outcome: Outcome = "done",
        message: str = "",
    ) -> None:
        """Append what was done, or refused, to AUDIT, with its cause."""
        await self.bus.audit(_record(run, action, target, account, tenant, outcome, message))
        run.log.info("change recorded", action=action, object=str(target), outcome=outcome)

    async def reclaim(self, run: Run, manifest: Manifest, existing: Existing) -> None:
        """Put our marks back on an object that is known by its uid to be ours."""
        if same_marks(existing, manifest):
            return
        run.check()
        try:
            await self.client.apply(manifest.target.path, manifest.body(existing.uid), manager=MANAGER, force=True)
        except InvalidError:
            raise ConflictError(f"{manifest.target} has just been made anew by somebody else") from None
        await self.record(run, "written", manifest.target, manifest.account, manifest.tenant)

    async def refuse(self, run: Run, target: Target, account: Account | None, tenant: str, existing: Existing) -> None:
        """Leave an object that somebody else made, and say so once: an Event on the account and a record.

        Without an account, the Event is on the Namespace.
        """
        message = (
            f"{target} exists and was not made by Tether, so it is left as it is: "
            "delete or rename it, and Tether makes its own"
        )
        record = partial(self.record, run, "refused", target, account, tenant, outcome="refused", message=message)
        await self.tell(
            run,
            _topic(run, target),
            account_ref(account) if account else namespace_ref(target.namespace),
            reason="ForeignObject",
            message=message,
            about=existing.uid,
            record=record,
        )

    async def tell(
        self,
        run: Run,
        topic: str,
        regarding: ObjectRef,
        *,
        reason: str,
        message: str,
        about: str = "",
        record: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Warn once by an Event on an object, and by a record: once for a topic and a state of things.

        ``about`` tells one state from another, as a uid or generation. The Event's name is made from all of it, so
        that a second worker, or this one after a restart, finds that it was said.
        """
        state = hashlib.sha256(f"{topic}\n{regarding.uid}\n{reason}\n{message}\n{about}".encode()).hexdigest()[:16]
        if self._told.get(topic) == state:
            return
        namespace = regarding.namespace or "default"
        name = f"{regarding.name[:200].rstrip('-.')}.{state}"
        if not await self._is_told(namespace, name):
            # The record first: cut off in between, it is told twice rather than never.
            if record is not None:
                await record()
            await self._event(run, namespace, name, regarding, reason, message, "Warning")
        self._remember(topic, state)

    def _remember(self, topic: str, state: str) -> None:
        self._told[topic] = state
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    async def announce(self, run: Run, regarding: ObjectRef, *, reason: Transition, message: str, about: str) -> None:
        """Tell by a Normal Event of a transition that was just brought about; ``about`` tells it from every other one.

        Whoever else has a part in the same transition finds that it was told.
        """
        state = hashlib.sha256(f"{regarding.uid}\n{reason}\n{about}".encode()).hexdigest()[:16]
        topic = f"{reason} {regarding.namespace}/{regarding.name}"
        if self._told.get(topic) != state:
            self._remember(topic, state)
            name = f"{regarding.name[:200].rstrip('-.')}.{state}"
            await self._event(run, regarding.namespace, name, regarding, reason, message, "Normal")

    async def _is_told(self, namespace: str, name: str) -> bool:
        try:
            await self.client.get(object_path("", "v1", "events", name, namespace=namespace))
        except NotFoundError:
            return False
        except KubeError as error:
            log.warning("event cannot be read", error=error)
            return False
        return True

    def settle(self, topic: str) -> None:
        """The matter is settled: should it come again, it is told again."""
        self._told.pop(topic, None)

    async def _event(
        self,
        run: Run,
        namespace: str,
        name: str,
        regarding: ObjectRef,
        reason: str,
        message: str,
        kind: Literal["Normal", "Warning"],
    ) -> None:
        moment = now().strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": msgspec.to_builtins(regarding),
            "reason": reason,
            "message": message,
            "type": kind,
            "source": {"component": MANAGER},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        run.check()
        try:
            await self.client.create(api_path("", "v1", "events", namespace=namespace), body)
        except AlreadyExistsError:
            return
        except KubeError as error:
            log.warning("event could not be recorded", reason=reason, error=error)


def _record(
    run: Run, action: str, target: Target | str, account: Account | None, tenant: str, outcome: Outcome, message: str
) -> AuditRecord:
    return AuditRecord(
        time=now(),
        component=run.worker,
        action=action,
        outcome=outcome,
        tenant=tenant,
        account=str(account) if account else "",
        object=str(target),
        cause=run.cause,
        message=message,
    )


def _topic(run: Run, target: Target) -> str:
    return f"{run.worker} {run.key} {target}"
