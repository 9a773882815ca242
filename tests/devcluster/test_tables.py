"""Tables and ages as kubectl prints them, and JSONPath as far as printer columns go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster import jsonpath
from tether.devcluster.resources import BUILT_IN
from tether.devcluster.tables import human_age, table

if TYPE_CHECKING:
    from tests.kubeapi import Client

TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 1200, "3h20m"),
        (9 * 3600, "9h"),
        (49 * 3600, "2d1h"),
        (8 * 86400, "8d"),
        (3 * 365 * 86400, "3y"),
        (3 * 365 * 86400 + 2 * 86400, "3y2d"),
        (9 * 365 * 86400, "9y"),
        (-5, "<invalid>"),
    ],
)
def test_an_age_is_shown_as_kubectl_shows_it(seconds: int, shown: str) -> None:
    # given
    then = (_NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    # then
    assert human_age(then, _NOW) == shown


@pytest.mark.parametrize("value", [None, 7, "yesterday", ""])
def test_an_age_that_is_no_time_is_unknown(value: Any) -> None:
    assert human_age(value) == "<unknown>"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.b", [1]),
        ("{.a.b}", [1]),
        ("a.b", [1]),
        (".l[0].n", ["x"]),
        (".l[-1].n", ["y"]),
        (".l[*].n", ["x", "y"]),
        ('.l[?(@.n=="y")].v', [2]),
        (".l[?(@.n!='y')].v", [1]),
        (".l[?(@.ok==true)].n", ["y"]),
        (r".a.c\.d", ["dotted"]),
        (".a['c.d']", ["dotted"]),
        (".nope.b", []),
        (".l[9]", []),
        (".a[0]", []),
        (".a[[", []),
    ],
)
def test_a_path_finds_its_values(path: str, found: list[Any]) -> None:
    # given
    obj = {"a": {"b": 1, "c.d": "dotted"}, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2, "ok": True}]}
    # then
    assert jsonpath.find(obj, path) == found


@given(st.text(max_size=20))
def test_any_text_is_a_path(path: str) -> None:
    assert isinstance(jsonpath.find({"a": [1]}, path), list)


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["containers", "ports", "conditions", "readyReplicas", "name", "secrets", "data", "replicas"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(BUILT_IN),
    st.dictionaries(st.sampled_from(["spec", "status", "data", "subjects", "roleRef", "involvedObject"]), _JSON),
)
def test_every_object_has_a_row(resource: Any, obj: Any) -> None:
    # when
    made = table(resource, [obj | {"metadata": {"name": "x"}}], {}, include="None")
    # then
    assert len(made["rows"][0]["cells"]) == len(made["columnDefinitions"])


async def test_a_list_is_given_as_a_table(client: Client) -> None:
    # when
    namespaces = (await client.get("/api/v1/namespaces", headers=TABLE)).body
    # then
    assert (namespaces["kind"], namespaces["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [column["name"] for column in namespaces["columnDefinitions"]] == ["Name", "Status", "Age"]
    row = next(row for row in namespaces["rows"] if row["cells"][0] == "default")
    assert row["cells"][1] == "Active"
    assert row["object"]["kind"] == "PartialObjectMetadata"


@pytest.mark.parametrize(
    ("include", "kind"), [("None", None), ("Metadata", "PartialObjectMetadata"), ("Object", "Namespace")]
)
async def test_a_row_holds_as_much_of_its_object_as_asked_for(client: Client, include: str, kind: str | None) -> None:
    # when
    answer = await client.get("/api/v1/namespaces/default", headers=TABLE, params={"includeObject": include})
    # then
    assert answer.body["rows"][0].get("object", {}).get("kind") == kind


async def test_a_list_is_given_as_metadata_alone(client: Client) -> None:
    # when
    accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    listed = (await client.get("/api/v1/namespaces", headers={"Accept": accept})).body
    # then
    assert listed["kind"] == "PartialObjectMetadataList"
    assert all(set(item) == {"kind", "apiVersion", "metadata"} for item in listed["items"])
    # when
    wrong = await client.get("/api/v1/namespaces", headers={"Accept": accept.replace("List", "")})
    # then
    assert (wrong.status, wrong.body["reason"]) == (406, "NotAcceptable")


async def test_errors_are_a_status_even_where_a_table_was_asked_for(client: Client) -> None:
    # when
    answer = await client.get("/api/v1/namespaces/nope", headers=TABLE)
    # then
    assert (answer.status, answer.body["kind"]) == (404, "Status")
