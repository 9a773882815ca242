"""The decision, against a small model of its own: nobody is ever shown a namespace that is not theirs."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.grants import CapsuleUserRef, ConfigGrant, Grant, SubjectGrant, TenantGrant
from eventcore.keys import Key, key
from proxycore.identities import Identity, grant_keys, namespaces_of
from proxycore.listquery import parse_query
from proxycore.policy import (
    Forward,
    Freshness,
    ListMemory,
    ListUpstream,
    ReadMemory,
    ReadOne,
    Refuse,
    WatchMemory,
    decide,
)
from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError

FRESH = Freshness(ready=True, age=1.0)
OLD = Freshness(ready=True, age=31.0)
LOADING = Freshness(ready=False)
NAMES = ["dana", "system:serviceaccount:a:b", "system:serviceaccount:a", "devs", "ops"]
TENANTS = ["oil", "gas", "global"]
SPACES = ["oil-1", "oil-2", "gas-1", "kube-system"]


class Memory:
    """Grants in a dict."""

    def __init__(self, *grants: Grant) -> None:
        self.grants: dict[Key, Grant] = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


def dana(*groups: str) -> Identity:
    return Identity(user="dana", groups=groups)


OIL = Memory(
    ConfigGrant(users=(CapsuleUserRef(kind="Group", name="devs"),)),
    SubjectGrant(subject_kind="User", name="dana", tenants=("oil",)),
    TenantGrant(name="oil", uid="u", namespaces=("oil-1", "oil-2")),
)


@pytest.mark.parametrize(
    ("method", "target", "wanted"),
    [
        ("GET", "/api/v1/namespaces", ListUpstream),
        ("GET", "/api/v1/namespaces?resourceVersion=0", ListMemory),
        ("GET", "/api/v1/namespaces?resourceVersion=7", ListUpstream),
        ("GET", "/api/v1/namespaces?resourceVersion=0&resourceVersionMatch=Exact", ListUpstream),
        ("GET", "/api/v1/namespaces?resourceVersion=0&continue=x", ListUpstream),
        ("GET", "/api/v1/namespaces?watch=true", WatchMemory),
        ("GET", "/api/v1/watch/namespaces", WatchMemory),
        ("GET", "/api/v1/namespaces/oil-1", ReadOne),
        ("GET", "/api/v1/namespaces/oil-1?resourceVersion=0", ReadMemory),
        ("GET", "/api/v1/namespaces/oil-1?resourceVersion=7", ReadOne),
        ("GET", "/api/v1/namespaces/oil-1?resourceVersion=0&resourceVersion=7", ReadOne),
        ("GET", "/api/v1/namespaces/gas-1?resourceVersion=0", Forward),
        ("GET", "/api/v1/namespaces/gas-1", Forward),
        ("GET", "/api/v1/namespaces/oil-1/status", Forward),
        ("GET", "/api/v1/namespaces/oil-1/pods", Forward),
        ("GET", "/api/v1/pods", Forward),
        ("GET", "/apis/other/v1/namespaces", Forward),
        ("HEAD", "/api/v1/namespaces", Forward),
        ("POST", "/api/v1/namespaces", Forward),
        ("DELETE", "/api/v1/namespaces/oil-1", Forward),
        ("DELETE", "/api/v1/namespaces", Forward),
        ("OPTIONS", "/api/v1/namespaces", Forward),
        ("GET", "/version", Forward),
    ],
)
def test_each_request_of_a_capsule_user_has_one_way(method: str, target: str, wanted: type) -> None:
    assert type(decide(parse(method, target), dana("devs"), OIL, FRESH)) is wanted


@pytest.mark.parametrize("target", ["/api/v1/namespaces", "/api/v1/namespaces?watch=1", "/api/v1/namespaces/oil-1"])
def test_who_is_no_user_of_capsule_is_forwarded(target: str) -> None:
    assert decide(parse("GET", target), dana("others"), OIL, FRESH) == Forward()


@pytest.mark.parametrize("freshness", [OLD, LOADING], ids=["old", "loading"])
def test_without_a_fresh_view_nothing_is_filtered(freshness: Freshness) -> None:
    for target in ("/api/v1/namespaces", "/api/v1/namespaces?watch=1", "/api/v1/namespaces/oil-1"):
        found = decide(parse("GET", target), dana("devs"), OIL, freshness)
        assert isinstance(found, Refuse), target
        assert (found.status.code, found.status.retry_after > 0) == (503, True)
    assert decide(parse("GET", "/api/v1/pods"), dana("devs"), OIL, freshness) == Forward()


@pytest.mark.parametrize(
    "target", ["/api/v1/namespaces", "/api/v1/namespaces/oil-1", "/api/v1/nodes", "/api/v1/nodes/n"]
)
def test_while_loading_nobody_knows_who_is_a_capsule_user(target: str) -> None:
    found = decide(parse("GET", target), dana(), Memory(), LOADING)

    assert isinstance(found, Refuse)  # not forwarded, to be told 403
    assert (found.status.code, found.status.retry_after > 0) == (503, True)


def test_an_account_that_owns_as_a_user_sees_what_it_owns() -> None:
    # given a Tenant that names the account as an owner of kind User, as Capsule allows it
    name = "system:serviceaccount:oil-system:gitops-reconciler"
    memory = Memory(
        ConfigGrant(users=(CapsuleUserRef(kind="User", name=name),)),
        SubjectGrant(subject_kind="User", name=name, tenants=("oil",)),
        TenantGrant(name="oil", uid="u", namespaces=("oil-1",)),
    )

    listed = decide(parse("GET", "/api/v1/namespaces"), Identity(user=name), memory, FRESH)

    assert isinstance(listed, ListUpstream)
    assert listed.names == {"oil-1"}


GRANTS = st.builds(
    lambda users, owners, tenants: Memory(
        ConfigGrant(users=tuple(CapsuleUserRef(kind=kind, name=name) for kind, name in users)),
        *(SubjectGrant(subject_kind=kind, name=name, tenants=tuple(sorted(of))) for (kind, name), of in owners.items()),
        *(TenantGrant(name=name, uid="u", namespaces=tuple(sorted(of))) for name, of in tenants.items()),
    ),
    st.sets(st.tuples(st.sampled_from(["User", "Group", "ServiceAccount"]), st.sampled_from(NAMES))),
    st.dictionaries(
        st.tuples(st.sampled_from(["User", "Group", "ServiceAccount"]), st.sampled_from(NAMES)),
        st.sets(st.sampled_from(TENANTS)),
    ),
    st.dictionaries(st.sampled_from(TENANTS), st.sets(st.sampled_from(SPACES))),
)
IDENTITIES = st.builds(
    lambda user, groups: Identity(user=user, groups=tuple(groups)),
    st.sampled_from(NAMES),
    st.sets(st.sampled_from(NAMES)),
)
TARGETS = st.sampled_from(
    [
        "/api/v1/namespaces",
        "/api/v1/namespaces?resourceVersion=0",
        "/api/v1/namespaces?watch=1",
        *(f"/api/v1/namespaces/{name}{query}" for name in SPACES for query in ("", "?resourceVersion=0")),
        "/api/v1/pods",
    ]
)


def model(identity: Identity, memory: Memory) -> set[str]:
    """Say in another way what an identity owns: go through all grants, ask of each whether it speaks of it."""
    is_account = identity.user.startswith("system:serviceaccount:") and identity.user.count(":") == 3
    owned: set[str] = set()
    for grant in memory.grants.values():
        if not isinstance(grant, SubjectGrant):
            continue
        kinds = {"User", "ServiceAccount"} if is_account else {"User"}
        me = grant.subject_kind in kinds and grant.name == identity.user
        mine = grant.subject_kind == "Group" and grant.name in identity.groups
        if me or mine:
            owned.update(grant.tenants)
    return {
        name
        for grant in memory.grants.values()
        if isinstance(grant, TenantGrant) and grant.name in owned
        for name in grant.namespaces
    }


@given(GRANTS, IDENTITIES, TARGETS)
def test_no_decision_shows_more_than_what_is_owned(memory: Memory, identity: Identity, target: str) -> None:
    mine = model(identity, memory)

    match decide(parse("GET", target), identity, memory, FRESH):
        case ListUpstream(names) | ListMemory(names):
            assert names == mine
        case ReadOne(name) | ReadMemory(name):
            assert name in mine
        case WatchMemory():
            assert namespaces_of(identity, memory) == mine
        case Forward() | Refuse():
            pass


@pytest.mark.parametrize(
    ("query", "one", "all_"),
    [("", ReadOne, ListUpstream), ("?resourceVersion=0", ReadMemory, ListMemory)],
    ids=["consistent", "from memory"],
)
@given(GRANTS, IDENTITIES, st.sampled_from(SPACES))
def test_get_and_list_agree(
    query: str,
    one: type[ReadOne | ReadMemory],
    all_: type[ListUpstream | ListMemory],
    memory: Memory,
    identity: Identity,
    name: str,
) -> None:
    listed = decide(parse("GET", f"/api/v1/namespaces{query}"), identity, memory, FRESH)
    single = decide(parse("GET", f"/api/v1/namespaces/{name}{query}"), identity, memory, FRESH)

    assert isinstance(single, one) == (isinstance(listed, all_) and name in listed.names)


@given(GRANTS, IDENTITIES)
def test_nothing_but_the_named_keys_decides(memory: Memory, identity: Identity) -> None:
    relevant = grant_keys(identity, memory)
    narrowed = Memory(*(grant for grant in memory.grants.values() if grant.key() in relevant))

    assert namespaces_of(identity, narrowed) == namespaces_of(identity, memory)


@given(GRANTS, IDENTITIES)
def test_a_lost_grant_never_widens(memory: Memory, identity: Identity) -> None:
    whole = namespaces_of(identity, memory)

    for target in list(memory.grants):
        if target == key("config"):
            continue
        less = Memory(*(grant for grant in memory.grants.values() if grant.key() != target))
        assert namespaces_of(identity, less) <= whole


@given(st.sets(st.sampled_from(SPACES)), st.text("abkin()!=,<>. /-", max_size=30))
def test_a_label_selector_of_the_client_cannot_widen_ours(names: set[str], selector: str) -> None:
    try:
        query = parse_query(f"labelSelector={quote(selector)}")
    except RefusedError:
        return
    ours = tuple(sorted(names))
    (sent,) = parse_qs(query.upstream(ours)).get("labelSelector", [""])
    again = parse_query(f"labelSelector={quote(sent)}").labels

    # What the API server reads is our requirement first, whole, and the client's after it.
    assert again[1 if names else 2 :] == query.labels
    if names:
        assert (again[0].key, again[0].operator, again[0].values) == ("kubernetes.io/metadata.name", "in", ours)
    else:
        assert [one.operator for one in again[:2]] == ["exists", "!exists"]
