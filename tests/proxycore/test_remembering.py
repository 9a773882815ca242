"""What is remembered is bounded in bytes, in all and for each holder, whatever comes in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxycore.plane.heads import LONGEST_REMEMBERED, HeadReader
from proxycore.remembering import Memory

MOST, SHARE = 10_000, 4_000
puts = st.tuples(st.integers(0, 20), st.integers(0, 5_000), st.sampled_from("abcd"))


@given(st.lists(st.one_of(puts, st.integers(0, 20)), max_size=60))
def test_no_bound_is_ever_passed_and_what_is_found_is_what_was_put(steps: list[tuple[int, int, str] | int]) -> None:
    memory: Memory[int, str] = Memory(most=MOST, share=SHARE)
    told: dict[int, tuple[str, int, str]] = {}
    for number, step in enumerate(steps):
        if isinstance(step, int):
            memory.drop(step)
            told.pop(step, None)
            continue
        key, size, holder = step
        memory.put(key, str(number), holder=holder, size=size)
        told[key] = str(number), size, holder

        kept = {key: told[key] for key in told if memory.get(key) is not None}
        assert all(memory.get(key) == value for key, (value, _, _) in kept.items())
        assert sum(size for _, size, _ in kept.values()) <= memory.size <= MOST
        for one in "abcd":
            assert sum(size for _, size, holder in kept.values() if holder == one) <= SHARE
        assert len(memory) == len(kept)
    memory.clear()
    assert (len(memory), memory.size) == (0, 0)


def test_a_holder_pushes_out_its_own_before_that_of_others() -> None:
    memory: Memory[str, int] = Memory(most=MOST, share=SHARE)
    memory.put("victim", 1, holder="victim", size=100)

    for number in range(1000):
        memory.put(f"{number}", number, holder="hostile", size=1500)

    assert memory.get("victim") == 1
    assert memory.get("999") == 999


def test_headers_that_are_long_are_not_held_by_the_connection() -> None:
    reader = HeadReader()
    short = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    long = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * LONGEST_REMEMBERED + b"\r\n\r\n"

    # given what is short is remembered
    reader.read(short)
    reader.remembered.meaning = "meant"
    reader.read(short)
    assert reader.remembered.meaning == "meant"

    # then what is long is read each time, and nothing is kept with it
    for _ in range(2):
        assert reader.read(long).headers[1][0] == "A"
        reader.remembered.meaning = "meant"
        assert reader.remembered.meaning is None

    # and what comes after it is another one
    reader.read(short)
    assert reader.remembered.meaning is None
