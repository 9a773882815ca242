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
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from eventcore.clock import now
from eventcore.errors import AlreadyExistsError, ConflictError, InvalidError, KubeError, NotFoundError
from eventcore.events import AuditRecord
from eventcore.kube import api_path
from eventcore.logs import get
from eventcore.objects import ANNOTATION_ACCOUNT, ANNOTATION_TENANT, COMPONENT_CA, LABEL_COMPONENT
from workers.desired import ANNOTATION_DIGEST, account_ref, namespace_ref

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from eventcore.bus import Bus
    from eventcore.consumer import Run
    from eventcore.events import Outcome
    from eventcore.kube import KubeClient, ObjectRef
    from workers.desired import Manifest, Target
    from workers.ownership import Account

log = get("workers.writing")

MANAGER: Final = "tether"
REMEMBERED: Final = 10_000
"""Warnings that are remembered, so that each is given once."""

Written = Literal["same", "created", "renewed", "updated", "foreign", "other"]
"""What became of an object. ``renewed``: it got another token; ``updated``: it was put right otherwise. ``foreign``:
somebody else's, left alone. ``other``: ours, made for another account."""
WRITTEN: Final[frozenset[Written]] = frozenset({"created", "renewed", "updated"})
Transition = Literal["Granted", "Revoked", "TokenMinted", "TokenRotated", "TokenRevoked", "KubeconfigDistributed"]
"""Reasons of the Normal Events on an account."""


class Existing(msgspec.Struct, frozen=True):
    """An object as a GET returned it."""

    body: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.body.get("metadata") or {})

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> dict[str, str]:
        return self.metadata.get("annotations") or {}

    @property
    def marked(self) -> bool:
        """Tell whether Tether made it: either mark will do, since a tenant can strip one."""
        return LABEL_COMPONENT in self.labels or ANNOTATION_ACCOUNT in self.annotations

    def belongs_to(self, account: Account | None) -> bool:
        """Tell whether Tether made it for this account; for None, as a copy of the CA."""
        if account is None:
            return self.labels.get(LABEL_COMPONENT) == COMPONENT_CA and ANNOTATION_ACCOUNT not in self.annotations
        return self.marked and self.annotations.get(ANNOTATION_ACCOUNT, str(account)) == str(account)


class Writer:
    """Reads and writes single objects for the reconcilers."""

    def __init__(self, bus: Bus, client: KubeClient) -> None:
        self.bus = bus
        self.client = client
        self._told: OrderedDict[str, str] = OrderedDict()

    async def read(self, target: Target) -> Existing | None:
        """Return the object as it is now, None when there is none."""
        try:
            return Existing(msgspec.json.decode(await self.client.get(target.path), type=dict[str, Any]))
        except NotFoundError:
            return None

    async def tenants(self, targets: Iterable[Target], account: Account) -> set[str]:
        """Return the tenants that those of these objects were made for that are there, and are the account's."""
        found = [await self.read(target) for target in sorted(targets)]
        ours = [one for one in found if one is not None and one.belongs_to(account)]
        return {one.annotations[ANNOTATION_TENANT] for one in ours if ANNOTATION_TENANT in one.annotations}

    async def ensure(
        self, run: Run, manifest: Manifest, permit: Callable[[], Awaitable[None]], *, action: str
    ) -> Written:
        """Bring one object to what it should be.

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
        if not existing.belongs_to(manifest.account):
            if existing.marked:
                return "other"
            if same_content(existing.body, manifest.content):
                return "same"
            await self.refuse(run, manifest.target, manifest.account, manifest.tenant, existing)
            return "foreign"
        self.settle(_topic(run, manifest.target))
        if same_content(existing.body, manifest.content) and _same_marks(existing, manifest):
            return "same"
        await permit()
        renewed = _renews(existing, manifest)
        await self._update(run, manifest, existing)
        if action:
            what = action if renewed else "written"
            await self.record(run, what, manifest.target, manifest.account, manifest.tenant)
        return "renewed" if renewed else "updated"

    async def remove(self, run: Run, target: Target, account: Account | None, *, action: str, tenant: str = "") -> bool:
        """Delete an object if Tether made it for this account; tell whether there was one to delete."""
        existing = await self.read(target)
        if existing is None or not existing.belongs_to(account):
            return False
        run.check()
        try:
            deleted = await self.client.delete(target.path, uid=existing.uid)
        except ConflictError:
            return False  # another object stands there now, and its own event brings us back
        if deleted:
            await self.record(run, action, target, account, tenant or existing.annotations.get(ANNOTATION_TENANT, ""))
        return deleted

    async def _create(self, run: Run, manifest: Manifest) -> dict[str, Any]:
        run.check()
        params = {"fieldManager": MANAGER}
        answer = await self.client.create(manifest.target.collection, manifest.body(), params=params)
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def _update(self, run: Run, manifest: Manifest, existing: Existing) -> None:
        if not _fixed_differs(existing.body, manifest.content):
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
        await self.bus.audit(
            AuditRecord(
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
        )
        run.log.info("change recorded", action=action, object=str(target), outcome=outcome)

    async def reclaim(self, run: Run, manifest: Manifest, existing: Existing) -> None:
        """Put our marks back on an object that is known by its uid to be ours."""
        if _same_marks(existing, manifest):
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
            await self.client.get(api_path("", "v1", "events", namespace=namespace, name=name))
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


def _topic(run: Run, target: Target) -> str:
    return f"{run.worker} {run.key} {target}"


_DEFAULTS: Final[tuple[Any, ...]] = ("", [], {}, None)


def same_content(body: dict[str, Any], content: dict[str, Any]) -> bool:
    """Tell whether an object says what it should, fields that the API server fills with nothing aside."""
    return all(bool(_plain(name, body.get(name)) == _plain(name, wanted)) for name, wanted in content.items())


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain for key, inner in value.items() if (plain := _plain(key, inner)) not in _DEFAULTS}
    if isinstance(value, list):
        return [_plain(name, inner) for inner in value] if name != "apiGroups" else list(value)
    return value


def _same_marks(existing: Existing, manifest: Manifest) -> bool:
    wanted = manifest.body()["metadata"]
    return _within(wanted["labels"], existing.labels) and _within(wanted["annotations"], existing.annotations)


def _renews(existing: Existing, manifest: Manifest) -> bool:
    """Tell whether an object gets another token than the one that its annotation names."""
    wanted = manifest.annotations.get(ANNOTATION_DIGEST)
    return wanted is not None and existing.annotations.get(ANNOTATION_DIGEST) != wanted


def _within(wanted: dict[str, str], found: dict[str, str]) -> bool:
    return all(found.get(name) == value for name, value in wanted.items())


def _fixed_differs(body: dict[str, Any], content: dict[str, Any]) -> bool:
    """Tell whether a field differs that Kubernetes does not let anybody change."""
    fixed: dict[str, Any] = {name: content[name] for name in ("roleRef", "type") if name in content}
    return body.get("immutable") is True or not same_content(body, fixed)
