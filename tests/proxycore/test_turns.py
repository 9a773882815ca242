"""A fair share of the API server's time for everybody who asks: what one asks for never keeps the others waiting."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from eventcore.errors import KubeUnreachableError
from proxycore import access_reviews
from proxycore.access_reviews import AccessReviews, Asker, Attributes
from proxycore.identities import Identity
from proxycore.impersonating import Impersonator
from proxycore.statuses import RefusedError
from proxycore.turns import AT_ONCE, EACH, Paced, Turns, share_of

SECOND = 1.0


class Slow:
    """An API server that answers each question after a second, and notes in which order they came."""

    def __init__(self, **allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        self.asked: list[tuple[str, str]] = []
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.all = self.most_of_all = 0

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        user, asked = body["spec"]["user"], body["spec"]["resourceAttributes"]
        self.asked.append((user, asked.get("name", "")))
        self.running[user] = self.running.get(user, 0) + 1
        self.most[user] = max(self.most.get(user, 0), self.running[user])
        self.all += 1
        self.most_of_all = max(self.most_of_all, self.all)
        await asyncio.sleep(SECOND)
        self.running[user] -= 1
        self.all -= 1
        names = self.allowed.get(asked.get("resource", ""), ())
        return msgspec.json.encode({"status": {"allowed": asked.get("name", "") in names}, "path": path})


def caller(user: str, token: int = 0) -> Identity:
    return Identity(user=user, groups=("system:authenticated",), extra={"credential": (f"{token}",)})


async def seconds_for(resolver: Impersonator, who: Identity, asked: Identity) -> float:
    """Return how long a caller waits for its answer, good or not."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with suppress(RefusedError):
        await resolver.resolve(who, resolver.wanted(who, asked), token=False)
    return loop.time() - begun


@pytest.mark.looptime
@pytest.mark.parametrize("paced", [False, True], ids=["as many as may", "at a rate"])
async def test_one_callers_flood_delays_nobody_else_by_more_than_a_turn(*, paced: bool) -> None:
    groups = tuple(f"g{number}" for number in range(1000))
    server = Slow(users=("dana", "erin"), groups=("ops",))
    poster = Paced(server, rate=20, burst=1) if paced else server
    resolver = Impersonator(AccessReviews(poster), ttl=0)
    victim = caller("victim")
    alone = await seconds_for(resolver, victim, Identity(user="erin", groups=("ops",)))

    # given fifty requests of one caller with many tokens, each with as many groups as are reviewed
    flood = [
        asyncio.ensure_future(
            seconds_for(resolver, caller("flood", n), Identity(user="dana", groups=groups[n * 20 : n * 20 + 99]))
        )
        for n in range(50)
    ]
    await asyncio.sleep(SECOND / 2)
    # when somebody else asks in the midst of it
    meanwhile = [await seconds_for(resolver, victim, Identity(user="erin", groups=("ops",))) for _ in range(5)]

    # then it waits about as long as ever
    assert not all(one.done() for one in flood)
    assert max(meanwhile) <= (alone + 0.2 if paced else alone)
    assert server.most["flood"] <= EACH or paced
    for one in flood:
        one.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


@pytest.mark.looptime
async def test_many_who_flood_get_a_turn_each_before_any_gets_its_next() -> None:
    server = Slow()
    reviews = AccessReviews(server)

    async def ask(user: str, name: str) -> None:
        await reviews.allowed(Asker.of(caller(user)), Attributes(resource="users", name=name), believed=(0, 0))

    flood = [asyncio.ensure_future(ask(f"flood-{n % 20}", str(n))) for n in range(20 * 100)]
    await asyncio.sleep(SECOND / 2)
    late = [asyncio.ensure_future(ask("victim", str(n))) for n in range(3)]
    await asyncio.gather(*late)

    # So many ran when the victim came; then each of the others had at most three turns before the victim's third.
    before = server.asked.index(("victim", "2"))
    assert before <= AT_ONCE + 3 * 21
    assert server.most_of_all == AT_ONCE
    await asyncio.gather(*flood)
    assert len(server.asked) == 2003


@pytest.mark.looptime
async def test_accounts_of_a_namespace_are_one_share_whatever_their_number() -> None:
    server = Slow()
    reviews = AccessReviews(server)
    accounts = [f"system:serviceaccount:oil-dev:pod-{number}" for number in range(100)]

    flood = [
        asyncio.ensure_future(reviews.allowed(Asker.of(caller(one)), Attributes(name="x"), believed=(0, 0)))
        for one in accounts
    ]
    await asyncio.sleep(SECOND / 2)

    assert server.all == EACH
    assert {share_of(one) for one in accounts} == {"system:serviceaccounts:oil-dev"}
    assert share_of("dana") == "dana"
    await asyncio.gather(*flood)


@pytest.mark.looptime
async def test_who_asks_for_more_than_may_wait_is_told_to_come_again_and_the_others_are_not() -> None:
    server = Slow()
    reviews = AccessReviews(server, turns=Turns(at_once=2, each=1, waiting=3))

    async def ask(user: str, name: str) -> bool:
        return await reviews.allowed(Asker.of(caller(user)), Attributes(name=name), believed=(0, 0))

    flood = [asyncio.ensure_future(ask("flood", str(number))) for number in range(6)]
    await asyncio.sleep(SECOND / 2)
    assert not await ask("victim", "x")

    found = await asyncio.gather(*flood, return_exceptions=True)
    assert found[:4] == [False] * 4
    for one in found[4:]:
        assert isinstance(one, RefusedError)
        assert (one.status.code, one.status.reason, one.status.retry_after) == (429, "TooManyRequests", 1)


@pytest.mark.looptime
async def test_who_goes_away_while_it_waits_leaves_its_turn_to_the_next() -> None:
    turns, order = Turns(at_once=1, each=1), []

    async def take(name: str) -> None:
        async with turns.turn(name):
            order.append(name)
            await asyncio.sleep(SECOND)

    tasks = {name: asyncio.ensure_future(take(name)) for name in ("a", "b", "c", "d")}
    await asyncio.sleep(SECOND / 2)
    tasks["b"].cancel()  # while it waits
    await asyncio.sleep(SECOND / 2)  # now the turn of c has come, and it has not run yet
    tasks["c"].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await take("e")

    assert [one for one in order if one != "c"] == ["a", "d", "e"]


@pytest.mark.looptime
async def test_reviews_are_paced_at_the_rate_after_the_burst() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    class Poster:
        async def create(self, path: str, body: dict[str, Any], /) -> bytes:
            times.append(round(loop.time() - begun, 3))
            return f"{path}{body}".encode()

    paced = Paced(Poster(), rate=10, burst=3)
    begun = loop.time()
    await asyncio.gather(*(paced.create("/a", {"spec": {}}) for _ in range(6)))
    await asyncio.sleep(10)
    await asyncio.gather(*(paced.create("/a", {"spec": {}}) for _ in range(4)))

    assert times[:6] == [0, 0, 0, 0.1, 0.2, 0.3]
    assert times[6:] == [10.3, 10.3, 10.3, 10.4]


# What is remembered.


async def test_who_asks_for_much_forgets_its_own_answers_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_reviews, "MOST_EACH", 5 * 256)
    monkeypatch.setattr(access_reviews, "MOST", 12 * 256)
    count = 0

    class Poster:
        async def create(self, path: str, body: dict[str, Any], /) -> bytes:
            nonlocal count
            count += 1
            return msgspec.json.encode({"status": {"allowed": True}, "asked": [path, body]})

    reviews = AccessReviews(Poster())

    async def ask(user: str, name: str) -> int:
        """Return how many questions that costs."""
        before = count
        assert await reviews.allowed(Asker.of(caller(user)), Attributes(name=name), believed=(60, 60))
        return count - before

    assert await ask("victim", "x" * 60_000) == 1
    for number in range(100):
        await ask("flood", str(number))

    assert reviews.size == 6
    assert await ask("victim", "x" * 60_000) == 0
    assert await ask("flood", "99") == 0
    assert await ask("flood", "1") == 1
    for number in range(30):
        await ask(f"other-{number}", "x")
    assert reviews.size == 12


async def test_a_failed_review_is_not_remembered_and_nothing_of_it_stays() -> None:
    class Away:
        async def create(self, path: str, body: dict[str, Any], /) -> bytes:
            raise KubeUnreachableError(f"{path}{len(body)}")

    reviews = AccessReviews(Away())
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            await reviews.allowed(Asker.of(caller("dana")), Attributes(name="x"), believed=(60, 60))
        assert caught.value.status.code == 503

    assert reviews.size == 0
