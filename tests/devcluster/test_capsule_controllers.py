"""Capsule's controllers: status, rights of owners in each namespace, the right to create one, and how it all ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tether.devcluster import bootstrap, capsule, controllers
from tether.devcluster.capsule_crds import GROUP
from tether.devcluster.contracts import Attributes, Object, UserInfo
from tether.devcluster.objects import labels_of, name_of
from tether.devcluster.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, RbacAuthorizer
from tether.devcluster.resources import CONFIG_MAPS, CRDS, NAMESPACES, SERVICE_ACCOUNTS
from tether.devcluster.store import Store
from tether.devcluster.tokens import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kubeapi import Client
    from tether.devcluster.api import EmbeddedApi
    from tether.devcluster.contracts import Resource
    from tether.devcluster.pki import ClusterPki

ACCOUNT = "system:serviceaccount:oil-system:gitops"
OWNER = {"kind": "ServiceAccount", "name": ACCOUNT}
GITOPS = UserInfo(
    username=ACCOUNT, groups=("system:serviceaccounts", "system:serviceaccounts:oil-system", "system:authenticated")
)
TENANT = "capsule.clastix.io/tenant"


class Cluster:
    """A store with Kubernetes' and Capsule's controllers, which work when ``settle`` is called."""

    def __init__(self, pki: ClusterPki) -> None:
        self.store = Store()
        bootstrap.apply(self.store)
        for definition in capsule.CAPSULE_CRDS:
            self.store.create(CRDS, definition)
        self.store.create(NAMESPACES, {"metadata": {"name": "oil-system"}})
        self.issuer = TokenIssuer(self.store, pki)
        self.authorizer = RbacAuthorizer(self.store)

    def settle(self) -> None:
        every = [*controllers.kubernetes(self.store, self.issuer), *capsule.capsule_controllers(self.store)]
        controllers.settle(self.store, every)

    def kind(self, plural: str) -> Resource:
        found = self.store.resource(GROUP, plural)
        assert found is not None
        return found

    def put(self, plural: str, name: str, spec: Object, **labels: str) -> Object:
        """Create or change one of Capsule's objects, and let the controllers work."""
        kind = self.kind(plural)
        found = self.store.get(kind, "", name)
        meta = dict(found["metadata"]) if found else {"name": name}
        body = {"apiVersion": kind.api_version, "metadata": meta | {"labels": labels}, "spec": spec}
        stored = self.store.update(kind, body) if found else self.store.create(kind, body)
        self.settle()
        return stored

    def tenant(self, name: str = "oil", **spec: Any) -> Object:
        return self.put("tenants", name, {"owners": [OWNER], **spec})

    def namespace(self, name: str, tenant: str = "oil") -> None:
        """Create a namespace as the webhook leaves it, and let the controllers work."""
        owner = self.get("tenants", tenant)
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": "Tenant",
            "name": tenant,
            "uid": owner["metadata"]["uid"],
        }
        meta = {"name": name, "labels": {TENANT: tenant}, "ownerReferences": [reference]}
        self.store.create(NAMESPACES, {"metadata": meta})
        self.settle()

    def get(self, plural: str, name: str) -> Object:
        found = self.store.get(self.kind(plural), "", name)
        assert found is not None
        return found

    def status(self, name: str = "oil") -> Object:
        status = self.get("tenants", name)["status"]
        assert isinstance(status, dict)
        return status

    def roles(self, namespace: str) -> list[str]:
        """Return the roles bound in a namespace, one for each binding."""
        return sorted(binding["roleRef"]["name"] for binding in self.store.list(ROLE_BINDINGS, namespace))

    def may(self, verb: str, resource: str, namespace: str = "", *, user: UserInfo = GITOPS) -> bool:
        name = namespace if resource == "namespaces" else ""
        asked = Attributes(user=user, verb=verb, resource=resource, namespace=namespace, name=name)
        return self.authorizer.authorize(asked)[0]


@pytest.fixture
def cluster(pki: ClusterPki) -> Iterator[Cluster]:
    cluster = Cluster(pki)
    cluster.tenant()
    yield cluster
    cluster.store.close()


def condition(status: Object, type_: str) -> tuple[str, str]:
    found = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    return found[type_]


def test_a_new_tenant_is_ready_and_empty(cluster: Cluster) -> None:
    tenant, status = cluster.get("tenants", "oil"), cluster.status()

    assert labels_of(tenant)["kubernetes.io/metadata.name"] == "oil"
    assert tenant["metadata"]["finalizers"] == ["controller.projectcapsule.dev/finalize"]
    assert (status["state"], status["size"], status["namespaces"], status["spaces"]) == ("Active", 0, [], [])
    assert status["observedGeneration"] == tenant["metadata"]["generation"]
    assert condition(status, "Ready") == ("True", "Succeeded")
    assert condition(status, "Cordoned") == ("False", "Active")
    assert status["owners"] == [{**OWNER, "clusterRoles": ["admin", "capsule-namespace-deleter"]}]


def test_the_status_lists_the_namespaces_in_order_with_their_uids(cluster: Cluster) -> None:
    for name in ("oil-b", "oil-a"):
        cluster.namespace(name)

    status = cluster.status()

    assert (status["size"], status["namespaces"]) == (2, ["oil-a", "oil-b"])
    for space in status["spaces"]:
        namespace = cluster.store.get(NAMESPACES, "", space["name"])
        assert namespace is not None
        assert space["uid"] == namespace["metadata"]["uid"]
        assert condition(space, "Ready") == ("True", "Succeeded")


def test_a_deleted_namespace_leaves_the_status(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    cluster.store.delete(NAMESPACES, "", "oil-a")

    cluster.settle()

    assert (cluster.status()["size"], cluster.status()["namespaces"]) == (0, [])


def test_nothing_changes_once_all_is_settled(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    version = cluster.store.version

    cluster.settle()

    assert cluster.store.version == version


def test_owners_are_the_union_of_the_tenant_s_the_matched_and_the_administrators(cluster: Cluster) -> None:
    cluster.put("tenantowners", "eve", {"kind": "User", "name": "eve", "clusterRoles": ["view"]}, team="oil")
    cluster.put("tenantowners", "dana", {"kind": "User", "name": "dana", "clusterRoles": ["edit"]}, team="oil")
    cluster.put("tenantowners", "far", {"kind": "User", "name": "far"}, team="gas")
    cluster.put("capsuleconfigurations", "default", {"administrators": [{"kind": "Group", "name": "ops"}]})

    cluster.tenant(
        owners=[OWNER, {"kind": "User", "name": "dana", "clusterRoles": ["admin"]}],
        permissions={"matchOwners": [{"matchLabels": {"team": "oil"}}]},
    )

    assert cluster.status()["owners"] == [
        {"kind": "Group", "name": "ops", "clusterRoles": ["capsule-namespace-deleter"]},
        {**OWNER, "clusterRoles": ["admin", "capsule-namespace-deleter"]},
        {"kind": "User", "name": "dana", "clusterRoles": ["admin", "edit"]},
        {"kind": "User", "name": "eve", "clusterRoles": ["view"]},
    ]
    assert cluster.get("tenantowners", "eve")["status"]["tenants"] == ["oil"]
    assert cluster.get("tenantowners", "far")["status"]["tenants"] == []


def test_a_tenant_owner_that_goes_takes_its_ownership_and_rights_along(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    cluster.put("tenantowners", "eve", {"kind": "User", "name": "eve"}, **{"projectcapsule.dev/tenant": "oil"})
    eve = UserInfo(username="eve")
    assert cluster.may("get", "secrets", "oil-a", user=eve)
    assert cluster.may("create", "namespaces", user=eve)

    cluster.store.delete(cluster.kind("tenantowners"), "", "eve")
    cluster.settle()

    assert [owner["name"] for owner in cluster.status()["owners"]] == [ACCOUNT]
    assert not cluster.may("get", "secrets", "oil-a", user=eve)
    assert not cluster.may("create", "namespaces", user=eve)


def test_a_tenant_that_no_longer_selects_a_tenant_owner_takes_its_rights_back(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    cluster.put("tenantowners", "eve", {"kind": "User", "name": "eve"}, team="oil")
    eve = UserInfo(username="eve")
    cluster.tenant(permissions={"matchOwners": [{"matchLabels": {"team": "oil"}}]})
    assert cluster.get("tenantowners", "eve")["status"]["tenants"] == ["oil"]
    assert cluster.may("get", "secrets", "oil-a", user=eve)

    cluster.tenant(permissions={"matchOwners": [{"matchLabels": {"team": "gas"}}]})

    assert cluster.get("tenantowners", "eve")["status"]["tenants"] == []
    assert not cluster.may("get", "secrets", "oil-a", user=eve)


def test_a_tenant_owner_that_changes_its_label_changes_its_tenant(cluster: Cluster) -> None:
    cluster.tenant("gas", owners=[])
    eve: Object = {"kind": "User", "name": "eve", "clusterRoles": ["view"]}
    cluster.put("tenantowners", "eve", eve, **{"projectcapsule.dev/tenant": "oil"})
    assert cluster.status("gas")["owners"] == []

    cluster.put("tenantowners", "eve", eve, **{"projectcapsule.dev/tenant": "gas"})

    assert cluster.status("gas")["owners"] == [eve]
    assert [owner["name"] for owner in cluster.status("oil")["owners"]] == [ACCOUNT]


def test_owners_hold_their_roles_in_each_namespace_of_the_tenant_alone(cluster: Cluster) -> None:
    cluster.tenant(
        owners=[OWNER, {"kind": "Group", "name": "devs", "clusterRoles": ["view"]}],
        additionalRoleBindings=[{"clusterRoleName": "edit", "subjects": [{"kind": "User", "name": "omar"}]}],
    )
    cluster.namespace("oil-a")
    cluster.namespace("oil-b")

    for namespace in ("oil-a", "oil-b"):
        assert cluster.roles(namespace) == ["admin", "capsule-namespace-deleter", "edit", "view"]
        assert cluster.may("create", "secrets", namespace)
        assert cluster.may("delete", "namespaces", namespace)
        assert cluster.may("create", "pods", namespace, user=UserInfo(username="omar"))
        assert not cluster.may("create", "pods", namespace, user=UserInfo(username="x", groups=("devs",)))
    assert not cluster.may("get", "secrets", "oil-system")
    assert cluster.roles("oil-system") == []


def test_a_role_binding_of_capsule_carries_its_labels_and_owner(cluster: Cluster) -> None:
    cluster.namespace("oil-a")

    for binding in cluster.store.list(ROLE_BINDINGS, "oil-a"):
        digest = labels_of(binding)["capsule.clastix.io/role-binding"]
        assert name_of(binding) == f"capsule:managed:{digest}"
        assert labels_of(binding)["projectcapsule.dev/tenant"] == "oil"
        assert labels_of(binding)["projectcapsule.dev/managed-by"] == "controller"
        (owner,) = binding["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("Tenant", "oil", True)


def test_an_owner_that_is_removed_loses_its_rights(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    assert cluster.may("get", "secrets", "oil-a")

    cluster.tenant(owners=[{"kind": "User", "name": "dana"}])

    assert not cluster.may("get", "secrets", "oil-a")
    assert cluster.may("get", "secrets", "oil-a", user=UserInfo(username="dana"))


@pytest.mark.parametrize("damage", ["deleted", "subjects", "labels"])
def test_a_damaged_role_binding_is_repaired(cluster: Cluster, damage: str) -> None:
    cluster.namespace("oil-a")
    binding = cluster.store.list(ROLE_BINDINGS, "oil-a")[0]
    if damage == "deleted":
        cluster.store.delete(ROLE_BINDINGS, "oil-a", name_of(binding))
    elif damage == "subjects":
        cluster.store.update(ROLE_BINDINGS, {**binding, "subjects": []})
    else:
        cluster.store.update(ROLE_BINDINGS, {**binding, "metadata": {**binding["metadata"], "labels": {}}})

    cluster.settle()

    repaired = cluster.store.get(ROLE_BINDINGS, "oil-a", name_of(binding))
    assert repaired is not None
    assert repaired["subjects"] == binding["subjects"]
    assert labels_of(repaired) == labels_of(binding)


def test_a_role_binding_of_somebody_else_is_left_alone_and_one_with_capsule_s_label_is_pruned(
    cluster: Cluster,
) -> None:
    cluster.namespace("oil-a")
    body: Object = {"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": []}
    labels = {"capsule.clastix.io/role-binding": "stale"}
    cluster.store.create(ROLE_BINDINGS, body | {"metadata": {"name": "mine", "namespace": "oil-a"}})
    cluster.store.create(ROLE_BINDINGS, body | {"metadata": {"name": "stale", "namespace": "oil-a", "labels": labels}})

    cluster.settle()

    assert cluster.store.get(ROLE_BINDINGS, "oil-a", "mine") is not None
    assert cluster.store.get(ROLE_BINDINGS, "oil-a", "stale") is None


def test_an_owner_with_a_malformed_account_name_gets_nothing_and_breaks_nothing(cluster: Cluster) -> None:
    cluster.tenant(owners=[{"kind": "ServiceAccount", "name": "gitops"}, {"kind": "User", "name": "dana"}])

    cluster.namespace("oil-a")

    assert cluster.roles("oil-a") == ["admin", "capsule-namespace-deleter"]
    assert condition(cluster.status(), "Ready") == ("True", "Succeeded")


def test_a_tenant_without_owners_is_ready(cluster: Cluster) -> None:
    cluster.put("tenants", "empty", {})

    assert cluster.status("empty")["owners"] == []


def test_every_capsule_user_may_create_and_patch_namespaces_and_nobody_else(cluster: Cluster) -> None:
    assert not cluster.may("create", "namespaces")

    cluster.put(
        "capsuleconfigurations",
        "default",
        {
            "userGroups": ["system:serviceaccounts:oil-system"],
            "userNames": ["dana", "system:serviceaccount:default:robot"],
            "users": [{"kind": "User", "name": "eve"}],
            "administrators": [{"kind": "User", "name": "root"}],
        },
    )

    for user in (
        GITOPS,
        *(UserInfo(username=name) for name in ("dana", "eve", "root", "system:serviceaccount:default:robot")),
    ):
        assert cluster.may("create", "namespaces", user=user)
        assert cluster.may("patch", "namespaces", "default", user=user)
        assert not cluster.may("delete", "namespaces", "default", user=user)
        assert not cluster.may("list", "namespaces", user=user)
    assert not cluster.may("create", "namespaces", user=UserInfo(username="stranger"))
    status = cluster.get("capsuleconfigurations", "default")["status"]
    assert status["users"] == [
        {"kind": "Group", "name": "system:serviceaccounts:oil-system"},
        {"kind": "ServiceAccount", "name": "system:serviceaccount:default:robot"},
        {"kind": "User", "name": "dana"},
        {"kind": "User", "name": "eve"},
    ]
    assert status["tenants"] == ["oil"]


def test_a_user_who_leaves_the_configuration_loses_the_right_to_create(cluster: Cluster) -> None:
    cluster.put("capsuleconfigurations", "default", {"userGroups": ["system:serviceaccounts:oil-system"]})
    assert cluster.may("create", "namespaces")

    cluster.put("capsuleconfigurations", "default", {"userGroups": []})

    assert not cluster.may("create", "namespaces")


def test_the_names_of_the_roles_follow_the_configuration(cluster: Cluster) -> None:
    cluster.put("capsuleconfigurations", "default", {"rbac": {"provisioner": "makers", "deleter": "breakers"}})

    names = {name_of(role) for role in cluster.store.list(CLUSTER_ROLES)}

    assert {"makers", "breakers"} <= names
    assert not {"capsule-namespace-provisioner", "capsule-namespace-deleter"} & names
    assert cluster.store.get(CLUSTER_ROLE_BINDINGS, "", "makers") is not None


def test_a_deleted_role_comes_back(cluster: Cluster) -> None:
    cluster.store.delete(CLUSTER_ROLES, "", "capsule-namespace-deleter")

    cluster.settle()

    assert cluster.store.get(CLUSTER_ROLES, "", "capsule-namespace-deleter") is not None


def test_a_cordon_labels_the_namespaces_and_is_lifted_again(cluster: Cluster) -> None:
    cluster.namespace("oil-a")

    cluster.tenant(cordoned=True)
    assert (cluster.status()["state"], condition(cluster.status(), "Cordoned")) == ("Cordoned", ("True", "Cordoned"))
    namespace = cluster.store.get(NAMESPACES, "", "oil-a")
    assert namespace is not None
    assert labels_of(namespace)["projectcapsule.dev/cordoned"] == "true"

    cluster.tenant(cordoned=False)
    assert cluster.status()["state"] == "Active"
    namespace = cluster.store.get(NAMESPACES, "", "oil-a")
    assert namespace is not None
    assert "projectcapsule.dev/cordoned" not in labels_of(namespace)


def test_what_kubernetes_puts_into_a_tenant_namespace_is_labelled(cluster: Cluster) -> None:
    cluster.namespace("oil-a")

    for kind, name in ((SERVICE_ACCOUNTS, "default"), (CONFIG_MAPS, "kube-root-ca.crt")):
        obj = cluster.store.get(kind, "oil-a", name)
        assert obj is not None
        assert labels_of(obj) == {"capsule.clastix.io/managed-by": "oil", "projectcapsule.dev/tenant": "oil"}


def test_a_promoted_account_owns_while_the_configuration_and_the_tenant_allow_it(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    labels = {"owner.projectcapsule.dev/promote": "true"}
    cluster.store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "app", "namespace": "oil-a", "labels": labels}})
    app: dict[str, Any] = {
        "kind": "ServiceAccount",
        "name": "system:serviceaccount:oil-a:app",
        "clusterRoles": ["capsule-namespace-provisioner", "capsule-namespace-deleter"],
    }
    cluster.settle()
    assert app not in cluster.status()["owners"]

    cluster.put("capsuleconfigurations", "default", {"allowServiceAccountPromotion": True})
    assert app not in cluster.status()["owners"]

    cluster.tenant(permissions={"allowOwnerPromotion": True})
    assert app in cluster.status()["owners"]
    assert cluster.may("create", "namespaces", user=UserInfo(username=app["name"]))

    cluster.tenant(permissions={"allowOwnerPromotion": False})
    assert app not in cluster.status()["owners"]


def test_a_namespace_that_only_claims_a_tenant_gets_nothing(cluster: Cluster) -> None:
    cluster.store.create(NAMESPACES, {"metadata": {"name": "fake", "labels": {TENANT: "oil"}}})

    cluster.settle()

    assert cluster.roles("fake") == []
    assert cluster.status()["namespaces"] == []


def test_a_deleted_tenant_takes_its_namespaces_along_and_goes_after_them(cluster: Cluster) -> None:
    cluster.namespace("oil-a")
    held = {"name": "held", "namespace": "oil-a", "finalizers": ["example.com/hold"]}
    cluster.store.create(CONFIG_MAPS, {"metadata": held})

    cluster.store.delete(cluster.kind("tenants"), "", "oil")
    cluster.settle()

    status = cluster.status()
    assert status["state"] == "Terminating"
    assert condition(status["spaces"][0], "Terminating")[0] == "True"
    cluster.store.update(CONFIG_MAPS, {"metadata": {"name": "held", "namespace": "oil-a"}})
    cluster.settle()

    assert cluster.store.get(cluster.kind("tenants"), "", "oil") is None
    assert cluster.store.get(NAMESPACES, "", "oil-a") is None
    assert cluster.store.get(NAMESPACES, "", "oil-system") is not None


async def wait_until(api: EmbeddedApi, allowed: Callable[[], tuple[bool, str]]) -> None:
    """Wait for changes of the state until RBAC allows."""
    changes = api.store.changes()
    async with asyncio.timeout(10):
        while not allowed()[0]:
            await changes.wait()
            changes.pending()
    changes.close()


async def test_a_fresh_cluster_has_no_configuration(client: Client) -> None:
    assert await client.names(f"/apis/{GROUP}/v1beta2/capsuleconfigurations") == []


async def test_the_guide_s_tenant_works_through_the_api(api: EmbeddedApi, client: Any) -> None:
    """Given the guide's objects, when its account makes and keeps its namespaces, then it stays inside its Tenant."""
    capsule_path = f"/apis/{GROUP}/v1beta2"
    as_gitops = {"Impersonate-User": ACCOUNT}
    await client.post("/api/v1/namespaces", {"metadata": {"name": "oil-system"}})
    await client.post("/api/v1/namespaces/oil-system/serviceaccounts", {"metadata": {"name": "gitops"}})
    configuration = {
        "apiVersion": f"{GROUP}/v1beta2",
        "kind": "CapsuleConfiguration",
        "metadata": {"name": "default"},
        "spec": {"userGroups": ["capsule.clastix.io", "system:serviceaccounts:oil-system"]},
    }
    tenant = {
        "apiVersion": f"{GROUP}/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": "oil"},
        "spec": {"owners": [OWNER]},
    }
    assert (await client.post(f"{capsule_path}/capsuleconfigurations", configuration)).status == 201
    made = await client.post(f"{capsule_path}/tenants", tenant)
    assert made.body["spec"]["owners"][0]["clusterRoles"] == ["admin", "capsule-namespace-deleter"]
    await wait_until(
        api, lambda: api.authorizer.authorize(Attributes(user=GITOPS, verb="create", resource="namespaces"))
    )

    production = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "oil-production"}}
    for expected in (201, 200):  # what Flux does again and again
        applied = await client.request(
            "PATCH",
            "/api/v1/namespaces/oil-production",
            json=production,
            params={"fieldManager": "kustomize-controller", "force": "true"},
            headers={**as_gitops, "Content-Type": "application/apply-patch+yaml"},
        )
        assert applied.status == expected
        assert applied.body["metadata"]["labels"][TENANT] == "oil"
        assert applied.body["metadata"]["ownerReferences"][0]["name"] == "oil"
    secrets = Attributes(user=GITOPS, verb="get", resource="secrets", namespace="oil-production")
    await wait_until(api, lambda: api.authorizer.authorize(secrets))

    patched = await client.request(
        "PATCH",
        "/api/v1/namespaces/default",
        json={"metadata": {"labels": {TENANT: "oil"}}},
        headers={**as_gitops, "Content-Type": "application/merge-patch+json"},
    )
    assert patched.status == 500
    assert "no Tenant ownerReference" in patched.body["message"]
    listed = await client.get("/api/v1/namespaces", headers=as_gitops)
    assert listed.status == 403
    deleted = await client.delete("/api/v1/namespaces/oil-production", headers=as_gitops)
    assert deleted.status == 200
