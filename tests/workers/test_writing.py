"""What the writer may do, and what stops it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from eventcore.consumer import Lease, Run
from eventcore.errors import ConflictError, LeaseLostError
from eventcore.events import WorkRequest
from eventcore.keys import key
from eventcore.logs import get
from workers.desired import Target, home_role_binding
from workers.ownership import Account
from workers.writing import Writer

if TYPE_CHECKING:
    from tests.workers.conftest import Line

ACCOUNT = Account("oil-system", "gitops-reconciler")
BINDING = home_role_binding(ACCOUNT, "oil", "cluster-admin")


def run(*, sent: float) -> Run:
    """Return a run whose lease of ten seconds began so many seconds ago."""
    lease = Lease(time.monotonic() - sent, 10)
    request = WorkRequest(reason="event", cause=1, cause_id="default:uid:1")
    return Run(worker="rbac", key=key("n", "a"), request=request, lease=lease, view_sequence=1, log=get("test"))


async def permitted() -> None:
    """Nothing stands against it."""


async def test_a_worker_whose_time_is_up_writes_nothing(line: Line) -> None:
    await line.apply_files("oil.yaml")
    writer = Writer(line.bus, line.client)

    # given its time is up, it makes nothing
    with pytest.raises(LeaseLostError):
        await writer.ensure(run(sent=60), BINDING, permitted, action="granted")
    assert await line.get("RoleBinding", "oil-system", "gitops-reconciler") is None

    # and repairs and removes nothing
    await writer.ensure(run(sent=0), BINDING, permitted, action="granted")
    await line.patch("RoleBinding", "oil-system", "gitops-reconciler", {"subjects": []})
    emptied = await line.must("RoleBinding", "oil-system", "gitops-reconciler")
    with pytest.raises(LeaseLostError):
        await writer.ensure(run(sent=60), BINDING, permitted, action="granted")
    with pytest.raises(LeaseLostError):
        await writer.remove(run(sent=60), BINDING.target, ACCOUNT, action="revoked")
    assert await line.must("RoleBinding", "oil-system", "gitops-reconciler") == emptied


async def test_nothing_is_written_without_the_permission(line: Line) -> None:
    await line.apply_files("oil.yaml")
    writer = Writer(line.bus, line.client)

    async def refused() -> None:
        raise ConflictError("the view is behind")

    with pytest.raises(ConflictError):
        await writer.ensure(run(sent=0), BINDING, refused, action="granted")

    assert await line.get("RoleBinding", "oil-system", "gitops-reconciler") is None


async def test_an_object_of_another_account_is_neither_changed_nor_removed(line: Line) -> None:
    await line.apply_files("oil.yaml")
    writer = Writer(line.bus, line.client)
    await writer.ensure(run(sent=0), BINDING, permitted, action="granted")
    other = msgspec.structs.replace(BINDING, account=Account("gas-system", "gitops-reconciler"))

    assert await writer.ensure(run(sent=0), other, permitted, action="granted") == "other"
    assert not await writer.remove(run(sent=0), other.target, other.account, action="revoked")
    assert await line.get("RoleBinding", "oil-system", "gitops-reconciler")


async def test_what_is_not_there_is_not_removed_and_not_recorded(line: Line) -> None:
    writer = Writer(line.bus, line.client)
    missing = Target("ClusterRole", "", "nothing")

    assert not await writer.remove(run(sent=0), missing, ACCOUNT, action="revoked")
    assert line.audit == []
