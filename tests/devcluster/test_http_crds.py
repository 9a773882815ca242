"""Custom kinds: served as soon as they are defined, by every version, with defaults, pruning and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tether.devcluster.crds import version_rank
from tether.devcluster.objects import clone

if TYPE_CHECKING:
    from tests.kubeapi import Client
    from tether.devcluster.contracts import Object

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.org/v1/namespaces/default/widgets"

SCHEMA: Any = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "parts": {
                    "type": "array",
                    "maxItems": 2,
                    "items": {"type": "object", "properties": {"on": {"type": "boolean", "default": True}}},
                },
                "port": {"x-kubernetes-int-or-string": True},
                "maybe": {"type": "string", "nullable": True},
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


def _definition(**spec: Any) -> Any:
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": SCHEMA},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    names = {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]}
    whole = {"group": "example.org", "scope": "Namespaced", "names": names, "versions": [version]} | spec
    return {"metadata": {"name": f"{whole['names']['plural']}.{whole['group']}"}, "spec": whole}


def _widget(name: str = "w", **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"size": 1} | spec}


@pytest.fixture
async def widgets(client: Client) -> Client:
    made = await client.post(CRDS, _definition())
    assert made.status == 201, made.body
    return client


async def test_a_definition_is_served_at_once_and_says_so(client: Client) -> None:
    # given
    assert (await client.get(WIDGETS)).status == 404
    # when
    made = (await client.post(CRDS, _definition())).body
    # then
    conditions = {condition["type"]: condition["status"] for condition in made["status"]["conditions"]}
    assert conditions == {"Established": "True", "NamesAccepted": "True"}
    assert made["status"]["acceptedNames"]["listKind"] == "WidgetList"
    assert made["status"]["storedVersions"] == ["v1"]
    assert (await client.get(WIDGETS)).body["kind"] == "WidgetList"
    rows = (await client.get("/apis/example.org/v1")).body["resources"]
    assert [row["name"] for row in rows] == ["widgets", "widgets/status"]
    assert rows[0]["shortNames"] == ["wd"]
    # when
    await client.delete(f"{CRDS}/widgets.example.org")
    # then
    assert (await client.get(WIDGETS)).status == 404
    assert (await client.get("/apis/example.org/v1")).status == 404


async def test_defaults_are_filled_and_unknown_fields_are_pruned(widgets: Client) -> None:
    # when
    body = _widget(unknown=1, free={"any": [1]}, parts=[{"x": 1}], labels={"a": "b"}) | {"top": 1}
    made = await widgets.post(WIDGETS, body)
    # then
    assert made.status == 201
    assert made.body["spec"] == {
        "size": 1,
        "colour": "red",
        "free": {"any": [1]},
        "parts": [{"on": True}],
        "labels": {"a": "b"},
    }
    assert "top" not in made.body
    assert 'unknown field \\"spec.unknown\\"' in made.headers["Warning"]


async def test_strict_validation_refuses_an_unknown_field(widgets: Client) -> None:
    # when
    refused = await widgets.post(f"{WIDGETS}?fieldValidation=Strict", _widget(unknown=1))
    # then
    assert refused.status == 400
    assert refused.body["message"] == 'strict decoding error: unknown field "spec.unknown"'


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"size": "1"}, 'spec.size in body must be of type integer: "string"'),
        ({"size": True}, 'must be of type integer: "boolean"'),
        ({"size": 0}, "should be at least 1"),
        ({"size": 10}, "should be at most 9"),
        ({"size": 1, "colour": "green"}, 'spec.colour: Unsupported value: "green": supported values: "red", "blue"'),
        ({"size": 1, "name": "A"}, "should match '^[a-z]+$'"),
        ({"size": 1, "name": "abcdef"}, "should be at most 5 chars long"),
        ({"size": 1, "parts": [{}, {}, {}]}, "should be at most 2 items"),
        ({"size": 1, "parts": [{"on": "yes"}]}, "spec.parts[0].on"),
        ({"size": 1, "labels": {"a": 1}}, "spec.labels.a"),
        ({"size": 1, "port": []}, "integer or string"),
        ({}, "spec.size: Required value"),
        ([], 'spec in body must be of type object: "array"'),
    ],
)
async def test_an_object_that_breaks_its_schema_is_invalid(widgets: Client, spec: Any, words: str) -> None:
    # when
    refused = await widgets.post(WIDGETS, {"metadata": {"name": "w"}, "spec": spec})
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert refused.body["message"].startswith('Widget.example.org "w" is invalid: ')
    assert words in refused.body["message"]


async def test_a_nullable_field_may_be_null(widgets: Client) -> None:
    # when
    made = await widgets.post(WIDGETS, _widget(maybe=None, port="http"))
    # then
    assert (made.status, made.body["spec"]["maybe"]) == (201, None)


async def test_status_has_its_own_endpoint(widgets: Client) -> None:
    # given
    made = (await widgets.post(WIDGETS, _widget() | {"status": {"x": 1}})).body
    assert "status" not in made
    # when
    status = await widgets.patch(f"{WIDGETS}/w/status", {"status": {"ready": True}, "spec": {"size": 5}})
    main = await widgets.patch(f"{WIDGETS}/w", {"status": {"ready": False}, "spec": {"size": 6}})
    # then
    assert (status.body["status"], status.body["spec"]["size"]) == ({"ready": True}, 1)
    assert (main.body["status"], main.body["spec"]["size"]) == ({"ready": True}, 6)
    assert main.body["metadata"]["generation"] == 2
    entries = {entry.get("subresource", ""): entry["fieldsV1"] for entry in main.body["metadata"]["managedFields"]}
    assert entries["status"] == {"f:status": {"f:ready": {}}}


async def test_a_status_is_applied_apart_from_the_specification(widgets: Client) -> None:
    # given
    await widgets.apply(f"{WIDGETS}/w", _typed(_widget()), "one")
    # when
    applied = await widgets.apply(f"{WIDGETS}/w/status", _typed(_widget() | {"status": {"a": "b"}}), "two")
    refused = await widgets.apply(f"{WIDGETS}/w/status", _typed(_widget() | {"status": {"a": "c"}}), "three")
    # then
    assert applied.body["status"] == {"a": "b"}
    assert refused.body["message"] == (
        'Apply failed with 1 conflict: conflict with "two" with subresource "status": .status.a'
    )


def _typed(body: Object) -> Object:
    return {"apiVersion": "example.org/v1", "kind": "Widget"} | body


async def test_defaults_are_not_owned_by_the_applier(widgets: Client) -> None:
    # when
    made = (await widgets.apply(f"{WIDGETS}/w", _typed(_widget()), "one")).body
    # then
    assert made["spec"]["colour"] == "red"
    assert made["metadata"]["managedFields"][0]["fieldsV1"] == {"f:spec": {"f:size": {}}}


async def test_a_replacement_of_a_custom_object_must_state_its_version(widgets: Client) -> None:
    # given
    made = (await widgets.post(WIDGETS, _widget())).body
    # when
    refused = await widgets.put(f"{WIDGETS}/w", _widget(size=2))
    taken = await widgets.put(f"{WIDGETS}/w", made | {"spec": {"size": 2}})
    # then
    assert refused.status == 422
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in refused.body["message"]
    assert taken.status == 200


async def test_a_strategic_merge_patch_is_not_for_custom_kinds(widgets: Client) -> None:
    # given
    await widgets.post(WIDGETS, _widget())
    # when
    refused = await widgets.patch(f"{WIDGETS}/w", {"spec": {"size": 2}}, "strategic-merge-patch+json")
    # then
    assert (refused.status, refused.body["reason"]) == (415, "UnsupportedMediaType")


async def test_columns_are_printed_from_their_paths(widgets: Client) -> None:
    # given
    await widgets.post(WIDGETS, _widget())
    condition = {"type": "Ready", "status": "True"}
    await widgets.patch(f"{WIDGETS}/w/status", {"status": {"conditions": [{"type": "Other"}, condition]}})
    # when
    table = (await widgets.get(WIDGETS, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})).body
    # then
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Size", "Ready", "Age"]
    assert table["rows"][0]["cells"][:3] == ["w", 1, "True"]
    assert table["rows"][0]["cells"][3].endswith("s")


async def test_an_object_is_read_in_every_served_version(client: Client) -> None:
    # given
    definition = _definition()
    old = clone(definition["spec"]["versions"][0]) | {"name": "v1beta1", "storage": False}
    definition["spec"]["versions"].append(old)
    await client.post(CRDS, definition)
    beta = WIDGETS.replace("v1", "v1beta1")
    # when
    made = await client.post(beta, _widget() | {"apiVersion": "example.org/v1beta1", "kind": "Widget"})
    # then
    assert made.body["apiVersion"] == "example.org/v1beta1"
    assert (await client.get(f"{WIDGETS}/w")).body["apiVersion"] == "example.org/v1"
    assert (await client.get(beta)).body["items"][0]["apiVersion"] == "example.org/v1beta1"
    group = (await client.get("/apis/example.org")).body
    assert group["preferredVersion"]["version"] == "v1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scope": "Galaxy"}, "spec.scope: Unsupported value"),
        ({"group": "plain"}, "should be a domain with at least one dot"),
        ({"group": "evil.k8s.io"}, "protected groups must have approval annotation"),
        ({"versions": []}, "spec.versions: Required value"),
        ({"versions": [{"name": "v1", "served": True, "storage": True}]}, "schemas are required"),
    ],
)
async def test_a_definition_that_cannot_be_served_is_invalid(client: Client, change: Any, words: str) -> None:
    # when
    refused = await client.post(CRDS, _definition(**change))
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    assert words in refused.body["message"]


async def test_a_definition_keeps_its_scope(widgets: Client) -> None:
    # when
    refused = await widgets.patch(f"{CRDS}/widgets.example.org", {"spec": {"scope": "Cluster"}})
    # then
    assert refused.status == 422
    assert "spec.scope: Invalid value" in refused.body["message"]


async def test_a_cluster_scoped_kind_has_no_namespace(client: Client) -> None:
    # given
    await client.post(CRDS, _definition(scope="Cluster"))
    # when
    made = await client.post("/apis/example.org/v1/widgets", _widget())
    # then
    assert made.status == 201
    assert "namespace" not in made.body["metadata"]
    assert (await client.get(WIDGETS)).status == 404


def test_versions_are_preferred_as_kubernetes_does() -> None:
    names = ["v1alpha1", "foo", "v2", "v1beta2", "v10", "v1", "v1beta10"]
    assert sorted(names, key=version_rank, reverse=True) == [
        "v10",
        "v2",
        "v1",
        "v1beta10",
        "v1beta2",
        "v1alpha1",
        "foo",
    ]
