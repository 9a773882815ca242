"""Protobuf request bodies: what kubectl sends becomes the same object that JSON would be; garbage is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.contracts import ApiError
from tether.devcluster.protobuf import decode


def _varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _message(*fields: tuple[int, Any]) -> bytes:
    """Encode fields in order: an int as a varint, text and bytes with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(raw)) + raw
    return out


def _body(version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + _message((1, _message((1, version), (2, kind))), (2, raw))


def test_metadata_is_read() -> None:
    # given
    owner = _message((1, "Tenant"), (3, "oil"), (4, "uid-1"), (5, "capsule.clastix.io/v1beta2"), (6, 1), (7, 0))
    meta = _message(
        (1, "a"),
        (3, "ns"),
        (8, _message((1, 1_767_225_600))),
        (11, _message((1, "k"), (2, "v"))),
        (12, _message((1, "n"), (2, ""))),
        (13, owner),
        (14, "example.org/f"),
    )
    # when
    obj = decode(_body("v1", "ServiceAccount", _message((1, meta), (4, 0))))
    # then
    assert obj == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": "a",
            "namespace": "ns",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"k": "v"},
            "annotations": {"n": ""},
            "ownerReferences": [
                {
                    "kind": "Tenant",
                    "name": "oil",
                    "uid": "uid-1",
                    "apiVersion": "capsule.clastix.io/v1beta2",
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
            "finalizers": ["example.org/f"],
        },
        "automountServiceAccountToken": False,
    }


def test_bytes_become_base64() -> None:
    # when
    raw = _message((1, _message((1, "s"))), (2, _message((1, "k"), (2, b"\x00\xff"))), (3, "Opaque"))
    obj = decode(_body("v1", "Secret", raw))
    # then
    assert (obj["data"], obj["type"]) == ({"k": "AP8="}, "Opaque")


def test_a_token_request_is_read() -> None:
    # given
    bound = _message((1, "Secret"), (2, "v1"), (3, "s"), (4, "uid-2"))
    spec = _message((1, "aud-1"), (1, "aud-2"), (3, bound), (4, 600))
    # when
    obj = decode(_body("authentication.k8s.io/v1", "TokenRequest", _message((2, spec))))
    # then
    assert obj["spec"] == {
        "audiences": ["aud-1", "aud-2"],
        "boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "s", "uid": "uid-2"},
        "expirationSeconds": 600,
    }


def test_a_negative_number_is_read() -> None:
    # when
    obj = decode(_body("v1", "DeleteOptions", _message((1, -1), (4, "Foreground"), (2, _message((1, "u"))))))
    # then
    assert obj["gracePeriodSeconds"] == -1
    assert obj["propagationPolicy"] == "Foreground"
    assert obj["preconditions"] == {"uid": "u"}


def test_unknown_fields_are_passed_over() -> None:
    # when
    raw = _message((1, _message((1, "a"), (99, "x"))), (98, 7))
    # then
    assert decode(_body("v1", "Namespace", raw))["metadata"] == {"name": "a"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 400),
        (b"json", 400),
        (b"k8s\x00\x0a\xff", 400),
        (_body("v1", "Namespace", b"\x0a\x05ab"), 400),
        (_body("v1", "Namespace", b"\xff" * 12), 400),
        (_body("v1", "Namespace", _message((1, 7))), 400),
        (_body("v1", "Namespace", _message((1, _message((1, b"\xff"))))), 400),
        (_body("v1", "Pod", b""), 415),
        (_body("", "", b""), 415),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, code: int) -> None:
    # when
    with pytest.raises(ApiError) as caught:
        decode(body)
    # then
    assert caught.value.code == code


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), min_size=1, max_size=4))
def test_a_map_is_read_as_it_was_written(data: dict[str, str]) -> None:
    # given
    entries = [(2, _message((1, key), (2, value))) for key, value in data.items()]
    # then
    assert decode(_body("v1", "ConfigMap", _message(*entries)))["data"] == data
