"""A tenant's whole life, timed: it is onboarded, works, and is revoked, until nothing of it is left.

The steps are those of the guide, done by the administrator and by the tenant through the proxy. What the tenant must
not see meanwhile, an answer that is no answer, and what takes too long stand in `Victim.found`.
"""

from __future__ import annotations

import asyncio
import base64
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import aiohttp
import msgspec

from eventcore.errors import NotFoundError, TetherError
from eventcore.kube import api_path
from tests.attack.judging import Found, of_list
from tests.behaviour.conftest import ACCOUNT, ENABLED, Tenancy, path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from eventcore.kube import KubeClient
    from tests.kubeapi import Client, Reply

How = Literal["annotation", "owner", "tenant", "account"]
"""What the administrator takes away: the annotation, the entry in the Tenant, the Tenant, or the account itself."""

STEP_SECONDS: Final = 30.0
"""A bound for broken runs: a step that takes longer is taken for one that never ends."""
KUBECONFIG: Final = f"{ACCOUNT}-kubeconfig"
NAMESPACES: Final = api_path("", "v1", "namespaces")
_MATE: Final = "mate"
_AGAIN_SECONDS: Final = 0.03
_BUSY = frozenset({429, 500, 502, 503, 504})


class StuckError(Exception):
    """A step did not come to its end."""


class Victim:
    """One tenant from its first object to its last; ``spoil`` is put into its Tenant (its bytes count, and no more).

    One that ``tampers`` keeps at home what it wants; there it is asked for rights and live tokens alone.
    """

    def __init__(self, tenancy: Tenancy, *, spoil: dict[str, Any] | None = None, tampers: bool = False) -> None:
        self.tenancy = tenancy
        self.namespace = f"{tenancy.name}-web"
        self.mate = f"system:serviceaccount:{tenancy.home}:{_MATE}"  # an owner that is not enabled, as people are
        self.found = Found()
        self.took: dict[str, float] = {}
        self.revoked: dict[str, float] = {}
        self.token = ""
        self.minted = ""  # a token that it made for itself, if it did
        self.shared: set[str] = set()  # what others show it of their own
        self._mates_token = ""
        self._spoil = spoil or {}
        self._tampers = tampers

    async def live(self, how: How, meanwhile: Callable[[Victim, Client], Awaitable[None]] | None = None) -> None:
        """Go through a whole life; what is wrong is in ``found`` afterwards. ``meanwhile`` is done before its end."""
        try:
            async with self.onboarded() as door:
                await self.work(door)
                if meanwhile is not None:
                    await meanwhile(self, door)
                await self.revoke(how)
        except StuckError as error:
            self.found.stopped.append(str(error))
        except (TetherError, aiohttp.ClientError, OSError) as error:
            self.found.stopped.append(f"the administrator's own requests failed: {type(error).__name__}: {error}")
        finally:
            await self.clean()

    @asynccontextmanager
    async def onboarded(self) -> AsyncIterator[Client]:
        """Make it and wait for its kubeconfig at home; yields what the tenant does with that."""
        began = time.monotonic()
        tenancy = self.tenancy
        await tenancy.make_home()
        tenant = tenancy.tenant(tenancy.user, self.mate)
        tenant["metadata"] |= self._spoil.get("metadata", {})
        tenant["spec"] |= self._spoil.get("spec", {})
        mate = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": _MATE, "namespace": tenancy.home}}
        await tenancy.apply(tenant, tenancy.account(**{ENABLED: "true"}), mate)
        await self._until("kubeconfig at home", lambda: tenancy.get("Secret", tenancy.home, KUBECONFIG), began)
        self.token = await tenancy.token()
        async with tenancy.flux() as door:
            yield door

    async def work(self, door: Client) -> None:
        """Make a namespace, get the copy there, see exactly what is its own, and write into it."""
        began = time.monotonic()
        # Capsule's right to make one may follow a little later.
        body = {"metadata": {"name": self.namespace}}
        await self._answered("a namespace made", lambda: door.post(NAMESPACES, body), 201)
        await self._until("a copy", lambda: self.tenancy.get("Secret", self.namespace, KUBECONFIG), began)

        async def listed() -> bool:
            answer = self._checked("list of namespaces", await door.get(NAMESPACES))
            if answer is None or answer.status != 200:
                return False
            shown = {item["metadata"]["name"] for item in answer.body["items"]}
            self.found.add(of_list(shown, {self.namespace} | self.shared))
            return self.namespace in shown

        await self._until("exactly its own listed", listed)
        issued = await self.tenancy.admin.token_request(self.tenancy.home, _MATE, expiration_seconds=3600)
        self._mates_token = issued.token
        await self._until("listed to the other owner", self._mate_sees)
        maps = api_path("", "v1", "configmaps", namespace=self.namespace)
        await self._answered("a ConfigMap made", lambda: door.post(maps, {"metadata": {"name": "work"}}), 201)
        await self._answered("its ConfigMaps listed", lambda: door.get(maps), 200)
        async with self.tenancy.cluster.wire(self.token, direct=True) as client:
            await self._answered("its ConfigMaps listed at the API server", lambda: client.get(maps), 200)

    async def revoke(self, how: How) -> None:
        """Take its entitlement away, and wait until its token is dead at both places and everything gone."""
        tenancy = self.tenancy
        current = await tenancy.get("Secret", tenancy.home, f"{ACCOUNT}-token") or {}
        tokens = {self.token, base64.b64decode((current.get("data") or {}).get("token", "")).decode()} - {""}
        began = time.monotonic()
        await self._take_away(how)

        async def dead(direct: bool) -> None:
            where = "the API server" if direct else "the proxy"

            async def refused() -> bool:
                for token in tokens:
                    async with tenancy.cluster.wire(token, direct=direct) as client:
                        if (await client.get(NAMESPACES)).status != 401:
                            return False
                return True

            await self._until(f"token dead at {where}", refused, began, of=self.revoked)

        async def gone(what: str, *places: tuple[str, str, str]) -> None:
            async def absent() -> bool:
                return not [place for place in places if await tenancy.get(*place) is not None]

            await self._until(f"{what} gone", absent, began, of=self.revoked)

        rights = [("RoleBinding", tenancy.home, ACCOUNT), ("ClusterRoleBinding", "", tenancy.impersonator)]
        places = [(tenancy.home, f"{ACCOUNT}-token"), (tenancy.home, KUBECONFIG), (self.namespace, KUBECONFIG)]
        places = places[2:] if self._tampers else places

        async def forgotten() -> None:
            async def sees_nothing() -> bool:
                return not await self._mate_sees()

            await self._until("nothing listed to the other owner", sees_nothing, began, of=self.revoked)

        ends = await asyncio.gather(
            forgotten(),
            dead(direct=False),
            dead(direct=True),
            gone("rights", *rights),
            gone("token and copies", *(("Secret", *place) for place in places)),
            return_exceptions=True,
        )
        for error in ends:
            if isinstance(error, StuckError):
                self.found.late.append(str(error))
            elif error is not None:
                raise error

    async def clean(self) -> None:
        """Remove what is left of it, as an administrator does; finalizers that somebody put on do not stop that."""
        tenancy = self.tenancy
        admin = tenancy.admin
        for kind in ("RoleBinding", "Secret"):
            await release(admin, kind, tenancy.home)
            await release(admin, kind, self.namespace)
        for place in (
            path("Tenant", "", tenancy.name),
            path("Namespace", "", self.namespace),
            path("Namespace", "", tenancy.home),
        ):
            await ignore_missing(admin.delete(place))

    async def _take_away(self, how: How) -> None:
        tenancy, admin = self.tenancy, self.tenancy.admin
        account = path("ServiceAccount", tenancy.home, ACCOUNT)
        if how in {"annotation", "account"}:
            owners = [{"kind": "ServiceAccount", "name": tenancy.user}]
            await admin.merge_patch(path("Tenant", "", tenancy.name), {"spec": {"owners": owners}})
        if how == "annotation":
            await admin.merge_patch(account, {"metadata": {"annotations": {ENABLED: None}}})
        elif how == "owner":
            owners = [{"kind": "User", "name": "nobody-at-all"}]
            await admin.merge_patch(path("Tenant", "", tenancy.name), {"spec": {"owners": owners}})
        elif how == "tenant":
            await admin.delete(path("Tenant", "", tenancy.name))
        else:
            await admin.delete(account)

    async def _mate_sees(self) -> bool:
        async with self.tenancy.cluster.wire(self._mates_token) as client:
            answer = await client.get(NAMESPACES)
            items = answer.body.get("items", []) if isinstance(answer.body, dict) else []
            return self.namespace in {item["metadata"]["name"] for item in items}

    def _checked(self, what: str, answer: Reply) -> Reply | None:
        if answer.status in _BUSY:
            said = answer.body.get("message", "") if isinstance(answer.body, dict) else ""
            self.found.stopped.append(f"{what}: answered {answer.status} {said}".rstrip())
            return None
        return answer

    async def _answered(self, step: str, ask: Callable[[], Awaitable[Reply]], status: int) -> None:
        async def done() -> bool:
            try:
                answer = self._checked(step, await ask())
            except (aiohttp.ClientError, OSError) as error:
                self.found.stopped.append(f"{step}: {type(error).__name__}")
                return False
            return answer is not None and answer.status in {status, 409}

        await self._until(step, done)

    async def _until(
        self, step: str, look: Callable[[], Awaitable[Any]], began: float = 0.0, *, of: dict[str, float] | None = None
    ) -> None:
        began = began or time.monotonic()
        end = time.monotonic() + STEP_SECONDS
        while True:
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    found = await look()
            except TimeoutError:
                found = None
            now = time.monotonic()
            if found:
                (self.took if of is None else of)[step] = now - began
                return
            if now > end:
                raise StuckError(f"{step}: not within {STEP_SECONDS:g} s")
            await asyncio.sleep(_AGAIN_SECONDS)


async def ignore_missing(request: Awaitable[Any]) -> None:
    try:
        await request
    except NotFoundError:
        return


async def release(admin: KubeClient, kind: str, namespace: str) -> None:
    """Take the finalizers off all objects of a kind in a namespace, so that they can be deleted."""
    try:
        items = msgspec.json.decode(await admin.get(path(kind, namespace)))["items"]
    except NotFoundError:
        return
    for item in items:
        if item["metadata"].get("finalizers"):
            one = path(kind, namespace, item["metadata"]["name"])
            await ignore_missing(admin.merge_patch(one, {"metadata": {"finalizers": None}}))
