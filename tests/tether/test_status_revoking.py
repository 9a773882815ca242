"""A revocation that is not done is shown with what is left, and that it takes longer than it should."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from eventcore.events import WorkRequest
from eventcore.keys import Key, timer_subject, work_subject
from tests.tether.test_status_model import GAS, NOW, OIL, Stage, two_tenants, whole, work
from tether.status_model import of_tenant
from tether.status_view import render
from workers.revocations import BOUND
from workers.routing import account_grant_key

LATE = timedelta(seconds=BOUND["apiserver"] + 1)


def shown(stage: Stage, **queues: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        console.print(render(whole(stage, **queues)))
    return captured.get()


def without_owner() -> Stage:
    """Oil's account is enabled and owns nothing any more, and still has all it had."""
    stage = two_tenants()
    stage.put("Tenant", {"metadata": {"name": "oil", "uid": "oil"}, "spec": {"owners": []}})
    return stage


def test_who_may_have_what_it_has_is_not_shown() -> None:
    assert whole(two_tenants()).revoking == ()
    assert "REVOKES" not in shown(two_tenants())


@pytest.mark.parametrize("key", [OIL.key(), account_grant_key(OIL)], ids=str)
def test_how_long_one_takes_is_told_by_the_request_that_waits(key: Key) -> None:
    stage = without_owner()
    for since, late in ((NOW - LATE, True), (NOW - timedelta(seconds=1), False)):
        request = WorkRequest(reason="retry", attempt=3, since=since)
        waits = (work(timer_subject("token", key), request, at=NOW),)

        (one,) = whole(stage, work=waits).revoking

        assert (one.account, one.since, one.late) == (str(OIL), since, late)
        assert one.has == ("its grant at the proxy", "4 Secrets")
        assert ("longer than it should take" in shown(stage, work=waits)) is late


def test_one_that_nobody_works_at_is_late_for_an_unknown_time() -> None:
    other = work(work_subject("token", GAS.key()), WorkRequest(reason="event", since=NOW))

    (one,) = whole(without_owner(), work=(other,)).revoking

    assert (one.account, one.since, one.late) == (str(OIL), None, True)
    assert "an unknown time" in shown(without_owner())


def test_one_of_an_account_that_is_switched_off_began_then() -> None:
    stage = two_tenants()
    stage.put("ServiceAccount", {"metadata": {"name": OIL.name, "namespace": OIL.namespace, "uid": "a"}})

    (one,) = whole(stage).revoking

    assert (one.since, one.late) == (NOW, False)
    picture = of_tenant(whole(stage), "oil")
    assert picture is not None
    assert picture.revoking == (one,)


def test_a_grant_of_an_account_of_which_nothing_else_is_left_is_shown() -> None:
    (one,) = whole(Stage()).revoking

    assert (one.account, one.has) == (str(OIL), ("its grant at the proxy",))
