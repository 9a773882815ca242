"""Label and field selectors: the grammar of Kubernetes, and what does not belong to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES
from tether.devcluster.selectors import field_matcher, label_matcher, name_in, parse_labels

_OIL: Object = {"metadata": {"name": "oil", "labels": {"tenant": "oil", "tier": "2"}}, "status": {"phase": "Active"}}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("tenant=oil", True),
        ("tenant==oil", True),
        ("tenant=gas", False),
        ("tenant!=gas", True),
        ("tenant!=oil", False),
        ("absent!=x", True),
        ("tenant", True),
        ("absent", False),
        ("!tenant", False),
        ("! absent", True),
        ("tenant in (oil, gas)", True),
        ("tenant in (gas)", False),
        ("absent in (gas)", False),
        ("tenant notin (gas)", True),
        ("absent notin (gas)", True),
        ("tier>1", True),
        ("tier>2", False),
        ("tier<3", True),
        ("absent<3", False),
        ("tenant=oil,tier=2", True),
        ("tenant=oil,tier=3", False),
        ("tenant in (a,oil),!absent", True),
        ("capsule.clastix.io/tenant=oil", False),
        ("tenant=", False),
        ("", True),
    ],
)
def test_a_label_selector_matches_as_in_kubernetes(selector: str, *, matches: bool) -> None:
    # when
    matcher = label_matcher(selector)
    # then
    assert (matcher is None or matcher(_OIL)) is matches


@pytest.mark.parametrize(
    "selector", ["a in", "a in (", "=b", "a=b,", "a b", "a>x", "!", "a=b=c", "-a", "(a)", "a in (b c)"]
)
def test_a_malformed_label_selector_is_a_bad_request(selector: str) -> None:
    # when
    with pytest.raises(ApiError) as caught:
        parse_labels(selector)
    # then
    assert (caught.value.code, caught.value.reason) == (400, "BadRequest")


@given(st.text(max_size=40))
def test_any_text_is_a_selector_or_a_bad_request(text: str) -> None:
    codes = set()
    for parse in (parse_labels, name_in, lambda text: field_matcher(NAMESPACES, text)):
        # when
        try:
            parse(text)
        except ApiError as error:
            codes.add(error.code)
    # then
    assert codes <= {400}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("metadata.name=oil", True),
        ("metadata.name!=oil", False),
        ("status.phase=Active,metadata.name=oil", True),
        ("status.phase=Terminating", False),
        ("metadata.namespace=", True),
    ],
)
def test_a_field_selector_matches_as_in_kubernetes(selector: str, *, matches: bool) -> None:
    # when
    matcher = field_matcher(NAMESPACES, selector)
    # then
    assert matcher is not None
    assert matcher(_OIL) is matches


def test_a_field_that_the_kind_does_not_support_is_a_bad_request() -> None:
    with pytest.raises(ApiError) as of_namespaces:
        field_matcher(NAMESPACES, "spec.color=red")
    with pytest.raises(ApiError) as of_config_maps:
        field_matcher(CONFIG_MAPS, "status.phase=Active")
    assert of_namespaces.value.message == "field label not supported: spec.color"
    assert of_config_maps.value.message.startswith('"status.phase" is not a known field selector: only "metadata.name"')


def test_the_name_that_a_field_selector_pins_is_found() -> None:
    assert name_in("status.phase=Active,metadata.name=oil") == "oil"
    assert name_in("metadata.name!=oil") == ""
