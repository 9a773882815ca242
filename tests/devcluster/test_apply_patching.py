"""JSON patch, merge patch and strategic merge patch by their definitions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.objects import clone
from tether.devcluster.patching import json_patch, merge_patch, strategic_merge

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.text(max_size=3), _JSON, max_size=3)


@pytest.mark.parametrize(
    ("operations", "result"),
    [
        ([{"op": "add", "path": "/b", "value": 1}], {"a": {"x": 1}, "l": [1, 2], "b": 1}),
        ([{"op": "add", "path": "/l/-", "value": 3}], {"a": {"x": 1}, "l": [1, 2, 3]}),
        ([{"op": "add", "path": "/l/1", "value": 9}], {"a": {"x": 1}, "l": [1, 9, 2]}),
        ([{"op": "replace", "path": "/l/0", "value": 9}], {"a": {"x": 1}, "l": [9, 2]}),
        ([{"op": "replace", "path": "/a/x", "value": None}], {"a": {"x": None}, "l": [1, 2]}),
        ([{"op": "remove", "path": "/a"}], {"l": [1, 2]}),
        ([{"op": "move", "from": "/a/x", "path": "/y"}], {"a": {}, "l": [1, 2], "y": 1}),
        ([{"op": "copy", "from": "/l", "path": "/m"}], {"a": {"x": 1}, "l": [1, 2], "m": [1, 2]}),
        ([{"op": "test", "path": "/a/x", "value": 1}, {"op": "remove", "path": "/l"}], {"a": {"x": 1}}),
        ([{"op": "add", "path": "/c~1d~0", "value": 1}], {"a": {"x": 1}, "l": [1, 2], "c/d~": 1}),
    ],
)
def test_a_json_patch_does_what_its_operations_say(operations: list[Object], result: Object) -> None:
    # given
    obj: Object = {"a": {"x": 1}, "l": [1, 2]}
    # when
    patched = json_patch(obj, operations)
    # then
    assert patched == result
    assert obj == {"a": {"x": 1}, "l": [1, 2]}


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "remove", "path": "/nope"}], 422),
        ([{"op": "add", "path": "/nope/deep", "value": 1}], 422),
        ([{"op": "replace", "path": "/l/7", "value": 1}], 422),
        ([{"op": "add", "path": "/l/x", "value": 1}], 422),
        ([{"op": "replace", "path": "", "value": 1}], 422),
        ([{"op": "frob", "path": "/a"}], 400),
        ([{"op": "add", "path": "a", "value": 1}], 400),
        ([{"op": "add", "path": "/a"}], 400),
        ([{"op": "move", "path": "/a"}], 400),
        (["x"], 400),
        ({"op": "add"}, 400),
    ],
)
def test_a_json_patch_that_does_not_apply_is_refused(operations: Any, code: int) -> None:
    # when
    with pytest.raises(ApiError) as caught:
        json_patch({"a": 1, "l": [1]}, operations)
    # then
    assert caught.value.code == code


def test_null_removes_in_a_merge_patch() -> None:
    # when
    merged = merge_patch({"a": {"x": 1, "y": 2}, "l": [1, 2]}, {"a": {"x": None, "z": 3}, "l": [3]})
    # then
    assert merged == {"a": {"y": 2, "z": 3}, "l": [3]}


@given(_OBJECTS, _OBJECTS)
def test_a_merge_patch_applied_twice_is_applied_once(target: Object, patch: Object) -> None:
    # given
    before = clone(target)
    # when
    once = merge_patch(target, patch)
    # then
    assert merge_patch(once, patch) == once
    assert target == before


@given(_OBJECTS, _JSON)
def test_any_json_is_a_strategic_merge_patch(target: Object, patch: Any) -> None:
    # given
    before = clone(target)
    # when
    strategic_merge(target, patch)
    # then
    assert target == before


def test_containers_merge_by_name() -> None:
    # given
    target = {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}
    # when
    merged = strategic_merge(target, {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "2"}]})
    # then
    assert merged["containers"] == [
        {"name": "a", "image": "1"},
        {"name": "b", "image": "2"},
        {"name": "c", "image": "2"},
    ]


def test_the_delete_directive_takes_an_item() -> None:
    # given
    target = {"metadata": {"ownerReferences": [{"uid": "1", "name": "x"}, {"uid": "2", "name": "y"}]}}
    # when
    merged = strategic_merge(target, {"metadata": {"ownerReferences": [{"$patch": "delete", "uid": "1"}]}})
    # then
    assert merged["metadata"]["ownerReferences"] == [{"uid": "2", "name": "y"}]


def test_the_replace_directive_replaces_a_list_and_a_map() -> None:
    # when
    merged = strategic_merge(
        {"containers": [{"name": "a"}], "labels": {"x": "1"}},
        {"containers": [{"$patch": "replace"}, {"name": "b"}], "labels": {"$patch": "replace", "y": "2"}},
    )
    # then
    assert merged == {"containers": [{"name": "b"}], "labels": {"y": "2"}}


def test_finalizers_unite_and_can_be_taken_one_by_one() -> None:
    # when
    united = strategic_merge({"finalizers": ["a", "b"]}, {"finalizers": ["b", "c"]})
    taken = strategic_merge(united, {"$deleteFromPrimitiveList/finalizers": ["a"]})
    # then
    assert united == {"finalizers": ["a", "b", "c"]}
    assert taken == {"finalizers": ["b", "c"]}


def test_the_order_directive_orders_a_merged_list() -> None:
    # when
    merged = strategic_merge(
        {"env": [{"name": "a", "value": "1"}, {"name": "b", "value": "1"}]},
        {"$setElementOrder/env": [{"name": "b"}, {"name": "a"}], "env": [{"name": "a", "value": "2"}]},
    )
    # then
    assert merged["env"] == [{"name": "b", "value": "1"}, {"name": "a", "value": "2"}]


def test_a_list_without_a_merge_key_is_replaced() -> None:
    assert strategic_merge({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}
