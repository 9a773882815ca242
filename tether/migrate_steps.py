"""Carrying out the steps of a migration, one by one, each so that doing it again changes nothing."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    KubeError,
    StartError,
    TetherError,
)
from eventcore.kube import api_path
from eventcore.objects import ANNOTATION_ACCOUNT, ANNOTATION_TENANT, CAPSULE_GROUP, LABEL_COMPONENT, LABEL_TENANT
from tether.cluster_lists import (
    LABEL_MANAGED_BY,
    LEGACY_ACCOUNT,
    LEGACY_TYPE,
    Secret,
    capsule_path,
    get_if_there,
    secret_path,
)
from tether.migrate_look import config_token, survey, token_state
from tether.migrate_plan import Found, Step, bridge_name, plan, token_target

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from eventcore.kube import KubeClient
    from eventcore.settings import Settings
    from workers.desired import Target
    from workers.ownership import Account

Say = Callable[[str, str, str], None]
"""Takes how it went (done, failed, blocked, waits), the object and a text."""

LOOK_AGAIN: Final = 0.25
"""Seconds between looks while another program does its part: a migration is too rare for a watch of its own."""
LOOK_AT_ALL: Final = 1.0
"""The same where a look lists every Secret."""
PASSES: Final = 6
"""Looks at an account: each pass does what the last one made possible."""
CONFLICTS: Final = 5
API_SERVER_CACHE: Final = 30.0
"""Seconds within which an API server has forgotten a token: it caches successes for 10."""
_WITHOUT_WHICH_NOTHING: Final = frozenset({"bridge", "move", "replace", "distribute", "remove"})


class StepError(TetherError):
    """A step cannot be done now; the text says why and what to do."""


class _TokenReviewStatus(msgspec.Struct):
    authenticated: bool = False
    user: dict[str, Any] = msgspec.field(default_factory=dict)


class _TokenReview(msgspec.Struct):
    status: _TokenReviewStatus


class Migration:
    """Migrates one account after the other. ``timeout``: seconds to wait for what others do."""

    def __init__(
        self, client: KubeClient, settings: Settings, say: Say, *, timeout: float, keep_home: bool = False
    ) -> None:
        self._client = client
        self._settings = settings
        self._say = say
        self._timeout = timeout
        self._keep_home = keep_home
        self._old: dict[Account, str] = {}
        self._tenants: dict[Account, str] = {}

    async def stop_addon(self, namespace: str, name: str) -> None:
        """Scale a Deployment of the addon to nothing, so that it makes nothing anew; KubeError."""
        path = api_path("apps", "v1", "deployments", namespace=namespace, name=name)
        await self._client.merge_patch(path, {"spec": {"replicas": 0}})
        self._say("done", f"Deployment/{namespace}/{name}", "scaled to 0: the addon makes nothing anew")

    async def account(self, account: Account) -> bool:
        """Migrate one account; tell whether nothing is left to do. KubeError when the cluster cannot be read."""
        given_up: set[tuple[str, str]] = set()
        for _ in range(PASSES):
            steps = [s for s in plan(await self._look(account)) if (s.verb, s.object) not in given_up]
            if not steps:
                break
            for step in steps:
                if step.verb == "blocked":
                    self._say("blocked", step.object, step.text)
                    given_up.add((step.verb, step.object))
                    continue
                if not await self._try(account, step):
                    given_up.add((step.verb, step.object))
                    if step.verb in _WITHOUT_WHICH_NOTHING:
                        return False
        found = await self._look(account)
        verified = await self._verify(account) if found.token == "tether" else False  # noqa: S105 -- a state
        return verified and not given_up and not plan(found)

    async def _try(self, account: Account, step: Step) -> bool:
        try:
            await self._perform(account, step)
        except (KubeError, StepError) as error:
            self._say("failed", step.object, str(error))
            return False
        self._say("done", step.object, step.text)
        return True

    async def _perform(self, account: Account, step: Step) -> None:
        match step.verb:
            case "keep":
                path = capsule_path("globaltenantresources", step.object.partition("/")[2])
                await self._client.merge_patch(path, {"spec": {"pruningOnDelete": False}})
            case "unreplicate":
                await self._unreplicate(capsule_path("globaltenantresources", step.object.partition("/")[2]))
            case "leave":
                await self._leave(account)
            case "bridge":
                await self._bridge(account)
            case "move" if step.target:
                await self._move(account, step.target)
            case "adopt" if step.target:
                await self._adopt(account, step.target)
            case "replace":
                await self._replace(account)
            case "distribute":
                await self._distribute(account)
            case "remove" if step.target:
                await self._remove_bridge(account, step.target)

    async def _look(self, account: Account) -> Found:
        found = (await survey(self._client, self._settings, [account])).found
        if not found:
            raise StartError(f"{account} is not enabled any more, or owns no Tenant any more: nothing else was done")
        self._tenants[account] = found[0].tenants[0]
        return msgspec.structs.replace(found[0], member_of="") if self._keep_home else found[0]

    async def _unreplicate(self, path: str) -> None:
        await self._client.delete(path)

        async def gone() -> bool:
            return await get_if_there(self._client, dict[str, Any], path) is None

        await self._until(gone, "it does not go: Capsule has to let it go, so look at Capsule's controller")

    async def _leave(self, account: Account) -> None:
        """Take the home out of its Tenant; StepError says who may where Capsule refuses."""
        path = api_path("", "v1", "namespaces", name=account.namespace)
        namespace = await self._client.get_as(dict[str, Any], path)
        metadata = namespace["metadata"]
        kept = [
            reference
            for reference in metadata.get("ownerReferences") or []
            if reference.get("kind") != "Tenant" or not str(reference.get("apiVersion")).startswith(CAPSULE_GROUP)
        ]
        patch = {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "ownerReferences": kept,
                "labels": {LABEL_TENANT: None},
            }
        }
        try:
            answer = await self._client.merge_patch(path, patch)
        except ForbiddenError as error:
            raise StepError(
                f"Capsule refuses it ({_short(error)}): only Capsule's administrators may. Add {await self._self()} to "
                "spec.administrators of the CapsuleConfiguration, then run this again"
            ) from error
        after = msgspec.json.decode(answer, type=dict[str, Any])["metadata"]
        if LABEL_TENANT in (after.get("labels") or {}) or after.get("ownerReferences"):
            raise StepError("Capsule puts it back at once: look at who else manages this Namespace, GitOps perhaps")

    async def _self(self) -> str:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await self._client.create(api_path("authentication.k8s.io", "v1", "selfsubjectreviews"), review)
        user = msgspec.json.decode(answer, type=dict[str, Any])["status"]["userInfo"]["username"]
        return f"{{kind: User, name: {user}}}"

    async def _bridge(self, account: Account) -> None:
        """Make a token beside the one that is to go, and wait until the API server accepts it."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": LEGACY_TYPE,
            "metadata": {
                "name": bridge_name(account),
                "namespace": account.namespace,
                "labels": {LABEL_MANAGED_BY: "tether-migrate"},
                "annotations": {LEGACY_ACCOUNT: account.name},
            },
        }
        try:
            await self._client.create(secret_path(account.namespace), secret)
        except AlreadyExistsError:
            existing = await self._secret(account.namespace, bridge_name(account))
            if existing is not None and existing.metadata.labels.get(LABEL_MANAGED_BY) != "tether-migrate":
                raise StepError("is somebody else's, and this name is needed: delete or rename it") from None

        async def accepted() -> bool:
            bridge = await self._secret(account.namespace, bridge_name(account))
            text = bridge.text("token") if bridge else ""
            return bool(text) and await self._is_accepted(text, account)

        await self._until(accepted, "got no token that works: look at kube-controller-manager, which fills it")

    async def _move(self, account: Account, target: Target) -> None:
        """Put the bridge's token where the old one stands; all else of the Secret stays."""
        bridge = await self._secret(account.namespace, bridge_name(account))
        new = bridge.text("token") if bridge else ""
        if not new:
            raise StepError("there is no second token to use: run this again")
        for _ in range(CONFLICTS):
            raw = await self._client.get(target.path)
            secret = msgspec.json.decode(raw, type=Secret)
            old = config_token(secret)
            if not old or old == new:
                return
            body = msgspec.json.decode(raw, type=dict[str, Any])
            for key in secret.data:
                if old in (text := secret.text(key)):
                    body["data"][key] = base64.b64encode(text.replace(old, new).encode()).decode()
            try:
                await self._client.replace(target.path, body)
            except ConflictError:
                continue
            return
        raise StepError("somebody else writes it all the time: is the addon still running?")

    async def _adopt(self, account: Account, target: Target, component: str = "") -> None:
        """Put Tether's marks on an object; from then on it keeps it as it should be."""
        existing = await get_if_there(self._client, dict[str, Any], target.path)
        if existing is None:
            return
        if not component:
            component = "kubeconfig" if target.kind == "Secret" else "rbac"
        metadata: dict[str, Any] = {
            "uid": existing["metadata"]["uid"],
            "labels": {LABEL_COMPONENT: component},
            "annotations": {ANNOTATION_ACCOUNT: str(account)},
        }
        if tenant := self._tenants.get(account):
            metadata["annotations"][ANNOTATION_TENANT] = tenant
        await self._client.merge_patch(target.path, {"metadata": metadata})

    async def _replace(self, account: Account) -> None:
        """Let Tether put its token in the place of the old one, when no kubeconfig uses that any more."""
        target = token_target(account)
        if await self._secret(account.namespace, bridge_name(account)) is not None:
            await self._overlap(target, "for who has just read the old token")
        if any(step.verb in {"bridge", "move", "blocked"} and step.target for step in plan(await self._look(account))):
            raise StepError("a kubeconfig holds the old token again: is the addon still running? Run this again")
        old = await self._secret(account.namespace, target.name)
        if old is not None:
            self._old[account] = old.text("token")
        await self._adopt(account, target, "token")

        async def replaced() -> bool:
            return token_state(await self._secret(account.namespace, target.name), account) == "tether"

        await self._until(
            replaced, "Tether does not replace it: look at `tether status` and the log of `tether work token`"
        )

    async def _distribute(self, account: Account) -> None:
        lacking: tuple[str, ...] = ()

        async def everywhere() -> bool:
            nonlocal lacking
            found = await self._look(account)
            lacking = found.missing
            return found.token == "tether" and not lacking  # noqa: S105 -- a state, not a token

        try:
            await self._until(everywhere, "", every=LOOK_AT_ALL)
        except StepError:
            raise StepError(
                f"Tether's kubeconfig is not there yet in {', '.join(lacking) or 'any namespace'}: look at "
                "`tether status` and the log of `tether work kubeconfig`"
            ) from None

    async def _remove_bridge(self, account: Account, target: Target) -> None:
        await self._overlap(target, "for who has just read the second token")
        found = await self._look(account)
        if found.bridge_held:
            names = ", ".join(str(holder) for holder in found.bridge_held)
            raise StepError(f"{names} still holds this token: give it another one, then run this again")
        await self._client.delete(target.path)

    async def _verify(self, account: Account) -> bool:
        """Try the tokens: Tether's must be accepted, and the one that was replaced refused."""
        found = await self._look(account)
        name = token_target(account)
        current = await self._secret(account.namespace, name.name)
        if not found.current or current is None or not await self._is_accepted(current.text("token"), account):
            self._say("failed", str(name), "the API server does not accept the token in it: run `tether doctor`")
            return False
        old = self._old.get(account, "")
        if old:

            async def refused() -> bool:
                return not await self._is_accepted(old, account)

            try:
                await self._until(refused, "", within=API_SERVER_CACHE)
            except StepError:
                self._say("failed", str(name), "the API server still accepts the old token: run `tether doctor`")
                return False
        text = "verified: its token is accepted" + (", the old one is refused" if old else "")
        self._say("done", str(account), text)
        return True

    async def _is_accepted(self, token: str, account: Account) -> bool:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        answer = await self._client.create(api_path("authentication.k8s.io", "v1", "tokenreviews"), body)
        status = msgspec.json.decode(answer, type=_TokenReview).status
        return status.authenticated and status.user.get("username") == account.username

    async def _secret(self, namespace: str, name: str) -> Secret | None:
        return await get_if_there(self._client, Secret, secret_path(namespace, name))

    async def _overlap(self, target: Target, why: str) -> None:
        seconds = self._settings.token_overlap
        self._say("waits", str(target), f"{seconds:g} s {why}")
        await asyncio.sleep(seconds)

    async def _until(
        self,
        look: Callable[[], Awaitable[bool]],
        otherwise: str,
        *,
        within: float | None = None,
        every: float = LOOK_AGAIN,
    ) -> None:
        """Look until it is so; StepError with ``otherwise`` when time is up."""
        deadline = time.monotonic() + (self._timeout if within is None else within)
        while not await look():
            if time.monotonic() >= deadline:
                raise StepError(otherwise)
            await asyncio.sleep(every)


def _short(error: KubeError) -> str:
    return " ".join(str(error).split())[:300]
