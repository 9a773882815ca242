"""Capsule's webhooks: who gets which namespace, and every refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tether.devcluster import bootstrap, capsule
from tether.devcluster.capsule_crds import GROUP
from tether.devcluster.contracts import AdmissionRequest, ApiError, Object, Operation, UserInfo
from tether.devcluster.objects import clone, labels_of
from tether.devcluster.rbac import ROLE_BINDINGS
from tether.devcluster.resources import CONFIG_MAPS, CRDS, NAMESPACES, SERVICE_ACCOUNTS
from tether.devcluster.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tether.devcluster.contracts import Resource

TENANT = "capsule.clastix.io/tenant"
ADMIN = UserInfo(username="root", groups=("system:masters", "system:authenticated"))
GITOPS = UserInfo(
    username="system:serviceaccount:oil-system:gitops",
    groups=("system:serviceaccounts", "system:serviceaccounts:oil-system", "system:authenticated"),
)
DANA = UserInfo(username="dana", groups=("capsule-users", "system:authenticated"))
STRANGER = UserInfo(username="stranger", groups=("capsule-users", "system:authenticated"))
OUTSIDER = UserInfo(username="outsider", groups=("system:authenticated",))
CONTROLLER = UserInfo(username="system:serviceaccount:capsule-system:capsule")


class Cluster:
    """A store behind Capsule's admission, without HTTP and RBAC."""

    def __init__(self, *, validate_tenants: bool = True) -> None:
        self.store = Store()
        bootstrap.apply(self.store)
        for definition in capsule.CAPSULE_CRDS:
            self.store.create(CRDS, definition)
        self.admit = capsule.admission(self.store, validate_tenants=validate_tenants)

    def kind(self, plural: str) -> Resource:
        found = self.store.resource(GROUP, plural)
        assert found is not None
        return found

    def configure(self, **spec: Any) -> None:
        """Set the CapsuleConfiguration; the group capsule-users and oil's accounts are users in any case."""
        groups = ["capsule-users", "system:serviceaccounts:oil-system"]
        body = self._body("default", {"userGroups": groups, **spec})
        self._put(self.kind("capsuleconfigurations"), body)

    def tenant(self, name: str, *owners: str, **spec: Any) -> Object:
        """Create or change a Tenant, owners as ``Kind/name``, behind the webhooks' back."""
        listed = [dict(zip(("kind", "name"), owner.split("/"), strict=True)) for owner in owners]
        return self._put(self.kind("tenants"), self._body(name, {"owners": listed, **spec}))

    def create(self, resource: Resource, obj: Object, user: UserInfo) -> Object:
        new: Object = clone(obj)
        self._ask("CREATE", resource, new, None, user)
        return self.store.create(resource, new)

    def update(self, resource: Resource, obj: Object, user: UserInfo) -> Object:
        new: Object = clone(obj)
        meta = new["metadata"]
        old = self.store.get(resource, meta.get("namespace", ""), meta["name"])
        self._ask("UPDATE", resource, new, old, user)
        return self.store.update(resource, new)

    def delete(self, resource: Resource, name: str, user: UserInfo, *, namespace: str = "") -> None:
        old = self.store.get(resource, namespace, name)
        assert old is not None
        self._ask("DELETE", resource, None, old, user)
        self.store.delete(resource, namespace, name)

    def namespace(self, name: str, user: UserInfo, **metadata: Any) -> Object:
        return self.create(NAMESPACES, {"metadata": {"name": name, **metadata}}, user)

    def config_map(self, namespace: str, user: UserInfo) -> Object:
        return self.create(CONFIG_MAPS, {"metadata": {"name": "one", "namespace": namespace}}, user)

    def _body(self, name: str, spec: Object) -> Object:
        return {"apiVersion": f"{GROUP}/v1beta2", "metadata": {"name": name}, "spec": spec}

    def _put(self, resource: Resource, body: Object) -> Object:
        if self.store.get(resource, "", body["metadata"]["name"]) is None:
            return self.store.create(resource, body)
        return self.store.update(resource, body)

    def _ask(
        self, operation: Operation, resource: Resource, obj: Object | None, old: Object | None, user: UserInfo
    ) -> None:
        meta = (obj or old or {})["metadata"]
        self.admit(
            AdmissionRequest(
                operation=operation,
                resource=resource,
                subresource="",
                namespace=meta.get("namespace", ""),
                name=meta["name"],
                user=user,
                obj=obj,
                old=old,
            ),
        )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.configure()
    cluster.store.create(NAMESPACES, {"metadata": {"name": "oil-system"}})
    cluster.tenant("oil", "ServiceAccount/system:serviceaccount:oil-system:gitops")
    yield cluster
    cluster.store.close()


def denied(call: Any, *arguments: Any, code: int = 403, **keywords: Any) -> str:
    """Return the message with which a call is denied."""
    with pytest.raises(ApiError) as caught:
        call(*arguments, **keywords)
    assert (caught.value.code, caught.value.reason) == (code, "Forbidden" if code == 403 else "")
    assert "denied the request: " in caught.value.message
    return caught.value.message


def test_an_owner_s_namespace_gets_reference_and_label_of_its_tenant(cluster: Cluster) -> None:
    oil = cluster.tenant("oil", "ServiceAccount/system:serviceaccount:oil-system:gitops")

    namespace = cluster.namespace("production", GITOPS)

    assert namespace["metadata"]["ownerReferences"] == [
        {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "oil", "uid": oil["metadata"]["uid"]}
    ]
    assert namespace["metadata"]["labels"] == {TENANT: "oil", "kubernetes.io/metadata.name": "production"}


@pytest.mark.parametrize("owner", ["User/dana", "Group/capsule-users"])
def test_users_and_groups_own_too(cluster: Cluster, owner: str) -> None:
    cluster.tenant("gas", owner)

    namespace = cluster.namespace("gas-production", DANA)

    assert labels_of(namespace)[TENANT] == "gas"


@pytest.mark.parametrize("how", ["label", "matchLabels", "matchExpressions"])
def test_a_tenant_owner_owns_by_label_or_selector(cluster: Cluster, how: str) -> None:
    labels = {"projectcapsule.dev/tenant": "gas"} if how == "label" else {"team": "gas"}
    selectors: dict[str, Object] = {
        "label": {"matchLabels": {"never": "matches"}},
        "matchLabels": {"matchLabels": {"team": "gas"}},
        "matchExpressions": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["gas"]}]},
    }
    owner = {
        "apiVersion": f"{GROUP}/v1beta2",
        "metadata": {"name": "dana", "labels": labels},
        "spec": {"kind": "User", "name": "dana"},
    }
    cluster.store.create(cluster.kind("tenantowners"), owner)
    cluster.tenant("gas", permissions={"matchOwners": [selectors[how]]})

    assert labels_of(cluster.namespace("gas-production", DANA))[TENANT] == "gas"


def test_a_tenant_owner_is_a_capsule_user_unless_it_does_not_aggregate(cluster: Cluster) -> None:
    kind = cluster.kind("tenantowners")
    spec = {"kind": "User", "name": "outsider"}
    owner = {
        "apiVersion": f"{GROUP}/v1beta2",
        "metadata": {"name": "o", "labels": {"projectcapsule.dev/tenant": "oil"}},
        "spec": spec,
    }
    made = cluster.store.create(kind, owner)
    assert labels_of(cluster.namespace("one", OUTSIDER))[TENANT] == "oil"

    cluster.store.update(kind, {**made, "spec": {**spec, "aggregate": False}})

    assert TENANT not in labels_of(cluster.namespace("two", OUTSIDER))


def test_a_tenant_owner_without_a_spec_names_nobody_and_stops_nobody(cluster: Cluster) -> None:
    cluster.store.create(
        cluster.kind("tenantowners"),
        {
            "apiVersion": f"{GROUP}/v1beta2",
            "metadata": {"name": "o", "labels": {"projectcapsule.dev/tenant": "gas"}},
        },
    )
    cluster.tenant("gas", "User/dana")

    assert labels_of(cluster.namespace("one", DANA))[TENANT] == "gas"
    assert "You do not have any Tenant assigned" in denied(cluster.namespace, "mine", STRANGER)


def test_a_capsule_user_without_a_tenant_gets_no_namespace(cluster: Cluster) -> None:
    assert "You do not have any Tenant assigned" in denied(cluster.namespace, "mine", STRANGER)


def test_somebody_who_is_no_capsule_user_makes_plain_namespaces(cluster: Cluster) -> None:
    for user in (ADMIN, OUTSIDER):
        namespace = cluster.namespace(user.username, user)
        assert TENANT not in labels_of(namespace)
        assert "ownerReferences" not in namespace["metadata"]


def test_an_owner_that_is_no_capsule_user_makes_plain_namespaces(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/outsider")

    assert TENANT not in labels_of(cluster.namespace("gas-production", OUTSIDER))


def test_nobody_else_makes_a_namespace_of_a_tenant(cluster: Cluster) -> None:
    oil = cluster.tenant("oil", "User/dana")
    reference = {"apiVersion": f"{GROUP}/v1beta2", "kind": "Tenant", "name": "oil", "uid": oil["metadata"]["uid"]}

    whole: Object = {"labels": {TENANT: "oil"}, "ownerReferences": [reference]}
    for user in (ADMIN, OUTSIDER):
        assert "only tenant owners" in denied(cluster.namespace, "stolen", user, **whole)
        for part in whole:
            words = denied(cluster.namespace, "stolen", user, code=500, **{part: whole[part]})
            assert "no tenant" in words.lower()


def test_an_administrator_of_capsule_gives_a_namespace_to_a_tenant(cluster: Cluster) -> None:
    cluster.configure(administrators=[{"kind": "User", "name": "root"}])

    namespace = cluster.namespace("given", ADMIN, labels={TENANT: "oil"})

    assert namespace["metadata"]["ownerReferences"][0]["name"] == "oil"


def test_of_several_tenants_the_label_decides(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana")
    cluster.tenant("oil", "User/dana")

    assert labels_of(cluster.namespace("one", DANA, labels={TENANT: "gas"}))[TENANT] == "gas"
    assert labels_of(cluster.namespace("two", DANA, labels={TENANT: "oil"}))[TENANT] == "oil"


def test_of_several_tenants_the_longest_prefix_of_the_name_decides(cluster: Cluster) -> None:
    cluster.tenant("oil", "User/dana")
    cluster.tenant("oil-gas", "User/dana")

    assert labels_of(cluster.namespace("oil-gas-production", DANA))[TENANT] == "oil-gas"
    assert labels_of(cluster.namespace("oil-production", DANA))[TENANT] == "oil"


def test_of_several_tenants_none_is_guessed(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana")
    cluster.tenant("oil", "User/dana")

    assert f"Please use {TENANT} label" in denied(cluster.namespace, "production", DANA)


def test_the_label_of_a_tenant_that_is_not_owned_is_refused(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana")

    assert "non-owned Tenant: oil" in denied(cluster.namespace, "x", DANA, code=400, labels={TENANT: "oil"})
    assert "non-owned Tenant: absent" in denied(cluster.namespace, "x", DANA, code=400, labels={TENANT: "absent"})


def test_a_reference_to_a_tenant_must_be_to_an_owned_one_with_its_uid(cluster: Cluster) -> None:
    gas = cluster.tenant("gas", "User/dana")
    reference = {"apiVersion": f"{GROUP}/v1beta2", "kind": "Tenant", "name": "gas", "uid": gas["metadata"]["uid"]}

    for wrong in ({"uid": "another"}, {"name": "oil"}):
        message = denied(cluster.namespace, "x", DANA, code=400, ownerReferences=[reference | wrong])
        assert "non-owned Tenant" in message
    assert "one Tenant" in denied(cluster.namespace, "x", DANA, ownerReferences=[reference, reference | {"uid": "2"}])
    assert labels_of(cluster.namespace("x", DANA, ownerReferences=[reference]))[TENANT] == "gas"


@pytest.mark.parametrize(
    ("configured", "own", "refused"),
    [(True, None, True), (False, True, True), (True, False, False), (False, None, False), (False, False, False)],
)
def test_the_tenant_s_prefix_is_forced_by_the_tenant_or_else_the_configuration(
    cluster: Cluster, configured: bool | None, own: bool | None, *, refused: bool
) -> None:
    cluster.configure(forceTenantPrefix=configured)
    cluster.tenant("gas", "User/dana", **({} if own is None else {"forceTenantPrefix": own}))

    if refused:
        assert "expected gas-production" in denied(cluster.namespace, "production", DANA)
        assert "prefix" in denied(cluster.namespace, "gasproduction", DANA)
    else:
        cluster.namespace("production", DANA)
    assert labels_of(cluster.namespace("gas-production", DANA))[TENANT] == "gas"


def test_the_quota_of_namespaces_is_a_limit(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana", namespaceOptions={"quota": 2})
    cluster.namespace("gas-1", DANA)
    cluster.namespace("gas-2", DANA)

    assert "quota" in denied(cluster.namespace, "gas-3", DANA)

    cluster.delete(NAMESPACES, "gas-2", ADMIN)
    cluster.store.update(NAMESPACES, {"metadata": {"name": "gas-2"}, "spec": {}}, subresource="finalize")
    cluster.namespace("gas-3", DANA)


def test_a_cordoned_tenant_gets_no_namespace(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana", cordoned=True)

    assert "cordoned" in denied(cluster.namespace, "gas-production", DANA)


def test_a_tenant_that_is_being_deleted_gets_no_namespace(cluster: Cluster) -> None:
    tenant = cluster.tenant("gas", "User/dana")
    held = {**tenant, "metadata": {**tenant["metadata"], "finalizers": ["example.com/hold"]}}
    cluster.store.update(cluster.kind("tenants"), held)
    cluster.store.delete(cluster.kind("tenants"), "", "gas")

    assert "being deleted" in denied(cluster.namespace, "gas-production", DANA)


def test_protected_names_are_refused_to_capsule_users_alone(cluster: Cluster) -> None:
    cluster.configure(protectedNamespaceRegex="^kube-|-system$")

    assert "not allowed" in denied(cluster.namespace, "gas-system", GITOPS)
    cluster.namespace("gas-system", ADMIN)
    cluster.namespace("gas-systems", GITOPS)


def test_a_protected_expression_that_does_not_compile_lets_nothing_pass(cluster: Cluster) -> None:
    cluster.configure(protectedNamespaceRegex="(")

    assert "protectedNamespaceRegex" in denied(cluster.namespace, "x", GITOPS)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {}},
        {"labels": {TENANT: "gas"}},
        {"ownerReferences": []},
        {"labels": {}, "ownerReferences": []},
    ],
)
def test_nobody_moves_a_namespace_out_of_its_tenant(cluster: Cluster, change: Object) -> None:
    cluster.tenant("gas", "User/dana")
    made = cluster.namespace("production", GITOPS)
    changed = {**made, "metadata": {**made["metadata"], **change}}

    for user in (DANA, ADMIN, OUTSIDER):
        with pytest.raises(ApiError) as caught:
            cluster.update(NAMESPACES, changed, user)
        assert caught.value.code in {403, 500}
    kept = cluster.update(NAMESPACES, changed, GITOPS)  # what an owner strips is put back
    assert (kept["metadata"]["labels"][TENANT], kept["metadata"]["ownerReferences"][0]["name"]) == ("oil", "oil")
    changed["metadata"].pop("resourceVersion", None)
    cluster.update(NAMESPACES, changed, CONTROLLER)


def test_nobody_takes_a_namespace_into_a_tenant(cluster: Cluster) -> None:
    made = cluster.namespace("plain", ADMIN)
    oil = cluster.tenant("oil", "ServiceAccount/system:serviceaccount:oil-system:gitops")
    reference = {"apiVersion": f"{GROUP}/v1beta2", "kind": "Tenant", "name": "oil", "uid": oil["metadata"]["uid"]}

    whole: Object = {"labels": {TENANT: "oil"}, "ownerReferences": [reference]}
    for user in (GITOPS, ADMIN):
        changed = {**made, "metadata": {**made["metadata"], **whole}}
        assert "cannot be added, changed or removed" in denied(cluster.update, NAMESPACES, changed, user)
        for part in whole:
            changed = {**made, "metadata": {**made["metadata"], part: whole[part]}}
            assert "no tenant" in denied(cluster.update, NAMESPACES, changed, user, code=500).lower()


def test_a_namespace_whose_ownership_is_incomplete_is_touched_by_administrators_alone(cluster: Cluster) -> None:
    broken = cluster.store.create(NAMESPACES, {"metadata": {"name": "broken", "labels": {TENANT: "oil"}}})
    changed = {**broken, "metadata": {**broken["metadata"], "annotations": {"a": "b"}}}

    assert "incomplete" in denied(cluster.update, NAMESPACES, changed, ADMIN)

    cluster.configure(administrators=[{"kind": "User", "name": "root"}])
    repaired = cluster.update(NAMESPACES, changed, ADMIN)
    assert repaired["metadata"]["ownerReferences"][0]["name"] == "oil"


def test_an_owner_changes_and_deletes_its_own_namespaces_and_no_others(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana")
    own, other = cluster.namespace("oil-1", GITOPS), cluster.namespace("gas-1", DANA)
    plain = cluster.namespace("plain", ADMIN)

    def annotated(namespace: Object) -> Object:
        return {**namespace, "metadata": {**namespace["metadata"], "annotations": {"a": "b"}}}

    cluster.update(NAMESPACES, annotated(own), GITOPS)
    for namespace in (other, plain):
        assert "do not own" in denied(cluster.update, NAMESPACES, annotated(namespace), GITOPS)
        assert "do not own" in denied(cluster.delete, NAMESPACES, namespace["metadata"]["name"], GITOPS)
    cluster.delete(NAMESPACES, "oil-1", GITOPS)
    cluster.update(NAMESPACES, annotated(plain), ADMIN)
    cluster.delete(NAMESPACES, "plain", ADMIN)


def test_objects_in_a_tenant_namespace_are_labelled_whoever_writes_them(cluster: Cluster) -> None:
    cluster.namespace("oil-1", GITOPS)

    labels = labels_of(cluster.config_map("oil-1", ADMIN))

    assert labels == {"capsule.clastix.io/managed-by": "oil", "projectcapsule.dev/tenant": "oil"}
    assert labels_of(cluster.config_map("default", ADMIN)) == {}


def test_the_label_of_a_tenant_alone_makes_no_tenant_namespace(cluster: Cluster) -> None:
    cluster.store.create(NAMESPACES, {"metadata": {"name": "fake", "labels": {TENANT: "oil"}}})

    assert labels_of(cluster.config_map("fake", ADMIN)) == {}


def test_events_are_not_labelled(cluster: Cluster) -> None:
    cluster.namespace("oil-1", GITOPS)
    events = cluster.store.resource("", "events")
    assert events is not None

    event = cluster.create(events, {"metadata": {"name": "one", "namespace": "oil-1"}}, ADMIN)

    assert labels_of(event) == {}


@pytest.mark.parametrize("by", ["tenant", "namespace"])
def test_a_cordon_stops_the_writes_of_capsule_users_alone(cluster: Cluster, by: str) -> None:
    account = "ServiceAccount/system:serviceaccount:oil-system:gitops"
    namespace = cluster.namespace("oil-1", GITOPS)
    made = cluster.config_map("oil-1", GITOPS)
    if by == "tenant":
        cluster.tenant("oil", account, cordoned=True)
    else:
        labels = {**labels_of(namespace), "projectcapsule.dev/cordoned": "true"}
        cluster.store.update(NAMESPACES, {**namespace, "metadata": {**namespace["metadata"], "labels": labels}})

    assert "cordoned" in denied(cluster.config_map, "oil-1", GITOPS)
    assert "cordoned" in denied(cluster.update, CONFIG_MAPS, made, GITOPS)
    assert "cordoned" in denied(cluster.delete, CONFIG_MAPS, "one", GITOPS, namespace="oil-1")
    assert "cordoned" in denied(cluster.delete, NAMESPACES, "oil-1", GITOPS)
    cluster.update(CONFIG_MAPS, {**made, "data": {"a": "b"}}, ADMIN)
    cluster.delete(CONFIG_MAPS, "one", ADMIN, namespace="oil-1")


def test_an_account_in_a_tenant_namespace_is_a_capsule_user_and_one_of_kube_system_never(cluster: Cluster) -> None:
    cluster.namespace("oil-1", GITOPS)
    cluster.tenant("oil", "ServiceAccount/system:serviceaccount:oil-system:gitops", cordoned=True)
    inside = UserInfo(username="system:serviceaccount:oil-1:app", groups=("system:serviceaccounts:oil-1",))
    system = UserInfo(
        username="system:serviceaccount:kube-system:gc", groups=("system:serviceaccounts:kube-system", "capsule-users")
    )

    assert "cordoned" in denied(cluster.config_map, "oil-1", inside)
    cluster.config_map("oil-1", system)


def test_a_user_of_an_ignored_group_is_no_capsule_user(cluster: Cluster) -> None:
    cluster.configure(ignoreUserWithGroups=["system:masters"])
    both = UserInfo(username="dana", groups=("capsule-users", "system:masters"))

    assert TENANT not in labels_of(cluster.namespace("plain", both))


@pytest.mark.parametrize("field", ["users", "userNames"])
def test_single_users_and_accounts_are_capsule_users_by_name(cluster: Cluster, field: str) -> None:
    name = "system:serviceaccount:default:robot"
    cluster.configure(
        userGroups=[], **{field: [name if field == "userNames" else {"kind": "ServiceAccount", "name": name}]}
    )

    assert "any Tenant" in denied(cluster.namespace, "mine", UserInfo(username=name))


def test_what_capsule_s_controller_manages_is_written_by_it_alone(cluster: Cluster) -> None:
    cluster.namespace("oil-1", GITOPS)
    labels = {"projectcapsule.dev/managed-by": "controller"}
    body: Object = {
        "metadata": {"name": "one", "namespace": "oil-1", "labels": labels},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [],
    }
    assert "managed by Capsule" in denied(cluster.create, ROLE_BINDINGS, body, ADMIN)
    made = cluster.create(ROLE_BINDINGS, body, CONTROLLER)

    stripped = {**made, "metadata": {"name": "one", "namespace": "oil-1"}}
    assert "managed by Capsule" in denied(cluster.update, ROLE_BINDINGS, stripped, ADMIN)
    assert "managed by Capsule" in denied(cluster.delete, ROLE_BINDINGS, "one", GITOPS, namespace="oil-1")
    cluster.delete(ROLE_BINDINGS, "one", CONTROLLER, namespace="oil-1")


def test_only_an_owner_promotes_an_account_and_it_owns_where_that_is_allowed(cluster: Cluster) -> None:
    cluster.namespace("oil-1", GITOPS)
    labels = {"owner.projectcapsule.dev/promote": "true"}
    account: Object = {"metadata": {"name": "app", "namespace": "oil-1", "labels": labels}}
    app = UserInfo(username="system:serviceaccount:oil-1:app", groups=("system:serviceaccounts:oil-1",))
    assert "promotion is disabled." in denied(cluster.create, SERVICE_ACCOUNTS, account, GITOPS)

    cluster.configure(allowServiceAccountPromotion=True)
    assert "disabled for this tenant" in denied(cluster.create, SERVICE_ACCOUNTS, account, GITOPS)

    cluster.tenant("oil", "ServiceAccount/" + GITOPS.username, permissions={"allowOwnerPromotion": True})
    assert "not allowed to promote" in denied(cluster.create, SERVICE_ACCOUNTS, account, ADMIN)
    cluster.create(SERVICE_ACCOUNTS, account, GITOPS)

    assert labels_of(cluster.namespace("more", app))[TENANT] == "oil"


@pytest.mark.parametrize("name", ["gitops", "system:serviceaccount:oil-system", "system:serviceaccount:a:b:c"])
@pytest.mark.parametrize("plural", ["tenants", "tenantowners"])
def test_the_name_of_an_owning_account_has_four_colon_parts(cluster: Cluster, plural: str, name: str) -> None:
    owner = {"kind": "ServiceAccount", "name": name}
    body: Object = {"metadata": {"name": "new"}, "spec": {"owners": [owner]} if plural == "tenants" else owner}

    message = denied(cluster.create, cluster.kind(plural), body, ADMIN)

    assert name in message
    assert "system:serviceaccount:<namespace>:<name>" in message


def test_malformed_tenants_can_exist_when_their_validation_is_off() -> None:
    cluster = Cluster(validate_tenants=False)
    body: Object = {
        "apiVersion": f"{GROUP}/v1beta2",
        "metadata": {"name": "new"},
        "spec": {"owners": [{"kind": "ServiceAccount", "name": "gitops"}]},
    }

    cluster.configure()

    cluster.create(cluster.kind("tenants"), body, ADMIN)

    assert "any Tenant" in denied(cluster.namespace, "x", GITOPS)
    cluster.store.close()


def test_a_protected_tenant_is_not_deleted(cluster: Cluster) -> None:
    cluster.tenant("gas", "User/dana", preventDeletion=True)

    assert "preventDeletion" in denied(cluster.delete, cluster.kind("tenants"), "gas", ADMIN)
    cluster.delete(cluster.kind("tenants"), "oil", ADMIN)
