"""The accounts among the users of Capsule: an opt-in of the administrator (``--capsule-users``, ADR 5).

An owner that is no user of Capsule cannot make namespaces, and Capsule does not hold its requests to its tenant. With
the opt-in nobody has to list it by hand.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, TetherError
from eventcore.kube import api_path
from eventcore.objects import CAPSULE_GROUP
from workers.user_entries import addition, best_field, entry, is_kept, remembered, removal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.consumer import Run
    from workers.context import Context
    from workers.entitlement import Entitlement
    from workers.ownership import Account
    from workers.user_entries import Field

Object = dict[str, Any]

SERVED_FOR: Final = 60.0
"""Seconds for which it is believed which lists this Capsule has."""
_SCHEMAS: Final = f"/openapi/v3/apis/{CAPSULE_GROUP}/v1beta2"


class UsersError(TetherError):
    """The entry cannot be written; the text says what to do."""


class _Components(msgspec.Struct):
    schemas: dict[str, msgspec.Raw]


class _Document(msgspec.Struct):
    components: _Components


class CapsuleUsers:
    """Adds and takes back the entries of accounts in the CapsuleConfiguration in use."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = context.settings.capsule_configuration_name
        self._path = api_path(CAPSULE_GROUP, "v1beta2", "capsuleconfigurations", name=self._name)
        self._lock = asyncio.Lock()
        self._field: Field | None = None
        self._field_at = float("-inf")

    async def keep(self, run: Run, entitlement: Entitlement) -> None:
        """See to it that an entitled account has its entry; UsersError, KubeError, OutdatedError."""
        account, tenant = entitlement.account, entitlement.tenant
        if (seen := self._context.relations.configuration) is not None and is_kept(
            seen.metadata.annotations, msgspec.to_builtins(seen.spec), account
        ):
            return
        field = await self._served_field()

        def operations(body: Object) -> list[Object]:
            if is_kept(body["metadata"].get("annotations") or {}, body.get("spec") or {}, account):
                return []
            return addition(body, account, tenant, field)

        if await self._patch(run, operations, partial(self._context.judge.confirm, entitlement)):
            target, message = self._said(account, field)
            await self._context.writer.record(run, "granted", target, account, tenant, message=message)

    async def release(self, run: Run, account: Account) -> None:
        """Take back the entry that Tether added for an account, if it did; KubeError, OutdatedError."""
        seen = self._context.relations.configuration
        memory = remembered(seen.metadata.annotations).get(account) if seen else None
        if memory is None:
            return
        switched_on = self._context.settings.capsule_users

        async def permit() -> None:
            if switched_on:
                tenants = self._context.relations.remembered_tenants(account)
                await self._context.judge.confirm_lost(account, {*tenants, memory.tenant})

        try:
            if await self._patch(run, lambda body: removal(body, account), permit):
                target, message = self._said(account, memory.field)
                self._context.writer.record_later(run, "revoked", target, account, memory.tenant, message=message)
        except UsersError:
            return  # it is gone with the whole CapsuleConfiguration
        except ForbiddenError as error:
            if switched_on:
                raise
            # The right may have been taken away together with the setting.
            run.log.warning("entry of before stays among the users of Capsule", account=str(account), error=error)

    def _said(self, account: Account, field: Field) -> tuple[str, str]:
        """Return what a record of an account's entry names, and what it says."""
        one = entry(field, account)
        return f"CapsuleConfiguration/{self._name}", f"{field}: {one['name'] if isinstance(one, dict) else one}"

    async def _patch(
        self, run: Run, operations: Callable[[Object], list[Object]], permit: Callable[[], Awaitable[None]]
    ) -> bool:
        """Change the configuration as it is at this moment; tell whether there was anything to change.

        ``permit`` is awaited before the write and raises if it may not be. Many accounts want this one object at the
        same time: here one after the other, and who loses against another process reads again at once.
        """
        client = self._context.client
        async with self._lock:
            version = ""
            while True:
                try:
                    body = await client.get_as(Object, self._path)
                except NotFoundError:
                    raise UsersError(
                        f"CapsuleConfiguration {self._name} does not exist, so nobody can be made a user of Capsule: "
                        "create it, or set TETHER_CAPSULE_CONFIGURATION_NAME"
                    ) from None
                if not (wanted := operations(body)):
                    return False
                before, version = version, body["metadata"]["resourceVersion"]
                await permit()
                run.check()
                try:
                    await client.json_patch(self._path, wanted)
                except (ConflictError, InvalidError):
                    if version == before:
                        raise  # nobody else wrote, so it is the patch itself that is refused
                    continue
                return True

    async def _served_field(self) -> Field:
        """Return the best list that the schema of this Capsule's CapsuleConfiguration has; UsersError without one."""
        if self._field is None or time.monotonic() - self._field_at > SERVED_FOR:
            try:
                document = await self._context.client.get_as(_Document, _SCHEMAS)
            except NotFoundError:
                raise UsersError("the API server serves no schema of Capsule's kinds: look at Capsule") from None
            self._field = best_field(_properties(document))
            self._field_at = time.monotonic()
        if self._field is None:
            raise UsersError("the schema of CapsuleConfiguration has no list of users: look at Capsule")
        return self._field


def _properties(document: _Document) -> set[str]:
    """Return the fields of a CapsuleConfiguration's spec."""
    found = (raw for name, raw in document.components.schemas.items() if name.endswith(".CapsuleConfiguration"))
    for raw in found:
        schema = msgspec.json.decode(raw, type=Object)
        return set(schema.get("properties", {}).get("spec", {}).get("properties", {}))
    return set()
