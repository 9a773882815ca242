"""Selectors, forms and headers by themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.headers import answered, asked_identity, bearer_token, forwarded, wants_upgrade
from proxycore.representations import age, negotiate
from proxycore.rule_matching import names_group
from proxycore.selectors import matches, parse_fields, parse_labels, render
from proxycore.statuses import RefusedError

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.mark.parametrize(
    ("selector", "labels", "holds"),
    [
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a=b", {}, False),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a in (b, c)", {"a": "c"}, True),
        ("a notin (b,c)", {"a": "c"}, False),
        ("a notin (b,c)", {}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a=", {"a": ""}, True),
        ("a>3", {"a": "10"}, True),
        ("a<3", {"a": "10"}, False),
        ("a>3", {"a": "x"}, False),
        ("a=b,c=d", {"a": "b"}, False),
        ("x.io/a in (b),c", {"x.io/a": "b", "c": ""}, True),
        ("", {}, True),
        ("a in ()", {"a": ""}, True),
        ("a in ()", {"a": "b"}, False),
    ],
)
def test_labels_are_matched_as_kubernetes_does(selector: str, labels: dict[str, str], holds: bool) -> None:
    assert matches(parse_labels(selector), labels) is holds


@pytest.mark.parametrize(
    "selector", ["a in (", "!a=b", "a in b", "a=b=c", "a b", "-a", "a=-", ",", "a,", "a/b/c", "(a)", "a>b"]
)
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(RefusedError):
        parse_labels(selector)


@given(st.text("ab=!,in()<> /.-1", max_size=25))
def test_a_selector_and_what_is_rendered_of_it_mean_the_same(text: str) -> None:
    try:
        parsed = parse_labels(text)
    except RefusedError:
        return
    assert parse_labels(render(parsed)) == parsed


def test_fields_outside_the_known_ones_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"field label not supported: spec\.x"):
        parse_fields("spec.x=a", ("metadata.name",))


@pytest.mark.parametrize(
    ("pattern", "text", "names"),
    [
        ("*", "anything.io", True),
        ("*", "", True),
        ("*.k8s.io", "rbac.authorization.k8s.io", True),
        ("*.k8s.io", "k8s.io", False),
        ("a*a", "a", False),
        ("a**b*c", "axxbyyc", True),
        ("a*b*c", "acb", False),
        ("*a" * 60 + "*", "a" * 100_000, True),
        ("*a" * 60 + "*b", "a" * 100_000, False),
        ("*a*b", "ab/ab", False),
    ],
)
def test_a_pattern_of_groups_is_matched_in_one_pass(pattern: str, text: str, names: bool) -> None:
    assert names_group(pattern, text, "v1") is names


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        (f"{TABLE},application/json", "table"),
        (f"application/vnd.kubernetes.protobuf,{TABLE},application/json", "table"),
        ("application/vnd.kubernetes.protobuf,application/json", "json"),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", "json"),
        ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "metadata"),
        (f"application/json;q=0.5,{TABLE};q=0.9", "table"),
    ],
)
def test_the_first_form_that_can_be_rendered_is_chosen(accept: str, form: str) -> None:
    assert negotiate(accept, watch=True) == form


@pytest.mark.parametrize(
    "accept", ["application/vnd.kubernetes.protobuf", "text/html", "application/json;q=0", "application/yaml"]
)
def test_without_a_form_that_can_be_rendered_it_is_406(accept: str) -> None:
    with pytest.raises(RefusedError) as caught:
        negotiate(accept, watch=True)
    assert caught.value.status.code == 406


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (601, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_000, "3h3m"),
        (86_400, "24h"),
        (2 * 86_400, "2d"),
        (2 * 86_400 + 3600, "2d1h"),
        (9 * 86_400 + 3600, "9d"),
        (729 * 86_400, "729d"),
        (730 * 86_400, "2y"),
        (740 * 86_400, "2y10d"),
        (-5, "0s"),
    ],
)
def test_an_age_reads_as_kubectl_writes_it(seconds: int, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == text


# Headers.

SPELLINGS = st.sampled_from(
    [
        "Impersonate-User",
        "impersonate-user",
        "IMPERSONATE-GROUP",
        "Impersonate_User",
        "Impersonate-Extra-x",
        "X-Remote-User",
        "Authorization",
        "authorization",
        "Proxy-Authorization",
        "X-Forwarded-For",
        "Connection",
        "Upgrade",
        "Host",
        "TE",
    ]
)
HEADERS = st.lists(st.tuples(st.one_of(SPELLINGS, st.sampled_from(["Accept", "X-A"])), st.text("ab, -", max_size=12)))


@given(HEADERS)
def test_no_header_that_says_who_somebody_is_passes(headers: list[tuple[str, str]]) -> None:
    passed = forwarded(headers, "10.1.1.1")

    names = {name.lower().replace("_", "-") for name, _ in passed}
    assert names <= {"accept", "x-a", "x-forwarded-for"}
    assert ("X-Forwarded-For", "10.1.1.1") in passed


@given(HEADERS)
def test_an_impersonation_in_any_spelling_is_seen_or_refused(headers: list[tuple[str, str]]) -> None:
    asks = any(name.lower().replace("_", "-").startswith("impersonate-") for name, _ in headers)
    try:
        found = asked_identity(headers)
    except RefusedError:
        assert asks
        return
    assert (found is not None) == asks


def test_what_connection_names_is_gone_and_nothing_more() -> None:
    headers = [("Connection", "X-A, close"), ("Connection", "x-b"), ("X-A", "1"), ("X-B", "2"), ("X-C", "3")]

    assert forwarded(headers, "") == [("X-C", "3")]
    assert answered(tuple(name.encode() for name, _ in headers), [b"X-A, close", b"x-b"]) == (4,)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer a.b-c_d", "a.b-c_d"),
        ("bearer  x==", "x=="),
        ("Bearer", ""),
        ("Bearer a b", ""),
        ("Basic a", ""),
        ("", ""),
    ],
)
def test_a_bearer_token_is_read_strictly(value: str, token: str) -> None:
    assert bearer_token([("Authorization", value)]) == token


def test_two_authorizations_are_refused_in_any_spelling() -> None:
    with pytest.raises(RefusedError):
        bearer_token([("Authorization", "Bearer a"), ("AUTHORIZATION", "Bearer a")])


def test_an_upgrade_counts_only_when_connection_names_it() -> None:
    assert wants_upgrade([("Connection", "keep-alive, Upgrade"), ("Upgrade", "SPDY/3.1")]) == "SPDY/3.1"
    assert wants_upgrade([("Upgrade", "SPDY/3.1")]) == ""
