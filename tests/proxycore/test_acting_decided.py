"""Whom a request acts as, and who says so: one quick example for each rule, with whole answers compared."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest

from proxycore.access_reviews import Asker, Attributes
from proxycore.acting import Acting, Target, effective, is_caller, naming, targets
from proxycore.group_filter import GroupFilter
from proxycore.identities import Identity, account_groups
from proxycore.impersonating import MOST_NAMES, TOGETHER, Impersonator
from proxycore.statuses import RefusedError

PORTAL = Identity(user="portal", uid="u", groups=("portals", "system:authenticated"), extra={"a": ("1", "2")})
NOBODY = Identity(user="system:anonymous", groups=("system:unauthenticated",))
DANA = Identity(user="dana", groups=("devs",))
ACTS_AS_DANA = Identity(user="dana", groups=("devs", "system:authenticated"))
ACCOUNT = "system:serviceaccount:oil-system:sa"
AS_ACCOUNT = ("serviceaccounts", "oil-system", "sa")
TTL = 7.0


class Reviews:
    """Rights of the caller, as (resource, namespace, name), "" for every name."""

    def __init__(self, *allowed: tuple[str, str, str]) -> None:
        self._allowed = allowed
        self.asked: list[tuple[str, str, str]] = []
        self.askers: set[str] = set()

    async def allowed(self, asker: Asker, attributes: Attributes, *, believed: tuple[float, float]) -> bool:
        assert believed == (TTL, TTL)
        assert attributes.verb == "impersonate"
        self.askers.add(asker.identity.user)
        one = (attributes.resource, attributes.namespace, attributes.name)
        self.asked.append(one)
        return one in self._allowed


def impersonator(*allowed: tuple[str, str, str], **options: Any) -> tuple[Impersonator, Reviews]:
    reviews = Reviews(*allowed)
    return Impersonator(cast("Any", reviews), ttl=TTL, **options), reviews


async def resolved(
    one: Impersonator, asked: Identity | None, *, caller: Identity = PORTAL, token: bool = False
) -> Acting:
    return await one.resolve(caller, one.wanted(caller, asked), token=token)


def users(name: str) -> tuple[str, str, str]:
    return "users", "", name


def groups(name: str) -> tuple[str, str, str]:
    return "groups", "", name


# Whom a request would act as.


@pytest.mark.parametrize(
    "asked",
    [
        None,
        Identity(user="portal", groups=("portals",)),
        Identity(user="portal", groups=("portals", "system:authenticated"), uid="u"),
        Identity(user="portal", groups=("portals",), extra={"a": ("2", "1")}),
    ],
)
async def test_who_asks_for_itself_acts_as_itself_whole_and_nobody_is_asked(asked: Identity | None) -> None:
    one, reviews = impersonator()

    wanted = Acting(identity=PORTAL, own=True, asked=None, proven=True)
    assert one.wanted(PORTAL, asked) == await resolved(one, asked) == wanted
    assert not await one.leaves(PORTAL, one.wanted(PORTAL, asked))
    assert reviews.asked == []


@pytest.mark.parametrize(
    "asked",
    [
        Identity(user="dana", groups=("portals",)),
        Identity(user="portal"),
        Identity(user="portal", groups=("portals", "more")),
        Identity(user="portal", groups=("portals",), uid="v"),
        Identity(user="portal", groups=("portals",), extra={"a": ("1",)}),
        Identity(user="portal", groups=("portals",), extra={"b": ("1", "2")}),
    ],
)
async def test_who_asks_for_anything_else_is_somebody_of_whom_nothing_is_proven(asked: Identity) -> None:
    one, _ = impersonator()

    assert not is_caller(PORTAL, asked)
    assert one.wanted(PORTAL, asked) == Acting(identity=effective(asked), own=False, asked=asked, proven=False)
    with pytest.raises(RefusedError):
        await resolved(one, asked)


def test_groups_that_are_filtered_away_were_never_asked_for() -> None:
    one, _ = impersonator(groups=GroupFilter(drop=re.compile("^x$")))

    assert one.wanted(PORTAL, Identity(user="dana", groups=("devs", "x"))).asked == DANA
    assert one.wanted(PORTAL, Identity(user="portal", groups=("portals", "x"))).own


# Who decides.


async def test_the_user_decides_whether_the_api_server_can_be_left_to_say() -> None:
    one, reviews = impersonator(AS_ACCOUNT)
    account = one.wanted(PORTAL, Identity(user=ACCOUNT))

    assert await one.leaves(PORTAL, one.wanted(PORTAL, DANA))
    assert reviews.asked == []
    assert await one.leaves(PORTAL, account)
    assert reviews.asked == [AS_ACCOUNT]
    assert reviews.askers == {"portal"}
    assert not await impersonator(users(ACCOUNT))[0].leaves(PORTAL, account)
    assert not await impersonator(skip_review=True)[0].leaves(PORTAL, one.wanted(PORTAL, DANA))


async def test_who_may_act_is_proven_and_goes_with_its_own_token_where_the_api_server_would_allow_it() -> None:
    for token, asked in ((True, DANA), (False, None)):
        one, reviews = impersonator(users("dana"), groups("devs"))

        found = await resolved(one, DANA, token=token)

        assert found == Acting(identity=ACTS_AS_DANA, own=False, asked=asked, proven=True)
        assert reviews.asked == [users("dana"), groups("devs")]


async def test_an_account_that_may_be_impersonated_as_a_user_alone_goes_under_the_proxys_account() -> None:
    asked = Identity(user=ACCOUNT)
    one, reviews = impersonator(users(ACCOUNT))

    found = await resolved(one, asked, token=True)

    assert found == Acting(identity=effective(asked), own=False, asked=None, proven=True)
    assert reviews.asked == [AS_ACCOUNT, users(ACCOUNT)]
    more = Identity(user=ACCOUNT, groups=("devs",))
    assert (await resolved(impersonator(users(ACCOUNT), groups("devs"))[0], more, token=True)).asked is None
    as_asked, _ = impersonator(AS_ACCOUNT)
    assert (await resolved(as_asked, asked, token=True)).asked == asked


async def test_what_was_proven_is_not_asked_again() -> None:
    one, reviews = impersonator()
    proven = Acting(identity=ACTS_AS_DANA, own=False, asked=DANA, proven=True)
    under_proxy = Acting(identity=ACTS_AS_DANA, own=False, asked=None, proven=False)

    assert await one.resolve(PORTAL, proven, token=True) is proven
    assert await one.resolve(PORTAL, under_proxy, token=True) is under_proxy
    assert reviews.asked == []


async def test_without_reviews_everybody_who_is_known_may_act_under_the_proxys_account() -> None:
    one, reviews = impersonator(skip_review=True)

    found = await resolved(one, DANA, token=True)

    assert found == Acting(identity=ACTS_AS_DANA, own=False, asked=None, proven=True)
    assert reviews.asked == []
    with pytest.raises(RefusedError):
        await resolved(one, DANA, caller=NOBODY)
    assert reviews.askers == {"system:anonymous"}


# What is asked, and what is refused.


async def test_the_first_no_ends_it_the_user_first() -> None:
    one, reviews = impersonator(groups("devs"))

    with pytest.raises(RefusedError) as refused:
        await resolved(one, DANA)

    assert reviews.asked == [users("dana")]
    assert refused.value.status.code == 403
    assert refused.value.status.message == (
        'users "dana" is forbidden: User "portal" cannot impersonate resource "users" in API group "" '
        "at the cluster scope"
    )


async def test_an_account_is_refused_by_the_name_that_the_api_server_has_for_it() -> None:
    one, reviews = impersonator()

    with pytest.raises(RefusedError) as refused:
        await resolved(one, Identity(user=ACCOUNT))

    assert reviews.asked == [AS_ACCOUNT, users(ACCOUNT)]
    assert 'serviceaccounts "sa" is forbidden' in refused.value.status.message
    assert refused.value.status.message.endswith('in the namespace "oil-system"')


async def test_a_uid_and_each_value_of_an_extra_need_a_right() -> None:
    asked = Identity(user="dana", uid="u9", extra={"scopes": ("r", "w")})
    rights = (users("dana"), ("uids", "", "u9"), ("userextras", "", "r"), ("userextras", "", "w"))
    one, reviews = impersonator(*rights)

    found = await resolved(one, asked, token=True)

    assert found.asked == asked
    assert reviews.asked == [*rights[:2], ("userextras", "", ""), *rights[2:]]
    for missing in rights:
        without, _ = impersonator(*(right for right in rights if right != missing))
        with pytest.raises(RefusedError):
            await resolved(without, asked)
    extras, _ = impersonator(*rights[:2])
    with pytest.raises(RefusedError) as refused:
        await resolved(extras, asked)
    assert 'userextras.authentication.k8s.io "r" is forbidden' in refused.value.status.message
    assert 'resource "userextras/scopes" in API group "authentication.k8s.io"' in refused.value.status.message


async def test_the_right_to_every_name_of_a_sort_is_asked_first_and_is_enough() -> None:
    asked = Identity(user="dana", groups=("a", "b", "c"))
    one, reviews = impersonator(users("dana"), groups(""))

    assert (await resolved(one, asked, token=True)).asked == asked
    assert reviews.asked == [users("dana"), groups("")]


@pytest.mark.parametrize("missing", [0, TOGETHER - 1, TOGETHER, 2 * TOGETHER])
async def test_of_many_names_each_needs_its_right_and_no_more_are_asked_after_a_no(missing: int) -> None:
    names = tuple(f"g{number}" for number in range(2 * TOGETHER + 1))
    rights = [groups(name) for number, name in enumerate(names) if number != missing]
    one, reviews = impersonator(users("dana"), *rights)

    with pytest.raises(RefusedError) as refused:
        await resolved(one, Identity(user="dana", groups=names))

    assert f'groups "g{missing}" is forbidden' in refused.value.status.message
    asked = [one for one in reviews.asked if one[0] == "groups" and one[2]]
    assert len(asked) == min((missing // TOGETHER + 1) * TOGETHER, len(names))


async def test_one_request_names_as_many_things_as_are_reviewed_one_by_one_and_no_more() -> None:
    names = tuple(f"g{number}" for number in range(MOST_NAMES))
    rights = [users("dana"), *(groups(name) for name in names)]

    fits, _ = impersonator(*rights)
    assert (await resolved(fits, Identity(user="dana", groups=names[:-1]), token=True)).proven
    over, reviews = impersonator(*rights)
    with pytest.raises(RefusedError) as refused:
        await resolved(over, Identity(user="dana", groups=names))

    assert refused.value.status.code == 403
    assert f"may name {MOST_NAMES} things" in refused.value.status.message
    assert refused.value.status.message.startswith("groups is forbidden")
    assert reviews.asked == [users("dana"), groups("")]


# What the API server makes of it.


@pytest.mark.parametrize(
    ("asked", "groups_", "named"),
    [
        (Identity(user="dana"), ("system:authenticated",), ()),
        (DANA, ("devs", "system:authenticated"), ("devs",)),
        (Identity(user="dana", groups=("system:unauthenticated",)), ("system:unauthenticated",), None),
        (Identity(user=ACCOUNT), account_groups("oil-system"), ()),
        (Identity(user=ACCOUNT, groups=("devs",)), ("devs", "system:authenticated"), ("devs",)),
        (Identity(user=ACCOUNT, groups=("system:authenticated",)), ("system:authenticated",), None),
        (Identity(user="system:anonymous"), ("system:unauthenticated",), None),
        (Identity(user="system:anonymous", groups=("a",)), ("a", "system:unauthenticated"), None),
    ],
)
def test_groups_come_by_themselves_and_are_not_named(
    asked: Identity, groups_: tuple[str, ...], named: tuple[str, ...] | None
) -> None:
    found = effective(asked)

    assert found.groups == groups_
    assert (found.user, found.uid, found.extra) == (asked.user, asked.uid, asked.extra)
    assert naming(found).groups == (groups_ if named is None else named)
    assert effective(naming(found)) == found


def test_of_the_anonymous_user_every_group_is_named() -> None:
    odd = Identity(user="system:anonymous", groups=("system:authenticated",))

    assert naming(odd) == odd


def test_everything_that_is_asked_for_is_a_target_the_user_first() -> None:
    k8s = "authentication.k8s.io"

    assert targets(Identity(user="dana", groups=("a", "b"), uid="u", extra={"k": ("1", "2")})) == [
        (Target(resource="users", name="dana"),),
        (Target(resource="groups", name="a"),),
        (Target(resource="groups", name="b"),),
        (Target(group=k8s, resource="uids", name="u"),),
        (Target(group=k8s, resource="userextras", subresource="k", name="1"),),
        (Target(group=k8s, resource="userextras", subresource="k", name="2"),),
    ]
    assert targets(Identity(user=ACCOUNT)) == [
        (Target(resource="serviceaccounts", namespace="oil-system", name="sa"), Target(resource="users", name=ACCOUNT))
    ]
    assert Target(resource="groups", name="a").sort == Target(resource="groups", name="")
