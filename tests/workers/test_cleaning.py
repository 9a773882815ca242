"""What is made to look like ours costs other tenants little: a run deletes some of it, and the next one goes on."""
# ruff: noqa: SLF001 -- how long a token before stays good is decided in a private function

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from eventcore.clock import now
from eventcore.consumer import Again, Lease, Result, Run
from eventcore.errors import ForbiddenError, KubeError, NotFoundError
from eventcore.events import AuditRecord, WorkRequest
from eventcore.logs import get
from eventcore.objects import ANNOTATION_ACCOUNT, LABEL_COMPONENT, Meta
from eventcore.settings import Settings
from workers import cleaning, token
from workers.cleaning import MOST_AT_ONCE, UnfinishedError
from workers.context import guarded
from workers.desired import Target, Token
from workers.names import binding_name, kubeconfig_name, token_name
from workers.own_objects import own_account
from workers.ownership import Account
from workers.writing import Writer

if TYPE_CHECKING:
    from eventcore.bus import Bus
    from eventcore.kube import KubeClient

ACCOUNT, OTHER = Account("oil-system", "a"), Account("gas-system", "a")
MARKS = {"labels": {LABEL_COMPONENT: "token"}, "annotations": {ANNOTATION_ACCOUNT: str(ACCOUNT)}}


class World:
    """An API server with Secrets, what is remembered of them, and the records that were kept."""

    def __init__(self, number: int) -> None:
        self.targets = [Target("Secret", "oil-system", f"a-token-{at}") for at in range(number)]
        self.there = {target.path: dict(MARKS) for target in self.targets}
        self.protected: set[str] = set()
        self.lost: set[Target] = set()
        self.anothers: set[Target] = set()
        self.records: list[AuditRecord] = []
        self.asked = 0
        self.events: list[str] = []
        self.writer = Writer(cast("Bus", self), cast("KubeClient", self), self)

    async def get(self, path: str) -> bytes:
        self.asked += 1
        if path not in self.there:
            raise NotFoundError("gone")
        return msgspec.json.encode({"metadata": {"uid": path, **self.there[path]}})

    async def request(self, _method: str, path: str, *, body: bytes) -> bytes:
        assert path.encode() in body
        if path in self.protected:
            raise ForbiddenError("the object was not made by Tether")
        del self.there[path]
        return b"{}"

    async def create(self, _path: str, body: dict[str, Any]) -> bytes:
        self.events.append(body["reason"])
        return b"{}"

    async def audit(self, record: AuditRecord) -> None:
        self.records.append(record)

    def made_for(self, target: Target, _uid: str) -> Account | None:
        return ACCOUNT if target in self.lost else None

    def is_anothers(self, target: Target, _account: Account) -> bool:
        return target in self.anothers

    def forget(self, target: Target) -> bool:
        known = target in self.lost
        self.lost.discard(target)
        return known

    async def remove(self, whole: int = 0) -> bool:
        return await self.writer.remove_all(run(), self.targets, ACCOUNT, action="revoked", whole=whole)


def run() -> Run:
    request = WorkRequest(reason="event", cause=1)
    lease = Lease(time.monotonic(), 10)
    return Run(worker="token", key=ACCOUNT.key(), request=request, lease=lease, view_sequence=1, log=get("test"))


async def test_a_run_deletes_what_decides_something_and_some_of_the_rest_with_one_record() -> None:
    world, decisive = World(200), 3

    with pytest.raises(UnfinishedError):
        await world.remove(decisive)
    await world.writer.close()

    assert len(world.there) == 200 - decisive - MOST_AT_ONCE
    assert world.asked == decisive + MOST_AT_ONCE
    assert [record.object for record in world.records] == [str(one) for one in world.targets[: decisive + 1]]
    assert f"and {MOST_AT_ONCE - 1} more" in world.records[-1].message


async def test_whoever_takes_something_back_waits_for_no_record_of_anybody() -> None:
    # given AUDIT takes no record, of this revocation or of one before
    world, audit = World(2), asyncio.Event()
    told: list[AuditRecord] = []

    async def away(record: AuditRecord) -> None:
        await audit.wait()
        told.append(record)

    world.audit = away  # type: ignore[method-assign]  # the bus without AUDIT

    # when both are done, then neither waited
    async with asyncio.timeout(5):
        for target in world.targets:
            assert await world.writer.remove(run(), target, ACCOUNT, action="revoked")
    assert (world.there, told) == ({}, [])

    # and once AUDIT takes records, then it has both, in order
    audit.set()
    await world.writer.close()
    assert [record.object for record in told] == [str(target) for target in world.targets]


async def test_what_decides_something_is_never_left_out() -> None:
    world = World(200)

    assert await world.remove(200)
    await world.writer.close()

    assert (world.there, len(world.records)) == ({}, 200)


async def test_a_run_ends_after_its_time_but_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "LONGEST", -1.0)
    world = World(3)

    for left in (2, 1):
        with pytest.raises(UnfinishedError):
            await world.remove()
        assert len(world.there) == left
        world.targets = world.targets[1:]


async def test_what_was_made_for_another_is_not_even_looked_at() -> None:
    world = World(200)
    world.anothers = set(world.targets[:190])

    assert await world.remove()

    assert (world.asked, len(world.there)) == (10, 190)


async def test_what_bears_no_marks_any_more_and_may_not_be_deleted_is_said_once_and_forgotten() -> None:
    world = World(2)
    world.lost = {world.targets[0]}
    world.protected = {world.targets[0].path}

    assert await world.remove()
    assert world.events == ["ForeignObject"]
    assert world.lost == set()

    # What still bears them is ours, and is tried again
    with pytest.raises(ForbiddenError):
        await world.remove()


async def test_what_decides_something_and_may_not_be_deleted_is_tried_again() -> None:
    world = World(2)
    world.lost = set(world.targets)
    world.protected = {world.targets[0].path}

    with pytest.raises(KubeError):
        await world.remove(1)

    assert len(world.there) == 1


async def test_the_next_run_goes_on_by_a_timer_and_requests_that_wait_do_no_work() -> None:
    async def missing() -> str:
        return ""

    async def unfinished(_run: Run) -> Result:
        raise UnfinishedError(removed=True)

    context = cast("Any", SimpleNamespace(judge=SimpleNamespace(missing=missing, look=lambda _: None)))

    result = await guarded(context, unfinished, Account.of_key)(run())

    # Again counts as seen, and a Retry does not.
    assert isinstance(result, Again)
    assert timedelta() < result.at - now() <= timedelta(seconds=cleaning.GOES_ON)


@pytest.mark.parametrize(
    ("component", "namespace", "name", "counts"),
    [
        ("token", "oil-system", "a-token", True),
        ("token", "oil-system", "a-token-12", True),
        ("token", "oil-system", "a-token-012", False),
        ("token", "oil-system", "a-token-x", False),
        ("token", "oil-system", "b-token", False),
        ("token", "oil-production", "a-token", False),
        ("kubeconfig", "oil-production", "a-kubeconfig", True),
        ("kubeconfig", "oil-production", "b-kubeconfig", False),
    ],
)
def test_what_stands_under_a_name_that_tether_gives_nobody_is_nobodys(
    component: str, namespace: str, name: str, *, counts: bool
) -> None:
    labels, annotations = {LABEL_COMPONENT: component}, {ANNOTATION_ACCOUNT: str(ACCOUNT)}

    found = own_account(Meta(name=name, namespace=namespace, labels=labels, annotations=annotations))

    assert found == (ACCOUNT if counts else None)


def test_the_names_of_an_account_whose_name_is_long_count_too() -> None:
    account = Account("oil-system", "a" * 253)
    for component, name, marks in [
        ("token", token_name(account), {}),
        ("token", binding_name(account, 7), {"capsule-tether.io/generation": "7"}),
        ("kubeconfig", kubeconfig_name(account), {}),
    ]:
        annotations = {ANNOTATION_ACCOUNT: str(account), **marks}
        meta = Meta(
            name=name, namespace=account.namespace, labels={LABEL_COMPONENT: component}, annotations=annotations
        )
        assert own_account(meta) == account


@pytest.mark.parametrize(
    ("written", "retire", "latest"),
    [(0, 5, 5), (0, 6 * 3600, 60), (3600, 3605, 0), (3600, 9 * 3600, 0), (-3600, 3600, -3540), (0, -10, 0)],
)
def test_no_annotation_keeps_a_token_before_good_for_longer_than_its_overlap(
    written: float, retire: float, latest: float
) -> None:
    moment = now()
    found = Token(
        generation=2,
        binding="a-token-2",
        binding_uid="u",
        account_uid="v",
        minted=moment,
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        written=moment + timedelta(seconds=written),
        retire=moment + timedelta(seconds=retire),
        digest="d",
    )

    end, longest = token._overlap(found, Settings(token_overlap=60.0))

    assert abs((end - moment).total_seconds() - latest) < 1
    assert timedelta() <= longest <= timedelta(seconds=60)
