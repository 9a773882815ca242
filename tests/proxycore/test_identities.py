"""Who is an account, who a user of Capsule, and which namespaces whose grants give: one example for each rule."""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.grants import CapsuleUserRef, ConfigGrant, Grant, SubjectGrant, TenantGrant
from eventcore.keys import Key, key
from proxycore.identities import (
    Identity,
    Overlay,
    account_groups,
    account_of,
    crossed_namespaces,
    grant_keys,
    is_capsule_user,
    namespaces_of,
    owns_any,
    subject_keys,
    tenants_of,
)

ACCOUNT = "system:serviceaccount:oil-system:sa"


class Memory:
    """Grants in a dict."""

    def __init__(self, *grants: Grant) -> None:
        self.grants: dict[Key, Grant] = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


def subject(kind: str, name: str, *tenants: str, **more: Any) -> SubjectGrant:
    return SubjectGrant(subject_kind=kind, name=name, tenants=tenants, **more)


def users(*refs: tuple[str, str]) -> Memory:
    return Memory(ConfigGrant(users=tuple(CapsuleUserRef(kind=kind, name=name) for kind, name in refs)))


OIL = TenantGrant(name="oil", uid="u", namespaces=("oil-1", "oil-2"))
GAS = TenantGrant(name="gas", uid="u", namespaces=("gas-1",))


@pytest.mark.parametrize(
    ("user", "account"),
    [
        (ACCOUNT, ("oil-system", "sa")),
        ("system:serviceaccount::sa", None),
        ("system:serviceaccount:oil-system:", None),
        ("system:serviceaccount:oil-system", None),
        ("system:serviceaccount:oil-system:sa:more", None),
        ("system:other:oil-system:sa", None),
        ("other:serviceaccount:oil-system:sa", None),
        ("alice", None),
        ("", None),
    ],
)
def test_an_account_is_who_has_exactly_an_accounts_name(user: str, account: tuple[str, str] | None) -> None:
    assert account_of(user) == account
    assert Identity(user=user).account == account


@pytest.mark.parametrize(
    ("namespace", "name", "good"),
    [("n" * 63, "a" * 253, True), ("n" * 64, "a", False), ("n", "a" * 254, False), ("n" * 64, "a" * 253, False)],
)
def test_an_account_has_names_that_kubernetes_gives(namespace: str, name: str, *, good: bool) -> None:
    found = account_of(f"system:serviceaccount:{namespace}:{name}")

    assert found == ((namespace, name) if good else None)


def test_of_whom_nothing_is_said_nothing_is_known() -> None:
    assert Identity(user="a") == Identity(user="a", groups=(), uid="", extra={}, only="")


def test_an_account_is_in_the_groups_that_kubernetes_gives_it() -> None:
    wanted = ("system:serviceaccounts", "system:serviceaccounts:oil-system", "system:authenticated")

    assert account_groups("oil-system") == wanted


@pytest.mark.parametrize(
    ("ref", "counts"),
    [
        (("User", "alice"), True),
        (("ServiceAccount", "alice"), True),
        (("Group", "devs"), True),
        (("Group", "alice"), False),
        (("User", "devs"), False),
        (("ServiceAccount", "devs"), False),
        (("Other", "alice"), False),
        (("User", "bob"), False),
        (("Group", "ops"), False),
    ],
)
def test_a_user_of_capsule_is_named_as_user_account_or_group(ref: tuple[str, str], *, counts: bool) -> None:
    alice = Identity(user="alice", groups=("devs",))

    assert is_capsule_user(alice, users(ref)) is counts
    assert is_capsule_user(alice, users(("User", "nobody"), ref, ("Group", "none"))) is counts


def test_without_a_word_about_users_nobody_is_one() -> None:
    odd = Memory()
    odd.grants[key("config")] = OIL

    assert not is_capsule_user(Identity(user="alice", groups=("devs",)), Memory())
    assert not is_capsule_user(Identity(user="alice"), odd)


def test_the_grants_of_somebody_are_those_of_the_name_and_of_each_group() -> None:
    assert subject_keys(Identity(user="alice", groups=("devs", "ops"))) == [
        key("subject", "User", "alice"),
        key("subject", "Group", "devs"),
        key("subject", "Group", "ops"),
    ]
    assert subject_keys(Identity(user=ACCOUNT)) == [
        key("subject", "ServiceAccount", ACCOUNT),
        key("subject", "User", ACCOUNT),
    ]


@pytest.mark.parametrize(
    ("kind", "name", "identity"),
    [
        ("User", "alice", Identity(user="alice")),
        ("Group", "devs", Identity(user="alice", groups=("ops", "devs"))),
        ("ServiceAccount", ACCOUNT, Identity(user=ACCOUNT)),
        ("User", ACCOUNT, Identity(user=ACCOUNT)),
    ],
)
def test_an_owner_has_the_namespaces_of_its_tenants_and_of_no_others(kind: str, name: str, identity: Identity) -> None:
    memory = Memory(subject(kind, name, "oil"), OIL, GAS)

    assert namespaces_of(identity, memory) == crossed_namespaces(identity, memory) == {"oil-1", "oil-2"}
    assert [tenant for tenant, _ in tenants_of(identity, memory)] == ["oil"]
    assert owns_any(identity, memory)


@pytest.mark.parametrize(("kind", "name"), [("ServiceAccount", "alice"), ("Group", "alice"), ("User", "devs")])
def test_a_grant_of_another_kind_gives_nothing(kind: str, name: str) -> None:
    alice = Identity(user="alice", groups=("devs",))
    memory = Memory(subject(kind, name, "oil"), OIL)

    assert namespaces_of(alice, memory) == frozenset()
    assert not owns_any(alice, memory)


def test_a_tenant_that_is_not_live_gives_nothing() -> None:
    alice = Identity(user="alice")
    memory = Memory(subject("User", "alice", "gone", "gas"), OIL)

    assert not owns_any(alice, memory)
    assert namespaces_of(alice, memory) == frozenset()

    memory.grants[GAS.key()] = GAS

    assert owns_any(alice, memory)
    assert namespaces_of(alice, memory) == {"gas-1"}


def test_a_grant_under_the_key_of_another_sort_gives_nothing() -> None:
    alice = Identity(user="alice")
    memory = Memory(subject("User", "alice", "oil"))
    memory.grants[key("tenant", "oil")] = subject("User", "alice", "oil")

    assert not owns_any(alice, memory)
    assert namespaces_of(alice, memory) == frozenset()

    memory.grants[key("subject", "User", "alice")] = OIL

    assert list(tenants_of(alice, memory)) == []
    assert namespaces_of(alice, memory) == crossed_namespaces(alice, memory) == frozenset()


def test_what_is_reflected_is_shown_and_what_is_shared_may_be_crossed() -> None:
    alice = Identity(user="alice", groups=("devs",))
    memory = Memory(
        subject("User", "alice", "oil", reflected=("seen-1",), shared=("shared-1",)),
        subject("Group", "devs", reflected=("seen-2",), shared=("shared-2",)),
        OIL,
    )

    assert namespaces_of(alice, memory) == {"oil-1", "oil-2", "seen-1", "seen-2"}
    assert crossed_namespaces(alice, memory) == {"oil-1", "oil-2", "shared-1", "shared-2"}


def test_who_is_narrowed_to_a_tenant_has_that_alone() -> None:
    alice = Identity(user="alice", only="gas")
    memory = Memory(subject("User", "alice", "oil", "gas", reflected=("seen-1",), shared=("shared-1",)), OIL, GAS)

    assert namespaces_of(alice, memory) == crossed_namespaces(alice, memory) == {"gas-1"}
    assert [tenant for tenant, _ in tenants_of(alice, memory)] == ["gas"]
    assert list(tenants_of(Identity(user="alice", only="coal"), memory)) == []


def test_the_keys_that_decide_are_those_of_somebody_and_of_the_tenants() -> None:
    alice = Identity(user="alice", groups=("devs",))
    memory = Memory(subject("Group", "devs", "oil", "gone"))

    assert grant_keys(alice, memory) == {
        key("subject", "User", "alice"),
        key("subject", "Group", "devs"),
        key("tenant", "oil"),
        key("tenant", "gone"),
    }


def test_grants_of_the_past_stand_before_those_of_now_also_where_there_were_none() -> None:
    now = Memory(OIL, GAS)
    overlay = Overlay(now)
    assert overlay.get(OIL.key()) == OIL
    overlay.past = {OIL.key(): TenantGrant(name="oil", uid="u", namespaces=()), GAS.key(): None}

    assert overlay.get(OIL.key()) == TenantGrant(name="oil", uid="u", namespaces=())
    assert overlay.get(GAS.key()) is None
    overlay.past.clear()
    assert (overlay.get(OIL.key()), overlay.get(key("config"))) == (OIL, None)
