"""Lists across namespaces against a model: for any tenants, bindings and pages, exactly what both allow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.grants import CapsuleUserRef, ConfigGrant, SubjectGrant, TenantGrant
from proxycore.across_list import Room
from proxycore.identities import Identity
from proxycore.policy import Freshness
from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError
from tests.proxycore.acrossmodel import Api, Grants, Reviews, crossing, listed

NAMESPACES = ["a-1", "a-2", "b-1", "b-2", "b-3", "c-1"]
TENANTS = ["a", "b", "c"]
SUBJECTS = [("User", "dana"), ("Group", "devs"), ("User", "erin")]
DANA = Identity(user="dana", groups=("devs",))
CONFIG = ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),))
FRESH = Freshness(ready=True)

names = st.sets(st.sampled_from(NAMESPACES))


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """A cluster: whose namespaces are whose, who owns and is shown what, where RBAC lets whom, and what is there."""
    owner_of = draw(st.dictionaries(st.sampled_from(NAMESPACES), st.sampled_from(TENANTS)))
    return {
        "tenants": {tenant: sorted(ns for ns, whose in owner_of.items() if whose == tenant) for tenant in TENANTS},
        "owns": {one: sorted(draw(st.sets(st.sampled_from(TENANTS)))) for one in SUBJECTS},
        "shared": {one: sorted(draw(names)) for one in SUBJECTS},
        "bound": {(who, ns) for _, who in SUBJECTS for ns in draw(names)},
        "objects": {ns: sorted(draw(st.sets(st.sampled_from("pqrstu")))) for ns in NAMESPACES},
        "refused": draw(names),
    }


def grants(world: dict[str, Any]) -> Grants:
    return Grants(
        CONFIG,
        *(TenantGrant(name=name, uid=name, namespaces=tuple(has)) for name, has in world["tenants"].items()),
        *(
            SubjectGrant(
                subject_kind=kind,
                name=name,
                tenants=tuple(world["owns"][kind, name]),
                reflected=tuple(NAMESPACES),
                shared=tuple(world["shared"][kind, name]),
            )
            for kind, name in SUBJECTS
        ),
    )


def expected(world: dict[str, Any], api: Api) -> list[str]:
    """Say in plain words what dana's list holds: at version 6, of her namespaces those that RBAC lets her list."""
    mine = [one for one in SUBJECTS if one[1] in {"dana", "devs"}]
    within = {ns for one in mine for tenant in world["owns"][one] for ns in world["tenants"][tenant]}
    within |= {ns for one in mine for ns in world["shared"][one]}
    bound = {ns for who, ns in world["bound"] if who in {"dana", "devs"}}
    return [f"{ns}/{name}" for ns in sorted((within & bound) - world["refused"]) for name in api.at(ns, 6)]


async def walked(world: dict[str, Any], api: Api, limit: int, version: str) -> list[str]:
    found, pages = crossing(grants(world), Reviews(world["bound"])), []
    query = f"limit={limit}&resourceVersion={version}"
    while True:
        page = await listed(found, api, DANA, query)
        pages.append([f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in page["items"]])
        assert not limit or len(pages[-1]) <= limit
        token = page["metadata"].get("continue")
        if not token:
            return [name for one in pages for name in one]
        query = f"limit={limit}&continue={token}"


@given(worlds(), st.integers(0, 7), st.sampled_from(["", "0"]))
def test_the_pages_together_are_what_grants_and_rbac_both_allow(
    world: dict[str, Any], limit: int, version: str
) -> None:
    api = Api(world["objects"], refused=frozenset(world["refused"]))

    assert asyncio.run(walked(world, api, limit, version)) == expected(world, api)

    bound = {ns for who, ns in world["bound"] if who in {"dana", "devs"}}
    assert set(api.asked) <= bound  # not even asked for, so not a byte of it can be in the answer


OWNER = SubjectGrant(subject_kind="User", name="dana", tenants=("a",))
OIL = Grants(CONFIG, OWNER, TenantGrant(name="a", uid="a", namespaces=("a-1", "a-2")))
BOUND = {("dana", "a-1"), ("dana", "a-2")}
OBJECTS = {"a-1": ["p", "q"], "a-2": ["r"]}


async def test_a_snapshot_that_is_lost_is_taken_anew() -> None:
    found = await listed(crossing(OIL, Reviews(BOUND)), Api(OBJECTS, lost=1), DANA)

    assert [one["metadata"]["name"] for one in found["items"]] == ["p", "q", "zz-late", "r", "zz-late"]
    assert found["metadata"]["resourceVersion"] == "7"


async def test_a_snapshot_that_is_lost_again_and_again_is_an_error() -> None:
    with pytest.raises(RefusedError) as caught:
        await listed(crossing(OIL, Reviews(BOUND)), Api(OBJECTS, lost=9), DANA)
    assert caught.value.status.code == 503


async def test_a_version_that_the_client_pins_is_never_another_one() -> None:
    exact = "resourceVersion=6&resourceVersionMatch=Exact"
    with pytest.raises(RefusedError) as caught:
        await listed(crossing(OIL, Reviews(BOUND)), Api(OBJECTS, lost=1), DANA, exact)
    assert caught.value.status.code == 410


async def test_a_namespace_that_leaves_while_it_is_listed_is_not_told_of() -> None:
    reader = Grants(CONFIG, OWNER, TenantGrant(name="a", uid="a", namespaces=("a-1", "a-2")))

    class Leaving(Api):
        async def send(self, target: str, accept: str) -> Any:
            answer = await super().send(target, accept)
            reader.view = Grants(CONFIG, OWNER, TenantGrant(name="a", uid="a", namespaces=("a-1",))).view
            return answer

    found = await listed(crossing(reader, Reviews(BOUND)), Leaving(OBJECTS), DANA)

    assert {one["metadata"]["namespace"] for one in found["items"]} == {"a-1"}


async def test_a_refusal_after_all_is_asked_about_again() -> None:
    reviews, api = Reviews(BOUND), Api(OBJECTS, refused=frozenset({"a-1"}))
    found = crossing(OIL, reviews)
    await listed(found, api, DANA)
    asked = reviews.count

    await listed(found, api, DANA)

    assert reviews.count == asked + 1  # of a-1 alone


async def test_an_empty_list_is_named_as_the_api_server_names_it_once_that_is_known() -> None:
    found = crossing(OIL, Reviews(BOUND))
    reader = Grants(CONFIG, OWNER, TenantGrant(name="a", uid="a"))
    empty = crossing(reader, Reviews(BOUND))
    assert (await listed(empty, Api({}), DANA))["kind"] == "PodList"

    assert (await listed(found, Api(OBJECTS), DANA))["kind"] == "PodCatalogue"
    assert (await listed(found, Api(OBJECTS), Identity(user="erin")))["kind"] == "PodCatalogue"


async def test_whether_a_request_is_answered_here_is_decided_in_this_order() -> None:
    found = crossing(OIL, Reviews(BOUND))
    pods = parse("GET", "/api/v1/pods")

    assert await found.decide(pods, DANA, FRESH) is not None
    assert await found.decide(pods, Identity(user="erin"), FRESH) is None
    for other in ("/api/v1/nodes", "/api/v1/namespaces", "/api/v1/namespaces/a-1/pods", "/api/v1/pods/x"):
        assert await found.decide(parse("GET", other), DANA, FRESH) is None, other
    for method in ("POST", "DELETE", "HEAD", "OPTIONS"):
        assert await found.decide(parse(method, "/api/v1/pods"), DANA, FRESH) is None, method
    with pytest.raises(RefusedError) as caught:
        await found.decide(pods, DANA, Freshness(ready=True, age=60))
    assert caught.value.status.code == 503
    everywhere = crossing(OIL, Reviews({("dana", "")}))
    assert await everywhere.decide(pods, DANA, FRESH) is None


class Crowded(Api):
    """Counts how many requests wait for their answers at the same time."""

    now = most = 0

    async def send(self, target: str, accept: str) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.1)  # of virtual time, in which whatever may come comes
        self.now -= 1
        return await super().send(target, accept)


@pytest.mark.looptime
async def test_all_lists_together_read_no_more_namespaces_at_once_than_there_are_turns() -> None:
    world = {
        "tenants": {"a": NAMESPACES},
        "owns": {one: ["a"] for one in SUBJECTS},
        "shared": {one: [] for one in SUBJECTS},
    }
    api = Crowded({name: ["p"] for name in NAMESPACES})
    found, room = crossing(grants(world), Reviews({("dana", name) for name in NAMESPACES})), Room(at_once=3)

    pages = await asyncio.gather(*(listed(found, api, DANA, room=room) for _ in range(5)))

    assert all({one["metadata"]["namespace"] for one in page["items"]} == set(NAMESPACES) for page in pages)
    assert api.most == 3


@pytest.mark.looptime
async def test_lists_of_one_caller_keep_those_of_another_waiting_for_no_more_than_a_turn() -> None:
    people = ("dana", "erin")
    everybody = Grants(
        ConfigGrant(users=tuple(CapsuleUserRef(kind="User", name=name) for name in people)),
        TenantGrant(name="a", uid="a", namespaces=tuple(NAMESPACES)),
        *(SubjectGrant(subject_kind="User", name=name, tenants=("a",)) for name in people),
    )
    api, room = Crowded({name: ["p"] for name in NAMESPACES}), Room(at_once=2)
    found = crossing(everybody, Reviews({(who, name) for who in people for name in NAMESPACES}))
    loop = asyncio.get_running_loop()

    async def seconds() -> float:
        begun = loop.time()
        await listed(found, api, Identity(user="erin"), room=room)
        return loop.time() - begun

    alone = await seconds()
    flood = [asyncio.ensure_future(listed(found, api, Identity(user="dana"), room=room)) for _ in range(50)]
    await asyncio.sleep(0.25)
    meanwhile = await seconds()

    # Each of its namespaces waits for one of the other's at most, in one of the two turns.
    assert not all(one.done() for one in flood)
    assert meanwhile <= 3 * alone
    await asyncio.gather(*flood)
