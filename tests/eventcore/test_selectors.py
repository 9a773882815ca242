"""Label selectors are read as kubectl reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import LabelSelector, LabelSelectorRequirement
from eventcore.selectors import (
    LONGEST,
    LONGEST_WRITTEN,
    MOST_REQUIREMENTS,
    MOST_TERMS,
    MOST_WRITTEN_TERMS,
    SelectorError,
    parse,
    parse_selector,
)


def requirements(text: str) -> list[tuple[str, str, list[str]]]:
    return [(one.key, one.operator, one.values) for one in parse_selector(text).match_expressions]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" ", []),
        ("app=web", [("app", "In", ["web"])]),
        ("app == web", [("app", "In", ["web"])]),
        ("app=", [("app", "In", [""])]),
        ("app!=web", [("app", "NotIn", ["web"])]),
        ("tier in (a, b)", [("tier", "In", ["a", "b"])]),
        ("tier notin (a)", [("tier", "NotIn", ["a"])]),
        ("tier in(a,)", [("tier", "In", ["", "a"])]),
        ("tier in (b,,a)", [("tier", "In", ["", "a", "b"])]),
        ("tier in ()", [("tier", "In", [""])]),
        (
            "kubernetes.io/os, !example.com/legacy",
            [("kubernetes.io/os", "Exists", []), ("example.com/legacy", "DoesNotExist", [])],
        ),
        ("in=notin,in in (in)", [("in", "In", ["notin"]), ("in", "In", ["in"])]),
    ],
)
def test_a_selector_is_read_as_kubectl_reads_it(text: str, found: list[tuple[str, str, list[str]]]) -> None:
    assert requirements(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "app=a b",
        ",",
        "a=b,",
        "a=b,,c=d",
        "app in",
        "app in a",
        "app in (a",
        "app in (a b)",
        "!",
        "-a",
        "a/b/c",
        "a>1",
    ],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a label selector"):
        parse_selector(text)


names = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}[a-z0-9]\Z")


@given(
    st.lists(
        st.tuples(
            names,
            st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
            st.lists(names, min_size=1, max_size=6),
        ),
        max_size=12,
    )
)
def test_every_selector_can_be_written(wanted: list[tuple[str, str, list[str]]]) -> None:
    written = {
        "In": lambda key, values: f"{key} in ({', '.join(values)})",
        "NotIn": lambda key, values: f"{key} notin ({','.join(values)})",
        "Exists": lambda key, values: f"{key}",  # noqa: ARG005 -- one signature for all
        "DoesNotExist": lambda key, values: f"!{key}",  # noqa: ARG005 -- one signature for all
    }
    text = ", ".join(written[operator](key, values) for key, operator, values in wanted)

    assert parse_selector(text) == LabelSelector(
        match_expressions=[
            LabelSelectorRequirement(key=key, operator=operator, values=sorted(set(values)) if "In" in operator else [])
            for key, operator, values in wanted
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a in (" + ",  " * 30 + "!", id="30 empty values without an end"),
        pytest.param("a in (" + ",  " * 1000 + "!", id="a thousand of them"),
        pytest.param(" " * 20_000 + "!", id="20,000 blanks"),
        pytest.param(",".join(["a"] * (MOST_WRITTEN_TERMS + 1)), id="too many terms"),
        pytest.param("a" * (LONGEST_WRITTEN + 1), id="too many characters"),
    ],
)
def test_a_hostile_selector_in_an_annotation_is_refused_at_once(text: str) -> None:
    for _ in range(1000):  # as often as a tenant has namespaces
        with pytest.raises(SelectorError):
            parse_selector(text)


def test_a_selector_within_the_bounds_is_read() -> None:
    assert len(parse(",".join(f"a{number}" for number in range(MOST_REQUIREMENTS)))) == MOST_REQUIREMENTS
    values = ",".join(f"a{number}" for number in range(MOST_TERMS - 1))
    assert len(parse(f"a in ({values})")[0].values) == MOST_TERMS - 1
    assert len(parse("a" + " " * (LONGEST - 1))) == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(",".join(["a"] * (MOST_REQUIREMENTS + 1)), id="requirements"),
        pytest.param("a in (" + "," * MOST_TERMS + ")", id="terms"),
        pytest.param("a" + " " * LONGEST, id="characters"),
    ],
)
def test_a_selector_over_a_bound_is_refused(text: str) -> None:
    with pytest.raises(SelectorError, match="a label selector may have"):
        parse(text)


def test_a_number_in_a_selector_is_one_of_64_bits() -> None:
    with pytest.raises(SelectorError, match="must be an integer"):
        parse("a>" + "9" * 63)
    (requirement,) = parse("a>3")
    assert not requirement.matches({"a": "9" * 5000})
