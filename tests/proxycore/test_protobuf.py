"""Answers in protobuf are cut down as those in JSON are: what is kept is kept to the byte, what is not is gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.protobuf import MAGIC, Listed, ProtobufError, failure, filter_list, filter_one, seen
from proxycore.rules import Seen


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, content: bytes | str | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def metadata(name: str, labels: dict[str, str]) -> bytes:
    entries = b"".join(field(11, field(1, key) + field(2, value)) for key, value in labels.items())
    # generation, a number, stands between the name and the labels
    return field(1, field(1, name) + field(7, 300) + entries)


def thing(name: str, labels: dict[str, str] | None = None, claim: str = "") -> bytes:
    claim_ref = field(4, field(1, "PersistentVolumeClaim") + field(2, claim) + field(3, "data"))
    return metadata(name, labels or {}) + field(2, field(3, "ReadWriteOnce") + (claim_ref if claim else b""))


def answer(raw: bytes, kind: str = "StorageClassList") -> bytes:
    return (
        MAGIC + field(1, field(1, "storage.k8s.io/v1") + field(2, kind)) + field(2, raw) + field(3, "") + field(4, "")
    )


def listed(*items: bytes) -> bytes:
    told = field(1, "") + field(2, "4711") + field(3, "where the next page begins") + field(4, 17)
    return answer(field(1, told) + b"".join(field(2, item) for item in items))


def test_a_list_keeps_the_allowed_objects_to_the_byte_and_its_version_and_tells_nothing_of_the_others() -> None:
    # given a page of a list
    mine, other = thing("fast", {"tier": "gold"}), thing("slow", {"tier": "lead"})
    # when it is cut down
    found = filter_list(listed(mine, other), lambda one: one.labels.get("tier") == "gold")
    # then it is a whole list of the one object
    assert found == answer(field(1, field(2, "4711")) + field(2, mine))


def test_a_volume_is_judged_by_the_namespace_of_its_claim() -> None:
    found = seen(thing("pv-1", {"a": "b"}, "oil-production"), volume=True)

    assert found == Seen(name="pv-1", labels={"a": "b"}, claim_namespace="oil-production")
    assert seen(thing("pv-1")).claim_namespace == ""


def test_one_object_passes_as_it_is_or_not_at_all() -> None:
    body = answer(thing("fast"), "StorageClass")

    assert filter_one(body, lambda one: one.name == "fast") == body
    assert filter_one(body, lambda one: one.name == "slow") is None


@given(
    st.dictionaries(st.text(max_size=12), st.dictionaries(st.text(max_size=6), st.text(max_size=200), max_size=3)),
    st.sets(st.text(max_size=12)),
)
def test_whatever_the_objects_are_exactly_the_allowed_ones_stay(
    objects: dict[str, dict[str, str]], allowed: set[str]
) -> None:
    things = {name: thing(name, labels) for name, labels in objects.items()}

    found = filter_list(listed(*things.values()), lambda one: one.name in allowed)

    kept = [item for name, item in things.items() if name in allowed]
    assert found == answer(field(1, field(2, "4711")) + b"".join(field(2, item) for item in kept))
    assert all(seen(item) == Seen(name=name, labels=objects[name]) for name, item in things.items())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        MAGIC,
        MAGIC + field(1, "x"),
        MAGIC + field(2, "") + field(2, ""),
        MAGIC + b"\x12\xff",
        answer(b"\x0a\x7f"),
        answer(b"\x0b"),
        answer(field(2, field(1, field(1, b"\xff")))),
        answer(b"\x00\x00"),
        MAGIC + b"\xff" * 11,
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ProtobufError):
        filter_list(body, lambda _: True)


@given(st.binary(max_size=120))
def test_no_bytes_are_read_as_more_than_they_are(raw: bytes) -> None:
    try:
        found = filter_list(answer(raw), lambda _: False)
    except ProtobufError:
        return
    # with nothing allowed nothing is left but versions
    assert len(found) <= len(answer(raw))
    assert filter_list(found, lambda _: False) == found


@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.text(max_size=20),
    st.text(max_size=300),
    st.lists(st.binary(max_size=200)),
)
def test_a_list_that_is_written_reads_as_it_was(
    api_version: str, kind: str, version: str, token: str, items: list[bytes]
) -> None:
    listed = Listed(api_version, kind, version, token, items)

    assert Listed.of(listed.encode()) == listed


def test_a_page_is_read_with_its_version_and_where_the_next_begins() -> None:
    mine = thing("fast")

    found = Listed.of(listed(mine))

    assert found == Listed("storage.k8s.io/v1", "StorageClassList", "4711", "where the next page begins", [mine])


def test_a_failure_says_what_and_why() -> None:
    status = answer(field(2, "Failure") + field(3, "no such thing") + field(4, "NotFound") + field(6, 404), "Status")

    assert failure(status) == ("no such thing", "NotFound")
