"""The entry of an account among Capsule's users comes and goes alone: no other entry is touched or moved."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.patching import json_patch
from workers.ownership import Account
from workers.user_entries import (
    FIELDS,
    Field,
    Memory,
    addition,
    annotation,
    best_field,
    entry,
    is_kept,
    remembered,
    removal,
)

Object = dict[str, Any]

ACCOUNTS = [Account(home, name) for home in ("h1", "h2") for name in ("a", "b")]
accounts = st.sampled_from(ACCOUNTS)
fields = st.sampled_from(FIELDS)
users = st.builds(
    lambda kind, name: {"kind": kind, "name": name},
    st.sampled_from(["User", "Group", "ServiceAccount"]),
    st.sampled_from(["alice", *(account.username for account in ACCOUNTS)]),
)
names = st.sampled_from(["alice", "system:serviceaccounts:h1", *(account.username for account in ACCOUNTS)])
specs = st.fixed_dictionaries(
    {}, optional={"users": st.lists(users), "userNames": st.lists(names), "userGroups": st.none() | st.lists(names)}
)
annotated = st.none() | st.just({"by": "a person"})


def configuration(spec: Object | None, annotations: dict[str, str] | None) -> Object:
    body: Object = {"metadata": {"name": "default", "resourceVersion": "7"}}
    if spec is not None:
        body["spec"] = spec
    if annotations is not None:
        body["metadata"]["annotations"] = annotations
    return body


def kept(body: Object, account: Account) -> bool:
    return is_kept(body["metadata"].get("annotations") or {}, body.get("spec") or {}, account)


def added(body: Object, account: Account, field: Field) -> Object:
    return json_patch(body, addition(body, account, "oil", field))


def without_nothing(body: Object) -> Object:
    """Return what a configuration says, empty lists and annotations aside."""
    spec = {field: found for field, found in (body.get("spec") or {}).items() if found}
    return {"spec": spec, "annotations": body["metadata"].get("annotations") or {}}


@given(specs | st.none(), annotated, st.lists(st.tuples(accounts, fields), max_size=6), st.randoms())
def test_what_was_added_is_there_and_once_removed_all_is_as_before(
    spec: Object | None, annotations: dict[str, str] | None, wanted: list[tuple[Account, Field]], random: Any
) -> None:
    before = configuration(spec, annotations)
    body = deepcopy(before)

    for account, field in wanted:
        was = deepcopy(body)
        body = added(body, account, field)

        have = (body.get("spec") or {}).get(field) or []
        assert entry(field, account) in have
        assert have[: len(have) - 1] == ((was.get("spec") or {}).get(field) or [])[: len(have) - 1]

    ours = list(remembered(body["metadata"].get("annotations") or {}))
    random.shuffle(ours)
    for account in ours:
        body = json_patch(body, removal(body, account))
        assert removal(body, account) == []

    # An account that was added to two lists is remembered for the last one: Tether adds none that is kept already.
    if len({account for account, _ in wanted}) == len(wanted):
        assert without_nothing(body) == without_nothing(before)


def test_an_entry_by_hand_is_neither_added_again_nor_removed() -> None:
    (account, *_) = ACCOUNTS
    for field in FIELDS:
        body = configuration({field: [entry(field, account)]}, None)

        assert addition(body, account, "oil", field) == []
        assert removal(body, account) == []


def test_of_two_equal_entries_one_stays() -> None:
    (account, *_) = ACCOUNTS
    body = added(configuration({}, None), account, "users")
    body["spec"]["users"].insert(0, entry("users", account))

    body = json_patch(body, removal(body, account))

    assert body["spec"]["users"] == [entry("users", account)]


def test_a_group_goes_with_the_last_account_that_needs_it() -> None:
    first, second, *_ = ACCOUNTS
    assert first.namespace == second.namespace
    body = configuration({}, None)
    for account in (first, second):
        body = added(body, account, "userGroups")
    assert body["spec"]["userGroups"] == ["system:serviceaccounts:h1"]
    assert kept(body, first)
    assert kept(body, second)

    body = json_patch(body, removal(body, first))
    assert body["spec"]["userGroups"] == ["system:serviceaccounts:h1"]
    body = json_patch(body, removal(body, second))
    assert body["spec"]["userGroups"] == []


def test_an_entry_that_somebody_deleted_is_added_again() -> None:
    (account, *_) = ACCOUNTS
    body = added(configuration({}, None), account, "users")
    body["spec"]["users"].clear()

    assert not kept(body, account)
    body = added(body, account, "users")
    assert kept(body, account)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (annotation(ACCOUNTS[0]), "users h1/a"),
        (annotation(ACCOUNTS[0]), "administrators h1/a oil"),
        (annotation(ACCOUNTS[0]), "users h1 oil"),
        (annotation(ACCOUNTS[0]), "users h1/b oil"),
        ("somebody.else/user", "users h1/a oil"),
    ],
)
def test_a_memory_that_is_not_whole_is_none(key: str, value: str) -> None:
    assert remembered({key: value}) == {}
    assert remembered({annotation(ACCOUNTS[0]): "users h1/a oil"}) == {ACCOUNTS[0]: Memory("users", "oil")}


def test_the_narrowest_list_that_is_served_is_taken() -> None:
    assert best_field(["userGroups", "users", "userNames"]) == "users"
    assert best_field(["userGroups", "userNames"]) == "userNames"
    assert best_field(["userGroups"]) == "userGroups"
    assert best_field(["forceTenantPrefix"]) is None
