"""The numbers that an operator alarms on: token age, expiry, what is overdue, kubeconfigs that are out of date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from eventcore.metrics import Metrics
from eventcore.reading import Reader
from eventcore.settings import Settings
from workers.context import Context
from workers.desired import Token, TokenMode
from workers.observing import Holding, observe, tell
from workers.own_annotations import FOREVER

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.workers.conftest import Line

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAME = "gitops-reconciler"


def token(age: timedelta, *, life: timedelta = 24 * HOUR, mode: TokenMode = "bound") -> Token:
    minted = NOW - age
    return Token(
        generation=1,
        binding="b",
        binding_uid="b",
        account_uid="a",
        minted=minted,
        expires=minted + life if mode == "bound" else FOREVER,
        written=minted,
        retire=minted,
        digest="d",
        mode=mode,
    )


def values(metrics: Metrics) -> dict[str, float]:
    """Return the samples of what is told of accounts, by name and mode."""
    return {
        "/".join((sample.name, *sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith(("tether_account", "tether_token", "tether_kubeconfig"))
    }


def test_the_oldest_and_the_first_to_expire_are_told() -> None:
    metrics = Metrics()
    holdings = [
        Holding(entitled=True, token=token(3 * HOUR), wanted=3, out_of_date=1),
        Holding(entitled=True, token=token(20 * HOUR), wanted=1),
        Holding(entitled=True, token=token(90 * HOUR, mode="static"), wanted=2),
        Holding(entitled=True, wanted=1, out_of_date=1),
        Holding(refused=True, out_of_date=2),
    ]

    tell(metrics, holdings, Settings(), NOW)

    assert values(metrics) == {
        "tether_accounts": 4,
        "tether_accounts_refused": 1,
        "tether_accounts_without_token": 1,
        "tether_token_age_seconds/bound": 20 * 3600,
        "tether_token_age_seconds/static": 90 * 3600,
        "tether_token_expiry_timestamp_seconds": (NOW + 4 * HOUR).timestamp(),
        "tether_tokens_overdue": 1,
        "tether_kubeconfigs": 7,
        "tether_kubeconfigs_out_of_date": 4,
    }


def test_without_accounts_everything_is_nothing() -> None:
    metrics = Metrics()

    tell(metrics, [Holding(entitled=True, token=token(HOUR), wanted=1)], Settings(), NOW)
    tell(metrics, [], Settings(), NOW)

    assert set(values(metrics).values()) == {0.0}


@pytest.mark.parametrize(
    ("age", "overdue"), [(19.2 * HOUR, 0), (19.2 * HOUR + timedelta(minutes=1), 0), (19.3 * HOUR, 1)]
)
def test_a_rotation_is_overdue_once_its_time_is_well_over(age: timedelta, overdue: int) -> None:
    metrics = Metrics()

    tell(metrics, [Holding(entitled=True, token=token(age))], Settings(), NOW)

    assert values(metrics)["tether_tokens_overdue"] == overdue


async def test_a_kubeconfig_that_is_missing_is_counted_until_it_is_back(
    line: Line, background: Callable[[Awaitable[object]], None], stopping: asyncio.Event
) -> None:
    # given the guide's example is as it should be, and somebody only counts
    metrics, reader = Metrics(), Reader.objects(line.bus)
    context = Context(line.bus, line.client, reader, line.settings)
    background(reader.run(stopping))
    background(observe(context, metrics, stopping, interval=0.05))

    async def until(**wanted: int) -> None:
        async with asyncio.timeout(30):
            while {name: values(metrics)[name] for name in wanted} != wanted:
                await asyncio.sleep(0.02)  # the next count tells nobody

    async with line.watcher(), line.router():
        async with line.workers():
            await line.settle()
            await until(tether_accounts=1, tether_kubeconfigs=2, tether_kubeconfigs_out_of_date=0)

        # when nobody works and a copy is deleted, and then the token, then what is missing is counted
        await line.delete("Secret", "oil-production", f"{NAME}-kubeconfig")
        await until(tether_kubeconfigs_out_of_date=1, tether_accounts_without_token=0)
        await line.delete("Secret", "oil-system", f"{NAME}-token")
        await until(tether_kubeconfigs_out_of_date=2, tether_accounts_without_token=1)

        # when workers run again, then all is as it should be
        async with line.workers():
            await until(tether_kubeconfigs_out_of_date=0, tether_accounts_without_token=0)

        # and when the account is switched off and nobody works, what it still has does not belong there
        await line.annotate(f"oil-system/{NAME}", **{"capsule.addon.fluxcd_enabled": None})
        await until(tether_accounts=0, tether_kubeconfigs=0, tether_kubeconfigs_out_of_date=2)
