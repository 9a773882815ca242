"""How long a name, a subject and a key may be, to the byte, and what becomes of one that is longer."""

from __future__ import annotations

import pytest

from eventcore import keys
from eventcore.errors import EventError, KeyTooLongError


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a" * 2048, True),
        ("a" * 2049, False),
        ("." * 682 + "aa", True),  # each dot takes three bytes
        ("." * 682 + "aaa", False),
        ("é" * 341 + "aa", True),  # each takes six
        ("é" * 342, False),
    ],
)
def test_a_name_is_written_out_up_to_2048_bytes(name: str, *, whole: bool) -> None:
    token = keys.encode(name)

    assert token.startswith("==") is not whole
    assert (len(token) == 2048) is whole
    if whole:
        assert keys.decode(token) == name


def test_a_name_that_is_no_unicode_has_a_token_and_comes_from_none() -> None:
    token = keys.encode("a\udc80")

    assert token == "a=ED=B2=80"
    for other in (token, "a\udc80"):
        with pytest.raises(EventError):
            keys.decode(other)


@pytest.mark.parametrize(("size", "fits"), [(1013, True), (1014, False)])
def test_the_subject_of_an_object_has_up_to_3072_bytes(size: int, *, fits: bool) -> None:
    target = keys.ObjectKey("K", "n" * size, "a" * 2048)

    assert target.fits is fits
    if fits:
        assert len(target.subject()) == 3072
    else:
        with pytest.raises(KeyTooLongError, match="too long for a subject of NATS"):
            target.subject()


def test_an_object_with_a_name_that_is_not_written_out_has_no_subject() -> None:
    target = keys.ObjectKey("K", "", "a" * 2049)

    assert not target.fits
    with pytest.raises(KeyTooLongError):
        target.subject()


@pytest.mark.parametrize(("size", "fits"), [(1003, True), (1004, False)])
def test_a_key_fits_where_the_longest_subject_of_work_holds_it(size: int, *, fits: bool) -> None:
    # 3072 less the 20 bytes of "timer.kubeconfig.15.", the dot between the parts, and the first part
    target = keys.key("a" * 2048, "b" * size)

    assert target.fits is fits
    assert len(target.token()) == 2049 + size
    for subject in (keys.timer_subject, keys.work_subject):
        if fits:
            assert subject("kubeconfig", target).endswith(target.token())
    assert not keys.key("a" * 2049).fits


def test_the_workers_are_those_whose_lanes_stand_in_the_stream() -> None:
    assert keys.WORKERS == ("rbac", "token", "kubeconfig", "access")


def test_subjects_are_spelled_as_streams_and_consumers_expect_them() -> None:
    target = keys.key("oil-system", "sa.x")
    lane = target.lane()

    assert keys.mark_subject("Tenant") == "marks.Tenant"
    assert keys.work_subject("rbac", target) == f"work.rbac.{lane}.oil-system.sa=2Ex"
    assert keys.timer_subject("rbac", target) == f"timer.rbac.{lane}.oil-system.sa=2Ex"
    assert keys.kv_subject("access", target) == "$KV.access.oil-system.sa=2Ex"
    assert (keys.lane_consumer("rbac", 3), keys.lane_filter("rbac", 3)) == ("rbac-3", "work.rbac.3.>")
    assert keys.audit_subject("watcher", "oil", "refused") == "audit.watcher.oil.refused"
    assert keys.audit_subject("watcher", "", "refused") == "audit.watcher._.refused"
    assert keys.dead_letter_subject("rbac", "a/b") == "dlq.rbac.a=2Fb"
    assert keys.ObjectKey("Tenant", "", "oil").subject() == "objects.Tenant._.oil"
    assert str(keys.ObjectKey("Tenant", "", "oil")) == "Tenant/oil"
    assert str(keys.ObjectKey("Secret", "ns", "s")) == "Secret/ns/s"
    assert str(target) == "oil-system/sa.x"
    assert keys.parse_work_subject(keys.work_subject("rbac", target)) == ("rbac", lane, target)


@pytest.mark.parametrize("way", [keys.work_subject, keys.timer_subject])
def test_a_key_that_does_not_fit_has_no_subject_and_the_error_names_it(way: object) -> None:
    assert callable(way)
    with pytest.raises(KeyTooLongError, match=r"^a+.* is too long"):
        way("rbac", keys.key("a" * 2049))
    with pytest.raises(KeyTooLongError, match="is too long"):
        keys.kv_subject("access", keys.key("a" * 2048, "b" * 1100))
