"""Discovery: what a client learns before its first request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import AsToken
from tests.kubeapi import Client, Kubectl, Object

pytestmark = pytest.mark.xdist_group("contract")

ALL_VERBS = {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}


def _row(listed: Any, name: str) -> Object:
    return next(row for row in listed["resources"] if row["name"] == name)


async def test_the_groups_that_tether_uses_are_served(admin: Client) -> None:
    # when
    groups = (await admin.get("/apis")).body
    core = (await admin.get("/api")).body
    # then
    assert (groups["kind"], core["kind"]) == ("APIGroupList", "APIVersions")
    preferred = {group["name"]: group["preferredVersion"]["version"] for group in groups["groups"]}
    assert core["versions"] == ["v1"]
    assert {
        "apiextensions.k8s.io": "v1",
        "authentication.k8s.io": "v1",
        "authorization.k8s.io": "v1",
        "rbac.authorization.k8s.io": "v1",
        "capsule.clastix.io": "v1beta2",
    }.items() <= preferred.items()


async def test_the_authorities_of_client_certificates_are_published(admin: Client) -> None:
    # when
    found = await admin.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
    # then
    assert found.status == 200
    assert found.body["data"]["client-ca-file"].startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize(
    ("path", "name", "kind", "namespaced", "short"),
    [
        ("/api/v1", "namespaces", "Namespace", False, ["ns"]),
        ("/api/v1", "serviceaccounts", "ServiceAccount", True, ["sa"]),
        ("/api/v1", "secrets", "Secret", True, []),
        ("/api/v1", "configmaps", "ConfigMap", True, ["cm"]),
        ("/apis/rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", True, []),
        ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", False, []),
        (
            "/apis/apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            False,
            ["crd", "crds"],
        ),
        ("/apis/capsule.clastix.io/v1beta2", "tenants", "Tenant", False, ["tnt"]),
        ("/apis/capsule.clastix.io/v1beta2", "tenantowners", "TenantOwner", False, ["to"]),
        ("/apis/capsule.clastix.io/v1beta2", "capsuleconfigurations", "CapsuleConfiguration", False, []),
    ],
)
async def test_a_resource_tells_its_kind_scope_short_names_and_verbs(
    admin: Client, path: str, name: str, kind: str, namespaced: bool, short: list[str]
) -> None:
    # when
    listed = (await admin.get(path)).body
    # then
    row = _row(listed, name)
    assert (listed["kind"], listed["groupVersion"]) == ("APIResourceList", path.split("/", 2)[2])
    assert (row["kind"], row["namespaced"], row.get("shortNames", [])) == (kind, namespaced, short)
    # kube-apiserver leaves deletecollection out for namespaces alone
    assert set(row["verbs"]) | {"deletecollection"} == ALL_VERBS
    assert ("deletecollection" in row["verbs"]) is (name != "namespaces")


@pytest.mark.parametrize(
    ("path", "name", "verbs"),
    [
        ("/api/v1", "serviceaccounts/token", {"create"}),
        ("/api/v1", "namespaces/status", {"get", "patch", "update"}),
        ("/api/v1", "namespaces/finalize", {"update"}),
        ("/apis/authentication.k8s.io/v1", "tokenreviews", {"create"}),
        ("/apis/authentication.k8s.io/v1", "selfsubjectreviews", {"create"}),
        ("/apis/authorization.k8s.io/v1", "subjectaccessreviews", {"create"}),
        ("/apis/authorization.k8s.io/v1", "selfsubjectrulesreviews", {"create"}),
        ("/apis/capsule.clastix.io/v1beta2", "tenants/status", {"get", "patch", "update"}),
        ("/apis/capsule.clastix.io/v1beta2", "capsuleconfigurations/status", {"get", "patch", "update"}),
    ],
)
async def test_subresources_and_reviews_tell_their_verbs(admin: Client, path: str, name: str, verbs: set[str]) -> None:
    # when
    listed = (await admin.get(path)).body
    # then
    assert set(_row(listed, name)["verbs"]) == verbs


async def test_an_unknown_path_group_or_resource_is_not_found(admin: Client) -> None:
    for path in ("/apis/no.such.group/v1", "/apis/rbac.authorization.k8s.io/v9", "/api/v1/nosuchthings", "/nothing"):
        # when
        answer = await admin.get(path)
        # then
        assert answer.status == 404, path


async def test_health_and_version_need_no_credentials(as_token: AsToken) -> None:
    # given
    nobody = await as_token("")
    # then
    for path in ("/healthz", "/livez", "/readyz"):
        assert ((await nobody.get(path)).status, (await nobody.get(path)).body) == (200, "ok")
    version = await nobody.get("/version")
    assert (version.status, version.body["major"]) == (200, "1")


async def test_the_issuer_s_documents_let_anybody_verify_tokens(admin: Client) -> None:
    # when
    configuration = (await admin.get("/.well-known/openid-configuration")).body
    keys = (await admin.get("/openid/v1/jwks", headers={"Accept": "application/jwk-set+json"})).body
    # then
    assert {"issuer", "jwks_uri"} <= set(configuration)
    assert '"keys"' in keys if isinstance(keys, str) else keys["keys"]


async def test_kubectl_api_resources_shows_capsule_s_kinds(kubectl: Kubectl) -> None:
    # when
    shown = await kubectl("api-resources", "--api-group=capsule.clastix.io", "--no-headers")
    # then
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["tenants", "tnt", "capsule.clastix.io/v1beta2", "false", "Tenant"] in rows


async def test_kubectl_explains_a_field(kubectl: Kubectl) -> None:
    # when
    shown = await kubectl("explain", "tenants.spec.owners.kind")
    # then
    assert "GROUP:      capsule.clastix.io" in shown.out
    assert "FIELD: kind" in shown.out
