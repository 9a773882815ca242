"""The targets of ``make fuzz`` on their examples and on random bytes, and proof that a judgement can fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_examples_are_judged_right(name: str) -> None:
    found = targets.seeds(name)
    assert found
    for seed in found:
        targets.TARGETS[name](seed)


@pytest.mark.parametrize("name", targets.TARGETS)
@given(data=st.binary(max_size=200) | st.text(alphabet="a1=,!()<>/.%:? \r\n-_", max_size=60).map(str.encode))
def test_random_bytes_are_judged_right(name: str, data: bytes) -> None:
    targets.TARGETS[name](data)


def test_a_reader_that_is_lenient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a filter of headers that lets everything pass
    monkeypatch.setattr(targets, "forwarded", lambda headers, _peer: list(headers))
    # then the judgement falls
    with pytest.raises(AssertionError):
        targets.heads(b"GET /api HTTP/1.1\r\nHost: a\r\nImpersonate-User: admin\r\n\r\n")
