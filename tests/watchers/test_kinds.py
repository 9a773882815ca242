"""The kinds that are watched, as rows."""

from __future__ import annotations

import pytest

from eventcore.keys import ObjectKey
from eventcore.objects import KINDS, LABEL_COMPONENT, RBAC_KINDS, Meta
from eventcore.settings import Settings
from watchers.kinds import KindRow, rows

ROWS = {row.kind: row for row in rows(Settings(proxy_ca_namespace="proxy-system", proxy_ca_secret="proxy-ca"))}


def test_there_is_one_row_for_every_kind_on_the_bus() -> None:
    found = [row.kind for row in rows(Settings())]
    assert sorted(found) == sorted(set(KINDS) - {"CAConfigMap", "ConfigMap", *RBAC_KINDS})


@pytest.mark.parametrize(
    ("switched_on", "kinds"),
    [
        (Settings(proxy_all_namespaced=True), set(RBAC_KINDS)),
        (Settings(enable_reflector=True), {"AnyRoleBinding"}),
        (Settings(proxy_all_namespaced=True, enable_reflector=True), set(RBAC_KINDS)),
    ],
)
def test_the_rbac_objects_of_everybody_are_watched_where_they_decide(switched_on: Settings, kinds: set[str]) -> None:
    found = {row.kind: row for row in rows(switched_on)}

    assert set(found) & set(RBAC_KINDS) == kinds
    assert all(found[kind].metadata_only for kind in kinds - {"AnyRoleBinding"})
    assert not any(found[kind].params() for kind in kinds)
    assert found["AnyRoleBinding"].path() == "/apis/rbac.authorization.k8s.io/v1/rolebindings"


@pytest.mark.parametrize("kind", ["Secret", "CASecret", "RoleBinding", "ClusterRole", "ClusterRoleBinding"])
def test_of_secrets_and_rbac_objects_only_the_metadata_is_asked_for(kind: str) -> None:
    assert ROWS[kind].metadata_only
    assert "as=PartialObjectMetadata;" in ROWS[kind].accept
    assert "as=PartialObjectMetadataList;" in ROWS[kind].accept_list


def test_our_own_objects_are_selected_by_label_and_the_ca_by_name() -> None:
    assert ROWS["Secret"].params() == {"labelSelector": LABEL_COMPONENT}
    assert ROWS["Secret"].path() == "/api/v1/secrets"
    assert ROWS["CASecret"].params() == {"fieldSelector": "metadata.name=proxy-ca"}
    assert ROWS["CASecret"].path() == "/api/v1/namespaces/proxy-system/secrets"


def test_the_ca_is_read_from_a_configmap_where_one_is_named() -> None:
    found = {row.kind: row for row in rows(Settings(proxy_ca_namespace="proxy-system", proxy_ca_configmap="ca"))}

    assert "CASecret" not in found
    assert found["CAConfigMap"].path() == "/api/v1/namespaces/proxy-system/configmaps"
    assert found["CAConfigMap"].params() == {"fieldSelector": "metadata.name=ca"}
    assert found["CAConfigMap"].metadata_only


def test_our_configmaps_are_read_where_accounts_may_ask_for_them() -> None:
    found = {row.kind: row for row in rows(Settings(kubeconfig_configmaps=True))}

    assert found["ConfigMap"].path() == "/api/v1/configmaps"
    assert found["ConfigMap"].params() == {"labelSelector": LABEL_COMPONENT}
    assert found["ConfigMap"].metadata_only


def test_paths_are_those_of_the_api_and_names_are_escaped() -> None:
    assert ROWS["Tenant"].path() == "/apis/capsule.clastix.io/v1beta2/tenants"
    target = ObjectKey("RoleBinding", "oil-system", "gitops:reader x")
    assert ROWS["RoleBinding"].object_path(target) == (
        "/apis/rbac.authorization.k8s.io/v1/namespaces/oil-system/rolebindings/gitops%3Areader%20x"
    )


def test_only_kinds_of_capsule_may_be_missing() -> None:
    optional = {"Tenant", "TenantOwner", "CapsuleConfiguration", "ProxySetting", "GlobalProxySettings"}
    assert {kind for kind, row in ROWS.items() if row.optional} == optional


@pytest.mark.parametrize(
    ("row", "meta", "selected"),
    [
        (ROWS["Secret"], Meta(name="a", namespace="n", labels={LABEL_COMPONENT: "token"}), True),
        (ROWS["Secret"], Meta(name="a", namespace="n", labels={"app": "x"}), False),
        (ROWS["CASecret"], Meta(name="proxy-ca", namespace="proxy-system"), True),
        (ROWS["CASecret"], Meta(name="proxy-ca", namespace="elsewhere"), False),
        (ROWS["CASecret"], Meta(name="other", namespace="proxy-system"), False),
        (ROWS["Namespace"], Meta(name="any"), True),
    ],
)
def test_a_single_object_is_held_against_the_selectors_of_its_row(row: KindRow, meta: Meta, *, selected: bool) -> None:
    assert row.selects(meta) is selected
