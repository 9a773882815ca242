"""Workers on a machine whose clock is wrong by days: tenants get what they get from any other, and a person is told."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
ACCOUNT = "gitops-reconciler"
WRONG_CLOCK = Path(__file__).parents[1] / "wrong_clock"
TWO_DAYS = 2 * 86400
NOTES = "capsule-tether.io/"
EVENTS = "/api/v1/namespaces/{}/events"


@pytest.mark.parametrize("ahead", [TWO_DAYS, -TWO_DAYS], ids=["ahead", "behind"])
async def test_a_wrong_clock_changes_no_token_and_is_told(
    cluster: Any, tenancy: Tenancy, until: Any, ahead: int
) -> None:
    # Given workers whose clock is wrong by twice the life of a token
    await cluster.restart("worker", PYTHONPATH=str(WRONG_CLOCK), WRONG_CLOCK_AHEAD=str(ahead))
    try:
        # When a tenant comes and makes a namespace
        await tenancy.make()
        (namespace,) = await tenancy.make_namespaces("production")
        await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")

        # Then its account is told whose clock is wrong
        async def told() -> str:
            events = msgspec.json.decode(await tenancy.admin.get(EVENTS.format(tenancy.home)))["items"]
            return "\n".join(one["message"] for one in events if one["reason"] == "ClockSkew")

        message = await until(told)
        assert f"is {'ahead of' if ahead > 0 else 'behind'} the API server's" in message
    finally:
        await cluster.restart("worker")

    # And the token is the first one still, and its times are those of the API server
    secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    notes = secret["metadata"]["annotations"]
    assert notes[f"{NOTES}generation"] == "1"
    created = datetime.fromisoformat(secret["metadata"]["creationTimestamp"])
    for note in ("minted", "written"):
        assert abs(datetime.fromisoformat(notes[NOTES + note]) - created) < timedelta(minutes=1)
