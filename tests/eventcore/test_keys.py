"""Names become tokens and come back; what is no token is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore import keys
from eventcore.errors import EventError, KeyTooLongError

names = st.text(st.characters(exclude_categories=["Cs"]))
# What NATS refuses in a key of a KV bucket; a subject token is stricter still: no dots.
KV_TOKEN = re.compile(r"[-/_=a-zA-Z0-9]+")


@given(names)
def test_every_name_comes_back_from_its_token(name: str) -> None:
    assert keys.decode(keys.encode(name)) == name


@given(names)
def test_every_token_is_legal_as_a_subject_token_and_in_a_kv_key(name: str) -> None:
    assert KV_TOKEN.fullmatch(keys.encode(name))


@given(names, names)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (keys.encode(one) == keys.encode(other)) == (one == other)


@given(st.text(max_size=8))
def test_a_token_that_is_no_encoding_is_refused_or_is_the_one_encoding(token: str) -> None:
    try:
        name = keys.decode(token)
    except EventError:
        return
    assert keys.encode(name) == token


@pytest.mark.parametrize("token", ["", "a.b", "=4", "=zz", "=61", "a=", "=FF", "=2e"])
def test_broken_and_alternative_spellings_are_refused(token: str) -> None:
    with pytest.raises(EventError):
        keys.decode(token)


@given(names.filter(bool), names.filter(bool), st.one_of(st.just(""), names.filter(lambda n: n not in {"", "_"})))
def test_an_object_key_comes_back_from_its_subject(kind: str, name: str, namespace: str) -> None:
    key = keys.ObjectKey(kind, namespace, name)
    assert keys.ObjectKey.of_subject(key.subject()) == key


def test_a_service_account_with_dots_keeps_four_tokens() -> None:
    subject = keys.ObjectKey("ServiceAccount", "oil-system", "gitops.reconciler").subject()
    assert subject == "objects.ServiceAccount.oil-system.gitops=2Ereconciler"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=4))
def test_a_work_key_comes_back_from_its_subject_in_its_lane(parts: list[str]) -> None:
    key = keys.key(*parts)
    assert keys.parse_work_subject(keys.work_subject("rbac", key)) == ("rbac", key.lane(), key)
    assert 0 <= key.lane() < keys.LANES


def test_lanes_do_not_move_between_releases() -> None:
    # A key that changes its lane could run twice at once while both lanes hold a message of it.
    lanes = [
        keys.key("oil-system", "gitops-reconciler").lane(),
        keys.key("config").lane(),
        keys.key("tenant", "oil").lane(),
    ]
    assert lanes == [9, 12, 15]


@pytest.mark.parametrize(
    "subject", ["work.rbac.1", "work.rbac.x.a", "timer.rbac.1.a", "objects.a.b", "work.rbac.1.a b"]
)
def test_other_subjects_are_not_work(subject: str) -> None:
    with pytest.raises(EventError):
        keys.parse_work_subject(subject)


@pytest.mark.parametrize("subject", ["objects.Namespace.x", "marks.Namespace", "objects.Namespace._.a.b"])
def test_other_subjects_are_not_objects(subject: str) -> None:
    with pytest.raises(EventError):
        keys.ObjectKey.of_subject(subject)


long_names = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.integers(1, 3000),
)


@given(st.one_of(names, long_names))
def test_any_name_fits_in_every_subject_or_is_refused_before_anything_is_sent(name: str) -> None:
    target, fitting = keys.ObjectKey("AnyRoleBinding", "n" * 63, name), keys.key("subject", "ServiceAccount", name)
    assert target.fits == fitting.fits
    ways: list[Callable[[], str]] = [
        target.subject,
        lambda: keys.work_subject("kubeconfig", fitting),
        lambda: keys.timer_subject("kubeconfig", fitting),
        lambda: keys.kv_subject("access", fitting),
    ]
    for way in ways:
        if fitting.fits:
            assert len(way()) <= keys.MAX_SUBJECT
        else:
            with pytest.raises(KeyTooLongError) as refused:
                way()
            assert len(str(refused.value)) < 1000
            assert str(refused.value).isprintable()
    if target.fits:
        assert keys.ObjectKey.of_subject(target.subject()) == target


@given(long_names, long_names)
def test_a_name_that_is_too_long_is_found_nowhere_and_meets_no_other(one: str, other: str) -> None:
    assert len(keys.encode(one)) <= keys.MAX_TOKEN
    assert (keys.encode(one) == keys.encode(other)) == (one == other)
    if keys.encode(one).startswith("=="):
        with pytest.raises(EventError):
            keys.decode(keys.encode(one))


@given(long_names, long_names)
def test_records_and_dead_letters_are_kept_under_any_name(one: str, other: str) -> None:
    assert len(keys.audit_subject("watcher", one, "refused")) <= keys.MAX_SUBJECT
    assert len(keys.dead_letter_subject("rbac", f"{one}/{other}")) <= keys.MAX_SUBJECT


def test_names_that_kubernetes_bounds_always_fit() -> None:
    longest = ".".join(["a"] * 127)
    assert keys.key("account", "n" * 63, longest).fits
    assert keys.key("status", "GlobalProxySettings", "n" * 63, longest).fits
    assert keys.ObjectKey("AnyClusterRoleBinding", "n" * 63, ":" * 253).fits


def test_parts_that_fit_each_can_be_too_long_together() -> None:
    assert not keys.key("a" * 2000, "b" * 2000).fits
    with pytest.raises(KeyTooLongError):
        keys.work_subject("rbac", keys.key("a" * 2000, "b" * 2000))
