"""How long an answer about a token is believed, and what ends that earlier."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.errors import KubeUnreachableError
from eventcore.grants import AccountGrant, BoundSecret, Grant, SubjectGrant
from eventcore.views import Change, GrantRecord
from proxycore import main
from proxycore.authentication import REFUSED_TTL, Authenticator
from proxycore.failed_tokens import FailedTokens
from proxycore.measures import Tally
from proxycore.statuses import RefusedError
from tests.proxycore.test_forwarding import run_between
from tests.proxycore.test_measures import until

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

USER = "system:serviceaccount:oil-system:gitops-reconciler"


class Reviews:
    """The API server's side: says yes to ``good`` tokens, when ``open`` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.good = True
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
        self.asked.append(body["spec"]["token"])
        good = self.good
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return msgspec.json.encode({"status": {"authenticated": good, "user": {"username": USER, "groups": ["g"]}}})


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def reviews() -> Reviews:
    return Reviews()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authenticator(reviews: Reviews, clock: Clock) -> Authenticator:
    return Authenticator(reviews, ttl=10.0, tally=Tally(), clock=clock)


def jwt(**claims: Any) -> str:
    parts = ({"alg": "RS256"}, claims)
    return ".".join(base64.urlsafe_b64encode(msgspec.json.encode(part)).decode().rstrip("=") for part in parts) + ".sig"


def change(old: Grant | None, new: Grant | None) -> Change[GrantRecord]:
    def record(grant: Grant | None) -> GrantRecord | None:
        return None if grant is None else GrantRecord(key="k", sequence=1, grant=grant)

    return Change(old=record(old), new=record(new), sequence=1)


def account(*uids: str) -> AccountGrant:
    secrets = tuple(BoundSecret(name=f"s-{uid}", uid=uid, generation=1) for uid in uids)
    return AccountGrant(namespace="oil-system", name="gitops-reconciler", uid="u", secrets=secrets)


async def test_an_answer_is_believed_for_the_set_time(
    authenticator: Authenticator, reviews: Reviews, clock: Clock
) -> None:
    caller = await authenticator.identify("token")
    clock.now += 9.9
    assert await authenticator.identify("token") == caller
    assert len(reviews.asked) == 1

    clock.now += 0.2
    await authenticator.identify("token")

    assert len(reviews.asked) == 2
    assert (caller.identity.user, caller.identity.groups) == (USER, ("g",))


async def test_no_answer_is_believed_past_the_tokens_own_expiry(
    authenticator: Authenticator, reviews: Reviews, clock: Clock
) -> None:
    token = jwt(exp=int(clock.now) + 3)
    await authenticator.identify(token)
    clock.now += 3.1

    await authenticator.identify(token)

    assert len(reviews.asked) == 2


async def test_a_refusal_is_remembered_shortly(authenticator: Authenticator, reviews: Reviews, clock: Clock) -> None:
    reviews.good = False
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            await authenticator.identify("token")
        assert caught.value.status.code == 401
    assert len(reviews.asked) == 1

    reviews.good = True
    clock.now += REFUSED_TTL + 0.1

    assert (await authenticator.identify("token")).identity.user == USER


async def test_requests_at_once_cost_one_review_and_one_that_leaves_takes_nobody_with_it(
    authenticator: Authenticator, reviews: Reviews
) -> None:
    reviews.open.clear()
    waiting = [asyncio.ensure_future(authenticator.identify("token")) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    reviews.open.set()

    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert len(reviews.asked) == 1
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(not isinstance(one, BaseException) for one in found[1:])


async def test_an_api_server_that_is_away_is_503_and_is_not_remembered(
    authenticator: Authenticator, reviews: Reviews
) -> None:
    reviews.error = KubeUnreachableError("no answer")
    with pytest.raises(RefusedError) as caught:
        await authenticator.identify("secret-token")
    reviews.error = None

    assert caught.value.status.code == 503
    assert "secret-token" not in str(caught.value)
    assert (await authenticator.identify("secret-token")).identity.user == USER


@pytest.mark.parametrize(
    "changed",
    [
        change(account("1"), account("1", "2")),
        change(account("1"), None),
        change(None, account("1")),
        change(SubjectGrant(subject_kind="ServiceAccount", name=USER, tenants=("oil",)), None),
    ],
    ids=["rotated", "withdrawn", "granted", "no owner any more"],
)
async def test_a_change_of_the_accounts_grants_drops_what_is_remembered(
    authenticator: Authenticator, reviews: Reviews, changed: Change[GrantRecord]
) -> None:
    await authenticator.identify("token")

    authenticator.grants_changed(changed)
    await authenticator.identify("token")

    assert len(reviews.asked) == 2


async def test_a_review_that_was_under_way_during_a_change_is_not_remembered(
    authenticator: Authenticator, reviews: Reviews
) -> None:
    reviews.open.clear()
    first = asyncio.ensure_future(authenticator.identify("token"))
    await asyncio.sleep(0)
    authenticator.grants_changed(change(account("1"), None))
    reviews.open.set()
    await first

    await authenticator.identify("token")

    assert len(reviews.asked) == 2


# Tokens that are nobody's.

PEER = "10.0.0.7"


@pytest.fixture
def limited(reviews: Reviews, clock: Clock) -> Authenticator:
    """One that lets one address try one token a second, ten at once."""
    return Authenticator(reviews, ttl=10.0, tally=Tally(), clock=clock, failures=FailedTokens(1.0, clock=clock))


async def code_of(authenticator: Authenticator, token: str, peer: str = PEER) -> int:
    try:
        await authenticator.identify(token, peer)
    except RefusedError as error:
        status = error.status
    else:
        return 200
    assert (status.code == 401) == (status.retry_after == 0)
    return status.code


async def test_garbage_costs_so_many_reviews_and_is_then_told_to_come_later(
    limited: Authenticator, reviews: Reviews, clock: Clock
) -> None:
    reviews.good = False

    codes = [await code_of(limited, f"garbage-{number}") for number in range(1000)]

    assert codes == [401] * 10 + [429] * 990
    assert len(reviews.asked) == 10
    clock.now += 2.0
    assert [await code_of(limited, f"more-{number}") for number in range(3)] == [401, 401, 429]


async def test_garbage_at_once_costs_no_more(limited: Authenticator, reviews: Reviews) -> None:
    reviews.good = False
    reviews.open.clear()
    asking = [asyncio.ensure_future(code_of(limited, f"garbage-{number}")) for number in range(1000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reviews.open.set()

    codes = await asyncio.gather(*asking)

    assert sorted(codes) == [401] * 10 + [429] * 990
    assert len(reviews.asked) == 10


async def test_a_token_that_was_good_passes_however_much_garbage_comes_from_its_address(
    limited: Authenticator, reviews: Reviews, clock: Clock
) -> None:
    assert await code_of(limited, "good") == 200
    reviews.good = False
    for number in range(20):
        await code_of(limited, f"garbage-{number}")
    reviews.good = True

    clock.now += 0.5
    assert await code_of(limited, "good") == 200  # remembered
    reviews.good = False
    for number in range(20):
        await code_of(limited, f"more-{number}")
    reviews.good = True
    clock.now += 10.0
    for number in range(20):
        reviews.good = False
        await code_of(limited, f"still-{number}")
    reviews.good = True

    assert await code_of(limited, "good") == 200  # asked again
    assert await code_of(limited, "new") == 429
    assert await code_of(limited, "new", "10.0.0.8") == 200


async def test_good_tokens_cost_nothing(limited: Authenticator, reviews: Reviews) -> None:
    assert [await code_of(limited, f"good-{number}") for number in range(100)] == [200] * 100
    assert len(reviews.asked) == 100


async def test_a_token_that_is_good_no_more_is_as_any_other(
    limited: Authenticator, reviews: Reviews, clock: Clock
) -> None:
    await code_of(limited, "token")
    reviews.good = False
    clock.now += 11.0
    assert await code_of(limited, "token") == 401  # asked once more at nobody's cost
    for number in range(20):
        await code_of(limited, f"garbage-{number}")
    clock.now += REFUSED_TTL + 0.1
    for number in range(20):
        await code_of(limited, f"more-{number}")

    assert await code_of(limited, "token") == 429


async def test_an_api_server_that_is_away_costs_nobody_anything(limited: Authenticator, reviews: Reviews) -> None:
    reviews.error = KubeUnreachableError("no answer")
    assert {await code_of(limited, f"token-{number}") for number in range(100)} == {503}
    reviews.error = None

    assert await code_of(limited, "token") == 200


async def test_others_stay_remembered(authenticator: Authenticator, reviews: Reviews) -> None:
    await authenticator.identify("token")

    authenticator.grants_changed(change(SubjectGrant(subject_kind="ServiceAccount", name="other"), None))
    await authenticator.identify("token")

    assert len(reviews.asked) == 1


async def test_a_token_bound_to_a_withdrawn_secret_is_refused_until_the_grants_name_it_again(
    authenticator: Authenticator,
) -> None:
    token = jwt(**{"kubernetes.io": {"secret": {"name": "s-1", "uid": "1"}}})
    caller = await authenticator.identify(token)

    authenticator.grants_changed(change(account("1", "2"), account("2")))
    with pytest.raises(RefusedError) as caught:
        await authenticator.identify(token)
    assert authenticator.is_revoked(caller)
    authenticator.grants_changed(change(account("2"), account("1", "2")))

    assert caught.value.status.code == 401
    assert await authenticator.identify(token) == caller


async def test_however_many_reviews_wait_the_proxys_own_reads_go_on_and_so_do_callers_that_are_known(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "REACH_INTERVAL", 0.02)
    async with run_between(tmp_path, pki, serving, failed_token_rate=0.0) as between:
        async with between.request("GET", "/api") as found:
            assert found.status == 200
        between.upstream.reviewing.clear()

        async def garbage(number: int) -> int:
            sent = {"Authorization": f"Bearer garbage-{number}"}
            async with between.session.get(f"{between.url}/api", headers=sent) as answer:
                return answer.status

        asking = [asyncio.ensure_future(garbage(number)) for number in range(90)]  # aiohttp opens 100
        await until(lambda: between.upstream.reviews == 91)
        versions = between.upstream.versions
        await until(lambda: between.upstream.versions > versions + 2)
        async with between.request("GET", "/api") as found:
            assert found.status == 200
        between.upstream.reviewing.set()

        assert set(await asyncio.gather(*asking)) == {401}


async def test_garbage_from_an_address_is_429_with_a_status_and_a_known_caller_passes(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    async with run_between(tmp_path, pki, serving, failed_token_rate=0.1) as between:
        async with between.request("GET", "/api") as found:
            assert found.status == 200
        codes = []
        for number in range(3):
            sent = {"Authorization": f"Bearer garbage-{number}"}
            async with between.session.get(f"{between.url}/api", headers=sent) as refused:
                codes.append(refused.status)
                status = await refused.json()
                after = refused.headers.get("Retry-After")
        async with between.request("GET", "/api") as found:
            assert found.status == 200

        assert codes == [401, 429, 429]
        assert (status["kind"], status["reason"], status["code"]) == ("Status", "TooManyRequests", 429)
        assert after == str(status["details"]["retryAfterSeconds"])
        assert (
            between.role.metrics.registry.get_sample_value("tether_proxy_identity_total", {"result": "limited"}) == 2.0
        )
