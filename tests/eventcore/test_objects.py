"""What of an object goes on the bus: never managedFields, never a Secret's content."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventcore import objects
from eventcore.errors import EventError
from eventcore.objects import OWN_PREFIX, CapsuleConfiguration, Namespace, Tenant
from eventcore.publishable import ADDON_PREFIX, publishable, tombstone, withheld
from tests.hostile_objects import hostile_object
from workers.reflection import LABEL_SHARED

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=5,
)


def test_a_namespace_keeps_all_but_managed_fields_and_the_last_applied_configuration() -> None:
    given: dict[str, Any] = {
        "kind": "Namespace",
        "metadata": {"name": "a", "managedFields": [{}], "annotations": {objects.LAST_APPLIED: "{}", "kept": "yes"}},
        "spec": {"finalizers": ["kubernetes"]},
    }
    published = json.loads(publishable("Namespace", json.dumps(given).encode()))
    assert published == {
        "kind": "Namespace",
        "metadata": {"name": "a", "annotations": {"kept": "yes"}},
        "spec": {"finalizers": ["kubernetes"]},
    }


@pytest.mark.parametrize("kind", ["Secret", "CASecret", "CAConfigMap", "ConfigMap"])
@given(extra=st.dictionaries(st.sampled_from(["data", "stringData", "immutable", "x"]), json_values))
def test_of_a_secret_nothing_but_metadata_is_published(kind: str, extra: dict[str, Any]) -> None:
    given = extra | {
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": "s",
            "namespace": "n",
            "uid": "u",
            "labels": {"l": "1", objects.LABEL_COMPONENT: "token"},
            "annotations": {"capsule-tether.io/account": "n/a", "other": "hidden", objects.LAST_APPLIED: "secret"},
            "managedFields": [{"x": "hidden"}],
        },
    }
    assert json.loads(publishable(kind, json.dumps(given).encode())) == {
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": "s",
            "namespace": "n",
            "uid": "u",
            "labels": {objects.LABEL_COMPONENT: "token"},
            "annotations": {"capsule-tether.io/account": "n/a"},
        },
    }


def test_a_tombstone_holds_the_last_metadata_only() -> None:
    body = json.dumps(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "uid": "u"}, "status": {"phase": "x"}}
    )
    assert json.loads(tombstone("Namespace", body.encode())) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "a", "uid": "u"},
    }


def test_a_tenant_of_an_old_capsule_has_no_status_owners() -> None:
    tenant = objects.decode_object("Tenant", b'{"metadata":{"name":"oil"},"status":{"state":"Active","size":0}}')
    assert isinstance(tenant, Tenant)
    assert tenant.status.owners is None
    assert tenant.spec.owners == []


def test_field_names_are_those_of_the_api() -> None:
    tenant = objects.decode_object(
        "Tenant",
        b'{"metadata":{"name":"oil","resourceVersion":"7","ownerReferences":[{"apiVersion":"v1","uid":"u"}]},'
        b'"spec":{"owners":[{"kind":"Group","name":"g","clusterRoles":["admin"]}],'
        b'"permissions":{"matchOwners":[{"matchLabels":{"a":"b"}}],"allowOwnerPromotion":false}},'
        b'"status":{"observedGeneration":3}}',
    )
    assert isinstance(tenant, Tenant)
    assert tenant.metadata.resource_version == "7"
    assert tenant.metadata.owner_references[0].uid == "u"
    assert tenant.spec.permissions.match_owners[0].match_labels == {"a": "b"}
    assert not tenant.spec.permissions.allow_owner_promotion
    assert tenant.status.observed_generation == 3


def test_a_namespace_that_is_being_deleted_is_terminating() -> None:
    for body in (
        b'{"metadata":{"name":"a"},"status":{"phase":"Terminating"}}',
        b'{"metadata":{"name":"a","deletionTimestamp":"2026-01-01T00:00:00Z"}}',
    ):
        namespace = objects.decode_object("Namespace", body)
        assert isinstance(namespace, Namespace)
        assert namespace.terminating


def test_users_of_every_capsule_version_decode() -> None:
    config = objects.decode_object(
        "CapsuleConfiguration",
        b'{"metadata":{"name":"default"},"spec":{"userGroups":["g"],"userNames":["u"],"users":[{"kind":"User","name":"x"}]}}',
    )
    assert isinstance(config, CapsuleConfiguration)
    assert (config.spec.user_groups, config.spec.user_names, config.spec.users[0].name) == (["g"], ["u"], "x")
    assert config.status.users is None


@pytest.mark.parametrize("kind", ["Tenant", "Pod"])
def test_what_cannot_be_read_is_an_event_error(kind: str) -> None:
    with pytest.raises(EventError):
        objects.decode_object(kind, b'{"metadata":"nonsense"}')


def test_of_a_rolebinding_only_whom_it_names_goes_on_the_bus() -> None:
    subjects = [{"kind": "User", "name": "dana"}]
    given = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {
            "name": "a",
            "labels": {"l": "1", LABEL_SHARED: "true"},
            "annotations": {"note": "x"},
            "managedFields": [{}],
        },
        "subjects": subjects,
        "roleRef": {"kind": "Role", "name": "r"},
        "more": "x",
    }

    assert json.loads(publishable("AnyRoleBinding", json.dumps(given).encode())) == {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "a", "labels": {LABEL_SHARED: "true"}},
        "subjects": subjects,
    }


@pytest.mark.parametrize("kind", sorted(set(objects.KINDS) - {"Namespace"}))
@settings(max_examples=10, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_of_any_object_its_struct_reads_the_same_before_and_after(kind: str, data: st.DataObject) -> None:
    raw = msgspec.json.encode(data.draw(hostile_object(kind)))
    slim = publishable(kind, raw)

    before, after = objects.decode_object(kind, raw), objects.decode_object(kind, slim)

    # all that is read is there, but for the labels, annotations and references of others
    assert msgspec.structs.replace(after, metadata=before.metadata) == before
    kept = (OWN_PREFIX, ADDON_PREFIX)
    assert after.metadata.annotations == {k: v for k, v in before.metadata.annotations.items() if k.startswith(kept)}
    assert after.metadata.labels.items() <= before.metadata.labels.items()
    assert after.metadata.labels.get(objects.LABEL_COMPONENT) == before.metadata.labels.get(objects.LABEL_COMPONENT)
    # and to publish what was published changes nothing
    assert publishable(kind, slim) == slim


def test_of_a_tenant_of_three_thousand_namespaces_the_status_takes_little() -> None:
    # given what Capsule 0.14 writes of each namespace
    spaces = [
        {
            "name": f"oil-{number}",
            "uid": "0b4f8a0e-97a8-4b3b-9a3d-2f6f1fdc9d4e",
            "metadata": {"labels": {"a": "b" * 63}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "reconciled" * 10}],
        }
        for number in range(3000)
    ]
    names = [one["name"] for one in spaces]
    owners = [{"kind": "User", "name": "dana", "clusterRoles": ["admin"]}]
    status = {"spaces": spaces, "namespaces": names, "owners": owners, "observedGeneration": 3, "state": "Active"}
    raw = msgspec.json.encode({"metadata": {"name": "oil"}, "spec": {"owners": owners}, "status": status})
    assert len(raw) > 1_000_000

    slim = publishable("Tenant", raw)

    assert len(slim) < 1000
    tenant = objects.decode_object("Tenant", slim)
    assert isinstance(tenant, Tenant)
    assert tenant.status.owners == tenant.spec.owners
    assert tenant.status.observed_generation == 3


@pytest.mark.parametrize("kind", sorted(objects.KINDS))
def test_what_stands_for_an_object_decodes_and_is_being_deleted(kind: str) -> None:
    found = objects.decode_object(kind, withheld(kind, "oil", "n", "u", "7"))
    assert (found.metadata.name, found.metadata.uid, found.metadata.resource_version) == ("oil", "u", "7")
    assert found.metadata.deletion_timestamp is not None
    assert found.metadata.labels == found.metadata.annotations == {}
    assert found.metadata.owner_references == []
