"""Numbers in text are bounded before they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.numbers import INT32, INT64, UINT64, version, whole
from tests.naming import short


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("0" * 5000 + "7", 7),
        (str(INT64), INT64),
        (str(INT64 + 1), None),
        ("9" * 5000, None),
        ("9" * 1_000_000, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1_0", None),
        (" 1", None),
        ("1.0", None),
        ("\u0661", None),  # an Arabic one
        ("\u00b2", None),  # a superscript two
    ],
    ids=short,
)
def test_only_decimal_digits_within_the_bound_are_a_number(text: str, number: int | None) -> None:
    assert whole(text, INT64) == number


@given(st.integers(min_value=0, max_value=2 * UINT64))
def test_a_version_is_a_number_of_64_bits(number: int) -> None:
    assert version(str(number)) == (number if number <= UINT64 else None)


@given(st.text("0123456789 -+_.x", max_size=12))
def test_what_is_read_is_what_python_reads(text: str) -> None:
    found = whole(text, INT32)
    assert found is None or found == int(text)
