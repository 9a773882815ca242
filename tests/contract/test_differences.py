"""What the embedded cluster does otherwise: each line of the table in docs/devcluster.md, held on both sides."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import ApiServer, AsToken, Until
from tests.contract.tenants import NAMESPACES, RBAC, Tenancy, may
from tests.kubeapi import Client, Object

pytestmark = pytest.mark.xdist_group("contract")

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def test_the_version_says_which_of_the_two_it_is(admin: Client, apiserver: ApiServer) -> None:
    version = (await admin.get("/version")).body["gitVersion"]
    assert version.endswith("+tether-devcluster") is (apiserver.kind == "embedded")


@pytest.mark.parametrize(
    "path",
    [
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
        "/apis/capsule.clastix.io/v1beta2/resourcepools",
        "/apis/capsule.clastix.io/v1beta1/tenants",
    ],
)
async def test_groups_that_tether_does_not_need_are_left_out(admin: Client, apiserver: ApiServer, path: str) -> None:
    assert (await admin.get(path)).status == (404 if apiserver.kind == "embedded" else 200)


async def test_discovery_is_aggregated_or_group_by_group(admin: Client, apiserver: ApiServer) -> None:
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    found = await admin.get("/apis", headers={"Accept": f"{aggregated},application/json"})
    assert found.body["kind"] == ("APIGroupList" if apiserver.kind == "embedded" else "APIGroupDiscoveryList")


async def test_protobuf_is_read_by_both_and_written_by_one(admin: Client, apiserver: ApiServer) -> None:
    protobuf = "application/vnd.kubernetes.protobuf"
    found = await admin.get(NAMESPACES, headers={"Accept": f"{protobuf},application/json"})
    assert found.headers["Content-Type"] == ("application/json" if apiserver.kind == "embedded" else protobuf)


async def test_answers_tell_of_priority_and_fairness_and_audit(admin: Client, apiserver: ApiServer) -> None:
    headers = (await admin.get(NAMESPACES)).headers
    for header in ("X-Kubernetes-Pf-Flowschema-Uid", "Audit-Id"):
        assert (header in headers) is (apiserver.kind == "real")


async def test_a_pod_is_validated(admin: Client, apiserver: ApiServer, namespace: str) -> None:
    made = await admin.post(f"{NAMESPACES}/{namespace}/pods", {"metadata": {"name": "a"}, "spec": {}})
    assert made.status == (201 if apiserver.kind == "embedded" else 422)


async def test_a_quota_is_counted(admin: Client, apiserver: ApiServer, namespace: str, until: Until[Any]) -> None:
    path = f"{NAMESPACES}/{namespace}/resourcequotas"
    await admin.post(path, {"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "9"}}})
    # an object of the same namespace that controllers made after it tells that they had their turn
    await admin.delete(f"{NAMESPACES}/{namespace}/serviceaccounts/default")

    async def turn() -> bool:
        return (await admin.get(f"{NAMESPACES}/{namespace}/serviceaccounts/default")).status == 200

    async def counted() -> bool:
        return "hard" in (await admin.get(f"{path}/q")).body.get("status", {})

    await until(turn)
    if apiserver.kind == "real":
        await until(counted)
    else:
        assert not await counted()


async def test_rules_in_cel_are_evaluated(admin: Client, apiserver: ApiServer, name: str, until: Until[Any]) -> None:
    rule = {"rule": "self.size > 0", "message": "size must be positive"}
    size = {"type": "object", "properties": {"size": {"type": "integer"}}, "x-kubernetes-validations": [rule]}
    schema = {"type": "object", "properties": {"spec": size}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": f"{name}s", "kind": name.capitalize()}
    spec = {"group": "example.org", "scope": "Cluster", "names": names, "versions": [version]}
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await admin.post(definitions, {"metadata": {"name": f"{name}s.example.org"}, "spec": spec})
    things = f"/apis/example.org/v1/{name}s"

    async def served() -> bool:
        return (await admin.get(things)).status == 200

    await until(served)
    body = {"apiVersion": "example.org/v1", "kind": names["kind"], "metadata": {"name": "a"}, "spec": {"size": -1}}
    made = await admin.post(things, body)
    await admin.delete(f"{definitions}/{name}s.example.org")
    assert made.status == (201 if apiserver.kind == "embedded" else 422)


async def test_the_roles_of_kubernetes_own_controllers_are_there(admin: Client, apiserver: ApiServer) -> None:
    role = await admin.get(f"{RBAC}/clusterroles/system:controller:namespace-controller")
    assert role.status == (404 if apiserver.kind == "embedded" else 200)


async def test_capsule_s_other_features_are_left_out(tenancy: Tenancy, apiserver: ApiServer) -> None:
    # given a Tenant with labels for its namespaces and a quota
    labels = {"labels": {"example.org/team": "oil"}}
    await tenancy.make(
        namespaceOptions={"additionalMetadataList": [labels]},
        resourceQuotas={"scope": "Namespace", "items": [{"hard": {"count/configmaps": "9"}}]},
    )
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    await tenancy.status(size=1)

    async def features() -> tuple[bool, bool]:
        namespace: Object = (await tenancy.admin.get(f"{NAMESPACES}/{name}")).body
        quotas = await tenancy.admin.names(f"{NAMESPACES}/{name}/resourcequotas")
        return "example.org/team" in namespace["metadata"]["labels"], bool(quotas)

    async def both() -> bool:
        return await features() == (True, True)

    # then
    await tenancy.until(lambda: may(tenancy.owner, "create", "configmaps", namespace=name))
    if apiserver.kind == "real":
        await tenancy.until(both)
    else:
        assert await features() == (False, False)


async def test_a_token_ends_with_its_account_at_once_or_within_ten_seconds(
    admin: Client, as_token: AsToken, apiserver: ApiServer, namespace: str, until: Until[Any]
) -> None:
    # given
    made = await admin.post(f"{NAMESPACES}/{namespace}/serviceaccounts/default/token", {"spec": {}})
    client = await as_token(made.body["status"]["token"])

    async def ended() -> bool:
        return (await client.post(WHOAMI, {})).status == 401

    assert not await ended()
    # when
    await admin.delete(f"{NAMESPACES}/{namespace}/serviceaccounts/default")
    # then: an API server keeps what it found out about a token for ten seconds
    assert await ended() is (apiserver.kind == "embedded")
    await until(ended)
