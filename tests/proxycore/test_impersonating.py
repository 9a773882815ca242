"""What a right to impersonate costs to find out, who is asked how often, and which groups never get so far."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import KubeUnreachableError, SettingsError
from eventcore.settings import Settings
from proxycore.access_reviews import PATH, AccessReviews
from proxycore.acting import Acting
from proxycore.group_filter import GroupFilter
from proxycore.identities import Identity
from proxycore.impersonating import MOST_NAMES, TOGETHER, Impersonator
from proxycore.statuses import RefusedError

CALLER = Identity(user="portal", groups=("portals", "system:authenticated"))
GROUPS = tuple(f"group-{number}" for number in range(300))


class Reviews:
    """The API server: allows what RBAC rules of (resource, names) allow, no names meaning every name."""

    def __init__(self, **rules: tuple[str, ...]) -> None:
        self.rules = rules
        self.asked: list[dict[str, str]] = []
        self.running = self.most = 0
        self.error: Exception | None = None

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        assert path == PATH == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        assert (body["spec"]["user"], body["spec"]["groups"]) == (CALLER.user, list(CALLER.groups))
        asked = body["spec"]["resourceAttributes"]
        assert asked["verb"] == "impersonate"
        self.asked.append(asked)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(10):
            await asyncio.sleep(0)  # a way that is longer than from one task to the next
        self.running -= 1
        if self.error is not None:
            raise self.error
        names = self.rules.get(asked["resource"])
        allowed = names is not None and (not names or asked.get("name", "") in names)
        return msgspec.json.encode({"status": {"allowed": allowed}})


def impersonator(reviews: Reviews, **options: Any) -> Impersonator:
    return Impersonator(AccessReviews(reviews), ttl=10.0, **options)


async def resolve(resolver: Impersonator, caller: Identity, asked: Identity | None, *, token: bool = False) -> Acting:
    """Return as whom a request acts that is reviewed here."""
    return await resolver.resolve(caller, resolver.wanted(caller, asked), token=token)


def asking(user: str = "dana", *groups: str, **parts: Any) -> Identity:
    return Identity(user=user, groups=groups, **parts)


async def test_three_hundred_groups_cost_two_reviews() -> None:
    reviews = Reviews(users=(), groups=())
    resolver = impersonator(reviews)

    acting = await resolve(resolver, CALLER, asking("dana", *GROUPS))
    again = await resolve(resolver, CALLER, asking("dana", *GROUPS[:200], "another"))

    assert acting == Acting(identity=asking("dana", *GROUPS, "system:authenticated"), own=False)
    assert again.identity.groups[-2:] == ("another", "system:authenticated")
    assert {(one["resource"], one.get("name", "")) for one in reviews.asked} == {("users", "dana"), ("groups", "")}
    assert len(reviews.asked) == 2


async def test_rights_by_name_cost_a_review_for_each_group_once_and_only_so_many_run_at_a_time() -> None:
    named = GROUPS[: MOST_NAMES - 1]
    reviews = Reviews(users=("dana",), groups=named)
    resolver = impersonator(reviews)

    together = await asyncio.gather(*(resolve(resolver, CALLER, asking("dana", *named)) for _ in range(5)))

    assert all(one == together[0] for one in together)
    assert len(reviews.asked) == len(named) + 2  # the user, every group at once, each group
    assert TOGETHER // 2 < reviews.most <= TOGETHER


@pytest.mark.parametrize("place", [0, 40, MOST_NAMES - 2])
async def test_one_group_without_a_right_refuses_all_of_them(place: int) -> None:
    named = GROUPS[: MOST_NAMES - 1]
    reviews = Reviews(users=(), groups=(*named[:place], *named[place + 1 :]))

    with pytest.raises(RefusedError) as caught:
        await resolve(impersonator(reviews), CALLER, asking("dana", *named))

    assert caught.value.status.code == 403
    assert caught.value.status.message.startswith(
        f'groups "{named[place]}" is forbidden: User "portal" cannot impersonate'
    )
    assert len(reviews.asked) <= 2 + place + TOGETHER


async def test_a_thousand_groups_for_a_user_that_is_refused_cost_one_review() -> None:
    reviews = Reviews(groups=())
    many = {f"key-{number}": ("x", "y") for number in range(300)}

    with pytest.raises(RefusedError, match='users "dana" is forbidden'):
        await resolve(impersonator(reviews), CALLER, asking("dana", *GROUPS, extra=many))

    assert [(one["resource"], one["name"]) for one in reviews.asked] == [("users", "dana")]


@pytest.mark.parametrize(
    "asked",
    [
        asking("dana", *GROUPS),
        asking("dana", extra={"scopes": GROUPS}),
        asking("dana", extra={f"key-{group}": ("x",) for group in GROUPS}),
        asking("dana", *GROUPS[: MOST_NAMES // 2], extra={"scopes": GROUPS[: MOST_NAMES // 2]}),
    ],
    ids=["groups", "values", "keys", "of both"],
)
async def test_a_request_that_names_more_than_is_reviewed_is_refused_though_each_would_be_allowed(
    asked: Identity,
) -> None:
    reviews = Reviews(users=("dana",), groups=GROUPS, userextras=(*GROUPS, "x"))

    with pytest.raises(RefusedError) as caught:
        await resolve(impersonator(reviews), CALLER, asked)

    assert caught.value.status.code == 403
    assert f"one request may name {MOST_NAMES} things" in caught.value.status.message
    assert len(reviews.asked) <= MOST_NAMES + 3


async def test_a_right_to_every_name_of_one_sort_is_none_to_another() -> None:
    reviews = Reviews(groups=(), userextras=())
    extra = {"scopes": ("a", "b", "c")}

    with pytest.raises(RefusedError, match='users "dana" is forbidden'):
        await resolve(impersonator(reviews), CALLER, asking("dana", *GROUPS, extra=extra))
    reviews.rules = {"users": (), "groups": ()}
    with pytest.raises(
        RefusedError, match=r'userextras\.authentication\.k8s\.io "a" is forbidden: .* resource "userextras/scopes"'
    ):
        await resolve(impersonator(reviews), CALLER, asking("dana", *GROUPS, extra=extra))
    asked = [one for one in reviews.asked if one["resource"] == "userextras"]
    assert {(one["subresource"], one.get("name", "")) for one in asked} >= {("scopes", ""), ("scopes", "a")}


async def test_many_values_of_one_extra_cost_one_review_and_each_key_has_its_own() -> None:
    reviews = Reviews(users=(), userextras=(), uids=())
    extra = {"scopes": ("a", "b", "c"), "regions": ("x", "y")}

    await resolve(impersonator(reviews), CALLER, asking("dana", uid="u", extra=extra))

    found = sorted((one["resource"], one.get("subresource", ""), one.get("name", "")) for one in reviews.asked)
    assert found == [
        ("uids", "", "u"),
        ("userextras", "regions", ""),
        ("userextras", "scopes", ""),
        ("users", "", "dana"),
    ]


async def test_a_caller_that_goes_away_takes_no_review_from_the_others() -> None:
    reviews = Reviews(users=())
    resolver = impersonator(reviews)
    waiting = [asyncio.ensure_future(resolve(resolver, CALLER, asking())) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()

    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[1], Acting)
    assert len(reviews.asked) == 1


async def test_an_api_server_that_is_away_is_503_and_nothing_of_it_is_remembered() -> None:
    reviews = Reviews(users=(), groups=())
    resolver = impersonator(reviews)
    reviews.error = KubeUnreachableError("no answer")
    with pytest.raises(RefusedError) as caught:
        await resolve(resolver, CALLER, asking("dana", "a", "b"))
    reviews.error = None

    assert caught.value.status.code == 503
    assert (await resolve(resolver, CALLER, asking("dana", "a", "b"))).identity.user == "dana"


async def test_without_reviews_everybody_may_act_as_everybody_and_nobody_is_asked() -> None:
    reviews = Reviews()

    acting = await resolve(impersonator(reviews, skip_review=True), CALLER, asking("root", "system:masters"))

    assert acting.identity.groups == ("system:masters", "system:authenticated")
    assert reviews.asked == []
    with pytest.raises(RefusedError):
        await resolve(impersonator(reviews), CALLER, asking("root", "system:masters"))


async def test_without_reviews_who_is_nobody_is_reviewed_all_the_same() -> None:
    class Refusing:
        async def create(self, path: str, body: dict[str, Any], /) -> bytes:
            assert (path, body["spec"]["user"]) == (PATH, "system:anonymous")
            return b'{"status": {"allowed": false}}'

    nobody = Identity(user="system:anonymous", groups=("system:unauthenticated",))

    with pytest.raises(RefusedError, match='User "system:anonymous" cannot impersonate'):
        await resolve(Impersonator(AccessReviews(Refusing()), ttl=10, skip_review=True), nobody, asking("root"))


# Groups that are dropped.


def filtering(**changes: str) -> GroupFilter:
    return GroupFilter.of(msgspec.structs.replace(Settings(), **changes))


async def test_a_dropped_group_is_neither_reviewed_nor_acted_for() -> None:
    reviews = Reviews(users=(), groups=("team-a",))
    groups = filtering(impersonation_group_regexp="^team-", ignored_impersonation_group="-x$,^team-old")

    acting = await resolve(
        impersonator(reviews, groups=groups),
        CALLER,
        asking("dana", "team-a", "system:masters", "team-x", "team-older", "my-team-a"),
    )

    assert acting.identity.groups == ("team-a", "system:authenticated")
    assert [one.get("name") for one in reviews.asked if one["resource"] == "groups"] == ["team-a"]


async def test_who_asks_for_itself_with_a_dropped_group_is_somebody_else_in_fewer_groups() -> None:
    reviews = Reviews(users=("portal",))
    groups = filtering(ignored_impersonation_group="portals")

    acting = await resolve(impersonator(reviews, groups=groups), CALLER, asking("portal", "portals"))

    assert acting == Acting(identity=Identity(user="portal", groups=("system:authenticated",)), own=False)
    assert [(one["resource"], one["name"]) for one in reviews.asked] == [("users", "portal")]
    with pytest.raises(RefusedError, match='users "portal" is forbidden: User "portal" cannot impersonate'):
        await resolve(impersonator(Reviews(), groups=groups), CALLER, asking("portal", "portals"))


@pytest.mark.parametrize(
    "asked",
    [
        asking("portal"),
        asking("portal", "system:authenticated"),
        asking("portal", "portals", "more"),
        asking("portal", "portals", uid="u"),
        asking("portal", "portals", extra={"scopes": ("all",)}),
    ],
    ids=str,
)
async def test_the_caller_in_anything_but_all_that_it_is_needs_the_right_to_itself_first(asked: Identity) -> None:
    reviews = Reviews()

    with pytest.raises(RefusedError, match='users "portal" is forbidden: User "portal" cannot impersonate') as caught:
        await resolve(impersonator(reviews), CALLER, asked)

    assert caught.value.status.code == 403


async def test_exactly_the_caller_is_not_reviewed_and_goes_as_itself() -> None:
    reviews = Reviews()

    acting = await resolve(impersonator(reviews), CALLER, asking("portal", "portals"))

    assert acting == Acting(identity=CALLER, own=True)
    assert not reviews.asked


@given(st.lists(st.text(max_size=8), max_size=8))
def test_what_is_kept_is_a_part_of_what_was_asked_for_in_its_order(groups: list[str]) -> None:
    kept = filtering(impersonation_group_regexp="a", ignored_impersonation_group="b,c").kept(tuple(groups))

    assert list(kept) == [one for one in groups if "a" in one and "b" not in one and "c" not in one]


def test_without_settings_every_group_is_kept() -> None:
    assert filtering().kept(GROUPS) == GROUPS


@pytest.mark.parametrize(
    "changes", [{"impersonation_group_regexp": "a(?=b)"}, {"ignored_impersonation_group": "a,b)|(.*"}], ids=str
)
def test_an_expression_that_re2_does_not_know_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="is not a regular expression of RE2"):
        filtering(**changes)


# By whose account it goes upstream.


async def test_with_a_token_and_the_api_servers_own_rights_the_caller_asks_the_api_server_itself() -> None:
    reviews = Reviews(users=("dana",), groups=("devs",), userextras=("a",))
    asked = asking("dana", "devs", extra={"scopes": ("a",)})

    with_token = await resolve(impersonator(reviews), CALLER, asked, token=True)
    without = await resolve(impersonator(reviews), CALLER, asked)

    assert (with_token.asked, with_token.proven, with_token.own) == (asked, True, False)
    assert (without.asked, without.proven) == (None, True)
    assert with_token.identity == without.identity


@pytest.mark.parametrize("resource", ["serviceaccounts", "users"])
async def test_an_account_is_asked_for_at_the_api_server_unless_only_the_guides_right_allows_it(resource: str) -> None:
    user = "system:serviceaccount:oil:gitops"
    reviews = Reviews(**{resource: (user, "gitops")})
    resolver = impersonator(reviews)

    acting = await resolve(resolver, CALLER, asking(user), token=True)

    theirs = resource == "serviceaccounts"
    assert acting.asked == (asking(user) if theirs else None)
    assert await resolver.leaves(CALLER, resolver.wanted(CALLER, asking(user))) is theirs
    assert [one["resource"] for one in reviews.asked] == ["serviceaccounts", "users"][: 1 if theirs else 2]


async def test_a_user_is_left_to_the_api_server_without_any_review() -> None:
    reviews = Reviews()
    resolver = impersonator(reviews)

    acting = resolver.wanted(CALLER, asking("dana", *GROUPS))

    assert not acting.proven
    assert await resolver.leaves(CALLER, acting)
    assert not reviews.asked
    assert not await impersonator(reviews, skip_review=True).leaves(CALLER, acting)
