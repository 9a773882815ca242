"""The query of a list or watch is bounded before it is read, and its numbers are those of kube-apiserver."""

from __future__ import annotations

import base64

import pytest

from proxycore.listquery import LONGEST_QUERY, MOST_PARAMETERS, parse_query
from proxycore.merging import place_of
from proxycore.statuses import RefusedError, Status
from tests.naming import short


def refused(query: str) -> Status:
    with pytest.raises(RefusedError) as caught:
        parse_query(query)
    return caught.value.status


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("timeoutSeconds=abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("timeoutSeconds=", 'strconv.ParseInt: parsing "": invalid syntax'),
        ("timeoutSeconds=" + "9" * 5000, f'strconv.ParseInt: parsing "{"9" * 64}...": value out of range'),
        ("timeoutSeconds=9223372036854775808", "value out of range"),
        ("timeoutSeconds=--5", "strconv.ParseInt"),
        ("limit=" + "9" * 5000, "strconv.ParseInt: parsing"),
        ("limit=x", "invalid syntax"),
        (
            "resourceVersion=abc",
            'invalid resource version: resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc"',
        ),
        ("resourceVersion=" + "9" * 5000, "strconv.ParseUint: parsing"),
        ("watch=1&resourceVersion=" + "9" * 5000, "strconv.ParseUint: parsing"),
        ("watch=1&resourceVersion=18446744073709551616", "value out of range"),
        ("watch=1&resourceVersion=%D9%A1", "invalid syntax"),  # a digit that is none of ASCII
    ],
    ids=short,
)
def test_a_number_that_is_none_is_refused_in_the_words_of_kube_apiserver(query: str, message: str) -> None:
    status = refused(query)

    assert (status.code, status.reason) == (400, "BadRequest")
    assert message in status.message


def test_integers_may_have_a_sign_as_at_kube_apiserver() -> None:
    assert parse_query("timeoutSeconds=-5&limit=-1").timeout == -5  # a watch that ends at once
    assert parse_query("timeoutSeconds=%2B5&limit=%2B1").timeout == 5


def test_numbers_with_zeros_before_them_are_read_as_go_reads_them() -> None:
    query = parse_query("watch=1&timeoutSeconds=" + "0" * 5000 + "7&resourceVersion=18446744073709551615")

    assert query.timeout == 7
    assert query.resource_version == "18446744073709551615"


@pytest.mark.parametrize(
    "query",
    [
        "&".join(["a=b"] * (MOST_PARAMETERS + 1)),
        "&" * LONGEST_QUERY,
        "a=" + "b" * LONGEST_QUERY,
        "labelSelector=" + "%20" * 20_000 + "!",
        "labelSelector=" + "+" * 20_000 + "!",
        "labelSelector=" + ",".join(["a"] * 36_000),
        "labelSelector=" + "a%2C" * 10_000,
        "fieldSelector=" + "metadata.name=a," * 1000,
    ],
    ids=short,
)
def test_a_query_that_is_too_much_is_refused(query: str) -> None:
    assert refused(query).code == 400


def test_20000_blanks_are_no_selector() -> None:
    assert parse_query("labelSelector=" + "+" * 20_000).labels == ()


@pytest.mark.parametrize(
    "token",
    [
        base64.urlsafe_b64encode(text.encode()).decode()
        for text in (
            "[" * 50_000,
            '["a","1","",' + "[" * 50_000,
            '["a","' + "9" * 5000 + '"]',
            '["a",' + "9" * 5000 + "]",
        )
    ],
    ids=["deep", "deep behind its place", "digits", "a number of digits"],
)
def test_a_token_of_a_page_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(RefusedError, match="continue key is not valid"):
        place_of(token)
