"""Label selectors are read as kubectl reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import LabelSelector, LabelSelectorRequirement
from eventcore.selectors import parse_selector


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
        ("tier in(a,)", [("tier", "In", ["a", ""])]),
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
    with pytest.raises(ValueError, match="not part of a label selector"):
        parse_selector(text)


names = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}[a-z0-9]\Z")


@given(
    st.lists(st.tuples(names, st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]), st.lists(names, min_size=1)))
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
            LabelSelectorRequirement(key=key, operator=operator, values=values if "In" in operator else [])
            for key, operator, values in wanted
        ]
    )
