"""Revocations are timed from the change that led to them, and no failure ends one or lets it wait for long."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventcore import topology
from eventcore.clock import now
from eventcore.consumer import Lease, Result, Retry, Run
from eventcore.errors import EventError, LeaseLostError, ServerError
from eventcore.events import WorkRequest
from eventcore.logs import get
from eventcore.metrics import Metrics
from eventcore.topology import AUDIT
from workers.context import guarded
from workers.entitlement import Entitlement, OutdatedError
from workers.ownership import Account
from workers.revocations import BOUND, RETRY, Revocations, UnderWay

if TYPE_CHECKING:
    from tests.workers.conftest import Line

OIL, GAS = Account("oil-system", "gitops-reconciler"), Account("gas-system", "gitops-reconciler")
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def run(since: datetime | None = None, attempt: int = 0) -> Run:
    request = WorkRequest(reason="event", cause=1, since=since, attempt=attempt)
    lease = Lease(time.monotonic(), 10)
    return Run(worker="token", key=OIL.key(), request=request, lease=lease, view_sequence=1, log=get("test"))


def timed(metrics: Metrics, where: str) -> tuple[int, float]:
    """Return how many revocations were timed at a place, and their seconds."""
    labels = {"where": where}
    count = metrics.registry.get_sample_value("tether_revocation_seconds_count", labels)
    total = metrics.registry.get_sample_value("tether_revocation_seconds_sum", labels)
    assert count is not None
    assert total is not None
    return int(count), total


def test_a_revocation_that_needed_several_tries_is_timed_from_the_first_change() -> None:
    metrics = Metrics()
    revocations = Revocations(metrics)

    # Given a try that failed after its first part, and another change that led to the one that is done
    revocations.begin(run(now() - timedelta(seconds=60)), OIL)
    revocations.reached(run(), OIL, "proxy")
    revocations.begin(run(now() - timedelta(seconds=1)), OIL)
    revocations.end(run(), OIL, "apiserver")

    for where in ("proxy", "apiserver"):
        count, seconds = timed(metrics, where)
        assert count == 1
        assert seconds == pytest.approx(60, abs=10)

    # And what was done is forgotten, as is what had nothing to revoke or no change to count from
    revocations.begin(run(now()), OIL)
    revocations.end(run(), OIL)
    revocations.begin(run(None), OIL)
    revocations.end(run(), OIL, "apiserver")
    assert timed(metrics, "apiserver")[0] == 1


def test_what_is_under_way_grows_old_until_it_is_done() -> None:
    seen = UnderWay()

    assert seen.oldest([OIL], NOW) == 0
    assert seen.oldest([OIL, GAS], NOW + timedelta(seconds=5)) == len("abcde")
    assert seen.oldest([GAS], NOW + timedelta(seconds=6)) == 1
    assert seen.oldest([], NOW + timedelta(seconds=7)) == 0


class Judge:
    """A judge that has all kinds, and says whether the account may have anything."""

    def __init__(self, *, entitled: bool) -> None:
        self.entitled = entitled

    async def missing(self) -> str:
        return ""

    def look(self, account: Account) -> Entitlement | None:
        return Entitlement(account, "u", ("oil",)) if self.entitled else None


async def outcome(error: Exception, *, entitled: bool) -> Result:
    async def reconcile(_: Run) -> Result:
        raise error

    context: Any = type("Context", (), {"judge": Judge(entitled=entitled)})()
    return await guarded(cast("Any", context), reconcile, Account.of_key)(run(attempt=50))


@pytest.mark.parametrize(
    "error",
    [ServerError("etcd is away", status=500), OutdatedError("not yet"), EventError("no event"), LookupError("a bug")],
    ids=lambda error: type(error).__name__,
)
async def test_no_failure_ends_a_revocation_or_lets_it_wait_for_long(error: Exception) -> None:
    result = await outcome(error, entitled=False)

    assert isinstance(result, Retry)
    assert result.at_most == RETRY
    if isinstance(error, OutdatedError):
        assert await outcome(error, entitled=True) == Retry("not yet")
        return
    with pytest.raises(type(error)):
        await outcome(error, entitled=True)


async def test_who_has_lost_its_time_gives_up_its_revocation_too() -> None:
    with pytest.raises(LeaseLostError):
        await outcome(LeaseLostError("time is up"), entitled=False)


async def test_a_revocation_is_timed_at_both_places_and_keeps_its_bound(line: Line) -> None:
    async with line.watcher(), line.router(), line.workers() as role:
        # given the example runs, when its account is switched off
        await line.settle()
        await line.annotate(str(OIL), **{"capsule.addon.fluxcd_enabled": None})
        await line.until_gone("RoleBinding", OIL.namespace, OIL.name)
        await line.until_gone("Secret", OIL.namespace, f"{OIL.name}-token")
        await line.until_recorded("token", "revoked", f"{OIL.name}-token")

        # then it was timed: the grant once, the token and the rights once each
        async def done() -> bool:
            return (timed(role.metrics, "proxy")[0], timed(role.metrics, "apiserver")[0]) == (1, 2)

        await line.until(done, "both places timed")
        assert timed(role.metrics, "proxy")[1] < BOUND["proxy"]
        assert timed(role.metrics, "apiserver")[1] < 2 * BOUND["apiserver"]


async def test_a_revocation_waits_for_no_record_and_is_recorded_when_that_is_possible(line: Line) -> None:
    async with line.watcher(), line.router(), line.workers():
        # given the example runs, and the audit can be written no more
        await line.settle()
        await line.bus.js.delete_stream(AUDIT)

        # when its account is switched off, then all of it goes
        await line.annotate(str(OIL), **{"capsule.addon.fluxcd_enabled": None})
        await line.until_gone("Secret", OIL.namespace, f"{OIL.name}-token-1")
        await line.until_gone("Secret", OIL.namespace, f"{OIL.name}-token")
        await line.until_gone("RoleBinding", OIL.namespace, OIL.name)
        await line.until_gone("Secret", "oil-production", f"{OIL.name}-kubeconfig")
        assert await line.grant("account", OIL.namespace, OIL.name) is None

        # and when the audit is back, then it says so
        await topology.apply(line.bus, line.settings)
        await line.follow(AUDIT)
        await line.until_recorded("token", "revoked", f"Secret/{OIL.namespace}/{OIL.name}-token-1")
        await line.until_recorded("rbac", "revoked", f"RoleBinding/{OIL.namespace}/{OIL.name}")
