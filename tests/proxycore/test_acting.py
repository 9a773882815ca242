"""Whom a request acts as: what is asked for, what must be allowed, and that exactly this goes upstream."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.acting import Target, effective, is_caller, naming, targets
from proxycore.headers import asked_identity, impersonation
from proxycore.identities import Identity, account_groups, account_of
from proxycore.statuses import RefusedError

ACCOUNT = "system:serviceaccount:oil-system:gitops-reconciler"
OWN = account_groups("oil-system")
DANA = Identity(
    user="dana",
    uid="u1",
    groups=("devs", "admins", "system:authenticated"),
    extra={"scopes": ("read", "write"), "authentication.kubernetes.io/credential-id": ("JTI=1",)},
)

GROUPS = st.lists(
    st.one_of(
        st.sampled_from([*OWN, "system:unauthenticated", "system:masters", ""]),
        st.text("abc:%/", min_size=1, max_size=8),
    ),
    unique=True,
    max_size=5,
)
ASKED = st.builds(
    lambda user, groups, uid, extra: Identity(user=user, groups=tuple(groups), uid=uid, extra=extra),
    st.one_of(
        st.sampled_from([ACCOUNT, "system:serviceaccount:Oil:x", "system:anonymous", "dana"]),
        st.text(min_size=1, max_size=8),
    ),
    GROUPS,
    st.sampled_from(["", "u1"]),
    st.dictionaries(
        st.text("aA%é/._-\x00 ", min_size=1, max_size=6), st.lists(st.text("xyz"), min_size=1).map(tuple), max_size=3
    ),
)


@given(ASKED)
def test_what_is_asked_for_and_its_headers_are_the_same(asked: Identity) -> None:
    assert asked_identity(impersonation(asked)) == asked


@given(ASKED)
def test_what_goes_upstream_for_an_identity_makes_that_identity_and_asks_for_no_group_more(asked: Identity) -> None:
    acting = effective(asked)

    sent = asked_identity(impersonation(naming(acting)))

    assert sent is not None
    made = effective(sent)
    assert set(made.groups) == set(acting.groups)
    assert msgspec.structs.replace(made, groups=acting.groups) == acting
    assert set(sent.groups) <= set(acting.groups)


@given(ASKED)
def test_every_single_thing_that_is_asked_for_needs_a_right(asked: Identity) -> None:
    needed = targets(asked)

    assert {one.name for one in needed[0] if one.resource == "users"} == {asked.user}
    named = [(one.resource, one.subresource, one.name) for (one,) in needed[1:]]
    assert sorted(named) == sorted(
        [
            *(("groups", "", group) for group in asked.groups),
            *([("uids", "", asked.uid)] if asked.uid else []),
            *(("userextras", key, value) for key, values in asked.extra.items() for value in values),
        ]
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("scopes", "scopes"),
        ("SCOPES", "scopes"),
        ("%41", "A"),
        ("%61", "a"),
        ("a%2fb", "a/b"),
        ("%2541", "%41"),
        ("%C3%89", "É"),
        ("%", "%"),
        ("%4", "%4"),
        ("%zz%41", "%zz%41"),  # one broken escape: nothing is unescaped
        ("a+b", "a+b"),
    ],
)
def test_the_key_of_an_extra_is_what_the_api_server_reads_and_reads_again(name: str, key: str) -> None:
    asked = asked_identity([("Impersonate-User", "dana"), (f"Impersonate-Extra-{name}", "x")])

    assert asked is not None
    assert asked.extra == {key: ("x",)}
    assert [one.subresource for (one,) in targets(asked)[1:]] == [key]
    assert asked_identity(impersonation(asked)) == asked


@pytest.mark.parametrize("name", ["", "%ff", "a%c3"])
def test_a_key_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(RefusedError) as caught:
        asked_identity([("Impersonate-User", "dana"), (f"Impersonate-Extra-{name}", "x")])

    assert caught.value.status.code == 400


def test_two_spellings_of_a_key_are_one_key_with_both_values() -> None:
    headers = [("Impersonate-User", "dana"), ("Impersonate-Extra-a", "x"), ("impersonate-extra-%61", "y")]

    asked = asked_identity(headers)

    assert asked is not None
    assert asked.extra == {"a": ("x", "y")}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"groups": ("admins", "devs")},
        {"groups": ("system:authenticated", "devs", "admins")},
        {"uid": ""},
        {"uid": "", "extra": {}},
        {"extra": {}},
        {"extra": {**DANA.extra, "scopes": ("write", "read")}},
    ],
    ids=str,
)
def test_exactly_the_caller_is_the_caller_with_its_uid_and_extras_or_without(change: dict[str, Any]) -> None:
    assert is_caller(DANA, msgspec.structs.replace(DANA, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"user": "erin"},
        {"groups": ()},
        {"groups": ("devs",)},
        {"groups": ("system:authenticated",)},
        {"groups": ("devs", "admins", "more")},
        {"groups": ("devs", "admins", "system:unauthenticated")},
        {"uid": "u2"},
        {"extra": {"scopes": ("read",)}},
        {"extra": {"scopes": ("read", "write")}},
        {"extra": {**DANA.extra, "scopes": ("read", "write", "all")}},
        {"extra": {**DANA.extra, "more": ("x",)}},
        {"extra": {"SCOPES": ("read", "write"), **DANA.extra}},
    ],
    ids=str,
)
def test_the_caller_in_less_or_more_than_itself_is_somebody_else(change: dict[str, Any]) -> None:
    asked = msgspec.structs.replace(DANA, **change)

    assert not is_caller(DANA, asked)
    assert targets(asked)[0][0].name == asked.user


@pytest.mark.parametrize("groups", [(), OWN, OWN[:2]], ids=str)
def test_an_account_is_itself_without_groups_and_in_all_of_its_own(groups: tuple[str, ...]) -> None:
    caller = Identity(user=ACCOUNT, uid="u", groups=OWN, extra={"authentication.kubernetes.io/pod-name": ("p",)})

    assert is_caller(caller, Identity(user=ACCOUNT, groups=groups))


@pytest.mark.parametrize("groups", [("system:authenticated",), OWN[:1], OWN[1:], (*OWN, "devs"), ("",)], ids=str)
def test_an_account_in_other_groups_than_its_own_is_not_itself(groups: tuple[str, ...]) -> None:
    caller = Identity(user=ACCOUNT, groups=OWN)
    asked = Identity(user=ACCOUNT, groups=groups)

    assert not is_caller(caller, asked)
    # And what goes upstream for it does not bring the account's own groups back.
    sent = naming(effective(asked))
    assert set(effective(sent).groups) == {*groups, "system:authenticated"}


def test_an_account_in_its_own_groups_is_named_without_them_so_that_no_right_to_groups_is_needed() -> None:
    account = effective(Identity(user=ACCOUNT))

    assert account.groups == OWN
    assert impersonation(naming(account)) == [("Impersonate-User", ACCOUNT)]


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        (Identity(user="dana"), ("system:authenticated",)),
        (Identity(user="dana", groups=("devs",)), ("devs", "system:authenticated")),
        (Identity(user="dana", groups=("system:unauthenticated",)), ("system:unauthenticated",)),
        (Identity(user="system:anonymous"), ("system:unauthenticated",)),
        (Identity(user="system:anonymous", groups=("devs",)), ("devs", "system:unauthenticated")),
    ],
    ids=str,
)
def test_groups_that_come_by_themselves_are_those_of_the_api_server(asked: Identity, groups: tuple[str, ...]) -> None:
    assert effective(asked).groups == groups


@pytest.mark.parametrize(
    ("user", "account"),
    [
        (ACCOUNT, ("oil-system", "gitops-reconciler")),
        ("system:serviceaccount:a:b.c", ("a", "b.c")),
        ("system:serviceaccount:a.b:c", None),
        ("system:serviceaccount:A:b", None),
        ("system:serviceaccount:a:B", None),
        ("system:serviceaccount:a:", None),
        ("system:serviceaccount::b", None),
        ("system:serviceaccount:a:b:c", None),
        ("system:serviceaccount:a:b\n", None),
        ("system:serviceaccount:a:" + "b" * 253, ("a", "b" * 253)),
        ("system:serviceaccount:a:" + "b" * 254, None),
        ("system:serviceaccount:" + "a" * 64 + ":b", None),
        ("system:serviceaccount:" + "a" * 20_000 + ":b", None),
    ],
    ids=lambda text: str(text)[:40],
)
def test_an_account_is_only_what_can_be_one(user: str, account: tuple[str, str] | None) -> None:
    assert account_of(user) == account
    first = targets(Identity(user=user))[0]
    assert first[-1] == Target(resource="users", name=user)
    assert [one.resource for one in first] == (["serviceaccounts", "users"] if account else ["users"])
